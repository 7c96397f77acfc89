"""What each method's fast path chooses on each shape of layer."""

from __future__ import annotations

from evaluation.bench.running import Settings
from evaluation.models import Base
from variants.core import Variant
from variants.core.host import shape_of
from variants.core.targets import matching_layers

NOTHING = "no choice"


def explained(base: Base, settings: Settings) -> list[dict[str, str]]:
    """A row for each method, batch and shape of layer: what ``explain(out, in, tokens)`` of the method says, where it
    offers that. Nothing is timed."""
    paths = matching_layers(base.encoder, list(settings.where))
    layers = dict.fromkeys(shape_of(base.encoder.get_submodule(path)) for path in paths)
    return [
        {
            "method": entry.label,
            "batch": f"{rows}x{tokens}",
            "layer": f"{out} x {in_}",
            "choice": choice(entry.variant, out, in_, rows * tokens),
        }
        for entry in settings.entries()
        for rows, tokens in settings.shapes
        for out, in_ in layers
    ]


def choice(variant: Variant, out: int, in_: int, tokens: int) -> str:
    """The method's own words, or that it has no choice."""
    explain = getattr(variant, "explain", None)
    return NOTHING if explain is None else str(explain(out, in_, tokens))
