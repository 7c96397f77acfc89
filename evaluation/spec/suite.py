"""A suite: a comparison as its file describes it."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evaluation.spec.runs import ScoreRun, alike
from evaluation.spec.sections import (
    AXES,
    Axis,
    Calibration,
    Curve,
    Entry,
    Merging,
    Protocol,
    Quantised,
    Spectrum,
    Speed,
    Training,
)
from evaluation.spec.values import Count, Frozen, Names, off
from variants.core.registry import suggestion


def _budget_text(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError(f"{value} is no whole number of parameters: write a share of the model as in '0.1%'")
    return str(value) if type(value) is int else value


class Suite(Frozen):
    """A comparison: which methods, on what, how."""

    name: str = Field(pattern=r"^\w[\w.-]*$", description="Also of its results folder; the file's unless given.")
    model: str = Field(description="A name that `models` lists, a folder, or org/name on the hub.")
    benchmark: str = Field(description="A name that `benchmarks` lists.")
    where: Names = Field(description="Layers that get an adapter: patterns of their names.")
    baseline: str = Field(default="lora", description="Label of the method that all others are compared with.")
    methods: tuple[Entry, ...] = Field(min_length=1, description="What is compared; hyperparameters beside the name.")
    training: Training = Training()
    protocol: Protocol = Protocol()
    merging: Annotated[Merging | None, BeforeValidator(off, json_schema_input_type=Merging | Literal[False])] = (
        Merging()
    )
    speed: Annotated[Speed | None, BeforeValidator(off, json_schema_input_type=Speed | Literal[False])] = Speed()
    quantised: Quantised | None = None
    spectrum: Annotated[Spectrum | None, BeforeValidator(off, json_schema_input_type=Spectrum | Literal[False])] = None
    curve: Annotated[Curve | None, BeforeValidator(off, json_schema_input_type=Curve | Literal[False])] = None
    calibration: Calibration = Calibration()
    keep: Literal["first", "all", "none"] = Field(
        default="first", description="Which final runs of a method keep their adapter, to merge, export or combine it."
    )
    vary: tuple[Axis, ...] = Field(
        default=AXES,
        min_length=1,
        description="What differs between the seeds of a method; the rest is drawn once. Methods share all of it.",
    )
    match: Literal["steps", "seconds"] = Field(
        default="steps",
        description="What of the training is the same for all: the number of steps; or the time, by the step times of "
        "the speed run, which then comes first. `training.steps` are the baseline's.",
    )
    limit: Count | None = Field(default=None, description="At most so many examples of each split, for tests.")
    budget: Annotated[str, BeforeValidator(_budget_text, str | int)] | None = Field(
        default=None,
        description="What methods which have a size and do not give it may train, a number of parameters or a share "
        "(0.3%), or may store (300 KiB, 2 MB).",
    )

    def points_of(self, entry: Entry) -> int:
        """The learning rates of a method's grid; with one, there is no search."""
        return 1 if self.protocol.ruleset == "defaults" else entry.points or self.protocol.points

    def trials_of(self, entry: Entry) -> int:
        """The settings that a method's search tries, learning rates unless the protocol has a space; 0 without one."""
        if self.protocol.space:
            return self.protocol.trials or 0
        points = self.points_of(entry)
        return max(points, self.protocol.trials or 0) if points > 1 else 0

    def is_of(self, entry: Entry, run: ScoreRun) -> bool:
        """Whether a run is one of this entry's, whatever the search has made of what it searches."""
        return alike(entry.method, run.method, self.searched) and self.layers_of(entry) == run.where

    @property
    def searched(self) -> frozenset[str]:
        """The names of what is searched beside the learning rate."""
        return frozenset(self.protocol.space)

    def seeds_of(self, entry: Entry) -> int:
        """The final runs of a method."""
        return entry.seeds or self.protocol.seeds

    def layers_of(self, entry: Entry) -> tuple[str, ...]:
        """The patterns of the layers which a method goes onto."""
        return entry.where or self.where

    @model_validator(mode="after")
    def _own_labels(self) -> Suite:
        labels = Counter(entry.label for entry in self.methods)
        twice = [label for label, n in labels.items() if n > 1]
        if twice:
            raise ValueError(f"two methods are labelled {twice[0]!r}: give each its own `label`")
        if self.baseline not in labels:
            near = suggestion(self.baseline, list(labels))
            raise ValueError(f"baseline {self.baseline!r} is not one of the methods: {near}")
        return self

    @model_validator(mode="after")
    def _seeds_that_differ(self) -> Suite:
        inert: set[Axis] = {"calibration"}  # reaches few methods
        inert |= set() if self.training.subset else {"subset"}
        inert |= set() if self.training.adapter_dropout or self.training.base_dropout else {"dropout"}
        if inert.issuperset(self.vary):
            raise ValueError(f"nothing would differ between seeds that vary {list(self.vary)}: add 'data order'")
        return self

    @model_validator(mode="after")
    def _budget_of_all(self) -> Suite:
        """A method's own search or seeds do not undo what holds for all."""
        wide = next((e for e in self.methods if (e.points or 0) > (self.protocol.trials or 1e9)), None)
        if wide:
            raise ValueError(f"{wide.label!r} has more points than the {self.protocol.trials} trials of all")
        if self.protocol.space and (wide := next((e for e in self.methods if e.points), None)):
            raise ValueError(f"{wide.label!r} has points of its own, and a space is searched with the trials of all")
        own = next((entry.label for entry in self.methods if entry.seeds), None)
        if own and self.protocol.max_seeds:
            raise ValueError(f"{own!r} has `seeds` of its own, and protocol.max_seeds adds seeds: leave one out")
        return self

    @model_validator(mode="after")
    def _timed_as_trained(self) -> Suite:
        """Ratios of step times depend on the number of rows: overheads weigh more on small batches."""
        rows = self.training.batch_size
        other = "racing" if self.protocol.racing else "space" if self.protocol.space else None
        if self.match == "seconds" and other:  # it changes the steps of a run, or what a step costs
            raise ValueError(f"match = 'seconds' goes with a grid of learning rates: leave protocol.{other} out")
        if self.match == "seconds" and self.speed is None:
            raise ValueError("match = 'seconds' takes its step times from the speed run: leave `speed = false` out")
        if self.match == "seconds" and self.speed and self.speed.batch_size != rows:
            raise ValueError(
                f"match = 'seconds' needs steps timed as they are trained: write speed.batch_size = {rows}"
            )
        return self

    @model_validator(mode="after")
    def _long_enough_to_race(self) -> Suite:
        keep, rungs = self.protocol.racing, self.protocol.rungs
        if keep is not None and self.training.steps < keep ** (rungs - 1):
            raise ValueError(
                f"{self.training.steps} steps are too few for {rungs} rungs of racing {keep}, whose first would train "
                "for less than a step: lower `rungs`"
            )
        return self

    @model_validator(mode="after")
    def _unrelated_text(self) -> Suite:
        if self.spectrum and self.spectrum.forgetting == self.benchmark:
            raise ValueError(f"spectrum.forgetting: {self.benchmark!r} is trained on: name another benchmark, or false")
        return self
