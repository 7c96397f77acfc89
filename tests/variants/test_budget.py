"""A parameter budget as a method's size."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

import variants as _  # noqa: F401  registers the methods
from variants.core import Refused, Variant, method, names
from variants.core.budget import largest, total_count

ROBERTA = [(768, 768)] * 48 + [(3072, 768)] * 12 + [(768, 3072)] * 12
GPT3 = [(12288, 12288)] * 384 + [(49152, 12288)] * 96 + [(12288, 49152)] * 96
ODD = [(12, 30), (20, 18), (12, 30)]  # sides with few common divisors


@dataclass(frozen=True, kw_only=True)
class Sized(Variant):
    """Counts the sizes that are looked at."""

    name: ClassVar[str] = "sized"
    size: ClassVar[str] = "width"
    tried: ClassVar[list[int]] = []
    width: int = 1
    gain: float = 1.0

    def __post_init__(self) -> None:
        self.tried.append(self.width)
        if self.width < 1:
            raise ValueError(f"width is a whole number from 1, not {self.width}")

    def check(self, out: int, in_: int) -> None:
        if self.width > min(out, in_):
            raise Refused(f"{self.width} is wider than {out} x {in_}")

    def parameter_count(self, out: int, in_: int) -> int:
        return self.width * (out + in_)


@dataclass(frozen=True, kw_only=True)
class Even(Sized):
    """Cannot be made in odd sizes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 2:
            raise ValueError(f"width is even, not {self.width}")


@dataclass(frozen=True, kw_only=True)
class Dividing(Sized):
    """Must divide both sides."""

    def check(self, out: int, in_: int) -> None:
        if out % self.width or in_ % self.width:
            raise Refused(f"{self.width} does not divide {out} and {in_}")


@dataclass(frozen=True, kw_only=True)
class Powers(Sized):
    """Can be made in powers of two alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width & (self.width - 1):
            raise ValueError(f"width is a power of two, not {self.width}")


@dataclass(frozen=True, kw_only=True)
class Entries(Sized):
    """A number of entries, which may be larger than a side."""

    def check(self, out: int, in_: int) -> None:
        if self.width > out * in_:
            raise Refused(f"{self.width} entries do not fit {out} x {in_}")

    def parameter_count(self, out: int, in_: int) -> int:
        return self.width


@dataclass(frozen=True, kw_only=True)
class FromZero(Sized):
    """A band: 0 is a size, and its count is not."""

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError("width is a whole number from 0")

    def parameter_count(self, out: int, in_: int) -> int:
        return (2 * self.width + 1) * min(out, in_)


def exhaustively(cls: type[Variant], shapes: list[tuple[int, int]], budget: int, end: int) -> int | None:
    """The largest size up to ``end`` by trying all of them."""
    best = None
    for size in range(end + 1):
        try:
            variant = cls(**{cls.size: size})
            for shape in shapes:
                variant.check(*shape)
        except ValueError:
            continue
        if sum(variant.parameter_count(*shape) for shape in shapes) <= budget:
            best = size
    return best


@pytest.mark.parametrize("cls", [Sized, Even, Dividing, Powers, Entries, FromZero])
@pytest.mark.parametrize("shapes", [ODD, [(16, 24)], [(7, 7), (7, 5)]], ids=str)
@pytest.mark.parametrize("budget", [1, 20, 100, 223, 500, 2000, 100_000])
def test_it_finds_what_trying_all_sizes_finds(cls: type[Sized], shapes: list[tuple[int, int]], budget: int) -> None:
    end = max(out * in_ for out, in_ in shapes)
    want = exhaustively(cls, shapes, budget, end)
    if want is None:
        with pytest.raises(Refused, match="no width of sized stays within"):
            largest(cls, {}, shapes, budget)
    else:
        found = largest(cls, {}, shapes, budget)
        assert (found.width, total_count(found, shapes) <= budget) == (want, True)  # type: ignore[attr-defined]


SIZED = [n for n in names() if method(n).trains == "layers" and method(n).size]


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("share", [0.3, 3.0], ids=lambda share: f"{share}%")
def test_every_method_with_a_size_meets_a_budget(name: str, share: float) -> None:
    cls = method(name)
    shapes = [(96, 64)] * 3 + [(64, 64)]
    budget = int(share / 100 * sum(out * in_ for out, in_ in shapes) * 10)
    want = exhaustively(cls, shapes, budget, end=96)
    if want is None:
        with pytest.raises(Refused, match=f"no {cls.size} of {name}"):
            largest(cls, {}, shapes, budget)
        return
    found = largest(cls, {}, shapes, budget)
    assert total_count(found, shapes) <= budget
    assert getattr(found, cls.size) == want or getattr(found, cls.size) > 96


@pytest.mark.parametrize("name", SIZED)
def test_counts_grow_with_the_size(name: str) -> None:
    """What the search relies on."""
    cls = method(name)
    counts = []
    for size in range(65):
        try:
            variant = cls(**{cls.size: size})
            variant.check(64, 64)
        except ValueError:
            continue
        counts.append(variant.parameter_count(64, 64))
    assert counts == sorted(set(counts))
    assert len(counts) > 1


@pytest.mark.parametrize("cls", [Sized, Even, Dividing, Powers, Entries])
@pytest.mark.parametrize(("budget", "most"), [(10**9, 140), (10**10, 1100), (10**14, 60_000)])
def test_few_sizes_are_tried_on_a_large_model(cls: type[Sized], budget: int, most: int) -> None:
    cls.tried.clear()
    assert largest(cls, {}, GPT3, budget)
    assert len(cls.tried) <= most  # at worst each size once, where a budget is no limit at all


def test_other_hyperparameters_are_kept() -> None:
    found = largest(method("lora"), {"alpha": 32.0}, ROBERTA, 1_327_104)
    assert found == method("lora")(rank=8, alpha=32.0)  # type: ignore[call-arg]
    assert largest(method("lora"), {}, ROBERTA, 1_327_103) == method("lora")(rank=7)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "hyperparameters", "shapes", "budget", "expected"),
    [
        ("lora", {}, ROBERTA, 100, "no rank of lora stays within 100 parameters: the smallest, rank 1, trains 165,888"),
        ("lora", {"alpha": -1.0}, ROBERTA, 10**6, "no rank of lora fits these layers: alpha is a positive number"),
        ("full", {}, ROBERTA, 100, "full trains the base model: no budget can change how much"),
        ("probe", {}, ROBERTA, 100, "probe trains the task head"),
        ("lora", {}, [], 100, "no layers"),
        ("ia3", {}, [(8, 4), (6, 4)], 100, "ia3 has no size: it trains 14 here, whatever the budget"),
        ("svft", {"pattern": "plain"}, [(8, 4)], 100, "svft, as it is set, trains 4 here whatever the band"),
    ],
)
def test_it_refuses_in_one_line(
    name: str, hyperparameters: dict[str, Any], shapes: list[tuple[int, int]], budget: int, expected: str
) -> None:
    with pytest.raises(Refused) as refused:
        largest(method(name), hyperparameters, shapes, budget)
    assert str(refused.value).startswith(expected)
    assert "\n" not in str(refused.value)


def test_the_size_itself_may_not_be_given() -> None:
    with pytest.raises(ValueError, match="rank is what the budget decides"):
        largest(method("lora"), {"rank": 4}, ROBERTA, 10**6)


def test_counts_are_summed_over_the_layers() -> None:
    assert total_count(Sized(width=3), ODD) == 3 * (42 + 38 + 42)


def test_all_methods_are_solved_at_once_on_gpt3() -> None:
    started = time.process_time()
    for name in SIZED:
        with contextlib.suppress(Refused):
            assert total_count(largest(method(name), {}, GPT3, 10**9), GPT3) <= 10**9
    assert time.process_time() - started < 10
