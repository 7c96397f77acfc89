"""Bounds of hyperparameters: what they accept, what they say, and that types are read without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import pytest

from variants.core import Variant, create, method, names
from variants.core.conformance import settings
from variants.core.fields import Count, Fraction, Must, Nonzero, NotNegative, Positive, Share, Whole, whole_from
from variants.core.registry import in_words
from variants.lora import LoRA

EVEN = Must("an even number", lambda n: n % 2 == 0)


@dataclass(frozen=True, kw_only=True)
class Bounded(Variant):
    count: Count = 1
    whole: Whole = 0
    positive: Positive = 1.0
    not_negative: NotNegative = 0.0
    nonzero: Nonzero = 1.0
    share: Share = 0.0
    fraction: Fraction = 0.5
    even: Annotated[int, whole_from(1, " (as everywhere)"), EVEN] = 2
    optional: Count | None = None
    free: float = 0.0


@pytest.mark.parametrize(
    "values",
    [
        {"count": 7},
        {"whole": 3},
        {"positive": 2},
        {"not_negative": 0},
        {"nonzero": -1e-9},
        {"share": 1},
        {"share": 0.5},
        {"fraction": 1e-9},
        {"even": 4},
        {"optional": None},
        {"optional": 2},
        {"free": -5.0},
    ],
    ids=str,
)
def test_what_fits(values: dict[str, Any]) -> None:
    Bounded(**values)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", 0, "a whole number from 1, not 0"),
        ("count", 1.0, "a whole number from 1, not 1.0"),
        ("count", True, "a whole number from 1, not True"),
        ("count", None, "a whole number from 1, not None"),
        ("count", "2", "a whole number from 1, not '2'"),
        ("whole", -1, "a whole number from 0, not -1"),
        ("whole", False, "a whole number from 0, not False"),
        ("positive", 0.0, "a positive number, not 0.0"),
        ("positive", True, "a positive number, not True"),
        ("positive", float("nan"), "a positive number, not nan"),
        ("positive", float("inf"), "a positive number, not inf"),
        ("not_negative", -0.5, "a number from 0, not -0.5"),
        ("nonzero", 0, "a number other than 0, not 0"),
        ("share", 1.5, "a share from 0 to 1, not 1.5"),
        ("share", -0.1, "a share from 0 to 1, not -0.1"),
        ("fraction", 1, "a number between 0 and 1, not 1"),
        ("fraction", 0, "a number between 0 and 1, not 0"),
        ("even", 0, r"a whole number from 1 \(as everywhere\), not 0"),
        ("even", 3, "an even number, not 3"),
        ("optional", 0, "a whole number from 1, not 0"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {words}$"):
        Bounded(**{name: value})  # type: ignore[arg-type]


def test_a_method_made_from_another_keeps_its_bounds_and_may_replace_them() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Free(LoRA):
        alpha: float | None = None

    Free(alpha=-1.0)
    with pytest.raises(ValueError, match="rank is a whole number from 1, not 0"):
        Free(rank=0)


@pytest.mark.parametrize("name", names())
def test_types_are_read_without_bounds(name: str) -> None:
    """What the registry says of a field, and what the conformance suite tries, know nothing of ``Annotated``."""
    assert "Annotated" not in str([hint for key, hint in get_type_hints(method(name)).items()])
    assert settings(method(name))


def test_a_bound_field_is_called_by_its_plain_type() -> None:
    hints = get_type_hints(Bounded)
    assert [in_words(hints[name]) for name in ("count", "positive", "even", "optional")] == [
        "a whole number",
        "a number",
        "a whole number",
        "a whole number",
    ]
    assert create("stella", {"width": 3}) != create("stella", {"width": None})
