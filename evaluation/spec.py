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

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from variants.core.registry import suggestion
from variants.core.rounding import FORMATS, Format

FORMAT = 4  # raise when the meaning of a run or a record changes: older records are then computed again
SUITES = Path(__file__).parent / "suites"

# Strict: `steps = true` and `base_dropout = "no"` are mistakes, not the numbers that Python could read into them.
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v), Field(min_length=1)]


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

    label: str
    method: Method
    lr: Positive | None = None
    where: Names | None = None
    points: Count | None = None
    seeds: Count | None = None

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
    max_length a number of tokens. ``subset`` trains on so many examples, drawn anew with every seed."""

    steps: Count = 60
    subset: Count | None = None
    batch_size: Count = 16
    head_lr: Positive = 1e-2
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: Share = 0.1
    clip: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 0.0
    adapter_dropout: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0
    base_dropout: Annotated[bool, Field(strict=True)] = False
    max_length: Count = 128
    precision: Literal["float32", "bfloat16"] = "float32"


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

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.trials is not None and self.trials < self.points:
            raise ValueError(f"{self.points} points are more than {self.trials} trials: change one of them")
        if self.max_seeds is not None and not 2 <= self.seeds < self.max_seeds:
            raise ValueError(f"seeds go from {self.seeds} up to {self.max_seeds}: begin with at least 2, end with more")
        return self

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of seeds at which it is decided whether to go on, the last the cap; without a cap the only one."""
        found = [self.seeds]
        while found[-1] < (self.max_seeds or 0):
            found.append(min(2 * found[-1], self.max_seeds or 0))
        return tuple(found)


class Merging(_Frozen):
    """Test items and storage formats on which merging is measured, and how deeply: ``outputs`` and what is kept of the
    update; or ``full``, which adds survival by size, drift over ``cycles`` of merging and unmerging, the factors, and
    the ways to deploy on a quantised base."""

    items: Count = 200
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = FORMATS
    cycles: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 10, 100)
    depth: Literal["outputs", "full"] = "outputs"


class Speed(_Frozen):
    """The shape on which speed is measured: batch_size sequences of the same number of tokens. Latency, of one token
    and of a batch, has rounds and rows of its own: every method is timed in up to three forms."""

    batch_size: Count = 16
    tokens: Count = 16
    warmup: Count = 3
    rounds: Count = 15
    latency_rounds: Count = 8
    latency_batch_size: Count = 4


class Quantised(_Frozen):
    """Starts on a quantised base (QLoRA, LoftQ, QPiSSA), compared on test items at these ranks."""

    ranks: Annotated[tuple[Count, ...], Field(min_length=1)] = (4, 8, 16, 32)
    formats: Annotated[tuple[Literal["int8", "nf4"], ...], Field(min_length=1)] = ("int8", "nf4")
    items: Count = 100


class Calibration(_Frozen):
    """How much training data a method sees whose start depends on gradients or on a layer's inputs."""

    batches: Count = 8
    batch_size: Count = 16


class Suite(_Frozen):
    """A comparison: which methods, on what, how."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # also the name of its results folder
    model: str
    benchmark: str
    where: Names
    baseline: str = "lora"
    methods: Annotated[tuple[Entry, ...], Field(min_length=1)]
    training: Training = Training()
    protocol: Protocol = Protocol()
    merging: Annotated[Merging | None, BeforeValidator(_off)] = Merging()
    speed: Annotated[Speed | None, BeforeValidator(_off)] = Speed()
    quantised: Quantised | None = None
    calibration: Calibration = Calibration()
    # Which final runs keep their trained adapter, to merge, export or combine it: each method's first, all, or none.
    keep: Literal["first", "all", "none"] = "first"
    # What differs between the seeds of a method; the rest is drawn once. Methods share all of it within a seed.
    vary: Annotated[tuple[Axis, ...], Field(min_length=1)] = AXES
    limit: Count | None = None  # at most so many examples of each split, for tests
    # Trainable parameters for every method that has a size and does not give it: a number, or a share such as "0.3%".
    budget: Annotated[str, BeforeValidator(lambda v: str(v) if type(v) is int else v)] | None = None

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
        if self.baseline not in labels:
            near = suggestion(self.baseline, list(labels))
            raise ValueError(f"baseline {self.baseline!r} is not one of the methods: {near}")
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
    device: str
    identity: Identity

    def index(self, axis: Axis) -> int:
        """Which draw of one source of randomness the run sees: its seed, or 0 where the suite holds the axis fixed."""
        return self.seed if axis in self.vary else 0


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

    ``measures`` holds one entry a measurement: ``parameters``, ``start``, ``score`` and ``merging`` for a score run,
    ``speed`` for a speed run, ``quantised`` for a quantised run; each measure's module says what its entry contains.
    ``seconds`` sums the wall time of the run by what was done (forward, backward, optimiser, hooks, evaluation, ...). A
    diverged run is a result; a failed one is computed again when the suite is started again.
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
        "calibration": Calibration,
    }
    model: type[BaseModel] = sections.get(str(place[0]), Suite) if len(place) > 1 else Suite
    return list(model.model_fields)
