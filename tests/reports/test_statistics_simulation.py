"""The statistics hold what they promise, by simulation: coverage, rates of false verdicts, power, stopping early.

Each check has a broken variant, a method in use elsewhere, which it must catch. Rates are of known seeds of the
generator; a bound is the promise and about three standard errors of its simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from scipy.special import ndtr

from reports.statistics import (
    Comparison,
    Difference,
    all_pairs,
    compare_with,
    expected_best,
    improvement_interval,
    interquartile_interval,
    interval_over_tasks,
    mean_interval,
    mean_over_tasks,
    more_seeds,
    paired_difference,
    paired_items,
    paired_proportions,
    sequential_decision,
    stratified_bootstrap,
    verdict,
)

TRUE, SPREAD = 0.8, 0.02
BAND = (0.93, 0.97)  # of coverage, over 2,000 draws: a standard error is 0.005
MARGIN = 0.005
Scores = np.ndarray  # (draws, ..., seeds)


def within(rate: float, band: tuple[float, float] = BAND) -> bool:
    return band[0] <= rate <= band[1]


def outcomes(table: Scores) -> dict[str, dict[int, float]]:
    """A method a row of (methods, seeds)."""
    return {f"m{i}": dict(enumerate(row, start=1)) for i, row in enumerate(table.tolist())}


def percentile_bootstrap(rows: Scores, rng: np.random.Generator, draws: int = 500) -> tuple[Scores, Scores]:
    """The plain percentile interval of the mean of every row."""
    drawn = np.stack([rows[:, rng.integers(rows.shape[1], size=rows.shape[1])].mean(axis=1) for _ in range(draws)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low, high


@pytest.mark.parametrize("seeds", [3, 5])
def test_t_intervals_of_few_seeds_cover(seeds):
    rows = np.random.default_rng(seeds).normal(TRUE, SPREAD, size=(2000, seeds))
    hits = [abs(e.mean - TRUE) <= (e.half or 0) for e in map(mean_interval, rows.tolist())]
    assert within(float(np.mean(hits)))
    low, high = percentile_bootstrap(rows, np.random.default_rng(1))
    assert not within(float(np.mean((low <= TRUE) & (high >= TRUE)))), "the percentile bootstrap must be caught"


@pytest.mark.parametrize("seeds", [3, 5])
def test_paired_intervals_cover_where_methods_share_most_of_the_noise(seeds):
    rng = np.random.default_rng(10 + seeds)
    shared = rng.normal(0, SPREAD, size=(2000, 1, seeds))
    pairs = TRUE + shared + rng.normal(0, SPREAD / 4, size=(2000, 2, seeds))
    found = [paired_difference(*outcomes(pair).values()) for pair in pairs]
    assert within(float(np.mean([d is not None and abs(d.mean) <= (d.half or 0) for d in found])))
    halves = [[mean_interval(row).half or 0 for row in pair] for pair in pairs.tolist()]
    unpaired = [
        abs(np.subtract(*pair.mean(axis=1))) <= math.hypot(*half) for pair, half in zip(pairs, halves, strict=True)
    ]
    assert not within(float(np.mean(unpaired))), "an unpaired interval must be caught"


@pytest.mark.parametrize(("seeds", "tasks"), [(10, 1), (20, 1), (10, 4), (20, 4)])
def test_the_bootstrap_covers_from_ten_seeds_on(seeds, tasks):
    rng = np.random.default_rng(seeds + tasks)
    spreads = SPREAD * np.arange(1, tasks + 1)[:, None]
    tables = rng.normal(TRUE, spreads, size=(2000, tasks, seeds))
    found = [stratified_bootstrap(dict(enumerate(t)), rng, draws=400) for t in tables]
    assert within(float(np.mean([f.low <= TRUE <= f.high for f in found])))


def test_intervals_of_robust_numbers_over_tasks_cover():
    """Of normal scores the interquartile mean is the mean, and methods half a spread apart win 64 % of the time."""
    rng, draws = np.random.default_rng(9), 400
    band = (0.92, 0.98)  # a standard error is 0.011
    tables = rng.normal(TRUE, SPREAD, size=(draws, 2, 3, 10))
    tables[:, 0] += SPREAD / 2
    pairs = [[dict(enumerate(runs.tolist())) for runs in pair] for pair in tables]
    middles = [interquartile_interval(b, rng) for _, b in pairs]
    assert within(float(np.mean([m is not None and m.low <= TRUE <= m.high for m in middles])), band)
    chance = float(ndtr(0.5 / math.sqrt(2)))
    found = [improvement_interval(a, b, rng) for a, b in pairs]
    assert within(float(np.mean([f is not None and f.low <= chance <= f.high for f in found])), band)


def test_the_percentile_bootstrap_of_ten_seeds_is_caught():
    rows = np.random.default_rng(4).normal(TRUE, SPREAD, size=(2000, 10))
    low, high = percentile_bootstrap(rows, np.random.default_rng(5))
    assert not within(float(np.mean((low <= TRUE) & (high >= TRUE))))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_t_intervals_over_tasks_cover(seeds):
    rng = np.random.default_rng(20 + seeds)
    tables = rng.normal(TRUE, SPREAD * np.arange(1, 5)[:, None], size=(2000, 4, seeds))
    found = [mean_over_tasks(dict(enumerate(t.tolist()))) for t in tables]
    assert within(float(np.mean([abs(f.mean - TRUE) <= (f.half or 0) for f in found])), (0.93, 0.985))


@pytest.mark.parametrize(
    ("seeds", "by_seed", "by_item", "rest"),
    [(3, 0.05, 0.1, 0.1), (3, 0.0, 0.0, 0.3), (3, 0.02, 0.1, 0.3), (5, 0.01, 0.3, 0.1), (5, 0.02, 0.3, 0.3)],
)
def test_intervals_over_items_and_seeds_cover(seeds, by_seed, by_item, rest):
    rng, draws, items = np.random.default_rng(6), 1000, 200
    tables = rng.normal(0, by_seed, (draws, seeds, 1)) + rng.normal(0, by_item, (draws, 1, items))
    tables += rng.normal(0, rest, (draws, seeds, items))
    none = dict.fromkeys(range(seeds), np.zeros(items))
    found = [paired_items(dict(enumerate(table)), none) for table in tables]
    assert within(float(np.mean([abs(f.mean) <= f.half for f in found])), (0.93, 0.985))


@pytest.mark.parametrize(("rate", "items"), [(0.01, 100), (0.002, 500), (0.03, 100)])
def test_intervals_cover_where_few_items_differ(rate, items):
    """With every seed the same few items are gained: in many draws there are none, and no variance either."""
    gained = np.random.default_rng(7).random((1000, items)) < rate
    none, seeds = np.zeros(items), range(3)
    found = [paired_items(dict.fromkeys(seeds, row.astype(float)), dict.fromkeys(seeds, none)) for row in gained]
    assert np.mean([abs(f.mean - rate) <= f.half for f in found]) >= 0.94


def test_an_interval_over_seeds_alone_does_not_cover_new_items():
    rng = np.random.default_rng(8)
    tables = rng.normal(0, 0.01, (1000, 5, 1)) + rng.normal(0, 0.4, (1000, 1, 200)) + rng.normal(0, 0.1, (1000, 5, 200))
    over_seeds = [mean_interval(row) for row in tables.mean(axis=2).tolist()]
    assert np.mean([abs(e.mean) <= (e.half or 0) for e in over_seeds]) < 0.7
    over_items = np.abs(tables.mean(axis=(1, 2))) <= 1.96 * tables.std(axis=(1, 2)) / math.sqrt(1000)
    assert np.mean(over_items) < 0.7, "nor does one that takes all 1,000 outcomes for independent"


@pytest.mark.parametrize(("items", "gained", "lost"), [(50, 0.02, 0.05), (50, 0.0, 0.03), (200, 0.0, 0.03)])
def test_tangos_interval_covers_and_walds_does_not(items, gained, lost):
    shares, truth = [gained, lost, 1 - gained - lost], gained - lost
    counts = np.random.default_rng(5).multinomial(items, shares, size=2000)[:, :2].tolist()
    found = {pair: paired_proportions(*pair, items) for pair in {tuple(pair) for pair in counts}}
    # Counts are whole numbers: where few items change no interval covers exactly 95 %.
    assert np.mean([found[g, w].low <= truth <= found[g, w].high for g, w in counts]) >= 0.93
    wald = [abs((g - w) / items - truth) <= 1.96 * math.sqrt(g + w - (g - w) ** 2 / items) / items for g, w in counts]
    assert np.mean(wald) < 0.93, "Wald's interval must be caught"


def false_verdicts(tables: Scores, wrong: Callable[[Comparison], bool], **settings: float) -> tuple[float, float]:
    """Share of tables (methods, seeds) with a wrong verdict on some pair: corrected, and each pair on its own."""
    corrected = alone = 0
    for table in tables:
        found = all_pairs(outcomes(table), **settings).values()
        corrected += any(map(wrong, found))
        alone += any(wrong(Comparison(c.difference, verdict(c.difference, **settings))) for c in found)
    return corrected / len(tables), alone / len(tables)


def differs(comparison: Comparison) -> bool:
    return comparison.verdict in ("better", "worse")


def is_equal(comparison: Comparison) -> bool:
    return comparison.verdict == "practically equal"


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_table_without_differences_rarely_claims_one(seeds):
    tables = np.random.default_rng(30 + seeds).normal(TRUE, SPREAD, size=(800, 5, seeds))
    corrected, alone = false_verdicts(tables, differs)
    assert corrected <= 0.05 + 0.023
    assert alone > 0.15, "uncorrected p-values must be caught"


@pytest.mark.parametrize("seeds", [3, 8])
def test_equivalence_is_not_found_on_the_margin(seeds):
    noise = np.random.default_rng(40 + seeds).normal(0, 0.002, size=(800, 5, seeds))
    steps = MARGIN * np.arange(5)[:, None]  # neighbours differ by the margin, others by more
    corrected, alone = false_verdicts(TRUE + steps + noise, is_equal)
    assert corrected <= 0.05 + 0.023
    assert alone > 0.08, "uncorrected p-values must be caught"


def test_no_evidence_of_a_difference_is_not_equivalence():
    """The broken variant calls equal what a t-test does not tell apart: with wide spread it errs nearly always."""
    pairs = TRUE + np.random.default_rng(9).normal(0, SPREAD, size=(1000, 2, 3)) + np.array([[MARGIN], [0.0]])
    found = [paired_difference(*outcomes(pair).values()) for pair in pairs]
    assert np.mean([verdict(d) == "practically equal" for d in found]) <= 0.05 + 0.02
    assert np.mean([d is not None and d.p >= 0.05 for d in found]) > 0.8


def test_equivalence_is_found_when_true():
    tables = np.random.default_rng(50).normal(TRUE, 0.003, size=(300, 4, 10))
    found = [c for table in tables for c in compare_with(outcomes(table), "m0").values()]
    assert np.mean([is_equal(c) for c in found]) > 0.8
    assert np.mean([differs(c) for c in found]) <= 0.05


@pytest.mark.parametrize("resolution", [1 / 500, 1 / 100])
def test_scores_that_move_in_steps_do_not_pass_for_equal(resolution):
    """Rounded to items, three seeds often give equal numbers. Here the truth lies on the margin."""
    rng = np.random.default_rng(60)
    pairs = TRUE + rng.normal(0, 0.002, size=(4000, 2, 3)) + np.array([[MARGIN], [0.0]])
    pairs = np.round((pairs + rng.uniform(0, resolution, size=(4000, 1, 1))) / resolution) * resolution
    found = [verdict(paired_difference(*outcomes(pair).values(), resolution=resolution)) for pair in pairs]
    assert np.mean([word == "practically equal" for word in found]) <= 0.05 + 0.015


LOOKS = (3, 5, 8, 12)


@pytest.mark.parametrize(
    ("gap", "spread", "wrong"),
    [(0.0, SPREAD, differs), (MARGIN, 0.004, is_equal)],
    ids=["no difference", "on the margin"],
)
def test_looking_again_keeps_the_rate_of_false_verdicts(gap, spread, wrong):
    noise = np.random.default_rng(70).normal(TRUE, spread, size=(500, 3, LOOKS[-1]))
    tables = noise + gap * np.arange(3)[:, None]
    kept = sum(any(map(wrong, sequential_decision(outcomes(t), LOOKS).comparisons.values())) for t in tables)
    assert kept / 500 <= 0.05 + 0.03
    naive = 0
    for table in tables:  # every look at the full 5 %
        naive += any(wrong(c) for n in LOOKS for c in all_pairs(outcomes(table[:, :n])).values())
    assert naive / 500 > 0.08, "looking again and again at 5 % must be caught"


def test_the_forecast_of_seeds_decides_about_four_of_five():
    rng, rates = np.random.default_rng(80), []
    for mean, deviation in [(0.02, 0.02), (0.01, 0.015), (0.0, 0.01), (0.002, 0.008), (-0.012, 0.02)]:
        observed = Difference(mean, 1.0, 3, 0.5, deviation / math.sqrt(3))
        total = 3 + (more_seeds(observed, MARGIN) or 0)
        draws = rng.normal(mean, deviation, size=(1000, total))
        zero = dict.fromkeys(range(total), 0.0)
        verdicts = [verdict(paired_difference(dict(enumerate(row)), zero)) for row in draws.tolist()]
        rates.append(float(np.mean([word != "undecided" for word in verdicts])))
        fewer = [verdict(paired_difference(dict(enumerate(row)), zero)) for row in draws[:, : total // 2].tolist()]
        assert np.mean([word != "undecided" for word in fewer]) < 0.75, "half the seeds must not be enough"
    assert all(0.76 <= rate <= 0.87 for rate in rates), rates


def test_expected_best_is_the_mean_over_all_subsets():
    scores = np.random.default_rng(90).normal(TRUE, SPREAD, size=9).tolist()
    for k, value in enumerate(expected_best(scores), start=1):
        assert value == pytest.approx(np.mean([max(chosen) for chosen in combinations(scores, k)]), rel=1e-12)


def test_expected_best_is_unbiased_and_drawing_with_replacement_is_not():
    rng, k = np.random.default_rng(91), 8
    truth = rng.normal(0, 1, size=(200_000, k)).max(axis=1).mean()
    searches = np.sort(rng.normal(0, 1, size=(4000, 10)), axis=1)
    unbiased = np.mean([expected_best(row)[k - 1] for row in searches.tolist()])
    powers = (np.arange(11) / 10) ** k  # arXiv 1909.03004: P(best of k <= v_(i)) = (i / N)^k
    biased = np.mean(searches @ np.diff(powers))
    assert unbiased == pytest.approx(truth, abs=0.03)
    assert biased < truth - 0.05


def test_the_interval_changes_its_kind_at_ten_seeds():
    rng = np.random.default_rng(92)
    few, many = rng.normal(TRUE, SPREAD, size=(2, 9)).tolist(), rng.normal(TRUE, SPREAD, size=(2, 10)).tolist()
    short = interval_over_tasks(dict(zip("ab", few, strict=True)), np.random.default_rng(1))
    known = mean_over_tasks(dict(zip("ab", few, strict=True)))
    assert short is not None
    assert (short.low, short.high) == (known.low, known.high)
    long = [interval_over_tasks(dict(zip("ab", many, strict=True)), np.random.default_rng(i)) for i in (1, 1, 2)]
    assert long[0] == long[1] != long[2], "the same generator draws the same"
    assert interval_over_tasks({"a": [0.5]}, rng) is None
    with pytest.raises(ValueError, match="give 10 or more"):
        stratified_bootstrap({"a": few[0]}, rng)
