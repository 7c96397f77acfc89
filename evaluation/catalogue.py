"""What each method can do, for people and programs that choose one."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch

from variants.core import Variant, create, method
from variants.core.attach import layer_rng


def capabilities(name: str) -> dict[str, Any]:
    """A method's capability card; what can be tried out is tried out on a small layer rather than declared."""
    cls = method(name)
    variant = create(name, {"rank": 2} if "rank" in {f.name for f in dataclasses.fields(cls)} else {})
    rank: int | None = None
    if cls.layerwise() and not cls.needs:
        W = torch.eye(6, 8)
        init = variant.init(W, layer_rng(0, name))
        pair = variant.as_lora(W, init.train | init.frozen)
        rank = None if pair is None else pair.A.shape[0] // 2
    return {
        "name": name,
        "title": _title(cls),
        "trains": "layers" if cls.layerwise() else "head only" if cls.head_only else "base",
        "mergeable": cls.mergeable,
        "exact at start": cls.exact_init,
        "needs": sorted(cls.needs),
        "as LoRA": "no" if rank is None else f"rank {rank}r" if rank > 1 else "rank r",
        "lr / LoRA's": cls.lr_ratio,
        "paper": cls.paper or "-",
    }


def _title(cls: type[Variant]) -> str:
    """The first line of the method's file without its citation."""
    first = (inspect.getdoc(inspect.getmodule(cls)) or cls.__name__).splitlines()[0]
    return first.partition(" (")[0].rstrip(".")
