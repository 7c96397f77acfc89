"""Races and quasi-random searches from the command line to the report, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.tiny import make_model, make_suite, svdbench

pytestmark = pytest.mark.assets
RACE = ("protocol.racing=3", "protocol.racing_audit=true", "merging=false", "speed=false")
SPACE = (
    "protocol.trials=3",
    'protocol.space.lr=[1e-3, 1e-2, "log"]',
    'protocol.space.rank=[1, 8, "int-log"]',
    'protocol.space.head_lr=[1e-3, 1e-2, "log"]',
    "merging=false",
)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    return make_suite(folder, make_model(folder / "model"))


def compared(suite: Path, out: Path, settings: tuple[str, ...]) -> str:
    sets = [part for setting in settings for part in ("--set", setting)]
    done = svdbench("compare", suite, "--out", out, "--workers", "1", *sets)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def runs_of(out: Path) -> list[dict]:
    return [json.loads(line)["run"] for line in (out / "records.jsonl").read_text().splitlines()]


def test_a_race_with_its_audit(suite: Path, tmp_path: Path) -> None:
    said = compared(suite, tmp_path, RACE)
    lora = [run for run in runs_of(tmp_path) if run["method"]["name"] == "lora" and run["stage"] == "search"]
    assert sorted(run["training"]["steps"] for run in lora) == [1, 1, 3, 3]
    assert "Racing saved 17 % of the training steps of the full grid" in " ".join(said.split())
    table = (tmp_path / "table_racing.csv").read_text().splitlines()
    assert len(table) == 1 + 3
    assert "regret" in table[0]


def test_a_search_over_several_hyperparameters(suite: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    compared(suite, tmp_path, SPACE)
    runs = runs_of(tmp_path)
    finals = [run for run in runs if run.get("stage") == "final" and run["method"]["name"] == "lora"]
    tried = [run for run in runs if run.get("stage") == "search" and run["method"]["name"] == "lora"]
    assert len(tried) == 3
    assert all(run["method"] in [one["method"] for one in tried] for run in finals)
    speed = next(run for run in runs if run["kind"] == "speed")
    assert speed["methods"]["lora"] == finals[0]["method"]
    merged = svdbench("merge", tmp_path / "lora")  # found by its label, whatever its rank has become
    assert merged.returncode == 0, merged.stdout + merged.stderr
    space = (tmp_path / "table_search_space.csv").read_text()
    assert "rank 1 to 8 (int-log)" in space
