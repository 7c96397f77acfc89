"""What the fields of a suite file may hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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


def off(value: Any) -> Any:
    return None if value is False else value  # TOML has no null: `speed = false` leaves a measurement out


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
