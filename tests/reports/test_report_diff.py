"""What changed between two results folders: beyond noise or not, paired or not, and everything that is not the same."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import (
    IDENTITY,
    Record,
    all_records,
    diverged,
    relabelled,
    score,
    score_record,
    suite,
    write_folder,
)
from rich.console import Console
from scipy.stats import ttest_ind

from commands import comparing, shared
from reports import Results, UnusableResults, load
from reports.difference import Differences, MethodDifference, differences, welch_difference
from reports.difference_tables import as_json, markdown, sentences, terminal

NAMES = ("first", "second")
Edit = Callable[[Record], None]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Results]:
    """A results folder of the samples, every record changed by ``edit``, under a name of its own."""
    made = iter(range(9))

    def make(edit: Edit | None = None, described: dict[str, Any] | None = None, seeds: int = 3) -> Results:
        records = copy.deepcopy(all_records(seeds))
        for record in records if edit else []:
            edit(record)
        return load(write_folder(tmp_path / str(next(made)), records, described or suite(seeds=seeds)))

    return make


def again(record: Record) -> None:
    """Computed anew, by other code."""
    record["key"] = "new-" + record["key"]
    record["run"]["identity"] = IDENTITY | {"code": "other"}


def is_final(record: Record, label: str) -> bool:
    run = record["run"]
    return run["kind"] == "score" and run["stage"] == "final" and run["method"]["name"] == label


def shifted(label: str, by: float, also: float = 0.0) -> Edit:
    """Another accuracy for one method; ``also`` grows with the seed."""

    def edit(record: Record) -> None:
        again(record)
        if is_final(record, label):
            accuracy = record["measures"]["score"]["accuracy"] + by + also * record["run"]["seed"]
            record["measures"]["score"] = score(accuracy)

    return edit


def of(found: Differences, label: str) -> MethodDifference:
    return next(method for method in found.methods if method.label == label)


def verdicts(found: Differences) -> dict[str, str]:
    return {method.label: method.verdict for method in found.methods}


# ---- accuracy -------------------------------------------------------------------------------------------------------


def test_a_folder_and_itself_are_the_same_runs(folder: Callable[..., Results]) -> None:
    found = differences(folder(), folder())
    assert set(verdicts(found).values()) == {"the same runs"}
    assert not any((found.only_a, found.only_b, found.settings, found.versions, found.sizes, found.steps, found.merges))
    assert "No different settings." in sentences(found)


def test_equal_scores_of_other_runs_are_equal_not_the_same_runs(folder: Callable[..., Results]) -> None:
    found = differences(folder(), folder(again))
    assert set(verdicts(found).values()) == {"equal"}
    assert [(change.what, change.b) for change in found.versions] == [("Code digest", "other")]


def test_equal_means_of_other_items_are_not_equal(folder: Callable[..., Results]) -> None:
    """The control: the same accuracy out of other answers is a change within noise."""

    def edit(record: Record) -> None:
        again(record)
        if is_final(record, "pissa"):
            record["measures"]["score"]["items"]["predicted"].reverse()

    found = differences(folder(), folder(edit))
    assert {label for label, word in verdicts(found).items() if word != "equal"} == {"pissa"}
    assert of(found, "pissa").verdict == "within noise"
    assert of(found, "pissa").shift.mean == 0


def test_the_same_key_with_another_score_is_compared(folder: Callable[..., Results]) -> None:
    """Another type of machine may give another number under the same key."""

    def edit(record: Record) -> None:
        if is_final(record, "pissa"):
            record["measures"]["score"] = score(0.6)

    found = differences(folder(), folder(edit))
    assert of(found, "pissa").verdict == "worse"
    assert of(found, "lora").verdict == "the same runs"


@pytest.mark.parametrize(("by", "word"), [(0.05, "better"), (-0.05, "worse")])
def test_a_change_beyond_noise_is_found_by_pairs(folder: Callable[..., Results], by: float, word: str) -> None:
    found = differences(folder(), folder(shifted("pissa", by, also=0.002)))
    method = of(found, "pissa")
    assert (method.verdict, method.shift.how) == (word, "paired")
    assert method.shift.mean == pytest.approx(by + 0.004, abs=1e-9)
    assert method.shift.half < 0.01
    assert sentences(found)[0].startswith(f"{word.capitalize()} in B beyond noise: pissa (")


def test_other_training_makes_independent_samples(folder: Callable[..., Results]) -> None:
    """The same numbers as above, but equal seeds share nothing: the spread between seeds now counts."""

    def edit(record: Record) -> None:
        shifted("pissa", 0.05, also=0.002)(record)
        if record["run"]["kind"] == "score":
            record["run"]["training"] = {"steps": 61}

    paired = of(differences(folder(), folder(shifted("pissa", 0.05, also=0.002))), "pissa").shift
    found = of(differences(folder(), folder(edit)), "pissa").shift
    assert (paired.how, found.how) == ("paired", "independent")
    assert found.half > 2 * paired.half
    assert found.mean == pytest.approx(paired.mean)


def test_other_seeds_are_independent_samples(folder: Callable[..., Results]) -> None:
    def edit(record: Record) -> None:
        again(record)
        if is_final(record, "lora"):
            record["run"]["seed"] += 10

    assert of(differences(folder(), folder(edit)), "lora").shift.how == "independent"


def test_p_values_are_corrected_for_the_number_of_methods(folder: Callable[..., Results]) -> None:
    """A change that is one of many must be larger than one on its own."""

    def one(record: Record) -> None:
        shifted("pissa", 0.01, also=0.004)(record)

    def many(record: Record) -> None:
        one(record)
        run = record["run"]
        if run["kind"] == "score" and run["stage"] == "final" and run["method"]["name"] != "pissa":
            record["measures"]["score"]["items"]["predicted"].reverse()

    alone, among = (of(differences(folder(), folder(edit)), "pissa") for edit in (one, many))
    assert alone.shift.half == among.shift.half
    assert among.shift.p == pytest.approx(8 * alone.shift.p)
    assert (alone.verdict, among.verdict) == ("better", "within noise")


def test_one_seed_decides_nothing(folder: Callable[..., Results]) -> None:
    found = differences(folder(seeds=1), folder(shifted("pissa", -0.3), suite(seeds=1), seeds=1))
    assert of(found, "pissa").verdict == "one seed"
    assert of(found, "pissa").shift is None


def test_other_test_data_are_not_compared(folder: Callable[..., Results]) -> None:
    def edit(record: Record) -> None:
        shifted("pissa", 0.1)(record)
        record["run"]["identity"] = IDENTITY | {"data": "other"}

    found = differences(folder(), folder(edit))
    assert set(verdicts(found).values()) == {"other test data"}
    assert "data digest" in [change.what for change in found.versions]


def test_diverged_runs_are_counted_and_lost_ones_leave_no_score(tmp_path: Path) -> None:
    records = [diverged(r) if is_final(r, "lora") and r["run"]["seed"] == 2 else r for r in all_records()]
    records = [diverged(r) if is_final(r, "dora") else r for r in records]
    a, b = (load(write_folder(tmp_path / name, kept)) for name, kept in (("a", all_records()), ("b", records)))
    found = differences(a, b)
    assert of(found, "lora").diverged == (0, 1)
    assert of(found, "dora").verdict == "no score"
    assert "1 diverged in B" in markdown(found, NAMES)


@pytest.mark.parametrize(("by", "word"), [(0.05, "lost seeds"), (-0.05, "worse")])
def test_nothing_is_better_by_runs_that_were_lost(tmp_path: Path, by: float, word: str) -> None:
    records = copy.deepcopy(all_records())
    for record in records:
        shifted("pissa", by)(record)
    records = [diverged(r) if is_final(r, "pissa") and r["run"]["seed"] == 3 else r for r in records]
    a, b = (load(write_folder(tmp_path / name, kept)) for name, kept in (("a", all_records()), ("b", records)))
    assert of(differences(a, b), "pissa").verdict == word


def test_more_seeds_of_the_same_runs_are_the_same_runs(folder: Callable[..., Results]) -> None:
    found = differences(folder(), folder(described=suite(seeds=5), seeds=5))
    assert of(found, "lora").verdict == "the same runs"
    assert [(change.what, change.a, change.b) for change in found.settings] == [("protocol.seeds", 3, 5)]


def test_welch_is_scipys_and_keeps_the_step_of_the_scores() -> None:
    a, b = {1: 0.71, 2: 0.74, 3: 0.72}, {4: 0.75, 5: 0.79, 6: 0.74, 7: 0.78}
    found = welch_difference(a, b)
    theirs = ttest_ind(list(b.values()), list(a.values()), equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval()
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    still = {1: 0.7, 2: 0.7}
    assert welch_difference(still, still).p == 1
    assert welch_difference(still, {1: 0.702, 2: 0.702}, resolution=0.002).p > 0.05
    assert welch_difference(still, {1: 0.7}) is None


def test_welch_covers_what_it_says() -> None:
    """Of samples with unequal spread and size; pretending that they are pairs of equal spread would not."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        a, b = (dict(enumerate(rng.normal(m, s, n))) for m, s, n in ((0.7, 0.01, 3), (0.75, 0.03, 5)))
        found = welch_difference(a, b)
        held += abs(found.mean - 0.05) <= found.half
    assert 0.93 < held / 2000 < 0.975
    assert math.isfinite(found.half)


# ---- everything else ------------------------------------------------------------------------------------------------


def test_settings_are_named_as_set_takes_them(folder: Callable[..., Results]) -> None:
    described = suite()
    described["training"]["steps"] = 80
    described["where"] = ["query"]
    described["methods"][0]["lr"] = 1e-3
    found = differences(folder(), folder(described=described))
    assert {(change.what, str(change.a), str(change.b)) for change in found.settings} >= {
        ("training.steps", "60", "80"),
        ("methods.lora.lr", "None", "0.001"),
    }
    assert "| training.steps | 60 | 80 |" in markdown(found, NAMES)


def test_methods_of_one_side_and_changed_hyperparameters(tmp_path: Path) -> None:
    labels = ["lora", "pissa", "probe"]
    records = [r for r in all_records() if r["run"]["kind"] == "score" and r["run"]["method"]["name"] in labels]
    a = load(write_folder(tmp_path / "a", records, suite(labels)))
    other = suite(["lora", "dora"])
    other["methods"][0]["method"] = {"name": "lora", "hyperparameters": {"rank": 4, "alpha": 16.0}}
    b = load(write_folder(tmp_path / "b", [score_record("dora", "final", 5e-3, 1, 0.7)], other))
    found = differences(a, b)
    assert (found.only_a, found.only_b) == (("pissa", "probe"), ("dora",))
    assert [(c.what, c.a, c.b) for c in found.settings] == [("methods.lora.rank", 8, 4)]
    assert of(found, "lora").verdict == "no score"
    assert not [change for change in found.versions if change.what.startswith("Source of")]


def test_versions_and_machines(folder: Callable[..., Results]) -> None:
    def edit(record: Record) -> None:
        record["environment"] = record["environment"] | {"torch": "2.10.0", "cpu": "Other CPU"}

    found = {change.what: (change.a, change.b) for change in differences(folder(), folder(edit)).versions}
    assert found == {"torch": ("2.9.0", "2.10.0"), "cpu": ("Example CPU", "Other CPU")}


def test_step_time_ratios_whose_intervals_do_not_meet(folder: Callable[..., Results]) -> None:
    def edit(record: Record) -> None:
        if record["run"]["kind"] == "speed":
            methods = record["measures"]["speed"]["methods"]
            for label, factor in (("dora", 1.4), ("pissa", 1.01)):
                ratio = methods[label]["ratio_baseline"]
                methods[label]["ratio_baseline"] = {key: factor * value for key, value in ratio.items()}

    found = differences(folder(), folder(edit))
    assert [(step.label, step.apart) for step in found.steps] == [("dora", True), ("pissa", False)]
    assert "Of 2 step-time ratios to the baseline, those with intervals apart: dora." in sentences(found)


def test_sizes_and_errors_of_merging(folder: Callable[..., Results]) -> None:
    def edit(record: Record) -> None:
        if record["run"].get("method", {}).get("name") == "pissa":
            record["measures"]["parameters"]["trainable"] += 1
        if is_final(record, "pissa"):
            for name, factor in (("bfloat16", 1.5), ("nf4", 3.0)) if record["run"]["seed"] == 1 else ():
                record["measures"]["merging"]["formats"][name]["error"] *= factor
        if is_final(record, "lora") and record["run"]["seed"] == 1:
            record["measures"]["merging"]["formats"]["float16"] = {"overflow": True}

    found = differences(folder(), folder(edit))
    assert [(c.what, c.b - c.a) for c in found.sizes] == [("pissa: trainable parameters", 1)]
    assert [(c.what, c.b is None) for c in found.merges] == [("lora: float16", True), ("pissa: nf4", False)]


def test_another_chosen_rate_is_said(tmp_path: Path) -> None:
    def at(rate: float) -> list[Record]:
        return [score_record("lora", "final", rate, seed, 0.7 + 0.01 * seed) for seed in (1, 2)]

    a, b = (load(write_folder(tmp_path / f"{r}", at(r), suite(["lora"]))) for r in (5e-3, 1e-2))
    assert "Another learning rate was chosen for lora." in sentences(differences(a, b))


# ---- what comes out -------------------------------------------------------------------------------------------------


def test_hostile_labels_stay_text(tmp_path: Path) -> None:
    bad = "<script>[red]|x\n\x1b[31m"
    records, described = (relabelled(value, "pissa", bad) for value in (all_records(), suite()))
    a = load(write_folder(tmp_path / "a", all_records(), suite()))
    b = load(write_folder(tmp_path / "b", records, described))
    found = differences(a, b)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal(found, NAMES))
    shown = console.export_text()
    assert "<script>[red]|x" in shown
    assert "\x1b" not in shown
    written = markdown(found, NAMES)
    assert "<script>" not in written
    assert json.loads(json.dumps(as_json(found, NAMES)))["only_b"] == [bad]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.console, "width", 200)
    records = copy.deepcopy(all_records())
    for record in records:
        shifted("pissa", 0.05, also=0.002)(record)
    a, b = write_folder(tmp_path / "a", all_records()), write_folder(tmp_path / "b", records)
    comparing.diff(a, b, out=tmp_path / "diff.md", as_json=False)
    said = capsys.readouterr().out
    assert "Better in B beyond noise: pissa" in said
    assert f"B is {b}" in said.replace("\n", "")
    assert (tmp_path / "diff.md").read_text().startswith("# What changed from A to B")
    comparing.diff(a, b, out=None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [m["verdict"] for m in found["methods"] if m["label"] == "pissa"] == ["better"]
    assert found["a"] == str(a)


@pytest.mark.parametrize("lost", ["suite.json", "records.jsonl"])
def test_a_folder_without_its_files_is_refused(tmp_path: Path, lost: str) -> None:
    a, b = (write_folder(tmp_path / name, all_records()) for name in "ab")
    (b / lost).unlink()
    with pytest.raises(UnusableResults, match=f"{lost} is missing"):
        comparing.diff(a, b, out=None, as_json=False)
