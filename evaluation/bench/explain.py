"""What each method's fast path chooses on each shape of layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from evaluation.bench.running import CALIBRATION, CPU
from evaluation.bench.settings import Settings
from evaluation.clock import Clock
from evaluation.measures.contestants import Floor, contestant, random_batch, undisturbed
from evaluation.models import Base
from evaluation.spec import Training
from evaluation.training import Classifier
from variants.core import Refused, Variant
from variants.core.host import Host, hosts

PLAIN = "the plain layer"  # of what trains the base or the head


def explained(base: Base, settings: Settings) -> list[dict[str, str]]:
    """A row for each method, batch and shape of layer: what ``explain`` of the method says, or why it cannot work here.
    Nothing is timed."""
    rows = []
    with undisturbed(base.encoder, settings.threads, CPU):
        for entry in settings.entries():
            everywhere = {"method": entry.label, "batch": "any", "layer": "any"}
            try:
                layers = list(_one_of_each_shape(base, settings, entry.variant))
            except Refused as reason:
                rows.append(everywhere | {"choice": str(reason)})
                continue
            rows += [] if layers else [everywhere | {"choice": PLAIN}]
            for (batch, tokens), layer in itertools.product(settings.shapes, layers):
                adapter, W = layer.alone(), layer.dense()
                assert adapter is not None, "a contestant carries one adapter"
                about = {"method": entry.label, "batch": f"{batch}x{tokens}", "layer": f"{W.shape[0]} x {W.shape[1]}"}
                rows.append(about | {"choice": entry.variant.explain(W, adapter.tensors(), batch * tokens)})
    return rows


def _one_of_each_shape(base: Base, settings: Settings, variant: Variant) -> Iterator[Host]:
    """The first layer of each shape, with the method on it."""
    floor = Floor(Classifier(base.encoder, base.hidden, 2, seed=0), "float32", Clock(CPU))
    batch = random_batch(*CALIBRATION, base.encoder, classes=2)
    model = contestant(variant, settings.where, Training(), floor, batch, settings.total).trainer.model
    seen = set()
    for layer in hosts(model.encoder).values():
        if layer.dense().shape not in seen:
            seen.add(layer.dense().shape)
            yield layer
