"""Which strategy searches a method's setting, and around which learning rate."""

from __future__ import annotations

from evaluation.racing import Audited, Race
from evaluation.search import Given, Grid, Setting, Strategy, grid
from evaluation.space import QuasiRandom, settings_of
from evaluation.spec import Entry, Suite
from variants.core import method


def centre(suite: Suite, entry: Entry) -> float:
    """The middle of a method's rates: its own ``lr`` in the suite, else the prior relative to LoRA's. Under the ruleset
    ``defaults`` the prior, whatever the suite found out."""
    if entry.lr is not None and suite.protocol.ruleset == "tuned":
        return entry.lr
    cls = method(entry.method.name)
    return suite.training.head_lr if cls.trains == "head" else suite.protocol.lr * cls.lr_ratio


def strategy(suite: Suite, entry: Entry) -> Strategy:
    """The one that the suite's protocol says.

    Raises:
        Unusable: the grid is impossible, or the space has too few settings for the method.
    """
    protocol, middle, trials = suite.protocol, centre(suite, entry), suite.trials_of(entry)
    if trials == 0:
        return Given(Setting(grid(middle, 1, protocol.per_decade)[0]))
    if suite.searched:
        return QuasiRandom(settings_of(suite, entry, middle / protocol.lr))
    full = Grid(middle, suite.points_of(entry), protocol.per_decade, trials)
    if protocol.racing is None:
        return full
    race = Race(full, suite.training.steps, protocol.racing, protocol.rungs)
    return Audited(race) if protocol.racing_audit else race
