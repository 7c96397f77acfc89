"""What is run and what comes out: suites, runs and records.

A suite file (TOML) says what to compare. The protocol turns it into runs; a run is a complete, self-contained
description of one piece of work, and its key, the hash of its canonical JSON, is its name in the store. The same key
means the same numbers on the same type of machine.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from variants.core.registry import suggestion
from variants.core.rounding import FORMATS, Format

FORMAT = 4  # raise when the meaning of a run or a record changes: older records are then computed again
SUITES = Path(__file__).parent / "suites"

# Strict: `steps = true` and `base_dropout = "no"` are mistakes, not the numbers that Python could read into them.
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
_Several = Annotated[tuple[str, ...], Field(min_length=1)]
Names = Annotated[
    _Several, BeforeValidator(lambda v: (v,) if isinstance(v, str) else v, json_schema_input_type=str | _Several)
]


class Unusable(ValueError):
    """Input that cannot be used; the message is one line which says what to write instead."""


def _off(value: Any) -> Any:
    return None if value is False else value  # TOML has no null: `speed = false` leaves a measurement out


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(_Frozen):
    """One method with its hyperparameters. In a suite file the hyperparameters stand beside the name."""

    name: str
    hyperparameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "hyperparameters" in value:
            return value
        return {"name": value.get("name"), "hyperparameters": {k: v for k, v in value.items() if k != "name"}}


# Sources of randomness. What a run draws for each follows from its seed and the name alone, so methods are paired.
Axis = Literal["subset", "data order", "head", "adapter", "dropout", "calibration"]
AXES: tuple[Axis, ...] = get_args(Axis)

ENTRY_KEYS = ("label", "lr", "where", "points", "seeds")  # of an entry itself; all others are hyperparameters


class Entry(_Frozen):
    """A method as a suite lists it: under a label, perhaps with its own centre of the learning-rate grid, on layers of
    its own (a bottleneck adapter belongs elsewhere than LoRA), or with a search and seeds of its own, where some
    methods are to be compared in more depth than the others."""

    label: str = Field(description="What tables call the method; its name unless given, and unlike all others.")
    method: Method
    lr: Positive | None = Field(default=None, description="Centre of its learning-rate grid.")
    where: Names | None = Field(
        default=None, description="Layers of its own, in place of the suite's: patterns of their names."
    )
    points: Count | None = Field(default=None, description="Learning rates to try, in place of the protocol's.")
    seeds: Count | None = Field(default=None, description="Final runs, in place of the protocol's.")

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "method" in value:
            return value
        if "name" not in value:
            raise ValueError("a method needs a `name`")
        own = {k: v for k, v in value.items() if k in ENTRY_KEYS}
        return {"label": value["name"], **own, "method": {k: v for k, v in value.items() if k not in own}}


class Training(_Frozen):
    """Everything that decides a training run besides the method. Dropout is a probability, warmup a share of steps,
    max_length a number of tokens."""

    steps: Count = Field(default=60, description="Optimiser steps of a run.")
    subset: Count | None = Field(default=None, description="Train on so many examples, drawn anew with every seed.")
    batch_size: Count = Field(default=16, description="Examples a step.")
    head_lr: Positive = Field(default=1e-2, description="Learning rate of the task head, the same for every method.")
    schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="How the rates fall to zero after the warm-up."
    )
    warmup: Share = Field(default=0.1, description="Share of the steps in which the rates rise from zero.")
    clip: Positive = Field(default=1.0, description="Largest norm of the gradient; longer ones are scaled down to it.")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True, description="AdamW's.")] = 0.0
    adapter_dropout: Annotated[float, Field(ge=0, lt=1, strict=True, description="On an adapter's input.")] = 0.0
    base_dropout: Annotated[bool, Field(strict=True, description="Whether the base keeps its own dropout.")] = False
    max_length: Count = Field(default=128, description="Tokens to which an example is cut.")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="Of the products in training.")


class Protocol(_Frozen):
    """How learning rates and seeds are chosen. A method's own centre is ``lr`` times its ``lr_ratio``. With one point
    there is nothing to search: final runs use the centre."""

    ruleset: Literal["tuned", "defaults"] = Field(
        default="tuned",
        description="With `defaults` nothing is searched: every method runs at its prior, whatever `lr` and `points` "
        "stand beside it.",
    )
    lr: Positive = Field(default=5e-3, description="Centre of LoRA's learning-rate grid.")
    points: Count = Field(default=3, description="Learning rates of the grid.")
    per_decade: Count = Field(default=2, description="Of them to a factor of ten.")
    trials: Count | None = Field(
        default=None,
        description="Learning rates that every method tries: what the grid leaves goes a step beyond its edge while "
        "the best rate lies there, and between the best rates otherwise.",
    )
    search_seeds: Count = Field(default=1, description="Runs of every rate that is tried.")
    seeds: Count = Field(default=3, description="Final runs, each with a seed of its own.")
    max_seeds: Count | None = Field(
        default=None,
        description="Go on, doubling the seeds of the methods in question, until every pair of methods is decided or "
        "so many are reached.",
    )
    margin: Share = Field(default=0.005, description="Differences of the score below it are practically none.")
    forecast: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="Measure the curvature at the start, which forecasts learning rates."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.trials is not None and self.trials < self.points:
            raise ValueError(f"{self.points} points are more than {self.trials} trials: change one of them")
        if self.max_seeds is not None and not 2 <= self.seeds < self.max_seeds:
            raise ValueError(f"seeds go from {self.seeds} up to {self.max_seeds}: begin with at least 2, end with more")
        return self


class Merging(_Frozen):
    """Test items and storage formats on which merging is measured, and how deeply: ``outputs`` and what is kept of the
    update; or ``full``, which adds survival by size, drift over ``cycles`` of merging and unmerging, the factors, and
    the ways to deploy on a quantised base."""

    items: Count = Field(default=200, description="Test items whose outputs are compared.")
    formats: tuple[Format, ...] = Field(
        default=FORMATS, min_length=1, description="Storage formats of the merged weights."
    )
    cycles: tuple[Count, ...] = Field(
        default=(1, 10, 100), min_length=1, description="Merges and unmerges before looking."
    )
    depth: Literal["outputs", "full"] = Field(default="outputs", description="What is measured; full takes longer.")


class Speed(_Frozen):
    """The shape on which speed is measured: batch_size sequences of the same number of tokens. Latency, of one token
    and of a batch, has rounds and rows of its own: every method is timed in up to three forms."""

    batch_size: Count = Field(default=16, description="Rows of a step.")
    tokens: Count = Field(default=16, description="Tokens of a row.")
    warmup: Count = Field(default=3, description="Rounds before the clock counts.")
    rounds: Count = Field(default=15, description="Rounds in which every method takes one timed step.")
    latency_rounds: Count = Field(default=8, description="Rounds in which every model takes one timed forward pass.")
    latency_batch_size: Count = Field(default=4, description="Rows of the batch whose forward pass is timed.")


class Quantised(_Frozen):
    """Starts on a quantised base (QLoRA, LoftQ, QPiSSA), compared on test items at these ranks."""

    ranks: tuple[Count, ...] = Field(default=(4, 8, 16, 32), min_length=1, description="Ranks of the starts.")
    formats: tuple[Literal["int8", "nf4"], ...] = Field(
        default=("int8", "nf4"), min_length=1, description="Of the base."
    )
    items: Count = Field(default=100, description="Test items whose outputs are compared.")


class Spectrum(_Frozen):
    """How the trained update is looked at. Every method's first final run is measured in full, the others give only
    their directions."""

    directions: Count = Field(
        default=8, description="Singular directions of the update, and of either end of the base weight's spectrum."
    )
    intruders: Count = Field(default=10, description="Leading singular vectors of the changed weight to examine.")
    epsilon: Share = Field(default=0.5, description="Cosine below which one of them is new.")
    layers: Count = Field(default=2, description="Layers whose directions are kept for comparing runs.")
    points: Annotated[int, Field(ge=2, strict=True)] = Field(
        default=8, description="Of the orthogonality defect over training."
    )
    forgetting: Annotated[str | None, BeforeValidator(_off, json_schema_input_type=str | Literal[False])] = Field(
        default="polarity", description="Benchmark on whose validation texts the base's change is measured, or false."
    )
    items: Annotated[int, Field(ge=3, strict=True)] = Field(  # two pairs of similarities cannot be ranked
        default=100, description="Of these texts."
    )
    depth: Literal["directions", "full"] = Field(default="full", description="How much a run measures.")


class Calibration(_Frozen):
    """How much training data a method sees whose start depends on gradients or on a layer's inputs."""

    batches: Count = Field(default=8, description="Batches of training examples.")
    batch_size: Count = Field(default=16, description="Examples a batch.")


class Suite(_Frozen):
    """A comparison: which methods, on what, how."""

    name: str = Field(pattern=r"^\w[\w.-]*$", description="Also of its results folder; the file's unless given.")
    model: str = Field(description="A name that `models` lists, a folder, or org/name on the hub.")
    benchmark: str = Field(description="A name that `benchmarks` lists.")
    where: Names = Field(description="Layers that get an adapter: patterns of their names.")
    baseline: str = Field(default="lora", description="Label of the method that all others are compared with.")
    methods: tuple[Entry, ...] = Field(min_length=1, description="What is compared; hyperparameters beside the name.")
    training: Training = Training()
    protocol: Protocol = Protocol()
    merging: Annotated[Merging | None, BeforeValidator(_off, json_schema_input_type=Merging | Literal[False])] = (
        Merging()
    )
    speed: Annotated[Speed | None, BeforeValidator(_off, json_schema_input_type=Speed | Literal[False])] = Speed()
    quantised: Quantised | None = None
    spectrum: Annotated[Spectrum | None, BeforeValidator(_off, json_schema_input_type=Spectrum | Literal[False])] = None
    calibration: Calibration = Calibration()
    keep: Literal["first", "all", "none"] = Field(
        default="first", description="Which final runs of a method keep their adapter, to merge, export or combine it."
    )
    vary: tuple[Axis, ...] = Field(
        default=AXES,
        min_length=1,
        description="What differs between the seeds of a method; the rest is drawn once. Methods share all of it.",
    )
    limit: Count | None = Field(default=None, description="At most so many examples of each split, for tests.")
    budget: Annotated[str, BeforeValidator(lambda v: str(v) if type(v) is int else v, str | int)] | None = Field(
        default=None,
        description="Trainable parameters of methods which have a size and do not give it: a number or a share (0.3%).",
    )

    def points_of(self, entry: Entry) -> int:
        """The learning rates of a method's grid; with one, there is no search."""
        return 1 if self.protocol.ruleset == "defaults" else entry.points or self.protocol.points

    def search_runs_of(self, entry: Entry) -> int:
        """The runs of a method's whole search."""
        points = self.points_of(entry)
        return max(points, self.protocol.trials or 0) * self.protocol.search_seeds if points > 1 else 0

    def seeds_of(self, entry: Entry) -> int:
        """The final runs of a method."""
        return entry.seeds or self.protocol.seeds

    def layers_of(self, entry: Entry) -> tuple[str, ...]:
        """The patterns of the layers which a method goes onto."""
        return entry.where or self.where

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        labels = Counter(entry.label for entry in self.methods)
        twice = [label for label, n in labels.items() if n > 1]
        if twice:
            raise ValueError(f"two methods are labelled {twice[0]!r}: give each its own `label`")
        inert: set[Axis] = {"calibration"}  # reaches few methods
        inert |= set() if self.training.subset else {"subset"}
        inert |= set() if self.training.adapter_dropout or self.training.base_dropout else {"dropout"}
        if inert.issuperset(self.vary):
            raise ValueError(f"nothing would differ between seeds that vary {list(self.vary)}: add 'data order'")
        wide = next((e for e in self.methods if (e.points or 0) > (self.protocol.trials or 1e9)), None)
        if wide:
            raise ValueError(f"{wide.label!r} has more points than the {self.protocol.trials} trials of all")
        own = next((entry.label for entry in self.methods if entry.seeds), None)
        if own and self.protocol.max_seeds:
            raise ValueError(f"{own!r} has `seeds` of its own, and protocol.max_seeds adds seeds: leave one out")
        if self.baseline not in labels:
            near = suggestion(self.baseline, list(labels))
            raise ValueError(f"baseline {self.baseline!r} is not one of the methods: {near}")
        if self.spectrum and self.spectrum.forgetting == self.benchmark:
            raise ValueError(f"spectrum.forgetting: {self.benchmark!r} is trained on: name another benchmark, or false")
        return self


class Identity(_Frozen):
    """Digests of what a run depends on besides its spec."""

    model: str
    data: str
    methods: dict[str, str]  # method name -> digest of its source
    code: str = ""  # digest of the code that trains and measures, and of the libraries' versions
    format: int = FORMAT


class ScoreRun(_Frozen):
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
    device: str
    identity: Identity


class SpeedRun(_Frozen):
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


class QuantisedRun(_Frozen):
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


def key(run: Run) -> str:
    """The run's name in the store: 16 hex digits of the hash of its canonical JSON."""
    text = json.dumps(run.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Record(_Frozen):
    """What one run gave. The only thing that reports see; every field is plain JSON.

    ``measures`` holds one entry a measurement: ``parameters``, ``start``, ``curvature``, ``score``, ``spectrum`` and
    ``merging`` for a score run, ``speed`` for a speed run, ``quantised`` for a quantised run; its module says what
    an entry contains. ``seconds`` sums the wall time of the run by what was done (forward, backward, optimiser,
    hooks, evaluation, ...). A diverged run is a result; a failed one is computed again when the suite is started again.
    """

    key: str
    run: Run
    status: Literal["done", "diverged", "failed"]
    measures: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None


def load_suite(name: str, changes: dict[str, str] | None = None) -> Suite:
    """A suite by the name of a shipped one or the path of a TOML file, with ``key=value`` changes applied.

    Raises:
        Unusable: no such suite, not TOML, an unknown key, or a value of the wrong kind; in one line.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        shipped = sorted(p.stem for p in SUITES.glob("*.toml"))
        raise Unusable(f"no suite {name!r}: {suggestion(name, shipped)} (or give the path of a .toml file)") from None
    except OSError as error:
        raise Unusable(f"cannot read the suite {name!r}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(f"{path} is not a TOML file: {error}") from error
    for dotted, text in (changes or {}).items():
        _change(data, dotted, text)
    try:
        return Suite.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        raise Unusable(f"{path.name}: {_first_problem(error)}") from error


def _change(data: dict[str, Any], dotted: str, text: str) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise Unusable(f"--set {dotted}: {parent} is not a table")
    try:
        data[last] = tomllib.loads(f"v = {text}")["v"]
    except (tomllib.TOMLDecodeError, RecursionError):
        data[last] = text  # a bare word is a string


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}: {suggestion(str(first['loc'][-1]), _known_keys(first['loc']))}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "training": Training,
        "protocol": Protocol,
        "merging": Merging,
        "speed": Speed,
        "quantised": Quantised,
        "spectrum": Spectrum,
        "calibration": Calibration,
    }
    model: type[BaseModel] = sections.get(str(place[0]), Suite) if len(place) > 1 else Suite
    return list(model.model_fields)
