"""Verdicts: better, worse, practically equal or undecided, corrected for the number of comparisons of a table.

Two tests are made of every paired difference. The t-test against zero finds a difference; two one-sided t-tests (TOST,
Schuirmann 1987) find equivalence, that is a difference within +- ``margin``. Each is Holm-corrected over the table, so
that at most 5 % of tables hold a "better" or "worse" of methods that are equal, and at most 5 % a "practically equal"
of methods which differ by the margin or more. Where both come out the difference is real and too small to matter: the
verdict is practically equal.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, TypeVar, get_args

from scipy.special import stdtr

from reports.statistics.estimates import LEVEL, Difference, Outcomes, mean_interval, paired_difference
from reports.statistics.forecast import more_seeds

Verdict = Literal["better", "worse", "practically equal", "undecided"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Pair = tuple[str, str]
K = TypeVar("K", bound=Hashable)

MARGIN = 0.005  # half a point of accuracy: what a reader would not choose a method for


@dataclass(frozen=True)
class Comparison:
    """Two methods: the uncorrected difference, and the verdict corrected for the whole family.

    ``more_seeds``: of an undecided one, about how many seeds to add (see ``more_seeds``); None where that is more than
    1000, or no number of seeds would help.
    """

    difference: Difference | None
    verdict: Verdict
    more_seeds: int | None = None

    @property
    def words(self) -> str:
        """``better``, or ``undecided (+12 seeds)``."""
        if self.more_seeds is None:
            return self.verdict
        return f"{self.verdict} (+{self.more_seeds} seed{'' if self.more_seeds == 1 else 's'})"


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Holm's step-down adjusted p-values: the family-wise error stays below alpha whatever the dependence.

    Source: Holm (1979), Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted: dict[K, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def equivalence_p(difference: Difference, margin: float = MARGIN) -> float:
    """p-value of "the true difference is ``margin`` or more, in either direction": small where it is practically zero.

    It is 1 where the spread is not known.

    Source: Schuirmann (1987), Journal of Pharmacokinetics and Biopharmaceutics 15, 657-680 (two one-sided tests).
    """
    if difference.error == 0:
        return 1.0
    return float(stdtr(difference.n - 1, (abs(difference.mean) - margin) / difference.error))


def verdict(
    difference: Difference | None,
    p: float | None = None,
    level: float = LEVEL,
    margin: float = MARGIN,
    p_equal: float | None = None,
) -> Verdict:
    """What the difference allows to say; ``p`` and ``p_equal`` override its own p-values (by adjusted ones, say)."""
    if difference is None:
        return "undecided"
    if (equivalence_p(difference, margin) if p_equal is None else p_equal) < 1 - level:
        return "practically equal"
    if (difference.p if p is None else p) >= 1 - level:
        return "undecided"
    return "better" if difference.mean > 0 else "worse"


def beats(a: Outcomes, b: Outcomes, level: float = LEVEL, resolution: float = 0.0, margin: float = MARGIN) -> Verdict:
    """One comparison of a with b on its own, without a correction for others."""
    return verdict(paired_difference(a, b, level, resolution), level=level, margin=margin)


def compare_with(
    methods: Mapping[str, Outcomes],
    reference: str,
    level: float = LEVEL,
    resolution: float = 0.0,
    margin: float = MARGIN,
    diverged: Collection[str] = (),
) -> dict[str, Comparison]:
    """Every other method against ``reference``, the verdicts Holm-corrected over those that can be compared at all.

    Args:
        methods: label -> outcomes.
        margin: differences below it are practically none.
        diverged: methods which lost seeds. Their scores are of the seeds that survived, so they are at best worse:
            what would be better or practically equal is undecided.
    """
    known = methods.get(reference, {})
    differences = {
        (name, reference): paired_difference(outcomes, known, level, resolution)
        for name, outcomes in methods.items()
        if name != reference
    }
    return {name: found for (name, _), found in _judged(differences, level, margin, diverged).items()}


def all_pairs(
    methods: Mapping[str, Outcomes],
    level: float = LEVEL,
    resolution: float = 0.0,
    margin: float = MARGIN,
    diverged: Collection[str] = (),
    forecast: bool = True,
) -> dict[Pair, Comparison]:
    """Every pair (later, earlier) in the order of ``methods``, Holm-corrected over all pairs that can be compared.

    The verdict is on the first of the pair; arguments as in ``compare_with``. Without ``forecast`` an undecided pair is
    not told how many more seeds it takes, which is most of the work.
    """
    pairs = ((b, a) for a, b in combinations(methods, 2))
    differences = {(a, b): paired_difference(methods[a], methods[b], level, resolution) for a, b in pairs}
    return _judged(differences, level, margin, diverged, forecast)


def _judged(
    differences: Mapping[Pair, Difference | None],
    level: float,
    margin: float,
    diverged: Collection[str],
    forecast: bool = True,
) -> dict[Pair, Comparison]:
    known = {pair: found for pair, found in differences.items() if found is not None}
    p_zero = holm({pair: found.p for pair, found in known.items()})
    p_equal = holm({pair: equivalence_p(found, margin) for pair, found in known.items()})
    # More seeds must pass Holm's threshold for the smallest p-value among those not yet rejected.
    open_tests = (sum(p >= 1 - level for p in adjusted.values()) for adjusted in (p_zero, p_equal))
    zero, equal = (1 - (1 - level) / max(1, number) for number in open_tests)
    found = {}
    for pair, difference in differences.items():
        word = verdict(difference, p_zero.get(pair), level, margin, p_equal.get(pair))
        seeds = (
            more_seeds(difference, margin, (zero, equal)) if forecast and difference and word == "undecided" else None
        )
        found[pair] = _withheld(Comparison(difference, word, seeds), *(label in diverged for label in pair))
    return found


def _withheld(comparison: Comparison, lost: bool, other_lost: bool) -> Comparison:
    """No praise for a method that lost seeds, and no forecast: more seeds would not bring the lost ones back."""
    praised = {"better": lost, "worse": other_lost, "practically equal": lost or other_lost}
    if praised.get(comparison.verdict) or (comparison.verdict == "undecided" and (lost or other_lost)):
        return replace(comparison, verdict="undecided", more_seeds=None)
    return comparison


def best_beyond_interval(methods: Mapping[str, Outcomes], level: float = LEVEL, resolution: float = 0.0) -> str | None:
    """The one method whose paired difference to every other one has an interval above zero, or None.

    No correction is needed: the claim holds only if all its comparisons do, so its error is at most that of one of them
    (intersection-union test, Berger 1982). A method that shares fewer than two seeds with the candidate leaves the
    question open, hence None.
    """
    if len(methods) < 2 or any(not outcomes for outcomes in methods.values()):
        return None
    best = max(methods, key=lambda name: mean_interval(list(methods[name].values())).mean)
    others = (paired_difference(methods[best], o, level, resolution) for name, o in methods.items() if name != best)
    return best if all(d is not None and d.separated and d.mean > 0 for d in others) else None
