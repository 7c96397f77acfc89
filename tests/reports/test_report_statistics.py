"""Intervals and verdicts against hand-computed values, against scipy.stats, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from report_samples import METHODS
from scipy import stats

from reports.statistics import (
    beats,
    best_beyond_interval,
    compare_with,
    holm,
    mean_interval,
    paired_difference,
    paired_proportions,
    verdict,
)

VALUES = st.lists(st.floats(0, 1, allow_nan=False), min_size=2, max_size=12)


def seeds(*scores: float) -> dict[int, float]:
    return dict(enumerate(scores, start=1))


def test_mean_interval_by_hand():
    # mean 4, s = 2, t(2, 0.975) = 4.302653: half-width 4.302653 * 2 / sqrt(3)
    estimate = mean_interval([2.0, 4.0, 6.0])
    assert (estimate.mean, estimate.n) == (4.0, 3)
    assert estimate.half == pytest.approx(4.968275, abs=1e-6)
    assert (estimate.low, estimate.high) == pytest.approx((-0.968275, 8.968275), abs=1e-6)


@given(VALUES.filter(lambda v: np.std(v) > 1e-6))
def test_mean_interval_is_scipys(values):
    estimate = mean_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-9, abs=1e-12)


def test_one_value_has_no_interval():
    estimate = mean_interval([0.5])
    assert (estimate.mean, estimate.half, estimate.low, estimate.high) == (0.5, None, None, None)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_interval_covers_what_it_says():
    rng = np.random.default_rng(2024)
    samples = rng.normal(0.8, 0.02, size=(2000, 3))
    hits = [abs(e.mean - 0.8) <= (e.half or 0) for e in map(mean_interval, samples.tolist())]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_paired_difference_is_scipys_paired_t_test():
    a, b = seeds(0.81, 0.84, 0.80, 0.86), seeds(0.79, 0.80, 0.79, 0.83)
    difference = paired_difference(a, b)
    expected = stats.ttest_rel(list(a.values()), list(b.values()))
    low, high = expected.confidence_interval(0.95)
    assert difference is not None
    assert difference.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (difference.low, difference.high) == pytest.approx((low, high), rel=1e-9)


def test_pairs_are_made_by_seed():
    difference = paired_difference({1: 0.5, 2: 0.6, 3: 0.9}, {3: 0.8, 2: 0.5, 7: 0.1})
    assert difference is not None
    assert (difference.n, difference.mean) == (2, pytest.approx(0.1))


@pytest.mark.parametrize(("a", "b"), [({1: 0.5}, {1: 0.4}), ({1: 0.5, 2: 0.6}, {3: 0.4, 4: 0.5}), ({}, {})])
def test_fewer_than_two_common_seeds_give_no_difference(a, b):
    assert paired_difference(a, b) is None
    assert beats(a, b) == "undecided"


def test_equal_differences_are_not_certainty():
    # 0.52 - 0.5 and 0.62 - 0.6 differ in their last bit only
    difference = paired_difference(seeds(0.52, 0.62, 0.72), seeds(0.5, 0.6, 0.7))
    assert difference is not None
    assert (difference.half, difference.p, difference.separated) == (0.0, 1.0, False)


@pytest.mark.parametrize(("items_apart", "expected"), [(1, "undecided"), (20, "better"), (-20, "worse")])
def test_resolution_stands_in_for_a_spread_that_cannot_be_seen(items_apart, expected):
    a = {seed: (400 + seed + items_apart) / 500 for seed in (1, 2, 3)}
    b = {seed: (400 + seed) / 500 for seed in (1, 2, 3)}
    difference = paired_difference(a, b, resolution=1 / 500)
    assert difference is not None
    assert difference.half == pytest.approx(4.302653 / 500 / math.sqrt(6) / math.sqrt(3), rel=1e-6)
    assert beats(a, b, resolution=1 / 500, margin=0) == expected


def test_resolution_never_narrows_an_interval():
    values = [0.71, 0.74, 0.79]
    assert mean_interval(values, resolution=0.002) == mean_interval(values)
    assert (mean_interval(values, resolution=0.5).half or 0) > (mean_interval(values).half or 0)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1, never falling
    adjusted = holm({"c": 0.03, "a": 0.01, "d": 0.2, "b": 0.02})
    assert adjusted == pytest.approx({"c": 0.06, "a": 0.04, "d": 0.2, "b": 0.06})
    assert list(adjusted) == ["c", "a", "d", "b"]


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_only_raises_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p_values[k] <= adjusted[k] <= 1 for k in p_values)
    assert all(adjusted[a] <= adjusted[b] for a in p_values for b in p_values if p_values[a] <= p_values[b])


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(7)
    wrong = 0
    for scores in rng.normal(0.8, 0.02, size=(1000, 8, 5)):
        methods = {name: seeds(*row) for name, row in zip(METHODS, scores.tolist(), strict=True)}
        wrong += any(c.verdict != "undecided" for c in compare_with(methods, "lora").values())
    assert wrong / 1000 <= 0.065  # 5 % and three standard errors of the simulation


def test_verdicts_follow_the_sign():
    high, low = seeds(0.90, 0.91, 0.92), seeds(0.70, 0.72, 0.71)
    assert (beats(high, low), beats(low, high), beats(low, low)) == ("better", "worse", "undecided")


def test_an_adjusted_p_value_overrides_the_own_one():
    difference = paired_difference(seeds(0.90, 0.91, 0.92), seeds(0.70, 0.72, 0.71))
    assert verdict(difference, p=0.06) == "undecided"


def test_correction_counts_only_what_can_be_compared():
    methods = {"lora": seeds(0.8, 0.81, 0.82), "full": seeds(0.84, 0.853, 0.862), "late": {}, "one": {1: 0.9}}
    compared = compare_with(methods, "lora")
    assert list(compared) == ["full", "late", "one"]
    assert compared["full"].verdict == "better"
    assert compared["late"].difference is None


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ({"a": seeds(0.90, 0.91, 0.92), "b": seeds(0.7, 0.72, 0.71), "c": seeds(0.6, 0.61, 0.63)}, "a"),
        ({"a": seeds(0.90, 0.91, 0.92), "b": seeds(0.9, 0.92, 0.9), "c": seeds(0.6, 0.61, 0.63)}, None),
        ({"a": seeds(0.90, 0.91, 0.92), "b": {}}, None),
        ({"a": seeds(0.90, 0.91, 0.92), "b": {1: 0.5}}, None),
        ({"a": seeds(0.90, 0.91, 0.92)}, None),
        ({"a": seeds(0.9), "b": seeds(0.1)}, None),
        ({}, None),
    ],
)
def test_best_beyond_interval(methods, expected):
    assert best_beyond_interval(methods) == expected


def test_the_best_of_equals_is_rarely_claimed():
    rng = np.random.default_rng(11)
    claims = 0
    for scores in rng.normal(0.8, 0.02, size=(1000, 3, 5)):
        methods = {name: seeds(*row) for name, row in zip("abc", scores.tolist(), strict=True)}
        claims += best_beyond_interval(methods) is not None
    assert claims / 1000 <= 0.05


@pytest.mark.parametrize(
    ("gained", "lost", "items", "low", "high"),
    [
        # Airway hyper-responsiveness, Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33, 2850-2875
        (1, 7, 21, -0.517, -0.026),
        # nothing moved: z^2 / (n + z^2) = 3.841459 / 103.841459
        (0, 0, 100, -0.036994, 0.036994),
    ],
)
def test_paired_proportions_are_the_published_ones(gained, lost, items, low, high):
    interval = paired_proportions(gained, lost, items)
    assert interval.value == (gained - lost) / items
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-4)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_paired_proportions_hold_their_value_and_turn_with_their_sides(gained, lost, same):
    items = max(1, gained + lost + same)
    there, back = paired_proportions(gained, lost, items), paired_proportions(lost, gained, items)
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert there.low < there.high
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)


@pytest.mark.parametrize(("share_gained", "share_lost"), [(0.01, 0.01), (0.02, 0.05), (0.1, 0.1), (0.0, 0.03)])
def test_paired_proportions_cover_what_they_say(share_gained, share_lost):
    rng = np.random.default_rng(5)
    shares = [share_gained, share_lost, 1 - share_gained - share_lost]
    counts = rng.multinomial(200, shares, size=1500)[:, :2].tolist()
    intervals = {pair: paired_proportions(*pair, 200) for pair in {tuple(pair) for pair in counts}}
    hits = [intervals[g, w].low <= share_gained - share_lost <= intervals[g, w].high for g, w in counts]
    assert 0.93 <= np.mean(hits) <= 0.985


@pytest.mark.parametrize("counts", [(1, 1, 1), (0, 0, 0), (-1, 0, 5)])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="give counts that fit"):
        paired_proportions(*counts)
