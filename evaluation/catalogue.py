"""What each method can do, for people and programs that choose one."""

from __future__ import annotations

import inspect
from typing import Any

from evaluation.spec import Unusable
from variants.core import UnknownMethod, Variant, method
from variants.core.cases import Case, adapted, carried_by, move
from variants.core.conformance import fitted, settings

IN_SHORT = ("name", "trains", "mergeable", "exact_init", "needs", "lora_rank", "constraint")
_CASE = Case(12, 20)  # sides and ranks such that r, 2r and min(out, in) are told apart


def capabilities(name: str) -> dict[str, Any]:
    """A method's capability card; what can be tried out is tried out on a small layer rather than declared.

    Raises:
        Unusable: no method of that name.
    """
    try:
        cls = method(name)
    except UnknownMethod as error:
        raise Unusable(str(error)) from error
    variant = settings(cls)[0]
    return {
        "name": name,
        "title": _title(cls),
        "trains": cls.trains,
        "mergeable": cls.mergeable,
        "exact_init": variant.exact_init,
        "needs": sorted(cls.needs),
        "lora_rank": _rank_as_lora(variant),
        "constraint": cls.constraint or None,
        "size": cls.size or None,
        "lr_ratio": float(f"{cls.lr_ratio:.3g}"),
        "paper": cls.paper or None,
    }


def _rank_as_lora(variant: Variant) -> str | None:
    """The rank of the exact low-rank pair on the stock weight, tried out on a layer; None where there is no pair."""
    small = fitted(variant, _CASE)
    assert small is not None, f"{variant.name} refuses a {_CASE.out} x {_CASE.in_} layer at every size"
    model = adapted(small, _CASE)
    move(model)  # at the start a method may have no update at all
    for host, carried in carried_by(model):
        pair = carried.variant.as_lora(host.original_dense().detach(), carried.tensors())
        if pair is None:
            return None
        found, rank = pair.A.shape[0], getattr(small, "rank", None)
        if found == rank:
            return "r"
        if rank is not None and found == 2 * rank:
            return "2r"
        return "min(out, in)" if found == _CASE.out else str(found)
    return None


def _title(cls: type[Variant]) -> str:
    """The first line of the method's file without its citation."""
    first = (inspect.getdoc(inspect.getmodule(cls)) or cls.__name__).splitlines()[0]
    return first.partition(" (")[0].rstrip(".")
