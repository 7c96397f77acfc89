"""The engine, through the command line: resumption after a kill, worker counts, crashes, damage."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from evaluation.pace import matched_steps
from evaluation.spec import Record, ScoreRun, SpeedRun
from tests.evaluation.tiny import ROOT, command, make_model, make_suite, measured, svdbench

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, Path]:
    """The tiny suite run to its end by two workers: (suite file, results)."""
    folder = tmp_path_factory.mktemp("reference")
    suite = make_suite(folder, model)
    done = svdbench("compare", suite, "--out", folder / "results", "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return suite, folder / "results"


def test_a_suite_runs_to_its_end(reference: tuple[Path, Path]) -> None:
    results = reference[1]
    stages = [run["stage"] if run["kind"] == "score" else "speed" for run, _, _ in measured(results).values()]
    assert sorted(stages) == ["final"] * 6 + ["search"] * 6 + ["speed"]
    assert all(status == "done" for _, status, _ in measured(results).values())
    for name in ("report.html", "table.md", "table.tex", "table.csv", "records.jsonl"):
        assert (results / name).stat().st_size > 0


def test_one_worker_gives_the_same_numbers_as_two(reference: tuple[Path, Path], tmp_path: Path) -> None:
    done = svdbench("compare", reference[0], "--out", tmp_path, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert measured(tmp_path) == measured(reference[1])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for child processes in /proc")
def test_a_killed_suite_goes_on_where_it_was(reference: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = command("compare", reference[0], "--out", tmp_path, "--workers", "2")
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("runs/[0-9a-f]*/record.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/[0-9a-f]*/record.json")}
    assert 3 <= len(before) < 13, "the kill came too early or too late to test anything"
    assert len(workers) >= 2
    gone(workers)

    again = svdbench("compare", reference[0], "--out", tmp_path, "--workers", "2")
    assert again.returncode == 0, again.stderr
    assert measured(tmp_path) == measured(reference[1])
    assert all(path.stat().st_mtime_ns == at for path, at in before.items()), "a finished run was computed again"
    computed = json.loads((tmp_path / "wall.json").read_text())["computed_runs"]
    assert computed == 13 - len(before)


def gone(pids: list[int]) -> None:
    """Waits until none of the processes lives; a worker must not outlive the command."""
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived the killed command"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_finished_suite_only_prints_its_report(reference: tuple[Path, Path]) -> None:
    suite, results = reference
    before = {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}
    again = svdbench("compare", suite, "--out", results, "--workers", "2")
    assert again.returncode == 0, again.stderr
    assert "pissa" in again.stdout
    assert "worker time" not in again.stdout
    assert {p: p.read_bytes() for p in results.rglob("*") if p.is_file()} == before


def test_a_damaged_record_is_named_and_done_again(reference: tuple[Path, Path]) -> None:
    suite, results = reference
    expected = measured(results)
    victim = sorted(results.glob("runs/[0-9a-f]*/record.json"))[0]
    victim.write_text(victim.read_text()[:200])
    again = svdbench("compare", suite, "--out", results)
    assert again.returncode == 0, again.stderr
    assert victim.parent.name in again.stdout
    assert "set aside" in " ".join(again.stdout.split())
    assert measured(results) == expected


CRASHING = '''
import os
from dataclasses import dataclass
from variants.core import register
from variants.lora import LoRA

@register("crashing")
@dataclass(frozen=True, kw_only=True)
class Crashing(LoRA):
    """Takes its process down, or raises, in the middle of training."""
    violent: bool = True

    def after_step(self, states, step, total):
        if step == 2:
            if self.violent:
                os._exit(9)
            raise RuntimeError("deliberate")
'''


@pytest.mark.parametrize("violent", [True, False])
def test_a_crashing_method_does_not_take_the_others_along(model: Path, tmp_path: Path, violent: bool) -> None:
    plugin, results = tmp_path / "crashing.py", tmp_path / "r"
    plugin.write_text(CRASHING)
    method = f'\n[[methods]]\nname = "crashing"\nrank = 2\nviolent = {str(violent).lower()}\n'
    suite = make_suite(tmp_path, model, method)
    # Without the speed run, which has all methods in one process.
    arguments = ("compare", suite, "--out", results, "--workers", "2", "--plugin", plugin, "--set", "speed=false")
    done = svdbench(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    status = [(run["method"]["name"], state) for run, state, _ in measured(results).values()]
    assert sorted(status) == sorted(
        [("crashing", "failed")] * 2 + [(name, "done") for name in ("lora", "pissa", "probe") for _ in range(4)]
    )
    stored = list(results.glob("runs/[0-9a-f]*/record.json"))
    assert len(stored) == 12, "a failed run is not stored, so that it is tried again"
    assert ("worker process died" if violent else "deliberate") in done.stdout


MATCHED = ("--set", "match=seconds", "--set", "speed.batch_size=8", "--set", "training.steps=12")


def test_training_time_is_matched_by_a_speed_run_that_comes_first(model: Path, tmp_path: Path) -> None:
    suite, results = make_suite(tmp_path, model), tmp_path / "r"
    done = svdbench("compare", suite, "--out", results, "--workers", "2", *MATCHED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert next(line for line in done.stdout.splitlines() if line.startswith("[")).startswith("[1/13] speed of all")
    records = [Record.model_validate_json(line) for line in (results / "records.jsonl").read_text().splitlines()]
    (speed,) = (record for record in records if isinstance(record.run, SpeedRun))
    wanted = matched_steps(speed)
    assert wanted["lora"] == 12
    for record in records:
        if isinstance(record.run, ScoreRun):
            steps = wanted[record.run.method.name]  # labels are names here
            assert len(record.measures["training"]["loss"]) == record.run.training.steps == steps
    assert f"probe {wanted['probe']}" in (results / "table.md").read_text()

    before = {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}
    again = svdbench("compare", suite, "--out", results, *MATCHED)
    assert again.returncode == 0, again.stderr
    assert "worker time" not in again.stdout, "something was computed again"
    assert {p.name for p in before} == {p.name for p in results.rglob("*") if p.is_file()}


def test_time_that_cannot_be_matched_is_one_line(model: Path, tmp_path: Path) -> None:
    plugin, results = tmp_path / "crashing.py", tmp_path / "r"
    plugin.write_text(CRASHING)
    suite = make_suite(tmp_path, model, '\n[[methods]]\nname = "crashing"\nrank = 2\nviolent = false\n')
    done = svdbench("compare", suite, "--out", results, "--plugin", plugin, *MATCHED)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the speed run failed (RuntimeError: deliberate): write match = 'steps'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(results.glob("runs/[0-9a-f]*"))


def test_nothing_is_stored_when_a_method_cannot_work(model: Path, tmp_path: Path) -> None:
    suite = make_suite(tmp_path, model, '\n[[methods]]\nname = "lora"\nlabel = "big"\nrank = 17\n')
    done = svdbench("compare", suite, "--out", tmp_path / "r")
    assert done.returncode == 2
    assert "big: lora on encoder.layer.0" in done.stderr
    assert "rank 17 does not fit a 16 x 16 layer" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "r").glob("runs/*"))
    assert not (tmp_path / "r" / "records.jsonl").exists()
