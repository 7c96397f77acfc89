"""What each method's fast path chooses on each shape of layer."""

from __future__ import annotations

import itertools

from evaluation.bench.settings import Settings
from evaluation.models import Base
from variants.core.host import shape_of
from variants.core.targets import matching_layers

NOTHING = "no choice"


def explained(base: Base, settings: Settings) -> list[dict[str, str]]:
    """A row for each method, batch and shape of layer: what ``explain(out, in, tokens)`` of the method says, where it
    offers that. Nothing is timed."""
    paths = matching_layers(base.encoder, list(settings.where))
    layers = dict.fromkeys(shape_of(base.encoder.get_submodule(path)) for path in paths)
    rows = []
    for entry in settings.entries():
        explain = getattr(entry.variant, "explain", None)
        if explain is None:
            rows.append({"method": entry.label, "batch": "any", "layer": "any", "choice": NOTHING})
            continue
        for (batch, tokens), (out, in_) in itertools.product(settings.shapes, layers):
            about = {"method": entry.label, "batch": f"{batch}x{tokens}", "layer": f"{out} x {in_}"}
            rows.append(about | {"choice": str(explain(out, in_, batch * tokens))})
    return rows
