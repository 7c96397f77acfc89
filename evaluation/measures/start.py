"""How a method starts: what attaching it does to the pretrained function, before any training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evaluation.clock import Clock
from evaluation.data import Split, task_loss
from evaluation.known import KnownBase
from evaluation.measures.merging.stored import switched_off
from evaluation.peers import is_peer
from evaluation.spec import Merging
from evaluation.training import Classifier, features, logits, outputs_of
from variants.core import Variant

KINDS = ("max_logit_change", "relative_change", "loss_base", "loss_start", "exact_init")


def start(
    model: Classifier, variant: Variant, split: Split, spec: Merging, clock: Clock, known: KnownBase | None = None
) -> dict[str, Any]:
    """Compares the freshly adapted model with its base on the first ``spec.items`` items. To be called before training.

    Args:
        known: what was found of this base before.

    Returns:
        max_logit_change: the largest difference of a logit. relative_change: that divided by the largest magnitude of a
        base logit. loss_base, loss_start: mean loss of the base and of the adapted model, under the same
        fresh head. exact_init: whether the method promises to start as the base. For a peer, whose base cannot be had
        from the model alone, everything but loss_start is None.
    """
    split, device = split.head(spec.items), model.head.weight.device
    gold = split.targets()
    adapted = logits(model, split, clock, device)
    found: dict[str, Any] = dict.fromkeys(KINDS)
    found["loss_start"] = task_loss(adapted, gold).item()
    if is_peer(model.encoder):
        return found

    def untouched() -> Tensor:
        with switched_off(model.encoder):
            return features(model, split, clock, device)

    base = outputs_of(model, (known or KnownBase()).features(split, "float32", untouched))
    change = (adapted - base).abs().max().item()
    found |= {"max_logit_change": change, "relative_change": change / base.abs().max().item()}
    return found | {"loss_base": task_loss(base, gold).item(), "exact_init": variant.exact_init}
