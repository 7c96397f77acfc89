"""From a suite to its runs: learning rates, seeds, splits.

Every method gets the same budget of trials. They are scored on validation; the best setting is run again with fresh
seeds, and only those are scored, once, on test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

from evaluation.measured import Stage, measured
from evaluation.pace import matched_steps
from evaluation.search import Search, Setting, Trial, outcomes
from evaluation.seeds import seeds_needed
from evaluation.spec import (
    Entry,
    Identity,
    QuantisedRun,
    Record,
    Run,
    ScoreRun,
    Spectrum,
    SpeedRun,
    Suite,
    Training,
    key,
)
from evaluation.strategies import strategy
from variants.core import method

NOTHING: Mapping[str, Record] = MappingProxyType({})


@dataclass(frozen=True)
class Tally:
    """How many runs of one method (None: of all together) and stage are done, and how many are left, with how many
    training steps."""

    entry: Entry | None
    stage: str
    done: int
    left: int
    steps: int = 0


Searches = Mapping[str, Search]  # by label


@dataclass(frozen=True)
class Plan:
    """A suite on one machine: methods with all hyperparameters spelt out, digests, device and threads.

    Where training time is matched, the speed run comes first, and a method's ``steps`` (by label) follow from its
    record: ``paced`` gives the plan that has them. They are in the runs, and so in their keys.
    """

    suite: Suite
    identity: Identity
    device: str
    threads: int
    steps: Mapping[str, int] | None = None  # of every method; None: those of the suite, or not known yet

    def paced(self, records: Mapping[str, Record]) -> tuple[Plan, Mapping[str, Record]]:
        """The plan with the steps of every method, and the records that count in it: before the speed run none do,
        since runs of as many steps as the suite gives need not be among those that will be wanted.

        Raises:
            Unusable: training time is to be matched, and the speed run could not measure it.
        """
        if self.suite.match == "steps" or self.steps is not None:
            return self, records
        speed = records.get(key(self.speed_run()))
        if speed is None:
            return replace(self, steps={}), NOTHING
        return replace(self, steps=matched_steps(speed)), records

    def runs(self, records: Mapping[str, Record]) -> list[Run]:
        """Every run that is known to be needed, given the records so far: what a search tries next appears when all
        before it is there, a method's final runs when its search is complete, the speed run when nothing else is left.
        Where it decides how many steps the others take, it is the first and at first the only one."""
        plan, known = self.paced(records)
        if plan is not self:
            return plan.runs(known) if plan.steps else [self.speed_run()]
        entries, searches = costly_first(self.suite.methods), self.searches(records)
        # Rate by rate, so that after the first round the time of every method's runs is known.
        ranks = zip_longest(*(searches[entry.label].runs for entry in entries))
        found: list[Run] = [run for rank in ranks for run in rank if run is not None]
        seeds = self._seeds(searches, records)
        for entry in entries:
            setting = searches[entry.label].winner
            if setting is not None:
                found += self.final(entry, setting, seeds[entry.label])
        if self.suite.quantised:
            found.append(self.quantised_run())
        if self.suite.speed and (self.steps or all(key(run) in records for run in found)):
            found.append(self._speed_run(searches))
        return found

    def total(self, records: Mapping[str, Record] = NOTHING) -> int:
        """How many runs the suite has when no learning-rate search diverges altogether, as far as the records tell:
        undecided pairs of methods may call for more seeds."""
        plan, known = self.paced(records)
        if plan is not self:
            return plan.total(known)
        suite, seeds = self.suite, self.seeds(records)
        scores = sum(self.search_runs_of(entry) + seeds[entry.label] for entry in suite.methods)
        return scores + bool(suite.quantised) + bool(suite.speed)

    def search_runs_of(self, entry: Entry) -> int:
        """The runs of a method's whole search."""
        return strategy(self.suite, entry).trials * self.suite.protocol.search_seeds

    def tallies(self, records: Mapping[str, Record]) -> list[Tally]:
        """What of each method and stage is recorded, and what is left; runs of another setting do not count."""
        plan, known = self.paced(records)
        if plan is not self:
            return plan.tallies(known)
        searches = self.searches(records)
        found, seeds = [], self._seeds(searches, records)
        for entry in costly_first(self.suite.methods):
            search, number = searches[entry.label], seeds[entry.label]
            final = [] if search.winner is None else self.final(entry, search.winner, number)
            lengths = {
                "search": self._search_lengths(entry),
                "final": [self._steps(entry)] * (0 if search.lost else number),
            }
            for stage, runs in (("search", search.runs), ("final", final)):
                done = [run for run in runs if key(run) in records]
                if lengths[stage] or runs:
                    steps = sum(lengths[stage]) - sum(run.training.steps for run in done)
                    found.append(Tally(entry, stage, len(done), len(lengths[stage]) - len(done), steps))
        for run in self._of_all_methods(searches):
            done_already = int(key(run) in records)
            found.append(Tally(None, run.kind, done_already, 1 - done_already))
        return found

    def _search_lengths(self, entry: Entry) -> list[int]:
        """Training steps of the runs of a method's whole search."""
        own = [steps or self._steps(entry) for steps in strategy(self.suite, entry).lengths]
        return own * self.suite.protocol.search_seeds

    def _of_all_methods(self, searches: Searches) -> list[QuantisedRun | SpeedRun]:
        suite = self.suite
        found: list[QuantisedRun | SpeedRun] = [self.quantised_run()] if suite.quantised else []
        return [*found, self._speed_run(searches)] if suite.speed else found

    # ---- the search -------------------------------------------------------------------------------------------------
    def searches(self, records: Mapping[str, Record]) -> dict[str, Search]:
        """The search of every method, by label."""
        return {entry.label: self.search(entry, records) for entry in self.suite.methods}

    def search(self, entry: Entry, records: Mapping[str, Record] = NOTHING) -> Search:
        """The runs among which a method's setting is chosen, as far as the records decide which. None where there is
        only one."""
        search, found, runs = strategy(self.suite, entry), list[Trial](), list[ScoreRun]()
        while settings := search.propose(found):
            tried = [(setting, self._trial(entry, setting)) for setting in settings]
            runs += [run for _, seeds in tried for run in seeds]
            trials = outcomes(tried, records)
            if trials is None:
                return Search(runs, complete=False, winner=None)
            found += trials
        return Search(runs, complete=True, winner=search.winner(found))

    def _trial(self, entry: Entry, setting: Setting) -> list[ScoreRun]:
        """One setting with every search seed: 0, -1, -2 ..., since final runs count upwards from 1."""
        seeds = self.suite.protocol.search_seeds
        return [self._score_run(entry, "search", setting, -i) for i in range(seeds)]

    def rate(self, entry: Entry, records: Mapping[str, Record]) -> float | None:
        """The learning rate of the final runs: the only one there is, or that of the search's best; None until then,
        and where everything diverged."""
        winner = self.search(entry, records).winner
        return None if winner is None else winner.lr

    # ---- what is reported -------------------------------------------------------------------------------------------
    def final(self, entry: Entry, setting: Setting, seeds: int | None = None) -> list[ScoreRun]:
        """The runs that are reported: as many as the suite says unless ``seeds`` are given."""
        return [self._score_run(entry, "final", setting, 1 + i) for i in range(seeds or self.suite.seeds_of(entry))]

    def seeds(self, records: Mapping[str, Record]) -> dict[str, int]:
        """How many final runs each method has, by label: with ``max_seeds``, more while a pair is undecided."""
        capped = self.suite.protocol.max_seeds is not None
        return self._seeds(self.searches(records) if capped else {}, records)

    def _seeds(self, searches: Searches, records: Mapping[str, Record]) -> dict[str, int]:
        counts = {entry.label: self.suite.seeds_of(entry) for entry in self.suite.methods}
        cap = self.suite.protocol.max_seeds
        if cap is None or not all(search.complete for search in searches.values()):
            return counts
        winners = {entry.label: (entry, searches[entry.label].winner) for entry in self.suite.methods}
        finals = {label: self.final(entry, won, cap) for label, (entry, won) in winners.items() if won is not None}
        return counts | seeds_needed(self.suite.protocol, finals, records)

    def speed_run(self, records: Mapping[str, Record] = NOTHING) -> SpeedRun:
        """The one run that times all methods, as far as the records decide how each is run."""
        return self._speed_run(self.searches(records))

    def _speed_run(self, searches: Searches) -> SpeedRun:
        """Of every method as its final runs have it, or as the suite has it where there are none."""
        assert self.suite.speed is not None
        return SpeedRun(
            methods={entry.label: searches[entry.label].method(entry) for entry in self.suite.methods},
            places={entry.label: entry.where for entry in self.suite.methods if entry.where},
            baseline=self.suite.baseline,
            where=self.suite.where,
            speed=self.suite.speed,
            threads=self.threads,
            **self._common(self.suite.methods),
        )

    def quantised_run(self) -> QuantisedRun:
        assert self.suite.quantised is not None
        return QuantisedRun(where=self.suite.where, quantised=self.suite.quantised, **self._common(()))

    def _score_run(self, entry: Entry, stage: Stage, setting: Setting, seed: int) -> ScoreRun:
        besides = measured(self.suite, entry, stage, setting, seed)
        common = self._common((entry,), besides["spectrum"]) | {"training": self._training(entry, setting)}
        return ScoreRun(
            stage=stage,
            method=setting.method(entry.method),
            lr=setting.lr,
            seed=seed,
            split="validation" if stage == "search" else "test",
            where=self.suite.layers_of(entry),
            **besides | common,
        )

    def _training(self, entry: Entry, setting: Setting) -> Training:
        changed = {"steps": self._steps(entry)} | dict(setting.training)
        # Validated: a choice of 0 becomes the 0.0 that is read back from the record.
        return Training.model_validate(self.suite.training.model_dump() | changed)

    def _steps(self, entry: Entry) -> int:
        """Of a run in full length."""
        return (self.steps or {}).get(entry.label, self.suite.training.steps)

    def _common(self, entries: tuple[Entry, ...], spectrum: Spectrum | None = None) -> dict[str, Any]:
        suite = self.suite
        # Only the digests of what is in this run: a method added to the suite leaves the others' runs valid.
        digests = {
            "methods": {entry.method.name: self.identity.methods[entry.method.name] for entry in entries},
            "forgetting": self.identity.forgetting if spectrum and spectrum.text else None,
        }
        return {
            "model": suite.model,
            "benchmark": suite.benchmark,
            "limit": suite.limit,
            "training": suite.training,
            "device": self.device,
            "identity": self.identity.model_copy(update=digests),
        }


def costly_first(entries: tuple[Entry, ...]) -> list[Entry]:
    """Methods that train the base first and head-only ones last: long runs at the end would leave workers idle."""

    def rank(entry: Entry) -> int:
        return ("base", "layers", "head").index(method(entry.method.name).trains)

    return sorted(entries, key=rank)
