"""The verdict on orthogonality: who is compared, what a loss must be to count, and who is left out."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from report_samples import all_records, diverged, family_records, family_suite, write_folder

from reports import load
from reports.orthogonality import COSTLY, FREE, UNSURE, constrained, control, judged, margin, orthogonality_table
from reports.records import Results
from reports.statistics import Comparison, Difference
from reports.verdicts import verdicts

Record = dict[str, Any]


def family(folder: Path, records: list[Record] | None = None) -> Results:
    return load(write_folder(folder, records or family_records(), family_suite()))


def test_three_rates_judge_no_constraint(tmp_path):
    results = load(write_folder(tmp_path, all_records()))
    assert constrained(results) == []
    assert "orthogonality" not in {verdict.key for verdict in verdicts(results)}


def test_a_penalty_of_zero_is_the_control(tmp_path):
    results = family(tmp_path)
    assert control(results) == "usv free"
    assert constrained(results) == ["usv penalty", "stiefel", "stella", "polar"]


def test_without_the_control_nothing_is_decided(tmp_path):
    records = [record for record in family_records() if not record["key"].startswith("usv free")]
    found = {v.key: v for v in verdicts(family(tmp_path, records))}["orthogonality"]
    assert found.word == "not decided by these records"
    assert found.evidence[0] == "No control without constraint was measured."


def test_a_rate_on_the_edge_is_no_evidence_of_a_loss(tmp_path):
    records = family_records()
    searched = [r for r in records if r["key"].startswith("stiefel-search")]
    chosen = next(r["run"]["lr"] for r in records if r["key"].startswith("stiefel-final"))
    for record in searched:
        if record["run"]["lr"] < chosen:
            record["run"]["lr"] *= 1000
    found = {v.key: v for v in verdicts(family(tmp_path, records))}["orthogonality"]
    assert found.word == "refuted for 3 and undecided for 1 of 4 methods"


def test_what_cripples_is_measured_by_what_there_is_to_gain(tmp_path):
    results = family(tmp_path)
    gain = mean(results.outcomes("usv free").values()) - mean(results.outcomes("probe").values())
    assert margin(results) == pytest.approx(gain / 3)
    without_probe = [record for record in family_records() if not record["key"].startswith("probe")]
    assert margin(family(tmp_path, without_probe)) == 0.01
    found = {v.key: v for v in verdicts(family(tmp_path, without_probe))}["orthogonality"]
    assert found.word == "holds for 1, refuted for 2 and undecided for 1 of 4 methods"


@pytest.mark.parametrize(
    ("difference", "half", "verdict", "word"),
    [
        (-0.004, 0.002, "worse", FREE),  # worse, and by less than matters
        (-0.013, 0.002, "worse", COSTLY),
        (-0.013, 0.002, "undecided", UNSURE),  # worse alone, not after Holm
        (-0.013, 0.004, "worse", UNSURE),  # worse for sure, by more than the margin perhaps
        (-0.008, 0.004, "worse", UNSURE),
        (0.0, 0.02, "undecided", UNSURE),
        (-0.05, 0.0, "undecided", UNSURE),
    ],
)
def test_a_loss_must_lie_wholly_beyond_the_margin(tmp_path, difference, half, verdict, word):
    records = [record for record in family_records() if not record["key"].startswith("probe")]  # margin: one point
    comparison = Comparison(Difference(difference, half, 5, 0.01, half / 2.776), verdict)
    assert judged(family(tmp_path, records), "stella", "usv free", comparison) == word


def _with_defects(**defects: float | None) -> list[Record]:
    records = family_records()
    for record in records:
        label = record["key"].split("-")[0]
        if label in defects and "merging" in record["measures"]:
            record["measures"]["merging"]["factors"]["defect_after"] = defects[label]
    return records


@pytest.mark.parametrize(
    ("defects", "word"),
    [
        ({"polar": 0.5}, "holds for 1 and refuted for 3 of 4 methods"),
        ({"polar": None, "stiefel": None}, "holds for 1 and refuted for 3 of 4 methods"),
        ({"polar": 4.3}, "holds for 1 and refuted for 2 of 3 methods"),
        ({"stiefel": 0.51}, "refuted"),
        ({"polar": math.nan}, "holds for 1 and refuted for 2 of 3 methods"),
        (dict.fromkeys(("polar", "stiefel", "stella", "usv penalty"), 4.3), "not decided by these records"),
    ],
)
def test_factors_that_are_not_orthonormal_say_nothing(tmp_path, defects, word):
    found = {v.key: v for v in verdicts(family(tmp_path, _with_defects(**defects)))}["orthogonality"]
    assert found.word == word


def test_with_all_methods_left_out_only_that_is_said(tmp_path):
    every = dict.fromkeys(("usv penalty", "stiefel", "stella", "polar"), 4.3)
    found = {v.key: v for v in verdicts(family(tmp_path, _with_defects(**every)))}["orthogonality"]
    (said,) = found.evidence
    assert said.endswith("and polar ends at a defect of 4.3: nothing is said about them.")


def test_a_method_left_out_is_named_and_shown(tmp_path):
    results = family(tmp_path, _with_defects(polar=4.3))
    (found,) = [v for v in verdicts(results) if v.key == "orthogonality"]
    assert "polar ends at a defect of 4.3: nothing is said about it." in found.evidence
    assert not any("polar" in sentence for sentence in found.evidence if sentence.startswith("Against"))
    assert found.evidence[-1].startswith("At the median of the searched rates")
    assert "of 3 lie below" in found.evidence[-1]
    table = orthogonality_table(results)
    columns = [column.key for column in table.columns]
    rows = {str(row[0].value): dict(zip(columns, row, strict=True)) for row in table.rows}
    assert (rows["polar"]["defect"].value, rows["polar"]["verdict"].value) == (4.3, "not orthonormal")
    assert (rows["stiefel"]["defect"].value, rows["stella"]["defect"].value) == (1.4e-6, None)


def test_a_method_that_diverged_is_not_free(tmp_path):
    records = [
        diverged(r) if r["key"].startswith("stella-final") and r["run"]["seed"] == 5 else r for r in family_records()
    ]
    assert "stella" not in constrained(family(tmp_path, records)), "four seeds are too few"
