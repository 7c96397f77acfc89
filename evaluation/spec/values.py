"""What the fields of a suite file may hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

# Strict: `steps = true` and `base_dropout = "no"` are mistakes, not the numbers that Python could read into them.
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Several = Annotated[int, Field(ge=2, strict=True)]
_Names = Annotated[tuple[str, ...], Field(min_length=1)]
Names = Annotated[
    _Names, BeforeValidator(lambda v: (v,) if isinstance(v, str) else v, json_schema_input_type=str | _Names)
]


class Unusable(ValueError):
    """Input that cannot be used; the message is one line which says what to write instead."""


def off(value: Any) -> Any:
    return None if value is False else value  # TOML has no null: `speed = false` leaves a measurement out


Scale = Literal["linear", "log", "int", "int-log"]
SCALES: tuple[Scale, ...] = get_args(Scale)


_Number = StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)]
_Span = tuple[_Number, _Number, Scale]
_Choices = Annotated[tuple[StrictBool | _Number | str, ...], Field(min_length=2)]


def is_span(values: Sequence[Any]) -> bool:
    """Whether these are [low, high, scale], and not choices."""
    return len(values) == 3 and values[2] in SCALES and all(type(end) in (int, float) for end in values[:2])


def _span_or_choices(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise ValueError(f"{value!r} is nothing to search: give [low, high, scale], or two choices or more")
    kinds = {type(one) for one in value}
    if any(isinstance(one, float) and not math.isfinite(one) for one in value):
        raise ValueError(f"{list(value)} is not finite")
    if is_span(value):
        low, high, scale = value
        if not low < high or (scale.endswith("log") and low <= 0):
            raise ValueError(f"{list(value)} is no range: give [low, high, scale], on a log scale both above 0")
        if scale.startswith("int") and kinds != {int, str}:
            raise ValueError(f"{list(value)} is no range of whole numbers: write both ends without a point")
    elif not (kinds <= {int, float} or kinds in ({str}, {bool})) or len(set(value)) < len(value):
        scales = ", ".join(SCALES[:-1]) + f" or {SCALES[-1]}"
        raise ValueError(
            f"{list(value)} are no choices: give each once, all of one kind; or [low, high, scale] with {scales}"
        )
    return tuple(value)


Searchable = Annotated[tuple[Any, ...], BeforeValidator(_span_or_choices, json_schema_input_type=_Span | _Choices)]


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
