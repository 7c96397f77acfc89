"""The search for a method's setting: what is tried, what came of it, and the strategies that say what to try next.

Every method gets the same number of trials. A trial is one setting, run with every search seed, scored on validation. A
strategy is a pure function of the trials so far, so that a killed comparison goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any, Protocol

from evaluation.measures.score import primary
from evaluation.spec import Entry, Method, Record, ScoreRun, Unusable, key


@dataclass(frozen=True)
class Setting:
    """What a trial fixes: a learning rate, and what differs from the suite's hyperparameters and training settings."""

    lr: float
    hyperparameters: tuple[tuple[str, Any], ...] = ()
    training: tuple[tuple[str, Any], ...] = ()

    def method(self, given: Method) -> Method:
        """The method with what the setting changes of it."""
        if not self.hyperparameters:
            return given
        return given.model_copy(update={"hyperparameters": given.hyperparameters | dict(self.hyperparameters)})


@dataclass(frozen=True)
class Trial:
    """A setting with its mean score (the primary measure) and loss over the search seeds; None where a seed
    diverged."""

    setting: Setting
    score: float | None
    loss: float | None

    @property
    def rate(self) -> float:
        return self.setting.lr

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: score, then the lower loss."""
        return (-math.inf, 0.0) if self.score is None or self.loss is None else (self.score, -self.loss)


@dataclass(frozen=True)
class Search:
    """A method's search as far as the records decide: its runs; whether all of them are there; what it chose."""

    runs: list[ScoreRun]
    complete: bool
    winner: Setting | None

    @property
    def lost(self) -> bool:
        """All of it has been run, and everything diverged."""
        return self.complete and self.winner is None

    def method(self, entry: Entry) -> Method:
        """The method as its final runs have it; as the suite has it where there are none."""
        return entry.method if self.winner is None else self.winner.method(entry.method)


class Strategy(Protocol):
    """What to try next, given all that came of it so far."""

    @property
    def trials(self) -> int:
        """How many it comes to."""

    @property
    def lengths(self) -> Sequence[int | None]:
        """Training steps of each of them; None for the suite's."""

    def propose(self, found: Sequence[Trial]) -> list[Setting]:
        """The settings to try next; none when the search is over."""

    def winner(self, found: Sequence[Trial]) -> Setting | None:
        """What the final runs use, when the search is over; None where everything diverged."""


@dataclass(frozen=True)
class Given:
    """No search: there is one setting."""

    setting: Setting
    trials: int = 0
    lengths: Sequence[int | None] = ()

    def propose(self, found: Sequence[Trial]) -> list[Setting]:
        return []

    def winner(self, found: Sequence[Trial]) -> Setting | None:
        return self.setting


@dataclass(frozen=True)
class Grid:
    """A log grid of ``points`` rates, then the rest of ``trials`` one by one where the best rate lies.

    Args:
        training: what its runs train with in place of the suite's settings.
    """

    centre: float
    points: int
    per_decade: int
    trials: int
    training: tuple[tuple[str, Any], ...] = ()

    @property
    def lengths(self) -> Sequence[int | None]:
        return (None,) * self.trials

    def propose(self, found: Sequence[Trial]) -> list[Setting]:
        if not found:
            rates = grid(self.centre, self.points, self.per_decade)
        else:
            rates = [next_rate(found, self.per_decade)] if len(found) < self.trials else []
        return [Setting(rate, training=self.training) for rate in rates]

    def winner(self, found: Sequence[Trial]) -> Setting | None:
        return best_setting(found)


def grid(centre: float, points: int, per_decade: int) -> list[float]:
    """``points`` rates on a log grid around ``centre``, ``per_decade`` to a factor of ten, to 3 significant digits.

    Raises:
        Unusable: so many to a decade that rates coincide, or a span beyond what a number can hold.
    """
    exponents = [(i - (points - 1) / 2) / per_decade for i in range(points)]
    rates = [rounded(centre * 10**e) for e in exponents] if max(map(abs, exponents)) < 100 else []
    if len(set(rates)) < points or not all(0 < rate < float("inf") for rate in rates):
        raise Unusable(f"protocol: {points} points, {per_decade} per decade, around {centre:g} are not {points} rates")
    return rates


def outcomes(tried: Iterable[tuple[Setting, Sequence[ScoreRun]]], records: Mapping[str, Record]) -> list[Trial] | None:
    """The trials of settings and their runs, in their order; None while a run is missing or failed."""
    found = [(setting, [records.get(key(run)) for run in runs]) for setting, runs in tried]
    if any(record is None or record.status == "failed" for _, seeds in found for record in seeds):
        return None
    return [_trial(setting, [record for record in seeds if record]) for setting, seeds in found]


def best(found: Sequence[Trial]) -> Trial | None:
    """The best trial; None where all diverged."""
    first = max(found, key=lambda trial: trial.rank, default=None)
    return None if first is None or first.score is None else first


def best_setting(found: Sequence[Trial]) -> Setting | None:
    """That of the best trial; None where all diverged."""
    top = best(found)
    return None if top is None else top.setting


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
        return rounded(ordered[0].rate / step)
    if at == len(ordered) - 1:
        return rounded(ordered[-1].rate * step)
    beside = sorted((ordered[at - 1], ordered[at + 1]), key=lambda trial: trial.rank, reverse=True)
    gaps = [*((ordered[at].rate, trial.rate) for trial in beside), *((a.rate, b.rate) for a, b in pairwise(ordered))]
    widest = [*sorted(gaps[:2], key=_width, reverse=True), *sorted(gaps[2:], key=_width, reverse=True)]
    taken = {trial.rate for trial in ordered}
    middles = (rounded(math.sqrt(a * b)) for a, b in widest)
    return next((rate for rate in middles if rate not in taken), rounded(ordered[-1].rate * step))


def _width(gap: tuple[float, float]) -> float:
    """In powers of ten, to a hundredth: the gaps of a grid of rounded rates are equal."""
    return round(abs(math.log10(gap[0] / gap[1])), 2)


def _trial(setting: Setting, records: Sequence[Record]) -> Trial:
    if any(record.status == "diverged" for record in records):
        return Trial(setting, None, None)
    scores = [record.measures["score"] for record in records]
    means = (math.fsum(value(score) for score in scores) / len(scores) for value in (primary, itemgetter("loss")))
    return Trial(setting, *means)


def rounded(rate: float) -> float:
    """To 3 significant digits, as rates are written."""
    return float(f"{rate:.3g}")
