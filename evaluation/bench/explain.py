"""What each method's fast path chooses on each shape of layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.bench.pairs import Entry
from evaluation.models import Base
from variants.core import Variant
from variants.core.host import shape_of
from variants.core.targets import matching_layers

NOTHING = "no choice"


def explained(
    base: Base, chosen: Sequence[Entry], where: Sequence[str], shapes: Sequence[tuple[int, int]]
) -> list[Any]:
    """A row for each method, batch and shape of layer: what ``explain(out, in, tokens)`` of the method says, where it
    offers that. Nothing is timed."""
    layers = dict.fromkeys(shape_of(base.encoder.get_submodule(p)) for p in matching_layers(base.encoder, list(where)))
    return [
        {
            "method": entry.label,
            "batch": f"{rows}x{tokens}",
            "layer": f"{out} x {in_}",
            "choice": choice(entry.variant, out, in_, rows * tokens),
        }
        for entry in chosen
        for rows, tokens in shapes
        for out, in_ in layers
    ]


def choice(variant: Variant, out: int, in_: int, tokens: int) -> str:
    """The method's own words, or that it has no choice."""
    explain = getattr(variant, "explain", None)
    return NOTHING if explain is None else str(explain(out, in_, tokens))
