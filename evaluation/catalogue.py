"""What each method can do, for people and programs that choose one."""

from __future__ import annotations

import inspect
from typing import Any

from variants.core import Variant, method
from variants.core.cases import Case, adapted, carried_by, move
from variants.core.conformance import fitted, settings

_CASE = Case(12, 20)  # sides and ranks such that r, 2r and min(out, in) are told apart


def capabilities(name: str) -> dict[str, Any]:
    """A method's capability card; what can be tried out is tried out on a small layer rather than declared."""
    cls = method(name)
    variant = settings(cls)[0]
    return {
        "name": name,
        "title": _title(cls),
        "trains": cls.trains,
        "mergeable": cls.mergeable,
        "exact at start": variant.exact_init,
        "needs": sorted(cls.needs),
        "as LoRA": _rank_as_lora(variant),
        "constraint": cls.constraint or "-",
        "size": cls.size or "-",
        "lr / LoRA's": cls.lr_ratio,
        "paper": cls.paper or "-",
    }


def _rank_as_lora(variant: Variant) -> str:
    """The rank of the exact low-rank pair on the stock weight, tried out on a layer."""
    small = fitted(variant, _CASE)
    assert small is not None, f"{variant.name} refuses a {_CASE.out} x {_CASE.in_} layer at every size"
    model = adapted(small, _CASE)
    move(model)  # at the start a method may have no update at all
    for host, carried in carried_by(model):
        pair = carried.variant.as_lora(host.original_dense().detach(), carried.tensors())
        if pair is None:
            return "no"
        rank = pair.A.shape[0]
        r = getattr(small, "rank", None)
        return {r: "rank r", 2 * (r or 0): "rank 2r", _CASE.out: "rank min(out, in)"}.get(rank, f"rank {rank}")
    return "no"


def _title(cls: type[Variant]) -> str:
    """The first line of the method's file without its citation."""
    first = (inspect.getdoc(inspect.getmodule(cls)) or cls.__name__).splitlines()[0]
    return first.partition(" (")[0].rstrip(".")
