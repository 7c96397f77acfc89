"""Methods from outside: by file, by module, by an installed package's entry point; and what is said of bad ones."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from evaluation import plugins
from evaluation.checking import chosen_methods
from evaluation.plugins import GROUP, load_plugins
from evaluation.spec import Unusable
from variants.core import create, names, registry

MINE = """
from dataclasses import dataclass

from variants.core import register
from variants.lora import LoRA


@register("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(LoRA):
    extra: int = 1
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def written(folder: Path, name: str) -> Path:
    path = folder / f"{name}_file.py"
    path.write_text(MINE.format(name=name))
    return path


def test_a_file_registers_its_methods_and_says_which(tmp_path):
    assert load_plugins([written(tmp_path, "mine_a")]) == ["mine_a"]
    assert load_plugins([str(tmp_path / "mine_a_file.py")]) == ["mine_a"]  # once more, as every worker does
    assert create("mine_a", {"extra": 3}).rank == 8
    assert load_plugins([]) == []


def test_a_module_by_its_dotted_name(tmp_path, monkeypatch):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    written(tmp_path / "pack", "mine_b")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugins(["pack.mine_b_file"]) == ["mine_b"]
    assert "mine_b" in names()


def test_an_installed_package_announces_itself(tmp_path, monkeypatch):
    written(tmp_path, "mine_c")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint(name="c", value="mine_c_file:Mine", group=GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == GROUP else [])
    assert load_plugins([]) == []  # nobody asked for it by name, but it is there
    assert "mine_c" in names()


def test_an_entry_point_that_fails_is_named(monkeypatch):
    point = EntryPoint(name="c", value="no_such_module_anywhere", group=GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [point])
    with pytest.raises(Unusable, match="entry point 'c' of no_such_module_anywhere: ModuleNotFoundError"):
        load_plugins([])


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("nowhere.py", "no plug-in file 'nowhere.py'"),
        ("no/such/thing", "no plug-in file"),
        ("no_such_module_anywhere", "plug-in no_such_module_anywhere: ModuleNotFoundError"),
        ("{folder}/broken.py", "broken.py: ZeroDivisionError"),
        ("{folder}/taken.py", "the method name 'lora' is taken by variants.lora.LoRA"),
    ],
)
def test_a_plugin_that_cannot_be_used(tmp_path, plugin, message):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "taken.py").write_text(MINE.format(name="lora"))
    with pytest.raises(Unusable, match=message):
        load_plugins([plugin.format(folder=tmp_path)])


def test_what_check_is_asked_for(tmp_path):
    file = written(tmp_path, "mine_d")
    assert [cls.name for cls in chosen_methods(["lora", str(file), "lora"], [])] == ["lora", "mine_d"]
    assert [cls.name for cls in chosen_methods(["all"], [])] == names()
    with pytest.raises(Unusable, match="did you mean lora"):
        chosen_methods(["lorra"], [])
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(Unusable, match=r"empty.py registers no method: decorate its class with @register"):
        chosen_methods([str(tmp_path / "empty.py")], [])
    assert not any(name.endswith("empty") for name in sys.modules if name.startswith("mine"))
