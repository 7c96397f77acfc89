"""Validation curves and the time to the tuned baseline's score: misses are never, and never shorter than a time."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
import report_samples as samples
from scipy import stats

from reports import load
from reports.curve_figures import curve_seconds_figure, curve_steps_figure
from reports.curves import target, time_table, times
from reports.latex import to_latex
from reports.page import sortkey
from reports.records import Results
from reports.render import to_csv, to_markdown
from reports.statistics import median_time
from reports.table import Cell
from reports.write import all_tables

STEPS = (15, 30, 45, 60)
# label -> seed -> validation scores at STEPS
CURVES = {
    "lora": [(0.3, 0.5, 0.6, 0.70), (0.3, 0.5, 0.7, 0.71), (0.3, 0.4, 0.6, 0.69)],
    "pissa": [(0.5, 0.7, 0.7, 0.73), (0.6, 0.7, 0.7, 0.74), (0.5, 0.7, 0.6, 0.69)],
    "milora": [(0.2, 0.3, 0.5, 0.60), (0.2, 0.3, 0.5, 0.65), (0.2, 0.3, 0.7, 0.60)],
}


def records(curves=None):
    found = []
    for label, runs in (curves or CURVES).items():
        for seed, scores in enumerate(runs, start=1):
            record = samples.score_record(label, "final", 5e-3, seed, 0.7)
            points = [
                {"step": step, "seconds": 0.1 * step, "score": score, "loss": 1.0}
                for step, score in zip(STEPS, scores, strict=True)
            ]
            record["measures"]["curve"] = {"metric": "accuracy", "items": 200, "points": points}
            found.append(record)
    return found


def results_of(folder, found) -> Results:
    return load(samples.write_folder(folder, found, samples.suite(CURVES)))


@pytest.fixture
def results(tmp_path):
    return results_of(tmp_path, records())


def rows_of(table):
    keys = [column.key for column in table.columns]
    return {row[0].value: dict(zip(keys, row, strict=True)) for row in table.rows}


def test_the_target_is_the_median_of_the_baselines_last_scores(results):
    assert target(results) == 0.70


def test_times_by_hand(results):
    assert times(results, "lora", 0.70) == {1: (60, 6.0), 2: (45, 4.5), 3: (math.inf, math.inf)}
    rows = rows_of(time_table(results))
    assert [rows[label]["reached"].value for label in CURVES] == ["2 of 3", "3 of 3", "1 of 3"]
    pissa, milora = rows["pissa"], rows["milora"]
    assert (pissa["steps"].value, pissa["seconds"].value, pissa["mean_steps"].value) == (30, 3.0, 30.0)
    assert (milora["steps"].value, milora["steps"].low, milora["steps"].high) == (math.inf, 45, math.inf)
    assert milora["mean_steps"].value == pytest.approx((60 + 60 + 45) / 3)
    assert rows["lora"]["difference"].value is None
    assert pissa["difference"].value == pytest.approx(-((60 - 30) + (45 - 30) + (60 - 30)) / 3)


def matched(folder, speed=False):
    """In the time of LoRA's 60 steps PiSSA takes 120, of which its last one hits, and MiLoRA 30, all of which miss."""
    found = records()
    for record in found:
        factor = {"lora": 1.0, "pissa": 2.0, "milora": 0.5}[record["run"]["method"]["name"]]
        record["run"]["training"]["steps"] = int(60 * factor)
        for point, score in zip(record["measures"]["curve"]["points"], (0.3, 0.4, 0.5, 0.7), strict=True):
            point["step"] = int(point["step"] * factor)
            point["score"] = score - 0.1 * (factor < 1)
    timed = samples.speed_record(CURVES)
    for label, seconds in (("lora", 0.2), ("pissa", 0.1), ("milora", 0.4)):
        timed["measures"]["speed"]["methods"][label]["total"] = {"median": seconds, "low": seconds, "high": seconds}
    described = samples.suite(CURVES) | {"match": "seconds"}
    return load(samples.write_folder(folder, [*found, timed] if speed else found, described))


def test_where_time_was_matched_seconds_are_compared(tmp_path):
    rows = rows_of(table := time_table(matched(tmp_path, speed=True)))
    assert {label: row["mean_seconds"].value for label, row in rows.items()} == pytest.approx(dict.fromkeys(CURVES, 12))
    assert [rows[label]["difference"].value for label in ("pissa", "milora")] == pytest.approx([0, 0])
    assert rows["pissa"]["steps"].value == 120, "a hit is no miss because the baseline takes fewer steps"
    gap = 0.2 * 15  # a quarter of any run
    halves = [rows[label]["mean_seconds"].half for label in CURVES]
    assert halves == pytest.approx([stats.t.ppf(0.975, 2) * gap / math.sqrt(12 * 3)] * 3)
    assert "at 4 moments evenly spread over the steps of each" in table.caption
    assert [column.unit for column in table.columns if column.key == "difference"] == ["s"]


def test_without_a_measured_speed_a_miss_takes_what_its_own_runs_took(tmp_path):
    rows = rows_of(time_table(matched(tmp_path)))
    # 0.1 s a step of LoRA: the samples' points keep their seconds
    assert {label: row["mean_seconds"].value for label, row in rows.items()} == pytest.approx(dict.fromkeys(CURVES, 6))


def test_misses_are_never_in_every_form(results):
    table = time_table(results)
    assert r"never \[45, never\]" in to_markdown(table)
    assert "never" in to_latex(table)
    (row,) = (row for row in csv.DictReader(io.StringIO(to_csv(table))) if row["method"] == "milora")
    assert math.isinf(float(row["steps"]))
    assert sortkey(Cell(math.inf)) == "Infinity"  # which JavaScript sorts after every number


def test_a_run_that_diverged_never_gets_there(tmp_path):
    found = records()
    found[3] = samples.diverged(found[3])
    found[3]["measures"]["curve"]["points"].pop()
    row = rows_of(time_table(results_of(tmp_path, found)))["pissa"]
    assert (row["reached"].value, row["steps"].high) == ("2 of 3", math.inf)


def test_seconds_follow_the_measured_speed_where_there_is_one(tmp_path):
    timed = samples.speed_record(CURVES)
    for method in timed["measures"]["speed"]["methods"].values():
        method["total"] = {"median": 0.5, "low": 0.4, "high": 0.6}
    results = results_of(tmp_path, [*records(), timed])
    assert times(results, "lora", 0.70)[1] == (60, 30.0)
    assert "median step of the section on speed" in curve_seconds_figure(results).caption


def test_the_figures_have_means_bands_and_the_target(results):
    for figure, last in ((curve_steps_figure(results), 60), (curve_seconds_figure(results), 6.0)):
        axis = "step" if last == 60 else "seconds"
        rows = [row for rows in figure.spec["datasets"].values() for row in rows]
        ends = {row["method"]: row for row in rows if row.get(axis) == pytest.approx(last)}
        assert ends["lora"]["value"] == pytest.approx(70.0)
        assert ends["lora"]["low"] < 69.5
        assert [row["value"] for row in rows if "method" not in row] == [70.0]
        assert "lora 70 ± 2 at the end" in figure.alt


def test_without_curves_there_is_nothing(tmp_path):
    results = load(samples.write_folder(tmp_path, samples.all_records()))
    assert time_table(results) is None
    assert curve_steps_figure(results) is None
    assert "times" not in all_tables(results)


# ---- the statistics -------------------------------------------------------------------------------------------------


def test_a_median_by_hand():
    found = median_time([30, math.inf, 10, 20, 40, math.inf, 50])
    # of 7, the interval from the least to the greatest is the only one of 95 %: 1 - 2 / 2^7
    assert (found.median, found.low, found.high) == (40, 10, math.inf)
    assert (found.coverage, found.n, found.reached) == (pytest.approx(1 - 2 / 2**7), 7, 5)
    assert median_time([10, 20, 30, 40, 50, 60, 70, 80, 90]).low == 20


def test_half_of_the_runs_are_enough():
    assert median_time([5, 7, math.inf, math.inf]).median == 7
    assert median_time([5, math.inf, math.inf]).median == math.inf


def test_too_few_for_the_level_say_what_they_cover():
    assert median_time([1, 2, 3, 4, 5]).coverage == pytest.approx(0.9375)
    single = median_time([3.0])
    assert (single.median, single.low, single.coverage) == (3.0, None, 0.0)
    with pytest.raises(ValueError, match="inf for never"):
        median_time([])
    with pytest.raises(ValueError, match="inf for never"):
        median_time([math.nan])


@pytest.mark.parametrize("n", [6, 10, 20])
def test_the_interval_covers_the_median_as_often_as_it_says(n):
    """Of exponential times of which a quarter is never, the median is where half of all runs are there."""
    rng = np.random.default_rng(n)
    true = -math.log(1 - 0.5 / 0.75)
    drawn = rng.exponential(size=(2000, n))
    drawn[rng.random((2000, n)) < 0.25] = math.inf
    found = [median_time(list(row)) for row in drawn]
    share = np.mean([f.low <= true <= f.high for f in found])
    assert share == pytest.approx(found[0].coverage, abs=0.015)
    assert found[0].coverage >= 0.95
