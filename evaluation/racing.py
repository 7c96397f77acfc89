"""Racing learning rates: successive halving over a method's rates, with the schedule scaled to the shortened runs.

A rung's run trains fewer steps; warm-up and decay are shares of a run's own steps, so that every run of every rung ends
its schedule. Comparing unfinished runs would favour whoever is fast early (docs/decisions/017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluation.search import Grid, Setting, Trial, best_setting
from reports.statistics import promoted, rung_sizes, rung_steps


@dataclass(frozen=True)
class Race:
    """All rates of ``full`` with the fewest steps, and rung by rung the best ``1 / keep`` of them with more.

    Whoever reaches a rung follows from the rung before alone; how many do, and with how many steps, from the suite
    alone: the budget is the same for every method. A rate that diverged makes up the number where too few did not.
    """

    full: Grid
    steps: int
    keep: int
    rungs: int

    @property
    def trials(self) -> int:
        return sum(self._sizes)

    @property
    def lengths(self) -> Sequence[int | None]:
        return [steps for size, steps in zip(self._sizes, self._steps, strict=True) for _ in range(size)]

    @property
    def _sizes(self) -> list[int]:
        return rung_sizes(self.full.trials, self.keep, self.rungs)

    @property
    def _steps(self) -> list[int | None]:
        """None for the last: all steps, so that its runs are those of a grid search."""
        return [*rung_steps(self.steps, self.keep, self.rungs)[:-1], None]

    def propose(self, found: Sequence[Trial]) -> list[Setting]:
        if len(found) < self._sizes[0]:
            short = replace(self.full, training=_length(self._steps[0]))
            return short.propose(found)
        if len(found) == self.trials:
            return []
        rung = self._ended(found)
        results = {
            trial.rate: None if trial.score is None or trial.loss is None else (trial.score, trial.loss)
            for trial in sorted(self._of(rung, found), key=lambda trial: trial.rate)
        }
        rates = sorted(promoted(results, self._sizes[rung + 1]))
        return [Setting(rate, training=_length(self._steps[rung + 1])) for rate in rates]

    def winner(self, found: Sequence[Trial]) -> Setting | None:
        return best_setting(self._of(self.rungs - 1, found))

    def _ended(self, found: Sequence[Trial]) -> int:
        """The last rung whose trials are all there."""
        return next(k for k in range(self.rungs) if sum(self._sizes[: k + 1]) == len(found))

    def _of(self, rung: int, found: Sequence[Trial]) -> Sequence[Trial]:
        before = sum(self._sizes[:rung])
        return found[before : before + self._sizes[rung]]


@dataclass(frozen=True)
class Audited:
    """A race with the full grid beside it, some of whose runs are the race's last rung. The race alone decides."""

    race: Race

    @property
    def trials(self) -> int:
        return len(self.lengths)

    @property
    def lengths(self) -> Sequence[int | None]:
        return [*(steps for steps in self.race.lengths if steps is not None), *self.race.full.lengths]

    def propose(self, found: Sequence[Trial]) -> list[Setting]:
        if not found:
            return [*self.race.propose(()), *self.race.full.propose(())]
        known = {trial.setting for trial in found}
        return [setting for setting in self.race.propose(self._raced(found)) if setting not in known]

    def winner(self, found: Sequence[Trial]) -> Setting | None:
        return self.race.winner(self._raced(found))

    def _raced(self, found: Sequence[Trial]) -> list[Trial]:
        """The trials of the race, in its order."""
        known, raced = {trial.setting: trial for trial in found}, list[Trial]()
        while (settings := self.race.propose(raced)) and all(setting in known for setting in settings):
            raced += [known[setting] for setting in settings]
        return raced


def _length(steps: int | None) -> tuple[tuple[str, int], ...]:
    return () if steps is None else (("steps", steps),)
