"""A search over several hyperparameters at once: quasi-random settings, the same points for all methods.

The points are those of a scrambled Sobol sequence, from Optuna's QMC sampler: the i-th follows from the space, the seed
and i alone. A method takes of every point what it has, so that what two methods share has the same values in both; the
learning rate is relative to each method's own centre.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from evaluation.search import Setting, Trial, best_setting, rounded
from evaluation.spec import TUNABLE, Entry, Suite, Unusable, is_span
from variants.core import method

MOST = 64  # points drawn per trial, before a space is said to have too few different settings
Point = Mapping[str, Any]


@dataclass(frozen=True)
class QuasiRandom:
    """Settings which are all known beforehand."""

    settings: tuple[Setting, ...]

    @property
    def trials(self) -> int:
        return len(self.settings)

    @property
    def lengths(self) -> Sequence[int | None]:
        return (None,) * self.trials

    def propose(self, found: Sequence[Trial]) -> list[Setting]:
        return [] if found else list(self.settings)

    def winner(self, found: Sequence[Trial]) -> Setting | None:
        return best_setting(found)


def settings_of(suite: Suite, entry: Entry, factor: float) -> tuple[Setting, ...]:
    """The settings that a method tries: the first points that differ in what it has.

    Args:
        factor: the method's learning rate in relation to LoRA's.

    Raises:
        Unusable: the space has not so many different settings for it, or Optuna is not installed.
    """
    wanted, own = suite.trials_of(entry), owned(suite, entry)
    number = wanted
    while number <= MOST * wanted:
        points = drawn(suite.protocol.space, number, suite.protocol.space_seed)
        found = tuple(dict.fromkeys(_setting(point, own, factor) for point in points))
        if len(found) >= wanted:
            return found[:wanted]
        number *= 2
    raise Unusable(
        f"protocol.space has fewer than {wanted} different settings for {entry.label!r}: lower `trials`, or search "
        'ranges, which end in a scale, as in lr = [1e-4, 1e-2, "log"]'
    )


def owned(suite: Suite, entry: Entry) -> frozenset[str]:
    """The names of the space which mean something to a method, beside the learning rate."""
    cls = method(entry.method.name)
    absent = {"layers": set(), "base": {"adapter_dropout"}, "head": {"adapter_dropout", "head_lr"}}[cls.trains]
    names = set(TUNABLE) - absent | {field.name for field in dataclasses.fields(cls)} - set(TUNABLE)
    return frozenset(suite.searched & names)


def _setting(point: Point, own: frozenset[str], factor: float) -> Setting:
    training, others = (
        tuple(sorted((name, value) for name, value in point.items() if name in own and (name in TUNABLE) is trains))
        for trains in (True, False)
    )
    return Setting(rounded(point["lr"] * factor), hyperparameters=others, training=training)


def drawn(space: Mapping[str, Sequence[Any]], number: int, seed: int) -> tuple[Point, ...]:
    """The first points of the sequence; real numbers to 3 significant digits.

    Raises:
        Unusable: Optuna is not installed.
    """
    # As a text: in a tuple True is 1, and 0 is 0.0, and one space would be given the points of the other.
    return _drawn(json.dumps(dict(space), sort_keys=True), number, seed)


@lru_cache(maxsize=16)
def _drawn(text: str, number: int, seed: int) -> tuple[Point, ...]:
    try:
        import optuna
    except ModuleNotFoundError:
        raise Unusable(
            f"protocol.space needs the package optuna: install it with {sys.executable} -m pip install optuna"
        ) from None
    from optuna.trial import create_trial

    space: dict[str, list[Any]] = json.loads(text)
    distributions = {name: _distribution(values) for name, values in space.items()}
    shown = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the sampler is called experimental, and Sobol wants powers of two
            sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)
            study = optuna.create_study(sampler=sampler)
            # From a finished trial the sampler knows the space; without one its first point would be no Sobol point.
            start = {name: values[0] for name, values in space.items()}
            study.add_trial(create_trial(params=start, distributions=distributions, value=0.0))
            asked = [study.ask(distributions).params for _ in range(number)]
    finally:
        optuna.logging.set_verbosity(shown)
    return tuple({name: _short(value) for name, value in point.items()} for point in asked)


def _distribution(values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not is_span(values):
        return CategoricalDistribution(values)
    low, high, scale = values
    kind = IntDistribution if scale.startswith("int") else FloatDistribution
    return kind(low, high, log=scale.endswith("log"))


def _short(value: Any) -> Any:
    return rounded(value) if type(value) is float else value
