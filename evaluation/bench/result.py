"""What a bench has found, as it is kept: versioned JSON that is checked when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evaluation.spec import Unusable


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Interval(_Part):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float


class Timing(_Part):
    """A step of one method. ``phases``: seconds of forward, backward, optimiser, hooks and total. ``ratios``: of whole
    steps, formed within a round, to ``floor``, ``lora`` and, of our methods that have one, ``peft``."""

    phases: dict[str, Interval]
    ratios: dict[str, Interval]
    saved_bytes: int
    peak_bytes: int


class Shape(_Part):
    """All methods on batches of one shape. ``noise``: half-width of the interval of the floor's ratio with itself, the
    largest of all groups."""

    rows: int
    tokens: int
    rounds: int
    noise: float
    floor: Timing
    methods: dict[str, Timing]

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.tokens}"


class Costs(_Part):
    """Seconds of what is done once; None where a method has no such thing, or cannot do it."""

    init: float
    attach: float | None
    merge: float | None
    unmerge: float | None
    save: float | None
    load: float | None
    compile: float | None = None


class Start(_Part):
    """PiSSA's start on all layers. ``residual``: the largest relative distance, over layers, of the frozen residual to
    that of PEFT's exact start."""

    seconds: Interval
    residual: float


class Bench(_Part):
    """``settings``: label -> hyperparameters of all that was asked for. ``left_out``: label -> why it could not be
    timed. ``weights``: whether every model had frozen weights of its own, or ours had them in common, as once."""

    format: Literal[1] = 1
    model: str
    digest: str
    where: tuple[str, ...]
    rank: int
    threads: int
    compile: bool = False
    weights: Literal["shared", "own"] = "shared"
    environment: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    shapes: tuple[Shape, ...] = Field(min_length=1)
    costs: dict[str, Costs]
    starts: dict[str, Start]
    left_out: dict[str, str]


def read(path: Path) -> Bench:
    """A result that was written before.

    Raises:
        Unusable: no such file, or it holds something else; in one line.
    """
    try:
        return Bench.model_validate_json(path.read_bytes())
    except OSError as error:
        raise Unusable(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise Unusable(f"{path} is not a result of bench --json: {place}: {first['msg']}") from error


def text(bench: Bench) -> str:
    """As JSON."""
    return bench.model_dump_json(indent=1) + "\n"
