"""A suite and its records, as plain JSON in one small frozen structure: all that reports see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reports.statistics import MARGIN, planned_looks

Json = Mapping[str, Any]
# "primary" is what the benchmark is judged by.
Measure = Literal["primary", "accuracy", "macro_f1", "spearman", "pearson", "loss"]


@dataclass(frozen=True)
class ScoreRun:
    """One training of one method, scored on one split. ``lr`` is the adapter's learning rate."""

    label: str
    stage: str  # "search" or "final"
    split: str
    lr: float
    seed: int
    status: str  # "done", "diverged" or "failed"
    measures: Json
    error: str | None
    record: Json = field(default_factory=dict, repr=False)  # what it was read from, with its key and all its settings

    @property
    def seconds(self) -> Json:
        """Wall time by phase."""
        found: Json = self.record.get("seconds") or {}
        return found

    @property
    def steps(self) -> int | None:
        """Training steps of the run; None where they are not recorded."""
        steps = (self.record["run"].get("training") or {}).get("steps") if self.record else None
        return None if steps is None else int(steps)

    def score(self, measure: Measure) -> float | None:
        """A share or a correlation, at most 1 (loss: nats, or variances); None where the run has no score."""
        score = self.measures.get("score", {})
        value = score.get(score.get("metric", "accuracy") if measure == "primary" else measure)
        return float(value) if self.status == "done" and value is not None else None

    @property
    def items(self) -> int | None:
        """How many items were scored."""
        score = self.measures.get("score")
        return len(score["items"]["gold"]) if score and "items" in score else None


def searched_space(suite: Json) -> Json:
    """name -> range, of what a suite searches; empty under the ruleset "defaults", which searches nothing."""
    protocol: Json = suite["protocol"]
    return {} if protocol.get("ruleset") == "defaults" else protocol.get("space") or {}


@dataclass(frozen=True)
class Results:
    """A suite and what is known of it so far. ``labels`` is in display order; records of other methods are left out."""

    suite: Json
    command: str
    versions: Json
    labels: tuple[str, ...]
    runs: tuple[ScoreRun, ...]
    speed: Json | None
    speed_error: str | None
    quantised: Json | None  # storage format -> rank -> start -> errors
    records: tuple[Json, ...]
    left_out: int
    wall: Json | None

    @property
    def baseline(self) -> str:
        return str(self.suite["baseline"])

    @property
    def probe(self) -> str | None:
        """The label of the method that trains the task head alone, if the suite has one."""
        return next((e["label"] for e in self.suite["methods"] if e["method"]["name"] == "probe"), None)

    def method(self, label: str) -> Json:
        """Name and hyperparameters of a method as its final runs had it, else as the suite has it."""
        if self.space and (finals := self.of(label, "final")):
            own: Json = finals[0].record["run"]["method"]
            return own
        return next(entry["method"] for entry in self.suite["methods"] if entry["label"] == label)

    def points(self, label: str) -> int:
        """How many learning rates, or settings, the suite asks for; a method with one has no search runs."""
        grid = self.grid(label)
        return grid if grid == 1 else max(grid, int(self.suite["protocol"].get("trials") or 0))

    def grid(self, label: str) -> int:
        """How many of them are fixed beforehand."""
        if self.space:
            return int(self.suite["protocol"]["trials"])
        return 1 if self.suite["protocol"].get("ruleset") == "defaults" else self._own(label, "points", 1)

    @property
    def space(self) -> Json:
        """What the search varied, with its ranges; empty where it was the learning rate alone, on a grid."""
        return searched_space(self.suite)

    @property
    def racing(self) -> int | None:
        """One rate in how many a race promotes; None where there was none."""
        keep = self.suite["protocol"].get("racing")
        return None if keep is None or self.suite["protocol"].get("ruleset") == "defaults" else int(keep)

    @property
    def rungs(self) -> int:
        """How many lengths the runs of a race have."""
        return int(self.suite["protocol"].get("rungs") or 2)

    @property
    def audited(self) -> bool:
        """Was the full grid run beside the race?"""
        return bool(self.suite["protocol"].get("racing_audit"))

    @property
    def search_seeds(self) -> int:
        """Runs of every trial."""
        return int(self.suite["protocol"].get("search_seeds") or 1)

    @property
    def training(self) -> Json:
        """The suite's settings of a training run; empty where they are not recorded."""
        found: Json = self.suite.get("training") or {}
        return found

    @property
    def length(self) -> int | None:
        """Training steps of a run of full length."""
        steps = self.training.get("steps")
        return None if steps is None else int(steps)

    def seeds(self, label: str) -> int:
        """How many final seeds the suite asks for."""
        return self._own(label, "seeds", 0)

    def _own(self, label: str, name: str, otherwise: int) -> int:
        """What the method's entry says, else the protocol."""
        own = next(entry.get(name) for entry in self.suite["methods"] if entry["label"] == label)
        return int(self.suite["protocol"].get(name, otherwise) if own is None else own)

    @property
    def metric(self) -> str:
        """The benchmark's primary measure."""
        scores = (run.measures.get("score") for run in self.runs)
        return next((str(score.get("metric", "accuracy")) for score in scores if score), "accuracy")

    def final_seeds(self, label: str) -> int:
        """How many final seeds a method ran, or is to run if the suite asks for more."""
        return max(self.seeds(label), len({run.seed for run in self.of(label, "final")}))

    @property
    def resolution(self) -> float:
        """The step in which the final accuracies move: one item's share; 0 while unknown, and for correlations."""
        if self.metric != "accuracy":
            return 0.0
        counts = [run.items for run in self.runs if run.stage == "final" and run.items]
        return 1 / min(counts) if counts else 0.0

    @property
    def margin(self) -> float:
        """The difference in accuracy up to which methods are practically equal, a share."""
        return float(self.suite["protocol"].get("margin", MARGIN))

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of final seeds at which it was decided whether to add more."""
        protocol = self.suite["protocol"]
        return planned_looks(int(protocol.get("seeds", 0)), protocol.get("max_seeds"))

    @property
    def time_matched(self) -> bool:
        """Was the training time the same for all methods, instead of the number of steps?"""
        return self.suite.get("match") == "seconds"

    def steps(self, label: str) -> int | None:
        """How many steps the method's runs were to take; None while there are none."""
        return next((run.steps for run in self.runs if run.label == label and run.steps), None)

    @property
    def budget_in_bytes(self) -> bool:
        """Did the suite match sizes by what is stored, not by what is trained?"""
        return str(self.suite.get("budget") or "").endswith(("B", "bytes"))

    def of(self, label: str, stage: str) -> list[ScoreRun]:
        """A method's runs of one stage, by learning rate and seed."""
        chosen = (run for run in self.runs if run.label == label and run.stage == stage)
        return sorted(chosen, key=lambda run: (run.lr, run.seed))

    def settings(self, label: str) -> set[str]:
        """The different settings, learning rates unless the suite has a space, which the method's search tried."""
        return {self.setting(run) for run in self.of(label, "search")}

    def setting(self, run: ScoreRun) -> str:
        """What the search varied, of one run; its length is no part of it."""
        training = {name: value for name, value in (run.record["run"].get("training") or {}).items() if name != "steps"}
        varied = [run.record["run"]["method"], training] if self.space else []
        return json.dumps([run.lr, *varied], sort_keys=True)

    def full_length(self, label: str) -> list[ScoreRun]:
        """A method's search runs which trained as long as the final runs: those whose scores mean the same."""
        return [run for run in self.of(label, "search") if self.is_full(run)]

    def is_full(self, run: ScoreRun) -> bool:
        """Did the run train as long as the final runs? In a race not all do."""
        return self.racing is None or run.steps == self.length

    def outcomes(self, label: str, measure: Measure = "primary") -> dict[int, float]:
        """seed -> score of the final runs that have one."""
        scores = {run.seed: run.score(measure) for run in self.of(label, "final")}
        return {seed: score for seed, score in scores.items() if score is not None}

    def diverged_seeds(self, label: str) -> int:
        """How many of a method's final runs diverged; they have no score, and the mean leaves them out."""
        return sum(run.status == "diverged" for run in self.of(label, "final"))

    def chosen_lr(self, label: str) -> float | None:
        """The learning rate of the final runs; None while there are none."""
        finals = self.of(label, "final")
        return finals[0].lr if finals else None

    def on_edge(self, label: str) -> bool:
        """Is the chosen learning rate the smallest or the largest of several that were searched?"""
        searched = set() if self.space else {run.lr for run in self.of(label, "search")}  # random rates have no edge
        return len(searched) > 1 and self.chosen_lr(label) in (min(searched), max(searched))

    def parameters(self, label: str) -> Json:
        """Counts of the method's adapter, as its final runs had it; empty while no run has them."""
        runs = (run for stage in ("final", "search") for run in self.of(label, stage))
        return next((run.measures["parameters"] for run in runs if "parameters" in run.measures), {})

    def merging(self, label: str) -> Json:
        """The merge measurement of the first final run that has one; empty without."""
        return next((r.measures["merging"] for r in self.of(label, "final") if "merging" in r.measures), {})

    def starts(self, label: str) -> list[Json]:
        """How far from the base's outputs the method begins, in every final run that has it."""
        return [run.measures["start"] for run in self.of(label, "final") if run.measures.get("start")]
