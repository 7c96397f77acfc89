"""Verdicts with an equivalence region, for every pair, and look by look."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from report_samples import all_records, diverged, suite, write_folder
from scipy import stats

from reports import load
from reports.claims import opening
from reports.comparing import comparisons
from reports.pairs import pairs_table
from reports.statistics import (
    Comparison,
    all_pairs,
    compare_with,
    decision_power,
    equivalence_p,
    look_level,
    mean_over_tasks,
    more_seeds,
    paired_difference,
    paired_items,
    sequential_decision,
    verdict,
)


def seeds(*scores: float) -> dict[int, float]:
    return dict(enumerate(scores, start=1))


BASE = seeds(0.800, 0.810, 0.790, 0.805, 0.795)
TWIN = seeds(0.8005, 0.8095, 0.7905, 0.8045, 0.7955)
SLIGHTLY = seeds(0.8020, 0.8121, 0.7919, 0.8070, 0.7971)  # better by 0.2 points for sure
FAR = seeds(0.85, 0.862, 0.838, 0.856, 0.844)
WIDE = seeds(0.78, 0.84, 0.80, 0.79, 0.82)


def test_equivalence_is_scipys_two_one_sided_tests():
    difference = paired_difference(WIDE, BASE)
    gaps = [WIDE[s] - BASE[s] for s in BASE]
    above = stats.ttest_1samp(gaps, -0.01, alternative="greater").pvalue
    below = stats.ttest_1samp(gaps, 0.01, alternative="less").pvalue
    assert difference is not None
    assert equivalence_p(difference, 0.01) == pytest.approx(max(above, below), rel=1e-9)
    assert equivalence_p(difference, 0.0) >= 0.5


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [(TWIN, "practically equal"), (SLIGHTLY, "practically equal"), (FAR, "better"), (WIDE, "undecided")],
)
def test_the_four_verdicts(outcomes, expected):
    difference = paired_difference(outcomes, BASE)
    assert verdict(difference) == expected
    turned = {"better": "worse"}.get(expected, expected)
    assert verdict(paired_difference(BASE, outcomes)) == turned


def test_the_margin_can_be_set():
    difference = paired_difference(SLIGHTLY, BASE)
    assert verdict(difference, margin=0.0) == "better"
    assert verdict(paired_difference(WIDE, BASE), margin=0.1) == "practically equal"


def test_equal_differences_without_a_resolution_are_neither():
    difference = paired_difference(seeds(0.52, 0.62, 0.72), seeds(0.5, 0.6, 0.7))
    assert difference is not None
    assert (verdict(difference), equivalence_p(difference), more_seeds(difference, 0.005)) == ("undecided", 1.0, None)


def test_what_lost_seeds_is_never_praised():
    methods = {"base": BASE, "far": FAR, "twin": TWIN, "low": seeds(0.7, 0.712, 0.688, 0.706, 0.694)}
    whole = {name: c.verdict for name, c in compare_with(methods, "base").items()}
    assert whole == {"far": "better", "twin": "practically equal", "low": "worse"}
    lost = compare_with(methods, "base", diverged=["far", "twin", "low"])
    assert {name: c.words for name, c in lost.items()} == {"far": "undecided", "twin": "undecided", "low": "worse"}
    reference = compare_with(methods, "base", diverged=["base"])
    assert [c.verdict for c in reference.values()] == ["better", "undecided", "undecided"], "worse than luck is no loss"


def test_every_pair_is_there_once_and_corrected_over_all():
    methods = {"base": BASE, "far": FAR, "wide": WIDE, "late": {}}
    found = all_pairs(methods)
    assert list(found)[:3] == [("far", "base"), ("wide", "base"), ("late", "base")]
    assert len(found) == 6
    assert (found["far", "base"].verdict, found["wide", "far"].verdict) == ("better", "worse")
    assert found["late", "far"] == Comparison(None, "undecided")
    many = {f"m{i}": {s: v + 0.0001 * i * s for s, v in WIDE.items()} for i in range(12)}
    close = {"base": BASE, "near": {s: v + 0.006 + 0.004 * (s % 2) for s, v in BASE.items()}}
    assert all_pairs(close)["near", "base"].verdict == "better"
    assert all_pairs(close | many)["near", "base"].verdict == "undecided", "66 more pairs raise what it takes"


def test_the_words_of_a_verdict():
    assert Comparison(None, "undecided", 12).words == "undecided (+12 seeds)"
    assert Comparison(None, "undecided", 1).words == "undecided (+1 seed)"
    assert Comparison(None, "undecided").words == "undecided"
    assert Comparison(None, "practically equal").words == "practically equal"


def test_power_without_a_margin_is_that_of_students_test():
    for n, effect in [(3, 1.0), (5, 0.5), (10, 1.0), (50, 0.4)]:
        critical = stats.t.ppf(0.975, n - 1)
        exact = stats.nct.sf(critical, n - 1, effect * math.sqrt(n)) + stats.nct.cdf(-critical, n - 1, effect * n**0.5)
        assert decision_power(n, effect, 1.0, 0.0) == pytest.approx(exact, abs=1e-3)


def test_forecasts_by_the_textbook():
    # half a standard deviation takes 34 pairs for 80 % power at 5 %: what every power calculator says
    found = paired_difference(*_with(0.05, 0.1))
    assert found is not None
    assert found.n + (more_seeds(found, 0.0) or 0) == 34
    stricter = more_seeds(found, 0.0, levels=(0.99, 0.99))
    assert stricter is not None
    assert stricter > 30


def test_what_would_take_too_many_seeds_is_not_forecast():
    on_the_margin = paired_difference(*_with(0.005, 0.5))
    assert on_the_margin is not None
    assert more_seeds(on_the_margin, 0.005) is None
    assert more_seeds(on_the_margin, 0.005, most=10**6) is not None


def _with(mean: float, deviation: float) -> tuple[dict[int, float], dict[int, float]]:
    """Outcomes of three seeds whose differences have this mean and standard deviation."""
    return seeds(mean - deviation, mean, mean + deviation), seeds(0.0, 0.0, 0.0)


def test_items_pair_by_place():
    a, b = {1: [1, 0, 1, 1], 2: [1, 1, 1, 0]}, {1: [0, 0, 1, 0], 2: [0, 1, 1, 0], 3: [1, 1, 1, 1]}
    found = paired_items(a, b)
    assert found is not None
    assert (found.mean, found.n, found.items) == (pytest.approx(3 / 8), 2, 4)
    with pytest.raises(ValueError, match="give the same items"):
        paired_items({1: [0, 1], 2: [0]}, {1: [0, 1], 2: [0]})
    assert paired_items({1: [0, 1]}, {1: [0, 1]}) is None


def test_equal_answers_leave_what_the_items_did_not_show():
    answers = {seed: [1.0, 0.0] * 250 for seed in (1, 2, 3)}
    found, narrow = paired_items(answers, answers), paired_items(answers, answers, level=0.9)
    assert found is not None
    assert narrow is not None
    assert (found.mean, found.half, found.p) == (0.0, pytest.approx(3.7 / 500, rel=4e-3), pytest.approx(1.0))
    assert narrow.half == pytest.approx(3 / 500, rel=2e-3), "the rule of three: 5 % at each end"


def test_new_items_are_never_less_of_a_question_than_new_seeds():
    """Every seed gets other items right and the same score: its spread is that of rounding to an item."""
    a, b = ({seed: [float(i == seed + shift) for i in range(10)] for seed in (1, 2)} for shift in (0, 2))
    found, known = paired_items(a, b), paired_difference({1: 0.1, 2: 0.1}, {1: 0.1, 2: 0.1}, resolution=1 / 10)
    assert found is not None
    assert known is not None
    assert found.half is not None
    assert known.half is not None
    assert found.half >= known.half > 3 / 10


def test_items_that_do_not_matter_leave_the_interval_over_seeds():
    shift = {1: 0.1, 2: 0.3, 3: -0.1}
    found = paired_items({s: np.full(50, v) for s, v in shift.items()}, {s: np.zeros(50) for s in shift})
    known = paired_difference(shift, dict.fromkeys(shift, 0.0))
    assert found is not None
    assert known is not None
    assert (found.half, found.p) == (pytest.approx(known.half), pytest.approx(known.p, abs=1e-9))


def test_one_task_has_the_interval_of_its_mean():
    found = mean_over_tasks({"trec": [0.7, 0.75, 0.72]})
    assert found.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem([0.7, 0.75, 0.72]))
    assert mean_over_tasks({"a": [0.5, 0.6], "b": [0.5]}).half is None
    assert mean_over_tasks({"a": [0.5, 0.5]}).half == 0.0
    assert (mean_over_tasks({"a": [0.5, 0.5]}, resolution=0.01).half or 0) > 0
    with pytest.raises(ValueError, match="at least one"):
        mean_over_tasks({})


def longer(outcomes: dict[int, float], times: int) -> dict[int, float]:
    values = list(outcomes.values()) * times
    return dict(enumerate(values, start=1))


def test_looks_share_the_error():
    assert look_level(1) == pytest.approx(0.95)
    assert look_level(4) == pytest.approx(0.9875)
    with pytest.raises(ValueError, match="at least one"):
        look_level(0)


def test_seeds_are_added_until_every_pair_is_decided():
    methods = {"base": longer(BASE, 3), "far": longer(FAR, 3), "wide": longer(WIDE, 3)}
    looks = (3, 5, 10)
    first = sequential_decision({k: {s: v[s] for s in (1, 2, 3)} for k, v in methods.items()}, looks)
    assert (first.seeds, first.next_seeds) == (3, 5)
    assert sequential_decision({}, looks).next_seeds is None, "nobody to wait for"
    late = {k: {s: v[s] for s in range(1, 4 if k == "wide" else 6)} for k, v in methods.items()}
    assert sequential_decision(late, looks).seeds == 3, "a look waits for all of its runs"
    done = sequential_decision(methods, looks)
    assert (done.seeds, done.next_seeds) == (10, None), "the cap"
    assert done.decided_at["far", "base"] <= 5
    assert ("wide", "base") not in done.decided_at
    assert done.waiting == frozenset()


def test_a_decided_pair_needs_no_more_seeds_and_keeps_its_verdict():
    five = {s: BASE[s] for s in BASE}
    methods = {"base": five, "far": FAR, "wide": WIDE}
    found = sequential_decision(methods, (5, 10))
    assert found.decided_at == {("far", "base"): 5}
    assert (found.next_seeds, found.waiting) == (10, {"base", "far", "wide"})
    turned = {k: v | {s + 5: 1.0 if k == "base" else 0.5 for s in v} for k, v in methods.items()}
    assert sequential_decision(turned, (5, 10)).comparisons["far", "base"] == found.comparisons["far", "base"]


def test_open_pairs_of_a_method_that_diverged_are_not_waited_for():
    methods = {"base": BASE, "wide": WIDE}
    assert sequential_decision(methods, (5, 10)).waiting == {"base", "wide"}
    assert sequential_decision(methods, (5, 10), diverged=["wide"]).next_seeds is None
    third = methods | {"other": {s: v - 0.01 for s, v in WIDE.items()}}
    assert sequential_decision(third, (5, 10), diverged=["other"]).waiting == {"base", "wide"}


@pytest.mark.parametrize("looks", [(), (1, 2), (3, 3), (5, 3)])
def test_looks_grow(looks):
    with pytest.raises(ValueError, match="growing numbers"):
        sequential_decision({"base": BASE}, looks)


def test_reports_show_every_pair_and_the_seeds_missing(tmp_path: Path) -> None:
    results = load(write_folder(tmp_path, all_records()))
    table = pairs_table(results)
    assert len(table.rows) == 28
    assert [cell.value for cell in table.rows[0][:2]] == ["dora", "lora"]
    said = next(s for s in opening(results, []) if s.startswith("Against lora"))
    assert "dora, pissa and milora are undecided (about" in said
    assert "more seeds)" in said


def test_the_margin_of_a_suite_counts(tmp_path: Path) -> None:
    described = suite()
    described["protocol"]["margin"] = 0.1
    results = load(write_folder(tmp_path, all_records(), described))
    assert {c.verdict for c in comparisons(results, "lora").values()} == {"practically equal"}
    assert "within ±10 points" in pairs_table(results).caption
    assert any("practically equal (within ±10 points)" in sentence for sentence in opening(results, []))


def test_a_method_that_lost_seeds_is_undecided_in_every_table(tmp_path: Path) -> None:
    records = all_records(seeds=5)
    records = [diverged(r) if r["key"].startswith("full-final") and r["run"]["seed"] == 2 else r for r in records]
    results = load(write_folder(tmp_path, records, suite(seeds=5)))
    rows = [row for row in pairs_table(results).rows if "full" in (row[0].value, row[1].value)]
    assert {row[3].value for row in rows} == {"undecided"}
    assert comparisons(results, "lora")["full"].words == "undecided"
