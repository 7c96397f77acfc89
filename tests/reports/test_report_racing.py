"""What the report says of a race: what it saved, what it lost, and nothing that mixes lengths of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import report_samples as samples

from reports import load, racing
from reports.budget_figures import expected_trials_figure
from reports.checklist import checklist
from reports.claims import missing, opening
from reports.provenance import protocol
from reports.racing import races, racing_sentences, racing_table
from reports.rate_figures import searched
from reports.rates import rates_table
from reports.records import Results
from reports.runlog import runs_table
from reports.write import write_report

STEPS = {1: 20, 2: 60}
RATES = [1e-3, 2e-3, 4e-3, 8e-3]
# Validation accuracy at each rate, short and in full. The short runs mislead about pissa by two points.
SCORES = {
    "lora": ([0.40, 0.50, 0.30, 0.20], [0.60, 0.70, 0.50, 0.40]),
    "pissa": ([0.10, 0.20, 0.40, 0.50], [0.50, 0.74, 0.72, 0.60]),
}


def record(label: str, rung: int, i: int, stage: str = "search", seed: int = 0) -> dict[str, Any]:
    made = samples.score_record(label, stage, RATES[i], seed, SCORES[label][rung - 1][i])
    made["run"]["training"] = {"steps": STEPS[rung]}
    made["seconds"] = {"forward": STEPS[rung] / 10, "evaluation": 1.0, "total": 99.0}
    return made | {"key": f"{made['key']}-{STEPS[rung]}"}


def raced(folder: Path, audit: bool = True, left_out: tuple[str, ...] = (), diverged: tuple[str, ...] = ()) -> Results:
    """Four rates a method in two rungs, of which two reach the second."""
    described = samples.suite(SCORES, seeds=2)
    described["protocol"] |= {"points": 4, "racing": 3, "rungs": 2, "racing_audit": audit}
    described["training"]["steps"] = 60
    described["speed"] = None
    kept = {"lora": (0, 1), "pissa": (2, 3)}
    records = []
    for label, chosen in (("lora", 1), ("pissa", 2)):
        records += [record(label, 1, i) for i in range(4)]
        records += [record(label, 2, i) for i in range(4) if audit or i in kept[label]]
        records += [record(label, 2, chosen, "final", seed) for seed in (1, 2)]
    records = [r for r in records if r["key"] not in left_out]
    records = [samples.diverged(r) if r["key"] in diverged else r for r in records]
    return load(samples.write_folder(folder, records, described))


def test_saving_and_regret(tmp_path: Path) -> None:
    lora, pissa = races(raced(tmp_path))
    assert lora.steps == pissa.steps == pytest.approx((4 * 20 + 2 * 60) / (4 * 60))
    assert lora.seconds == pytest.approx((4 * (2 + 1) + 2 * (6 + 1)) / (4 * (6 + 1))), "scoring gets no shorter"
    assert (lora.choice, lora.best, lora.regret) == ((2e-3, 0.70), (2e-3, 0.70), 0.0)
    assert (pissa.choice, pissa.best) == ((4e-3, 0.72), (2e-3, 0.74))
    assert pissa.regret == pytest.approx(0.02)


def test_the_sentence_of_an_audited_race(tmp_path: Path) -> None:
    results = raced(tmp_path)
    assert racing_sentences(results) == [
        "Racing saved 17 % of the training steps of the full grid and 7.1 % of its seconds, chose the same rate for 1 "
        "of 2 methods, and lost 1.00 points of validation accuracy on average, at most 2.00 (pissa)."
    ]
    assert racing_sentences(results)[0] in opening(results, [])


def test_time_that_was_not_saved_is_not_called_a_saving() -> None:
    assert racing._time(0.929) == " and 7.1 % of its seconds"
    assert racing._time(1.02) == ", but took 2.0 % more seconds"


def test_without_an_audit_the_regret_is_not_measured_and_it_says_so(tmp_path: Path) -> None:
    results = raced(tmp_path, audit=False)
    table = racing_table(results)
    assert table is not None
    assert [column.key for column in table.columns][-1] == "chosen_score"
    assert "The regret was not measured" in table.caption
    assert "its regret was not measured (protocol.racing_audit = true" in racing_sentences(results)[0]
    assert all(race.regret is None and race.seconds is not None for race in races(results))


def test_a_race_that_is_not_over_has_no_row(tmp_path: Path) -> None:
    first = raced(tmp_path / "a", left_out=("lora-search-0.008-0-20",))
    assert [race.label for race in races(first)] == ["pissa"]
    last = raced(tmp_path / "b", audit=False, left_out=("lora-search-0.002-0-60",))
    assert [race.label for race in races(last)] == ["pissa"]
    grid = raced(tmp_path / "c", left_out=("lora-search-0.008-0-60",))
    assert [race.regret is None for race in races(grid)] == [True, False]


def test_a_rate_that_diverged_in_full_is_not_the_choice(tmp_path: Path) -> None:
    (lora, _) = races(raced(tmp_path, diverged=("lora-search-0.002-0-60",)))
    assert lora.choice == lora.best == (1e-3, 0.60)
    every = tuple(f"lora-search-{rate:.3g}-0-60" for rate in RATES)
    (lora, _) = races(raced(tmp_path / "all", diverged=every))
    assert lora.choice is lora.best is lora.regret is None


def test_a_race_that_lost_every_rate_counts_as_lost(tmp_path: Path) -> None:
    promoted = ("pissa-search-0.004-0-60", "pissa-search-0.008-0-60")
    results = raced(tmp_path, diverged=promoted)
    _, pissa = races(results)
    assert (pissa.choice, pissa.best, pissa.regret, pissa.same) == (None, (2e-3, 0.74), None, False)
    said = racing_sentences(results)
    assert (
        "chose the same rate for 1 of 2 methods, and lost 0.00 points of validation accuracy on average where"
        in (said[0])
    )
    assert said[1] == (
        "Racing left pissa without a rate: all that it promoted diverged, while the full grid has one (pissa 74.0 "
        "points)."
    )
    table = racing_table(results)
    assert table is not None
    assert [row[-1].value for row in table.rows] == ["yes", "no"]
    alone = racing_sentences(raced(tmp_path / "alone", audit=False, diverged=promoted))
    assert alone[1] == "Racing left pissa without a rate: all that it promoted diverged."


def test_lengths_are_not_mixed(tmp_path: Path) -> None:
    results = raced(tmp_path)
    for label in SCORES:
        found = {lr: [run.steps for run in runs] for lr, runs in searched(results, label).items()}
        assert found == {lr: [60] for lr in RATES}
    figure = expected_trials_figure(results)
    assert figure is not None
    assert "pissa 74.0 after 4" in figure.alt
    assert expected_trials_figure(raced(tmp_path / "bare", audit=False)) is None, "survivors are no chance draw"


def test_a_curve_that_mixes_lengths_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Results, "is_full", lambda *_: True)
    with pytest.raises(AssertionError):
        test_lengths_are_not_mixed(tmp_path)


def test_a_regret_against_short_runs_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Results, "full_length", lambda self, label: self.of(label, "search")[::2])
    with pytest.raises((AssertionError, ValueError)):
        test_saving_and_regret(tmp_path)


def test_tables_say_how_long_runs_were_and_mark_one_choice(tmp_path: Path) -> None:
    results = raced(tmp_path)
    for table in (rates_table(results), runs_table(results)):
        assert "steps" in [column.key for column in table.columns]
    rows = [[cell.value for cell in row] for row in rates_table(results).rows]
    assert [(row[0], row[1], row[2]) for row in rows if row[-1] == "chosen"] == [
        ("lora", 2e-3, 60),
        ("pissa", 4e-3, 60),
    ]
    plain = load(samples.write_folder(tmp_path / "plain", samples.all_records()))
    assert "steps" not in [column.key for column in rates_table(plain).columns]
    assert racing_table(plain) is None
    assert not racing_sentences(plain)


def test_the_report_holds_the_table_and_says_how_it_was_run(tmp_path: Path) -> None:
    results = raced(tmp_path)
    report = write_report(tmp_path)
    assert "racing" in report.tables
    assert "What racing saved and lost" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert dict(protocol(results))["Learning-rate grid"].endswith("raced in 2 rungs, one rate in 3 went on")
    assert dict(checklist(results))["Trials a method"] == "4 (the same for all)"
    assert not missing(results)
    assert "among 4 on validation data by racing" in report.sentences[0]


def test_the_mean_over_search_seeds_counts(tmp_path: Path) -> None:
    runs = raced(tmp_path).full_length("lora")
    same_rate = [runs[0], replace(runs[1], lr=runs[0].lr)]
    assert racing._found(same_rate) == {
        1e-3: pytest.approx((0.65, fmean(run.score("loss") or 0.0 for run in same_rate)))
    }
