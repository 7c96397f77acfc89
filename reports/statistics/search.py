"""What a search for hyperparameters is worth: expected best score against effort, and how forgiving a method is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln


def expected_best(scores: Sequence[float]) -> list[float]:
    """Expected best score of k of these trials, k = 1 to N, drawn without replacement.

    sum over i of C(i - 1, k - 1) / C(N, k) * v_(i), with v_(i) the i-th smallest score: the mean over all subsets of
    k trials, and unbiased for the best of k new trials. (Drawing with replacement, as in arXiv 1909.03004, is biased
    downwards.)

    Args:
        scores: (N,) validation scores, one a trial; give a diverged trial the score of no training.

    Returns:
        (N,) values, never falling; the last is the best score.

    Raises:
        ValueError: no scores, or one that is not a number.

    Source: Tang et al. (2020), arXiv 2004.13705.
    """
    ordered = np.sort(_finite(scores))
    trials = len(ordered)
    drawn, rank = np.arange(1, trials + 1)[:, None], np.arange(1, trials + 1)[None]
    with np.errstate(invalid="ignore"):
        share = np.exp(_log_choose(rank - 1, drawn - 1) - _log_choose(trials, drawn))
    return [float(value) for value in np.where(rank >= drawn, share, 0.0) @ ordered]


def expected_best_after(
    scores: Sequence[float],
    seconds: Sequence[float],
    at: Sequence[float],
    rng: np.random.Generator,
    before: float = math.nan,
    orders: int = 2000,
) -> list[float]:
    """Expected best score after so many seconds of search, the trials run one after the other in random order.

    Trials of one duration give ``expected_best`` at its multiples, up to the noise of the drawn orders.

    Args:
        scores, seconds: (N,) of the trials: validation score, and duration in s, above 0.
        at: (M,) times in s.
        rng: draws the orders.
        before: the score while no trial has ended, that of no training, say. Without it there is no expectation
            until the longest trial would have ended: those places hold nan.

    Returns:
        (M,) values.

    Raises:
        ValueError: scores and seconds do not pair, or a duration is not above 0.
    """
    values, durations = _finite(scores), np.asarray(seconds, dtype=float)
    if values.shape != durations.shape or not (durations > 0).all():
        raise ValueError(f"{len(values)} scores, {len(durations)} durations: give one above 0 for every score")
    order = rng.permuted(np.tile(np.arange(len(values)), (orders, 1)), axis=1)
    ends = np.cumsum(durations[order], axis=1)  # (orders, N)
    best = np.maximum.accumulate(values[order], axis=1)
    best = np.concatenate([np.full((orders, 1), before), best], axis=1)
    done = (ends[:, :, None] <= np.asarray(at, dtype=float) * (1 + 1e-12)).sum(axis=1)  # (orders, M) trials ended
    return [float(value) for value in np.take_along_axis(best, done, axis=1).mean(axis=0)]


@dataclass(frozen=True)
class RateWindow:
    """The learning rates around the best one at which a method is usable.

    Args:
        low, high: its ends.
        cut_low, cut_high: is the end that of the searched grid? Then the window may be wider.
    """

    low: float
    high: float
    cut_low: bool
    cut_high: bool

    @property
    def decades(self) -> float:
        return math.log10(self.high / self.low)


def rate_window(rates: Sequence[float], scores: Sequence[float], share: float = 0.9) -> RateWindow:
    """The window of learning rates around the best one in which the score stays at or above ``share`` of the best.

    Between grid points the score is taken to be linear in the logarithm of the rate. A second region beyond a dip does
    not count: nobody tunes across a failure.

    Args:
        rates: (N,) learning rates above 0, in any order, each once.
        scores: (N,) scores where higher is better; give a diverged rate the score of no training.
        share: of the best score, above 0 and up to 1.

    Raises:
        ValueError: rates and scores do not pair, or the best score is not above 0, so that a share of it says nothing.
    """
    values = _finite(scores)
    if len(rates) != len(values) or len(set(rates)) != len(rates) or min(rates) <= 0:
        raise ValueError(f"{len(rates)} rates, {len(values)} scores: give every rate once, above 0, with its score")
    order = np.argsort(rates)
    places, values = np.log10(np.asarray(rates, dtype=float)[order]), values[order]
    best = int(np.argmax(values))
    if values[best] <= 0 or not 0 < share <= 1:
        raise ValueError(f"{share} of a best score of {values[best]:g} says nothing: give a share of a positive score")
    least = share * values[best]
    low, cut_low = _end(places[best::-1], values[best::-1], least)
    high, cut_high = _end(places[best:], values[best:], least)
    return RateWindow(10**low, 10**high, cut_low, cut_high)


def _end(places: np.ndarray, values: np.ndarray, least: float) -> tuple[float, bool]:
    """Where the score falls below ``least`` on the way from the best point outwards; is that the grid's end?"""
    below = np.flatnonzero(values < least)
    if len(below) == 0:
        return float(places[-1]), True
    out = int(below[0])
    fallen = (values[out - 1] - least) / (values[out - 1] - values[out])
    return float(places[out - 1] + fallen * (places[out] - places[out - 1])), False


def _finite(scores: Sequence[float]) -> np.ndarray:
    values = np.asarray(scores, dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("a search needs scores that are numbers: give a diverged trial the score of no training")
    return values


def _log_choose(of: np.ndarray | int, chosen: np.ndarray) -> np.ndarray:
    """log C(of, chosen); without meaning where chosen > of."""
    return np.asarray(gammaln(np.asarray(of) + 1.0) - gammaln(chosen + 1.0) - gammaln(np.maximum(of - chosen, 0) + 1.0))
