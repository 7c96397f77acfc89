"""Runs, their names in the store, and records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from evaluation.spec.sections import (
    AXES,
    Axis,
    Calibration,
    Curve,
    Merging,
    Method,
    Quantised,
    Spectrum,
    Speed,
    Training,
)
from evaluation.spec.values import Count, Frozen, Names, Positive

FORMAT = 4  # raise when the meaning of a run or a record changes: older records are then computed again


class Identity(Frozen):
    """Digests of what a run depends on besides its spec."""

    model: str
    data: str
    methods: dict[str, str]  # method name -> digest of its source
    forgetting: str | None = None  # digest of the benchmark on whose texts forgetting is measured, in runs that do
    code: str = ""  # digest of the code that trains and measures, and of the libraries' versions
    format: int = FORMAT

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs that do not measure forgetting keep the keys which they had before it was part of the identity."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("forgetting", None)}


class ScoreRun(Frozen):
    """Train one method once, and score it on one split."""

    kind: Literal["score"] = "score"
    stage: Literal["search", "final"]
    model: str
    benchmark: str
    where: Names
    method: Method
    lr: Positive
    seed: int
    split: Literal["validation", "test"]
    limit: Count | None
    training: Training
    merging: Merging | None
    calibration: Calibration | None = None  # only for methods that need one
    keep: bool = False  # the trained adapter and head lie beside the record
    vary: tuple[Axis, ...] = AXES
    spectrum: Spectrum | None = None
    forecast: bool = False  # the curvature at the start is measured before training
    curve: Curve | None = None  # scores on validation data during training
    device: str
    identity: Identity


class SpeedRun(Frozen):
    """Time all methods of a suite together, interleaved step by step. Never shares the machine."""

    kind: Literal["speed"] = "speed"
    model: str
    benchmark: str
    where: Names
    methods: dict[str, Method]  # label -> method
    places: dict[str, Names] = Field(default_factory=dict)  # label -> where, for methods with layers of their own
    baseline: str  # the label that ratios are to
    limit: Count | None
    training: Training
    speed: Speed
    threads: int
    device: str
    identity: Identity


class QuantisedRun(Frozen):
    """Measure, without training, what starts on a quantised base do to its weights and outputs."""

    kind: Literal["quantised"] = "quantised"
    model: str
    benchmark: str
    where: Names
    quantised: Quantised
    limit: Count | None
    training: Training
    device: str
    identity: Identity


Run = Annotated[ScoreRun | SpeedRun | QuantisedRun, Field(discriminator="kind")]


def alike(a: Method, b: Method, searched: Collection[str]) -> bool:
    """Whether two are the same method with the same hyperparameters, apart from those which are searched."""
    mine, other = (
        {name: value for name, value in method.hyperparameters.items() if name not in searched} for method in (a, b)
    )
    return a.name == b.name and mine == other


def key(run: Run) -> str:
    """The run's name in the store: 16 hex digits of the hash of its canonical JSON."""
    spec = run.model_dump(mode="json")
    if spec.get("curve", ...) is None:  # the field is younger than FORMAT: a run without is the run it was before
        del spec["curve"]
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Record(Frozen):
    """What one run gave. The only thing that reports see; every field is plain JSON.

    ``measures`` holds one entry a measurement: ``parameters``, ``start``, ``curvature``, ``curve``, ``score``,
    ``spectrum`` and ``merging`` for a score run, ``speed`` for a speed run, ``quantised`` for a quantised run; its
    module says what an entry contains. ``seconds`` sums the wall time of the run by what was done (forward, backward,
    optimiser, hooks, evaluation, ...). A diverged run is a result; a failed one is computed again when the suite is
    started again.
    """

    key: str
    run: Run
    status: Literal["done", "diverged", "failed"]
    measures: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None
