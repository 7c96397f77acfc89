"""Racing (successive halving): all candidates with shortened runs, the best of them with longer ones, and so on.

Source: Jamieson & Talwalkar (2016), arXiv 1502.07943. Here the last rung has the full length, and the number of
candidates of every rung follows from the first alone, so that every method has the same budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

Candidate = TypeVar("Candidate")


def rung_steps(steps: int, keep: int, rungs: int) -> list[int]:
    """Training steps of each rung's runs: ``steps / keep**k``, rounded, rising to ``steps``."""
    return [max(1, round(steps / keep**k)) for k in reversed(range(rungs))]


def rung_sizes(candidates: int, keep: int, rungs: int) -> list[int]:
    """Candidates of each rung: all, then one in ``keep`` of them, rounded up."""
    return [math.ceil(candidates / keep**k) for k in range(rungs)]


def promoted(found: Mapping[Candidate, tuple[float, float] | None], size: int) -> list[Candidate]:
    """The ``size`` best candidates, best first.

    Args:
        found: candidate -> (mean score, mean loss); higher scores are better, then lower losses, then whoever comes
            first. None where it diverged: they come last, in their order, since a longer run also warms up longer.
    """
    finished = [(candidate, result) for candidate, result in found.items() if result is not None]
    ranked = [candidate for candidate, _ in sorted(finished, key=lambda pair: (-pair[1][0], pair[1][1]))]
    return [*ranked, *(candidate for candidate, result in found.items() if result is None)][:size]


def share_of_steps(candidates: int, steps: int, keep: int, rungs: int) -> float:
    """Training steps of a race as a share of those of as many full-length runs as it has candidates."""
    race = zip(rung_sizes(candidates, keep, rungs), rung_steps(steps, keep, rungs), strict=True)
    return sum(size * length for size, length in race) / (candidates * steps)
