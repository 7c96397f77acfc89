"""The README's plug-in, exactly as it stands there, and the template: complete, short, and good for every verb."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.spec import Unusable
from evaluation.templates import write_variant
from tests.evaluation.tiny import ROOT, make_model, make_suite, measured, svdbench


def plugin_block() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if "@register(" in block]
    return block


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "gated_lora.py"
    path.write_text(plugin_block())
    return path


def test_it_has_at_most_40_lines() -> None:
    assert len(plugin_block().splitlines()) <= 40


def test_it_conforms(plugin: Path) -> None:
    done = svdbench("check", plugin)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"gated_lora\s+21\s+0\s+0", done.stdout), done.stdout


def test_one_that_merges_wrongly_does_not(plugin: Path) -> None:
    plugin.write_text(plugin_block().replace('self.scale * (t["B"] * t["g"]) @ t["A"]', '(t["B"] * t["g"]) @ t["A"]'))
    done = svdbench("check", plugin)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "gated_lora: forward_is_weight failed: " in done.stdout
    assert "value: off by" in done.stdout


def test_it_is_counted_and_listed(plugin: Path) -> None:
    done = svdbench("params", "--model", "gpt2-medium", "--variants", "gated_lora", "--json", "--plugin", plugin)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["methods"]
    assert row["trainable"] == 24 * 2 * 8 * (1024 + 1024 + 1)
    done = svdbench("variants", "--json", "--plugin", plugin)
    cards = {row["name"]: row for row in json.loads(done.stdout)}
    assert cards["gated_lora"]["lora_rank"] == "r"
    assert cards["gated_lora"]["title"] == "Gated LoRA: a trained gate for every rank"


@pytest.mark.assets
def test_it_is_compared_by_its_name(plugin: Path, tmp_path: Path) -> None:
    suite = make_suite(tmp_path, make_model(tmp_path / "model"), '\n[[methods]]\nname = "gated_lora"\nrank = 2\n')
    done = svdbench("compare", suite, "--out", tmp_path / "r", "--plugin", plugin)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [run for run, status, _ in measured(tmp_path / "r").values() if status == "done"]
    assert sum(run["kind"] == "score" and run["method"]["name"] == "gated_lora" for run in runs) == 4
    assert "gated_lora" in done.stdout


def benchmark_block() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if "@register_benchmark(" in block]
    return block


def test_the_benchmark_is_listed_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "shouting.py"
    path.write_text(benchmark_block())
    assert len(benchmark_block().splitlines()) <= 12
    done = svdbench("benchmarks", "--json", "--plugin", path)
    assert done.returncode == 0, done.stderr
    cards = {row["name"]: row for row in json.loads(done.stdout)}
    assert cards["shouting"]["description"] == "Whether a text ends in an exclamation mark."
    assert (cards["shouting"]["kind"], cards["valence"]["kind"]) == (None, "regression")
    assert (cards["boolq"]["train"], cards["sms"]["metric"]) == (11196, "matthews")


@pytest.mark.assets
def test_the_benchmark_is_compared_on_and_its_contents_are_in_the_keys(tmp_path: Path) -> None:
    path, suite = tmp_path / "shouting.py", make_suite(tmp_path, make_model(tmp_path / "model"))
    keys = []
    for block in (benchmark_block(), benchmark_block().replace("text number", "number")):
        path.write_text(block)
        options = ("--plugin", path, "--set", "benchmark=shouting", "--set", "speed=false", "--set", "merging=false")
        done = svdbench("compare", suite, "--out", tmp_path / "r", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Matthews" in done.stdout
        keys.append(set(measured(tmp_path / "r")))
    assert not keys[0] & keys[1]


def test_the_template_conforms_and_its_test_passes(tmp_path: Path) -> None:
    done = svdbench("new-variant", "my_gate", "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_gate.py", "test_my_gate.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora", "there is a method called 'lora' already"),
        ("My-Method", "'My-Method' cannot name a method"),
        ("../evil", "cannot name a method"),
    ],
)
def test_a_template_is_not_written_over_anything(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(Unusable, match=message):
        write_variant(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("mine")
    with pytest.raises(Unusable, match="exists already: nothing was written"):
        write_variant("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]
