"""Budgets: so many trainable parameters, or so many bytes of an adapter file's tensors; the sizes that follow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from evaluation.architectures import Architecture
from evaluation.spec import Unusable
from evaluation.stored import Unknown, file_bytes
from variants.core import Refused, Variant
from variants.core.budget import TRAINED, Cost, Shape, largest

Unit = Literal["parameters", "bytes"]
_NUMBER = r"(\d+\.?\d*|\.\d+)"
BYTES = {"B": 1, "bytes": 1}
BYTES |= {f"{prefix}B": 1000**i for i, prefix in enumerate(("k", "M", "G"), start=1)} | {"KB": 1000}
BYTES |= {f"{prefix}iB": 1024**i for i, prefix in enumerate(("K", "M", "G"), start=1)}


@dataclass(frozen=True)
class Budget:
    """So much may be trained, or stored: the same for every method that has a size to choose."""

    amount: int
    unit: Unit = "parameters"


def parsed_budget(text: str, parameters: int) -> Budget:
    """A budget as a suite or a command line gives it.

    Args:
        parameters: of the model, of which a budget may be a share.

    Raises:
        Unusable: it is neither a whole number from 1, nor a share above 0 and up to 100 %, nor a size in bytes.
    """
    if share := re.fullmatch(rf"{_NUMBER} ?%", text):
        amount = int(parameters * Fraction(share[1]) / 100)
        if 0 < amount <= parameters:
            return Budget(amount)
    elif size := re.fullmatch(rf"{_NUMBER} ?({'|'.join(BYTES)})", text):
        amount = int(Fraction(size[1]) * BYTES[size[2]])
        if amount > 0:
            return Budget(amount, "bytes")
    elif re.fullmatch(r"[\d_,]*\d", text) and int(re.sub("[_,]", "", text)) > 0:
        return Budget(int(re.sub("[_,]", "", text)))
    raise Unusable(
        f"budget {text!r}: write a number of parameters (1000000) or a share of the model (0.1%), or stored bytes with "
        "their unit (300 KiB, 2 MB)"
    )


def largest_within(
    budget: Budget,
    cls: type[Variant],
    hyperparameters: Mapping[str, Any],
    model: Architecture,
    where: Mapping[str, Shape],
) -> Variant:
    """The method in the largest size within the budget, on the layers ``where``, path -> (out, in).

    Raises:
        Refused: no size fits, or what the method stores cannot be told from shapes.
        ValueError: a hyperparameter is wrong.
    """
    with _known_beforehand(cls):
        return largest(cls, hyperparameters, where.values(), budget.amount, _cost(budget, model))


def refuse_beyond(budget: Budget, variant: Variant, model: Architecture, where: Mapping[str, Shape]) -> None:
    """
    Raises:
        Refused: the method costs more than the budget on the layers ``where``, path -> (out, in), or a layer cannot
            have it, or what it stores cannot be told from shapes.
    """
    alike, cost = Counter(where.values()), _cost(budget, model)
    for shape in alike:
        variant.check(*shape)
    with _known_beforehand(type(variant)):
        spent = cost.count(variant, alike)
    if spent > budget.amount:
        raise Refused(f"it {cost.verb.format(spent)}, more than the budget of {cost.unit.format(budget.amount)}")


@contextmanager
def _known_beforehand(cls: type[Variant]) -> Iterator[None]:
    try:
        yield
    except Unknown as error:
        instead = f"give its {cls.size}, or write the budget in parameters"
        raise Refused(f"what {cls.name} stores cannot be known before it is made ({error}): {instead}") from error


def _cost(budget: Budget, model: Architecture) -> Cost:
    return TRAINED if budget.unit == "parameters" else _stored_on(model)


def _stored_on(model: Architecture) -> Cost:
    """The bytes of an adapter file's tensors."""

    def count(variant: Variant, alike: Counter[Shape]) -> int:
        if type(variant).allocate is not Variant.allocate and len(alike) > 1:
            raise Unknown("it divides itself among layers of different shapes by what they need")
        return file_bytes(model, variant, alike)

    return Cost(count, "stores {:,} bytes", "{:,} bytes")
