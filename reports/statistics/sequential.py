"""Adding seeds until every pair is decided: looks at growing numbers of seeds, each at its share of the error.

Looking again after every few seeds and stopping at the first p < 0.05 finds differences that are not there. Here the
numbers of seeds at which one looks are fixed beforehand, and each of K looks is judged at alpha / K. By Bonferroni's
inequality the chance of a false verdict at any look is then at most alpha, whatever the dependence between looks, and
with any reason to stop earlier.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from reports.statistics.estimates import LEVEL, Outcomes
from reports.statistics.verdicts import MARGIN, Comparison, Pair, all_pairs


@dataclass(frozen=True)
class Looks:
    """What the looks so far have decided.

    Args:
        comparisons: pair (later, earlier) -> its comparison at the look that decided it, else at the last one.
        decided_at: pair -> the number of seeds at which it was decided.
        seeds: seeds of the last look; 0 before the first.
        next_seeds: seeds a method for which the next look waits; None: every pair is decided, or the cap is reached.
        waiting: the methods that must run these seeds, those of a pair that is still open.
    """

    comparisons: dict[Pair, Comparison]
    decided_at: dict[Pair, int]
    seeds: int
    next_seeds: int | None
    waiting: frozenset[str] = frozenset()


def planned_looks(first: int, cap: int | None) -> tuple[int, ...]:
    """Numbers of seeds at which to look: doubling from the first to the cap; without a cap the first alone."""
    found = [first]
    while found[-1] < (cap or 0):
        found.append(min(2 * found[-1], cap or 0))
    return tuple(found)


def look_level(looks: int, level: float = LEVEL) -> float:
    """The level of each of ``looks`` planned looks so that all together keep ``level``: 1 - (1 - level) / looks.

    Raises:
        ValueError: fewer than one look.
    """
    if looks < 1:
        raise ValueError(f"{looks} looks: plan at least one")
    return 1 - (1 - level) / looks


def sequential_decision(
    methods: Mapping[str, Outcomes],
    looks: Sequence[int],
    level: float = LEVEL,
    resolution: float = 0.0,
    margin: float = MARGIN,
    diverged: Collection[str] = (),
    forecast: bool = True,
) -> Looks:
    """The verdict of every pair at the first planned look that decides it, and whether to go on.

    A function of all outcomes so far, so that a killed comparison goes on where it was: look k uses the ``looks[k]``
    smallest seeds, and is held once every method with an open pair has run them. Methods without open pairs need not:
    a decided pair keeps its verdict.

    Args:
        methods: label -> outcomes.
        looks: growing numbers of seeds, fixed before the first run; the last one is the cap.
        diverged: methods which lost seeds; their open pairs are not waited for.
        forecast: as in ``all_pairs``.

    Raises:
        ValueError: the looks do not grow, or begin below 2 seeds.

    Source: Bonferroni's inequality over looks; Lan and DeMets (1983), Biometrika 70, 659-663, spend alpha less evenly.
    """
    if not looks or looks[0] < 2 or any(b <= a for a, b in pairwise(looks)):
        raise ValueError(f"looks at {list(looks)} seeds: give growing numbers, the first at least 2")
    each, every = look_level(len(looks), level), sorted({seed for outcomes in methods.values() for seed in outcomes})
    found: dict[Pair, Comparison] = {}
    decided: dict[Pair, int] = {}
    held, waiting = 0, frozenset(methods)
    for number in looks:
        if any(len(methods[label]) < number for label in waiting.difference(diverged)):
            return Looks(found, decided, held, number, waiting)
        first = set(every[:number])
        seen = {label: {s: v for s, v in outcomes.items() if s in first} for label, outcomes in methods.items()}
        for pair, comparison in all_pairs(seen, each, resolution, margin, diverged, forecast).items():
            if pair not in decided:
                found[pair] = comparison
            if comparison.verdict != "undecided":
                decided.setdefault(pair, number)
        held, still_open = number, [pair for pair in found if pair not in decided and not set(pair) & set(diverged)]
        waiting = frozenset(label for pair in still_open for label in pair)
        if not still_open:
            break
    return Looks(found, decided, held, None)
