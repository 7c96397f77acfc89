"""What a storage format does to the outputs: base, adapted and merged, rounded to nearest and by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evaluation.clock import Clock
from evaluation.data import Split
from evaluation.known import KnownBase, is_untouched
from evaluation.measures.merging.stored import rounded_base, stored_merged, swapped, without_adaptation
from evaluation.measures.merging.updates import Changed, Stored, by_chance, survived
from evaluation.training import Classifier, features, logits, outputs_of
from variants.core.host import oriented
from variants.core.rounding import EXACT, Format, Rounding

EFFECT = ("effect", "accuracy_adapted")
MERGED = ("error", "max_logit_change", "flipped", "accuracy_merged", "gained", "lost", "kept", "update_error")
Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class Case:
    """A trained model on the items it is compared on. ``base``: parameters by path, as they were before training."""

    model: Classifier
    base: dict[str, Tensor]
    layers: Sequence[Changed]
    split: Split
    clock: Clock
    seed: int
    known: KnownBase

    def outputs(self, base: Rounding) -> Tensor:  # shape: (items, classes)
        """Outputs of the model as it is at this moment, where its base is rounded like this."""
        if is_untouched(self.model.encoder):
            return self.stock(base)
        return logits(self.model, self.split, self.clock, self.model.head.weight.device)

    @property
    def gold(self) -> Tensor:  # shape: (items,)
        return self.split.targets()

    def on_base(self, rounding: Rounding) -> AbstractContextManager[None]:
        return rounded_base(self.model.encoder, self.base, rounding, self.known.weights)

    def stock(self, rounding: Rounding) -> Tensor:
        """Outputs of the rounded base alone; to be asked for inside ``on_base``."""

        def alone() -> Tensor:
            with without_adaptation(self.model.encoder, self.base, rounding):
                return features(self.model, self.split, self.clock, self.model.head.weight.device)

        return outputs_of(self.model, self.known.features(self.split, rounding.format or "float32", alone))

    def merged(self, rounding: Rounding, base: Rounding) -> tuple[Tensor, list[Tensor]]:
        """Outputs of the model merged with one rounding ``on_base`` of another, and the weights which its changed
        layers store."""
        with stored_merged(self.model.encoder, self.base, rounding):
            return self.outputs(base), [layer.present() for layer in self.layers]

    @cached_property
    def exact(self) -> tuple[Tensor, Tensor]:
        """Outputs of the float32 base, alone and with the adapter."""
        return self.stock(EXACT), self.outputs(EXACT)

    def merged_into_original(self, rounding: Rounding, base: Rounding) -> Tensor:
        """Outputs with the adapter merged into the weights it was trained on; inside ``on_base``, all else is as
        stored."""
        original = {one.layer.get_parameter("weight"): oriented(one.layer, one.W) for one in self.layers}
        with swapped(original):
            return self.merged(rounding, base)[0]


@torch.no_grad()
def in_format(case: Case, format: Format, deployments: bool) -> dict[str, Any]:
    """What ``merging`` returns for one format."""
    nearest = Rounding(format)
    with case.on_base(nearest):
        stock, adapted = case.exact if format == "float32" else (case.stock(nearest), case.outputs(nearest))
        folded, stored = case.merged(nearest, nearest)
        if not bool(torch.stack([stock, adapted, folded]).isfinite().all()):
            return {"overflow": True} | dict.fromkeys((*EFFECT, *MERGED, "stochastic", "deployments"))
        weights = [_updated(one, nearest) for one in case.layers]

        def figures(out: Tensor, weights_stored: list[Tensor]) -> Figures:
            layers = (Stored(*both, S) for both, S in zip(weights, weights_stored, strict=True))
            return compared(stock, adapted, out, case.gold) | survived(layers)

        found: dict[str, Any] = {"overflow": False, **effect(stock, adapted, case.gold), **figures(folded, stored)}
        chance = None if format == "float32" else by_chance(format, case.seed)
        found["stochastic"] = None if chance is None else figures(*case.merged(chance, nearest))
        # What trains the base itself is no adapter which could be used beside it, or merged into another.
        ways: dict[str, Tensor] = {}
        if deployments and nearest.quantises and not any(one.trained for one in case.layers):
            half = Rounding("bfloat16")
            ways = {"beside": adapted, "bfloat16": case.merged(half, nearest)[0]}
            ways |= {"original": case.merged_into_original(half, nearest), "requantised": folded}
    found["deployments"] = deployed(case, ways) if ways else None
    return found


def _updated(one: Changed, nearest: Rounding) -> tuple[Tensor, Tensor]:  # shapes: (out, in), (out, in)
    """The rounded base weight and the update, inside ``on_base``."""
    if one.trained:
        return nearest(one.W), one.D
    return (Q := one.present()), one.effective() - Q


def effect(stock: Tensor, adapted: Tensor, gold: Tensor) -> Figures:
    """How far the adapter moves the outputs, logits (items, classes), and what it is worth on labels (items,)."""
    return {"effect": float((adapted - stock).norm() / stock.norm()), "accuracy_adapted": accuracy(adapted, gold)}


def compared(stock: Tensor, adapted: Tensor, merged: Tensor, gold: Tensor) -> Figures:
    """Merged against adapted, logits (items, classes) and labels (items,); all None where they are not finite.
    What counts predicted classes is None for regression."""
    if not bool(merged.isfinite().all()):
        return dict.fromkeys(MERGED)
    found: Figures = {
        "error": relative(merged, adapted, stock),
        "max_logit_change": (merged - adapted).abs().max().item(),
    }
    if gold.is_floating_point():  # of regression, nothing flips
        return dict.fromkeys(MERGED) | found
    before, after = (out.argmax(1) == gold for out in (adapted, merged))
    return found | {
        "flipped": (merged.argmax(1) != adapted.argmax(1)).double().mean().item(),
        "accuracy_merged": accuracy(merged, gold),
        "gained": int((after & ~before).sum()),
        "lost": int((before & ~after).sum()),
    }


def deployed(case: Case, ways: Mapping[str, Tensor]) -> dict[str, Figures]:
    """Ways to use the adapter where the base is quantised, by their outputs: each against the float32 base with the
    adapter."""
    stock, adapted = case.exact
    return {
        name: {"accuracy": accuracy(out, case.gold), "error": relative(out, adapted, stock)}
        for name, out in ways.items()
    }


def accuracy(out: Tensor, gold: Tensor) -> float | None:
    """Share of the items that are right; None for regression."""
    return None if gold.is_floating_point() else (out.argmax(1) == gold).double().mean().item()


def relative(out: Tensor, adapted: Tensor, stock: Tensor) -> float | None:
    """``||out - adapted|| / ||adapted - stock||``; None where the adapter does nothing."""
    size = (adapted - stock).norm().item()
    return (out - adapted).norm().item() / size if size else None
