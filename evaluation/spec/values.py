"""What the fields of a suite file may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

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


def _ascending(span: tuple[int | float, int | float, Scale]) -> tuple[int | float, int | float, Scale]:
    low, high, scale = span
    if not low < high or (scale.endswith("log") and low <= 0):
        raise ValueError(f"{list(span)} is no range: give [low, high, scale], on a log scale both above 0")
    if scale.startswith("int") and not (isinstance(low, int) and isinstance(high, int)):
        raise ValueError(f"{list(span)} is no range of whole numbers: write both ends without a point")
    return span


def _of_one_kind(choices: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(choices)) < len(choices) or (len({isinstance(v, str) for v in choices}) > 1):
        raise ValueError(f"{list(choices)} are no choices: give each once, or [low, high, scale] with one of {SCALES}")
    return choices


_Finite = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Span = Annotated[tuple[StrictInt | _Finite, StrictInt | _Finite, Scale], AfterValidator(_ascending)]
Choices = Annotated[
    tuple[StrictBool | StrictInt | _Finite | str, ...], Field(min_length=2), AfterValidator(_of_one_kind)
]


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
