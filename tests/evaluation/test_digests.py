"""Digests of code: what numbers depend on changes them, comments do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation import digests
from evaluation.digests import harness_digest, source_digest
from evaluation.plugins import load_plugins
from tests.evaluation import toy
from variants.core import method, registry

SOURCE = '''
from dataclasses import dataclass
from variants.lora import LoRA

@dataclass(frozen=True, kw_only=True)
class Mine(LoRA):
    """Mine."""

    def weight(self, W, t):
        return W + 2 * t["B"] @ t["A"]{more}
'''


def digest(tmp_path: Path, text: str, name: str) -> str:
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
        return source_digest(module.Mine)
    finally:
        del sys.modules[name]


def test_the_digest_is_that_of_the_code_without_comments(tmp_path):
    plain = digest(tmp_path, SOURCE.format(more=""), "mine_1")
    assert digest(tmp_path, SOURCE.format(more="  # a comment\n\n\n# and more"), "mine_2") == plain
    assert digest(tmp_path, SOURCE.format(more="").replace("2 *", "3 *"), "mine_3") != plain
    assert digest(tmp_path, SOURCE.format(more=" + 0"), "mine_4") != plain


def test_plugins_of_the_same_file_name_keep_their_own_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    for name, factor in (("first", 2), ("second", 3)):
        (tmp_path / name).mkdir()
        text = (
            SOURCE.format(more="")
            .replace("2 *", f"{factor} *")
            .replace("@dataclass", f"@register('{name}')\n@dataclass")
        )
        (tmp_path / name / "mine.py").write_text("from variants.core import register\n" + text)
    files = [tmp_path / name / "mine.py" for name in ("first", "second")]
    load_plugins(files)
    found = [source_digest(method(name)) for name in ("first", "second")]
    assert found[0] != found[1]
    load_plugins(files)  # once more, as every worker does
    assert [source_digest(method(name)) for name in ("first", "second")] == found


def test_the_digest_covers_what_a_method_extends(monkeypatch):
    before = {name: source_digest(method(name)) for name in toy.METHODS}
    assert len(set(before.values())) == len(before)
    getsource = digests.inspect.getsource

    def edited(module: Any) -> str:
        return getsource(module) + ("\nedited = 1" if module.__name__ == edits else "")

    monkeypatch.setattr(digests.inspect, "getsource", edited)
    edits = "variants.lora"
    after = {name: source_digest(method(name)) for name in toy.METHODS}
    assert {name for name in before if before[name] != after[name]} == {"dora", "lora"}
    edits = "variants.core.lowrank"
    after = {name: source_digest(method(name)) for name in toy.METHODS}
    assert {name for name in before if before[name] != after[name]} == {
        "dora",
        "lora",
        "lora_xs",
        "milora",
        "pissa",
        "stiefel",
    }


def test_other_code_or_libraries_change_every_key(monkeypatch):
    before = harness_digest()
    assert harness_digest() == before
    monkeypatch.setattr(digests, "version", lambda name: f"another {name}")
    assert harness_digest() != before


@pytest.mark.parametrize(
    "part", ["measures/score.py", "measures/merging/drift.py", "training.py", "benchmarks/splits.py"]
)
def test_other_measuring_code_changes_the_digest(monkeypatch, part):
    before, read = harness_digest(), Path.read_text
    file = Path(digests.__file__).parent / part

    def changed(path: Path, **options: Any) -> str:
        return read(path, **options) + ("\nMORE = 1\n" if path == file else "")

    monkeypatch.setattr(Path, "read_text", changed)
    assert harness_digest() != before


def test_the_digest_covers_what_a_plugin_imports_of_its_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    plugin = tmp_path / "with_helper.py"
    plugin.write_text(
        "from own_helper import FACTOR\nfrom variants.core import register\n"
        + SOURCE.format(more="").replace("@dataclass", "@register('with_helper')\n@dataclass")
    )
    found = []
    for factor in (1, 2, 1):
        (tmp_path / "own_helper.py").write_text(f"FACTOR = {factor}\n")
        sys.modules.pop("own_helper", None)
        importlib.invalidate_caches()
        load_plugins([plugin])
        found.append(source_digest(method("with_helper")))
    assert found[0] != found[1]
    assert found[0] == found[2]


@pytest.mark.parametrize(
    "statement", ["from .helper import FACTOR", "from . import helper", "from own_pack import helper"]
)
def test_the_digest_covers_the_package_of_a_plugin(tmp_path, monkeypatch, statement):
    package = tmp_path / "own_pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(
        f"{statement}\nfrom variants.core import register\n"
        + SOURCE.format(more="").replace("@dataclass", "@register('in_a_package')\n@dataclass")
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for factor in (1, 2):
        monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
        registry._METHODS.pop("in_a_package", None)
        (package / "helper.py").write_text(f"FACTOR = {factor}\n")
        for name in ("own_pack", "own_pack.mine", "own_pack.helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        load_plugins(["own_pack.mine"])
        found.append(source_digest(method("in_a_package")))
    assert found[0] != found[1]
