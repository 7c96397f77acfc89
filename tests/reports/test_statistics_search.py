"""Searches and comparisons across tasks, against hand-computed values and scipy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from reports.statistics import (
    CriticalDifference,
    Refusal,
    critical_difference,
    expected_best,
    expected_best_after,
    fewest_tasks,
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    rate_window,
    score_profile,
    signed_rank_p,
    task_ranks,
    time_to_target,
)


def test_expected_best_by_hand():
    # of 1, 2, 4: one has the mean 7/3; pairs have 2, 4, 4; all three 4
    assert expected_best([4.0, 1.0, 2.0]) == pytest.approx([7 / 3, 10 / 3, 4.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_expected_best_rises_from_the_mean_to_the_best(scores):
    curve = expected_best(scores)
    assert curve[0] == pytest.approx(np.mean(scores), abs=1e-9)
    assert curve[-1] == pytest.approx(max(scores), abs=1e-9)
    assert all(b >= a - 1e-9 for a, b in pairwise(curve))


def test_expected_best_of_hundreds_of_trials_is_finite():
    curve = expected_best(np.random.default_rng(1).normal(size=600).tolist())
    assert np.isfinite(curve).all()
    assert curve == sorted(curve)


@pytest.mark.parametrize("scores", [[], [0.5, math.nan], [0.5, -math.inf]])
def test_a_search_needs_numbers(scores):
    with pytest.raises(ValueError, match="the score of no training"):
        expected_best(scores)


def test_trials_of_one_duration_cost_their_number():
    scores = [0.1, 0.5, 0.7, 0.9]
    curve = expected_best_after(scores, [10.0] * 4, [5, 10, 19, 20, 30, 40, 99], np.random.default_rng(2), before=0.0)
    one, two, three, four = expected_best(scores)
    assert curve == pytest.approx([0.0, one, one, two, three, four, four], abs=0.02)


def test_a_slow_trial_is_seen_late():
    scores, seconds = [0.5, 0.9], [1.0, 9.0]
    # at 1 s the quick one has ended if it came first, at 9 s one of the two surely has, at 10 s both
    curve = expected_best_after(scores, seconds, [1, 8.9, 9, 10], np.random.default_rng(3), before=0.1, orders=20_000)
    assert curve == pytest.approx([0.3, 0.3, 0.7, 0.9], abs=0.01)
    unknown = expected_best_after(scores, seconds, [1, 9], np.random.default_rng(3))
    assert math.isnan(unknown[0])
    assert unknown[1] == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("seconds", [[1.0], [1.0, 0.0], [1.0, math.nan]])
def test_every_trial_has_a_duration(seconds):
    with pytest.raises(ValueError, match="above 0 for every score"):
        expected_best_after([0.5, 0.6], seconds, [1], np.random.default_rng(0))


def test_rate_window_by_hand():
    # 90 % of 0.8 is 0.72: halfway between 0.64 and 0.8 on the left, on the right a fifth of the way from 0.8 to 0.4
    window = rate_window([1e-2, 1e-4, 1e-3], [0.4, 0.64, 0.8])
    assert (math.log10(window.low), math.log10(window.high)) == pytest.approx((-3.5, -2.8))
    assert window.decades == pytest.approx(0.7)
    assert (window.cut_low, window.cut_high) == (False, False)


def test_the_ends_of_the_grid_cut_the_window_and_a_dip_ends_it():
    cut = rate_window([1e-4, 1e-3, 1e-2], [0.79, 0.8, 0.1])
    assert (cut.low, cut.cut_low, cut.cut_high) == (pytest.approx(1e-4), True, False)
    dip = rate_window([1e-5, 1e-4, 1e-3, 1e-2], [0.79, 0.0, 0.8, 0.0])
    assert dip.low > 1e-4
    assert rate_window([1e-3], [0.8]).decades == 0


@pytest.mark.parametrize(
    ("rates", "scores", "why"),
    [
        ([1e-3], [0.1, 0.2], "every rate once"),
        ([1e-3, 1e-3], [0.1, 0.2], "every rate once"),
        ([0.0, 1e-3], [0.1, 0.2], "every rate once"),
        ([1e-4, 1e-3], [-0.1, -0.2], "a share of a positive score"),
        ([1e-4, 1e-3], [0.1, math.nan], "the score of no training"),
    ],
)
def test_windows_that_say_nothing_are_refused(rates, scores, why):
    with pytest.raises(ValueError, match=why):
        rate_window(rates, scores)


def test_the_middle_half_ignores_one_failure():
    assert interquartile_mean({"a": [0.0, 0.5, 0.6, 1.0], "b": [0.5, 0.6, 0.7, 0.7]}) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="no scores"):
        interquartile_mean({})


def test_probability_of_improvement_by_hand():
    a, b = {"x": [1.0, 2.0], "y": [0.0]}, {"x": [1.0, 0.0], "y": [0.0]}
    assert probability_of_improvement(a, b) == pytest.approx(((0.5 + 3) / 4 + 0.5) / 2)
    assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == pytest.approx(1)
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=7), rng.normal(size=5)
    known = stats.mannwhitneyu(left, right).statistic / 35
    assert probability_of_improvement({"t": left.tolist()}, {"t": right.tolist()}) == pytest.approx(known)
    with pytest.raises(ValueError, match="on the same tasks"):
        probability_of_improvement(a, {"x": [1.0]})


def test_robust_numbers_have_intervals_from_ten_seeds_on():
    rng = np.random.default_rng(8)
    a, b = ({task: rng.normal(mean, 1, size=10).tolist() for task in "xy"} for mean in (0.5, 0.0))
    middle, chance = interquartile_interval(a, rng), improvement_interval(a, b, rng)
    assert middle is not None
    assert chance is not None
    assert middle.value == pytest.approx(interquartile_mean(a))
    assert chance.value == pytest.approx(probability_of_improvement(a, b))
    assert middle.low < middle.value < middle.high
    assert 0 <= chance.low < chance.value < chance.high <= 1
    few = a | {"y": a["y"][:9]}
    assert interquartile_interval(few, rng) is None
    assert improvement_interval(a, few, rng) is None
    assert improvement_interval(few, a, rng) is None


def test_ranks_on_every_task():
    found = task_ranks({"a": [0.3, 0.5], "b": [0.2, 0.5], "c": [0.1, 0.9]})
    assert found == {
        "a": [1, 2.5],
        "b": [2, 2.5],
        "c": [3, 1],
    }


def test_profiles_by_hand():
    assert score_profile({"a": [0.5, 0.7], "b": [0.6]}, [0.4, 0.5, 0.65]) == pytest.approx([1.0, 0.75, 0.25])
    times = {"lora": [10.0, 20.0, math.inf, math.inf], "pissa": [20.0, 10.0, 5.0, math.inf]}
    profile = performance_profile(times, [1.0, 2.0, 100.0])
    assert profile == {"lora": [0.25, 0.5, 0.5], "pissa": [0.5, 0.75, 0.75]}
    assert performance_profile(times, [math.inf]) == {"lora": [0.5], "pissa": [0.75]}, "never is not late"
    with pytest.raises(ValueError, match="same number of times"):
        performance_profile({"a": [1.0], "b": [1.0, 2.0]}, [1.0])


def test_a_missed_target_is_never_reached():
    curve = [(30.0, 0.7), (10.0, 0.5), (20.0, 0.7), (40.0, 0.6)]
    assert [time_to_target(curve, target) for target in (0.5, 0.6, 0.71)] == [10.0, 20.0, math.inf]
    assert time_to_target([(5.0, math.nan)], 0.1) == math.inf


def test_signed_ranks_are_scipys_exact_ones_and_survive_ties():
    rng = np.random.default_rng(5)
    for n in (1, 3, 8, 20):
        values = rng.normal(0.3, 1, size=n)
        known = stats.wilcoxon(values, method="exact").pvalue
        assert signed_rank_p(values) == pytest.approx(known, rel=1e-9)
    assert signed_rank_p([0.0, 0.0]) == 1.0
    assert signed_rank_p([1.0] * 6) == pytest.approx(2 / 64)
    assert signed_rank_p([0.0, *[1.0] * 6]) == pytest.approx(2 / 64)
    signs = np.array(np.meshgrid(*[[0, 1]] * 5)).reshape(5, -1)
    sums = np.array([1.5, 1.5, 3.0, 4.5, 4.5]) @ signs  # every sign of tied ranks; observed: 15 - 1.5
    assert signed_rank_p([1.0, -1.0, 2.0, 3.0, 3.0]) == pytest.approx(2 * np.mean(sums >= 13.5))


def test_ranks_and_cliques():
    rng = np.random.default_rng(6)
    base = rng.normal(0.8, 0.05, size=12)
    scores = {
        "low": base - 0.1 + rng.normal(0, 0.005, 12),
        "even": base + rng.normal(0, 0.005, 12),
        "odd": base + rng.normal(0, 0.005, 12),
        "high": base + 0.1 + rng.normal(0, 0.005, 12),
    }
    found = critical_difference({name: row.tolist() for name, row in scores.items()})
    assert isinstance(found, CriticalDifference)
    names = list(found.ranks)
    assert (names[0], names[-1], found.ranks["high"], found.ranks["low"]) == ("high", "low", 1.0, 4.0)
    assert {frozenset(clique) for clique in found.cliques} == {frozenset({"even", "odd"})}
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*scores.values()).pvalue)
    assert found.p["high", "low"] == pytest.approx(6 * 2 / 2**12)


def test_equal_methods_are_one_clique():
    found = critical_difference({name: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7] for name in "abc"})
    assert isinstance(found, CriticalDifference)
    assert (found.cliques, found.friedman_p, found.ranks["a"]) == ((("a", "b", "c"),), None, 2.0)


@pytest.mark.parametrize(("methods", "least"), [(2, 6), (3, 7), (8, 11), (10, 11), (25, 14)])
def test_too_few_tasks_are_refused_with_the_reason(methods, least):
    assert fewest_tasks(methods) == least
    sure = {f"m{i}": [i + 0.01 * task for task in range(least)] for i in range(methods)}
    allowed = critical_difference(sure)
    assert isinstance(allowed, CriticalDifference)
    assert min(allowed.p.values()) <= 0.05, "with so many tasks a method that always wins is told apart"
    refused = critical_difference({name: row[1:] for name, row in sure.items()})
    assert isinstance(refused, Refusal)
    assert refused.reason.startswith(f"{least - 1} tasks are too few to rank {methods} methods")
    assert refused.reason.endswith(f"From {least} tasks on some pair can be told apart.")


def test_ranks_need_the_same_tasks():
    with pytest.raises(ValueError, match="on the same tasks"):
        critical_difference({"a": [1.0], "b": [1.0, 2.0]})
