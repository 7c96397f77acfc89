"""The four verdicts: golden sentences, their decision rules on either side, and silence where nothing was measured."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from merging_samples import spread
from report_samples import all_records, family_records, family_suite, suite, write_folder

from reports import load, write
from reports.claims import opening
from reports.records import Results
from reports.render import statements_markdown
from reports.rounding import percent
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


def test_shares_in_percent():
    assert [percent(share, 3) for share in (0.95, 1 - 0.95, 0.98333)] == ["95 %", "5 %", "98.3 %"]
    assert [percent(share) for share in (0.0906, 0.09, 0.004, 1, 0)] == ["9.1 %", "9 %", "0.4 %", "100 %", "0 %"]


@pytest.mark.parametrize(("name", "said"), [("cpu", "more than one CPU"), ("products", "more than one library")])
def test_records_of_unlike_machines_are_said(name, said, folder):
    records = all_records()
    assert not any("Careful" in sentence for sentence in opening(load(write_folder(folder / "one", records)), []))
    for record, value in zip(records, ("a", "b") * len(records), strict=False):
        record["environment"] = {**record["environment"], name: value}
    assert any(said in sentence for sentence in opening(load(write_folder(folder / "two", records)), []))
