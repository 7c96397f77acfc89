"""Usable learning rates: windows by hand, ends of the grid, divergence, and a sentence only where it is clear."""

from __future__ import annotations

import math

import pytest
import report_samples as samples

from reports import load
from reports.claims import opening
from reports.rate_windows import clear_differences, rate_windows_sentence, rate_windows_table, untrained, windows
from reports.rate_windows_figure import rate_windows_figure
from reports.records import Results

RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FLOOR = 0.02  # 500 items of 50 classes: the most common answer is right for 10 of them
WIDE, NARROW, CUT = (0.12, 0.72, 0.72, 0.72, 0.12), (0.12, 0.32, 0.72, 0.32, 0.12), (0.12, 0.12, 0.12, 0.72, 0.72)


def records(levels, seeds=5, noise=0.004, lost=None):
    found = []
    for m, (label, scores) in enumerate(levels.items()):
        for lr, level in zip(RATES, scores, strict=True):
            for seed in range(seeds):
                record = samples.score_record(label, "search", lr, -seed, level + noise * samples.wobble(seed, m))
                found.append(samples.diverged(record) if (label, lr) == lost else record)
        found += [samples.score_record(label, "final", 1e-2, seed, 0.7) for seed in (1, 2)]
    return found


def results_of(folder, found, labels=("lora", "pissa", "milora")) -> Results:
    return load(samples.write_folder(folder, found, samples.suite(labels, seeds=2)))


def test_a_window_by_hand(tmp_path):
    results = results_of(tmp_path, records({"lora": NARROW}, seeds=1, noise=0.0))
    assert untrained(results) == pytest.approx(FLOOR)
    window = windows(results)["lora"].whole
    # 90 % of the gain of 0.70 is 0.63: lost after (0.70 - 0.63) / (0.70 - 0.30) of the decade to either side
    assert (math.log10(window.low), math.log10(window.high)) == pytest.approx((-2 - 0.175, -2 + 0.175))
    assert (window.cut_low, window.cut_high) == (False, False)


def test_a_rate_that_diverged_counts_as_no_training(tmp_path):
    found = records({"lora": WIDE}, seeds=1, noise=0.0, lost=("lora", 1e-1))
    window = windows(results_of(tmp_path, found))["lora"].whole
    assert math.log10(window.high) == pytest.approx(-2 + 0.1)  # 0.07 of the 0.70 that are lost on the way
    assert not window.cut_high


def test_ends_of_the_grid_are_marked(tmp_path):
    results = results_of(tmp_path, records({"lora": NARROW, "pissa": CUT}))
    rows = {row[0].value: row for row in rate_windows_table(results).rows}
    assert [[cell.mark for cell in rows[label][1:4]] for label in ("lora", "pissa")] == [[""] * 3, ["", "†", "†"]]
    assert rows["lora"][3].half > 0
    figure = rate_windows_figure(results)
    assert "at least" in figure.alt
    arrows = [row for rows in figure.spec["datasets"].values() for row in rows if "way" in row]
    assert [(row["method"], row["rate"]) for row in arrows] == [("pissa", 1.0)]


def test_windows_as_wide_as_their_grids_say_nothing(tmp_path):
    flat = (0.7,) * 5
    results = results_of(tmp_path, records({"lora": flat, "pissa": flat}))
    assert rate_windows_table(results) is None
    assert rate_windows_figure(results) is None


def test_without_a_gain_there_is_no_window(tmp_path):
    assert windows(results_of(tmp_path, records({"lora": (FLOOR,) * 5}, noise=0.0))) == {}


def test_two_rates_have_no_inside(tmp_path):
    found = [r for r in records({"lora": NARROW}) if r["run"]["stage"] == "final" or r["run"]["lr"] in RATES[1:3]]
    assert windows(results_of(tmp_path, found)) == {}


def test_trials_that_differ_in_more_than_the_rate_have_no_window(tmp_path):
    """Every second setting has another rank too, which decides the score; the rate does nothing."""
    described = samples.suite(("lora", "pissa"), seeds=2)
    described["protocol"] |= {"trials": 5, "space": {"lr": [1e-4, 1.0, "log"], "rank": [2, 32]}}
    found = records({"lora": (0.2, 0.72, 0.2, 0.72, 0.2), "pissa": WIDE})
    results = load(samples.write_folder(tmp_path, found, described))
    assert len(results.settings("lora")) == 5
    assert windows(results) == clear_differences(results) == {}
    assert rate_windows_table(results) is rate_windows_figure(results) is None
    assert rate_windows_sentence(results) == ""


@pytest.mark.parametrize(("audit", "known"), [(True, {"lora", "pissa"}), (False, set())])
def test_the_survivors_of_a_race_have_no_window(tmp_path, audit, known):
    described = samples.suite(("lora", "pissa"), seeds=2)
    described["protocol"] |= {"points": 9, "racing": 2, "rungs": 2, "racing_audit": audit}
    results = load(samples.write_folder(tmp_path, records({"lora": NARROW, "pissa": WIDE}), described))
    assert windows(results).keys() == known
    assert (rate_windows_sentence(results) == "") != audit


def test_a_sentence_only_where_it_is_clear(tmp_path):
    results = results_of(tmp_path / "a", records({"lora": NARROW, "pissa": WIDE, "milora": NARROW}))
    assert list(clear_differences(results)) == ["pissa"]
    said = rate_windows_sentence(results)
    assert said.startswith("The window of usable learning rates is wider for pissa (+")
    assert said.endswith("decades) than for lora.")
    assert said in opening(results, [])
    single = results_of(tmp_path / "b", records({"lora": NARROW, "pissa": WIDE, "milora": NARROW}, seeds=1))
    assert rate_windows_sentence(single) == ""


def test_a_window_that_the_grid_cuts_is_never_called_narrower(tmp_path):
    """Of CUT nobody knows how far it goes on; it may only be the wider one of the two."""
    results = results_of(tmp_path / "a", records({"lora": WIDE, "pissa": CUT}))
    assert rate_windows_sentence(results) == ""
    results = results_of(tmp_path / "b", records({"lora": NARROW, "pissa": CUT}))
    assert "wider for pissa" in rate_windows_sentence(results)
