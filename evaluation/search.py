"""The search for a learning rate: a grid, and then the rest of the budget where the best rate lies.

Every method gets the same number of trials. A trial is one rate, run with every search seed and scored on validation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

from evaluation.measures.score import primary
from evaluation.spec import Record, ScoreRun, Unusable, key


@dataclass(frozen=True)
class Trial:
    """One rate with its mean score (the primary measure) and loss over the search seeds; None where a seed diverged."""

    rate: float
    score: float | None
    loss: float | None

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: score, then the lower loss."""
        return (-math.inf, 0.0) if self.score is None or self.loss is None else (self.score, -self.loss)


def grid(centre: float, points: int, per_decade: int) -> list[float]:
    """``points`` rates on a log grid around ``centre``, ``per_decade`` to a factor of ten, to 3 significant digits.

    Raises:
        Unusable: so many to a decade that rates coincide, or a span beyond what a number can hold.
    """
    exponents = [(i - (points - 1) / 2) / per_decade for i in range(points)]
    rates = [_rounded(centre * 10**e) for e in exponents] if max(map(abs, exponents)) < 100 else []
    if len(set(rates)) < points or not all(0 < rate < float("inf") for rate in rates):
        raise Unusable(f"protocol: {points} points, {per_decade} per decade, around {centre:g} are not {points} rates")
    return rates


def trials(search: Iterable[ScoreRun], records: Mapping[str, Record]) -> list[Trial] | None:
    """The trials of the runs of a search, in their order; None while a run is missing or failed."""
    by_rate: dict[float, list[Record]] = {}
    for run in search:
        record = records.get(key(run))
        if record is None or record.status == "failed":
            return None
        by_rate.setdefault(run.lr, []).append(record)
    return [_trial(rate, seeds) for rate, seeds in by_rate.items()]


def best(found: Sequence[Trial]) -> Trial | None:
    """The best trial; None where all diverged."""
    first = max(found, key=lambda trial: trial.rank, default=None)
    return None if first is None or first.score is None else first


def next_rate(found: Sequence[Trial], per_decade: int) -> float:
    """Where the next trial goes: a grid step beyond the edge on which the best rate lies, else into the wider gap
    beside the best rate, on the side of the better neighbour if they are equal. Below all, where every rate diverged.

    Rates have 3 significant digits; where none lies between, the widest gap of all is halved.
    """
    step = 10 ** (1 / per_decade)
    ordered = sorted(found, key=lambda trial: trial.rate)
    top = best(ordered)
    at = 0 if top is None else ordered.index(top)
    if at == 0:
        return _rounded(ordered[0].rate / step)
    if at == len(ordered) - 1:
        return _rounded(ordered[-1].rate * step)
    beside = sorted((ordered[at - 1], ordered[at + 1]), key=lambda trial: trial.rank, reverse=True)
    gaps = [*((ordered[at].rate, trial.rate) for trial in beside), *((a.rate, b.rate) for a, b in pairwise(ordered))]
    widest = [*sorted(gaps[:2], key=_width, reverse=True), *sorted(gaps[2:], key=_width, reverse=True)]
    taken = {trial.rate for trial in ordered}
    middles = (_rounded(math.sqrt(a * b)) for a, b in widest)
    return next((rate for rate in middles if rate not in taken), _rounded(ordered[-1].rate * step))


def _width(gap: tuple[float, float]) -> float:
    """In powers of ten, to a hundredth: the gaps of a grid of rounded rates are equal."""
    return round(abs(math.log10(gap[0] / gap[1])), 2)


def _trial(rate: float, records: Sequence[Record]) -> Trial:
    if any(record.status == "diverged" for record in records):
        return Trial(rate, None, None)
    scores = [record.measures["score"] for record in records]
    means = (math.fsum(value(score) for score in scores) / len(scores) for value in (primary, itemgetter("loss")))
    return Trial(rate, *means)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
