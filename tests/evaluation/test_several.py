"""One suite on several benchmarks: names, folders, what is refused, and the whole way on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tasks
from evaluation.several import on_benchmarks
from evaluation.spec import Unusable, load_suite
from tests.evaluation.tiny import make_model, make_suite, svdbench


def test_every_benchmark_is_a_suite_with_a_name_and_a_folder_of_its_own() -> None:
    each, across = on_benchmarks("smoke", ["trec6", "data:my/reviews"], {"protocol.seeds": "3"}, None)
    made = [load_suite("smoke", dict(one.changes)) for one in each]
    assert [(suite.name, suite.benchmark) for suite in made] == [
        ("smoke-trec6", "trec6"),
        ("smoke-data-my-reviews", "data:my/reviews"),
    ]
    assert {suite.protocol.seeds for suite in made} == {3}
    assert [one.directory for one in each] == [Path("results/smoke-trec6"), Path("results/smoke-data-my-reviews")]
    assert across == Path("results/smoke-across")


def test_one_folder_may_hold_all(tmp_path: Path) -> None:
    each, across = on_benchmarks("smoke", ["trec6", "sms"], {"name": "other"}, tmp_path)
    assert [one.directory for one in each] == [tmp_path / "trec6", tmp_path / "sms"]
    assert across == tmp_path / "across"
    assert json.loads(each[0].changes["name"]) == "other-trec6"


@pytest.mark.parametrize(
    ("benchmarks", "changes", "why"),
    [
        (["trec6"], {}, "give two benchmarks or more, or write --set benchmark=trec6"),
        (["trec6", "sms", "trec6"], {}, "--on trec6 is given twice"),
        (["trec6", "sms"], {"benchmark": "boolq"}, "leave out --set benchmark=..., and --data"),
        (["trec6", "across"], {}, "would go into results/smoke-across"),
        (["data:x", "data-x"], {}, "would go into results/smoke-data-x"),
        (["trec6", "sms"], {"trainning.steps": "3"}, "did you mean training?"),
    ],
)
def test_what_cannot_be_run_is_refused(benchmarks: list[str], changes: dict[str, str], why: str) -> None:
    with pytest.raises(Unusable, match=why):
        on_benchmarks("smoke", benchmarks, changes, None)


@pytest.mark.assets
def test_a_suite_on_two_benchmarks_ends_in_one_report_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = make_suite(tmp_path, make_model(tmp_path / "model"))
    few = ["protocol.points=1", "protocol.seeds=1", "merging=false", "speed=false"]
    changes = [part for change in few for part in ("--set", change)]
    call = ["compare", suite, "--on", "trec6", "--on", "sms", "--out", tmp_path / "r", *changes, "--workers", "1"]
    done = svdbench(*call)
    assert done.returncode == 0, done.stdout + done.stderr
    suites = [json.loads((tmp_path / "r" / name / "suite.json").read_text())["suite"] for name in ("trec6", "sms")]
    assert [(one["name"], one["benchmark"]) for one in suites] == [("tiny-trec6", "trec6"), ("tiny-sms", "sms")]
    page = tmp_path / "r" / "across" / "report.html"
    assert "3 methods were compared on 2 benchmarks (trec6 and sms)" in page.read_text(encoding="utf-8")

    before = sorted((tmp_path / "r").glob("*/runs/*"))
    assert len(before) == 6
    page.unlink()
    monkeypatch.setattr(sys, "argv", ["svdbench", *map(str, call)])
    with pytest.raises(SystemExit) as stopped:
        tasks.main()
    said = capsys.readouterr().out
    assert (stopped.value.code or 0, page.is_file()) == (0, True)
    assert " runs in " not in said, "nothing was left to run"
    assert sorted((tmp_path / "r").glob("*/runs/*")) == before
