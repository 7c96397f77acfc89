"""The four verdicts: golden sentences, their decision rules on either side, and silence where nothing was measured."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from merging_samples import spread
from report_samples import all_records, diverged, family_records, family_suite, suite, write_folder

from reports import load, write
from reports.claims import opening
from reports.orthogonality import (
    COSTLY,
    FREE,
    UNSURE,
    constrained,
    control,
    judged as judgement,
    margin,
    orthogonality_table,
)
from reports.records import Results
from reports.render import statements_markdown
from reports.statistics import Comparison, Difference
from reports.verdicts import in_one_sentence, verdicts
from reports.words import Verdict, refuted

GOLDEN = Path(__file__).parent / "golden"
Record = dict[str, Any]
Change = Callable[[Record], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def judged(folder: Path, records: list[Record], described: dict[str, Any] | None = None) -> dict[str, Verdict]:
    return {verdict.key: verdict for verdict in verdicts(load(write_folder(folder, records, described)))}


def changed(records: list[Record], change: Change, label: str | None = None) -> list[Record]:
    """The records with ``change`` applied to the measures of every run, or of every run of one method."""
    records = copy.deepcopy(records)
    for record in records:
        if label is None or record["key"].startswith(f"{label}-"):
            change(record["measures"])
    return records


def without(*names: str) -> Change:
    return lambda measures: [measures.pop(name, None) for name in names] and None


def family(folder: Path, records: list[Record] | None = None) -> Results:
    return load(write_folder(folder, records or family_records(), family_suite()))


def test_golden(folder):
    (written,) = statements_markdown(verdicts(family(folder)))
    if os.environ.get("SVDBENCH_UPDATE_GOLDEN"):
        (GOLDEN / "statements.md").write_text(written, encoding="utf-8")
    assert written == (GOLDEN / "statements.md").read_text(encoding="utf-8")


def test_the_opening_has_them_in_one_sentence(folder):
    results = family(folder)
    found = verdicts(results)
    (said,) = [sentence for sentence in opening(results, found) if sentence.startswith("Of SVD-form updates")]
    assert said == in_one_sentence(found)
    assert "that they cannot be merged: refuted;" in said
    assert said.endswith("orthogonality cripples optimisation: holds for 1 and refuted for 3 of 4 methods.")


def test_nothing_measured_nothing_said(folder):
    bare = [record for record in all_records() if record["run"]["kind"] == "score"]
    bare = changed(bare, without("merging", "start"))
    assert judged(folder, bare) == {}
    assert in_one_sentence([]) == ""
    assert statements_markdown([]) == []
    assert judged(folder / "none", []) == {}


@pytest.mark.parametrize(("held", "word"), [(3, "refuted"), (2, "refuted for 2 of 3 methods"), (0, "holds")])
def test_the_word_says_for_how_many(held, word):
    assert refuted(held, 3) == word


def test_a_report_judges_once(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(write, "verdicts", lambda results: asked.append(results) or verdicts(results))
    report = write.write_report(write_folder(folder, family_records(), family_suite()))
    assert len(asked) == 1
    assert in_one_sentence(verdicts(asked[0])) in report.sentences
    for name in ("report.html", "table.md"):
        assert "Orthogonality cripples optimisation" in (folder / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"error": 9.9e-5}, "refuted"),
        ({"error": 1.1e-4}, "refuted for 4 of 5 methods"),
        ({"gained": 0, "lost": 3}, "refuted"),
        ({"gained": 0, "lost": 12}, "refuted for 4 of 5 methods"),
        ({"overflow": True}, "refuted"),  # it leaves the methods that were measured
    ],
)
def test_merging_is_refuted_by_error_and_by_accuracy(folder, change, word):
    def edit(measures: Record) -> None:
        if "merging" in measures:
            measures["merging"]["formats"]["float32"] |= change

    found = judged(folder, changed(all_records(), edit, "pissa"))["merging"]
    assert found.word == word
    assert ("Not so: pissa" in found.evidence[0]) == (word != "refuted")


def test_merging_holds_if_no_method_merges(folder):
    def edit(measures: Record) -> None:
        if "merging" in measures:
            measures["merging"]["formats"]["float32"]["error"] = 0.5

    records = [record for record in all_records() if not record["key"].startswith("probe")]
    assert judged(folder, changed(records, edit))["merging"].word == "holds"


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        (spread(1.0, 0.008), "holds only while unmerged"),
        (spread(0.97, 0.008), "not decided by these records"),
        (spread(1.0, 0.05), "not decided by these records"),
        (spread(1.06, 0.01), "holds"),
    ],
)
def test_latency_is_judged_by_all_merged_models_together(folder, ratio, word):
    def edit(measures: Record) -> None:
        measures["speed"]["latency_merged"]["token"] = ratio

    found = judged(folder, _speed(all_records(), edit))["latency"]
    assert found.word == word


@pytest.mark.parametrize(
    ("adapted", "folded", "word"),
    [
        (spread(1.0, 0.008), spread(1.0, 0.008), "refuted"),
        (spread(1.0, 0.03), spread(1.0, 0.008), "not decided by these records"),
        (spread(1.04, 0.03), spread(1.0, 0.008), "not decided by these records"),
        (spread(0.95, 0.008), spread(1.0, 0.008), "not decided by these records"),
        (spread(1.0, 0.008), spread(1.1, 0.01), "holds only while unmerged"),
    ],
)
def test_latency_while_unmerged_is_tested(folder, adapted, folded, word):
    def edit(measures: Record) -> None:
        for label, method in measures["speed"]["methods"].items():
            for found in (found for found in method["latency"].values() if found["folded"]):
                found["adapted"]["ratio"], found["folded"]["ratio"] = spread(1.0, 0.008), spread(1.0, 0.008)
            if label == "pissa":
                method["latency"]["batch"]["adapted"]["ratio"] = adapted
                method["latency"]["batch"]["folded"]["ratio"] = folded

    assert judged(folder, _speed(all_records(), edit))["latency"].word == word


def test_latency_unmerged_is_that_of_methods_with_a_pair(folder):
    def edit(measures: Record) -> None:
        for method in measures["speed"]["methods"].values():
            for found in (found for found in method["latency"].values() if found["folded"]):
                found["adapted"]["ratio"], found["folded"]["ratio"] = spread(1.0, 0.008), spread(1.0, 0.008)

    assert judged(folder, _speed(all_records(), edit))["latency"].word == "refuted", "dora is slower and has no pair"


def test_one_noisy_method_decides_nothing(folder):
    def edit(measures: Record) -> None:
        for given in measures["speed"]["methods"]["lora"]["latency"].values():
            given["merged"]["ratio"] = spread(1.06, 0.01)

    found = judged(folder, _speed(all_records(), edit))["latency"]
    assert found.word == "holds only while unmerged"
    assert "of the 10 intervals of updates with an exact low-rank pair, 8 lie within the bounds" in found.evidence[0]


def _speed(records: list[Record], edit: Change) -> list[Record]:
    records = copy.deepcopy(records)
    for record in records:
        if record["run"]["kind"] == "speed":
            edit(record["measures"])
    return records


def test_the_bottleneck_adapter_stands_beside(folder):
    found = {v.key: v for v in verdicts(family(folder))}["latency"]
    assert any("the bottleneck adapter, which cannot be merged, 1.18" in sentence for sentence in found.evidence)


@pytest.mark.parametrize(("change", "word"), [(9.9e-6, "refuted"), (1.1e-5, "refuted for 4 of 5 methods")])
def test_a_start_is_preserving_below_its_bound(folder, change, word):
    def edit(measures: Record) -> None:
        if "start" in measures:
            measures["start"]["relative_change"] = change

    found = judged(folder, changed(all_records(), edit, "pissa"))["start"]
    assert found.word == word
    assert any("Not so: pissa (relative change 1.1e-5" in sentence for sentence in found.evidence) == (
        word != "refuted"
    )


def test_one_seed_that_moves_is_enough(folder):
    records = all_records()
    (record,) = [r for r in records if r["key"].startswith("milora-final") and r["run"]["seed"] == 3]
    record["measures"]["start"]["relative_change"] = 0.4
    assert judged(folder, records)["start"].word == "refuted for 4 of 5 methods"


def test_three_rates_judge_no_constraint(folder):
    results = load(write_folder(folder, all_records()))
    assert constrained(results) == []
    assert "orthogonality" not in judged(folder, all_records())


def test_a_penalty_of_zero_is_the_control(folder):
    results = family(folder)
    assert control(results) == "usv free"
    assert constrained(results) == ["usv penalty", "stiefel", "stella", "polar"]


def test_without_the_control_nothing_is_decided(folder):
    records = [record for record in family_records() if not record["key"].startswith("usv free")]
    found = {v.key: v for v in verdicts(family(folder, records))}["orthogonality"]
    assert found.word == "not decided by these records"
    assert found.evidence[0] == "No control without constraint was measured."


def test_a_rate_on_the_edge_is_no_evidence_of_a_loss(folder):
    records = family_records()
    searched = [r for r in records if r["key"].startswith("stiefel-search")]
    chosen = next(r["run"]["lr"] for r in records if r["key"].startswith("stiefel-final"))
    for record in searched:
        if record["run"]["lr"] < chosen:
            record["run"]["lr"] *= 1000
    found = {v.key: v for v in verdicts(family(folder, records))}["orthogonality"]
    assert found.word == "refuted for 3 and undecided for 1 of 4 methods"


def test_what_cripples_is_measured_by_what_there_is_to_gain(folder):
    results = family(folder)
    gain = mean(results.outcomes("usv free").values()) - mean(results.outcomes("probe").values())
    assert margin(results) == pytest.approx(gain / 3)
    without_probe = [record for record in family_records() if not record["key"].startswith("probe")]
    assert margin(family(folder, without_probe)) == 0.01
    found = {v.key: v for v in verdicts(family(folder, without_probe))}["orthogonality"]
    assert found.word == "holds for 1, refuted for 2 and undecided for 1 of 4 methods"


@pytest.mark.parametrize(
    ("mean", "half", "verdict", "word"),
    [
        (-0.004, 0.002, "worse", FREE),  # worse, and by less than matters
        (-0.013, 0.002, "worse", COSTLY),
        (-0.013, 0.002, "not separated", UNSURE),  # worse alone, not after Holm
        (-0.013, 0.004, "worse", UNSURE),  # worse for sure, by more than the margin perhaps
        (-0.008, 0.004, "worse", UNSURE),
        (0.0, 0.02, "not separated", UNSURE),
        (-0.05, 0.0, "not separated", UNSURE),
    ],
)
def test_a_loss_must_lie_wholly_beyond_the_margin(folder, mean, half, verdict, word):
    records = [record for record in family_records() if not record["key"].startswith("probe")]  # margin: one point
    comparison = Comparison(Difference(mean, half, 5, 0.01), verdict)
    assert judgement(family(folder, records), "stella", "usv free", comparison) == word


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
def test_factors_that_are_not_orthonormal_say_nothing(folder, defects, word):
    found = {v.key: v for v in verdicts(family(folder, _with_defects(**defects)))}["orthogonality"]
    assert found.word == word


def test_with_all_methods_left_out_only_that_is_said(folder):
    every = dict.fromkeys(("usv penalty", "stiefel", "stella", "polar"), 4.3)
    found = {v.key: v for v in verdicts(family(folder, _with_defects(**every)))}["orthogonality"]
    (said,) = found.evidence
    assert said.endswith("and polar ends at a defect of 4.3: nothing is said about them.")


def test_a_method_left_out_is_named_and_shown(folder):
    results = family(folder, _with_defects(polar=4.3))
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


def test_a_method_that_diverged_is_not_free(folder):
    records = [
        diverged(r) if r["key"].startswith("stella-final") and r["run"]["seed"] == 5 else r for r in family_records()
    ]
    assert "stella" not in constrained(family(folder, records)), "four seeds are too few"


def test_a_suite_of_few_formats_and_parts_is_reported(folder):
    def edit(measures: Record) -> None:
        if "merging" in measures:
            kept = ("items", "mergeable", "restored", "relative_size", "formats", "factors")
            measures["merging"] = {name: measures["merging"][name] for name in kept}
            formats = measures["merging"]["formats"]
            measures["merging"]["formats"] = {name: formats[name] for name in ("float32", "bfloat16", "float16")}

    found = judged(folder, changed(all_records(), edit), suite())
    assert "nf4" not in " ".join(found["merging"].evidence)
    assert "float16 0.53 % in the median" in " ".join(found["merging"].evidence)


def test_overflow_is_said(folder):
    def edit(measures: Record) -> None:
        if "merging" in measures:
            measures["merging"]["formats"]["float16"] = {"overflow": True, "error": None}

    said = " ".join(judged(folder, changed(all_records(), edit))["merging"].evidence)
    assert "float16 overflows for all 5" in said


def test_a_start_that_is_not_finite_preserves_nothing(folder):
    def edit(measures: Record) -> None:
        if "start" in measures:
            measures["start"] |= dict.fromkeys(("relative_change", "max_logit_change", "loss_start"))

    found = judged(folder, changed(all_records(), edit, "pissa"))["start"]
    assert found.word == "refuted for 4 of 5 methods"
    assert "Not so: pissa (relative change inf, and it ends at 78.2" in found.evidence[-1]


def test_starts_without_a_merge_measurement_count_all_methods(folder):
    found = judged(folder, changed(all_records(), without("merging")))["start"]
    assert (found.word, found.evidence) == ("refuted", ("7 of 7 methods start at the pretrained function.",))
