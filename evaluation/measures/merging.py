"""Merge behaviour: what is left of an adapter once it is added to weights of limited precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.clock import Clock
from evaluation.data import Split
from evaluation.peers import is_peer
from evaluation.spec import Merging
from evaluation.training import Classifier, logits
from variants.core import Variant, merged, trainable_parameters
from variants.core.host import hosts
from variants.core.rounding import Rounding


def merging(
    model: Classifier, variant: Variant, base: dict[str, Tensor], split: Split, spec: Merging, clock: Clock
) -> dict[str, Any]:
    """Compares the adapted with the merged model on the first ``spec.items`` items of a split.

    For each dtype the whole base is rounded to that dtype first; the adapter stays in float32. The merged weight is
    rounded once. All arithmetic is float32, so what is measured is the rounding of the stored weights and not the
    kernels of one machine. A method that had replaced the base goes on in its exact form, so that all methods merge
    into the same stock weights. For a method that trains the base itself, storing it in the dtype is its merge.

    Args:
        base: the base's parameters by path, as they were before training.

    Returns:
        items; mergeable (None for a peer, where it is not measured); and per dtype
        effect: ||adapted - base|| / ||base||, of the logits.
        error: ||merged - adapted|| / ||adapted - base||; None where the method does not change the base's outputs.
        max_logit_change, flipped (share of items whose prediction changes), accuracy_adapted, accuracy_merged.
        overflow: True where the dtype cannot hold the weights, so that outputs are not finite; the rest is then None.
    """
    split = split.head(spec.items)
    mergeable = None if is_peer(model.encoder) else variant.mergeable
    result: dict[str, Any] = {"items": len(split), "mergeable": mergeable, "dtypes": {}}
    if not variant.mergeable:
        return result
    for host in hosts(model.encoder).values():
        host.unrebase()
    gold = torch.tensor(split.labels)
    device = model.head.weight.device
    for name in spec.dtypes:
        dtype = getattr(torch, name)
        with rounded_base(model.encoder, base, dtype):
            with without_adaptation(model.encoder, base, dtype):
                stock = logits(model, split, clock, device)
            adapted = logits(model, split, clock, device)
            with stored_merged(model.encoder, dtype):
                folded = logits(model, split, clock, device)
        result["dtypes"][name] = compared(stock, adapted, folded, gold)
    return result


def compared(stock: Tensor, adapted: Tensor, merged: Tensor, gold: Tensor) -> dict[str, float | bool | None]:
    """What ``merging`` returns for one dtype, from logits of shape (items, classes) and labels of shape (items,)."""
    kinds = ("effect", "error", "max_logit_change", "flipped", "accuracy_adapted", "accuracy_merged")
    if not bool(torch.stack([stock, adapted, merged]).isfinite().all()):
        return {"overflow": True} | dict.fromkeys(kinds)
    effect = (adapted - stock).norm().item()
    return {
        "overflow": False,
        "effect": effect / stock.norm().item(),
        "error": (merged - adapted).norm().item() / effect if effect else None,
        "max_logit_change": (merged - adapted).abs().max().item(),
        "flipped": (merged.argmax(1) != adapted.argmax(1)).double().mean().item(),
        "accuracy_adapted": (adapted.argmax(1) == gold).double().mean().item(),
        "accuracy_merged": (merged.argmax(1) == gold).double().mean().item(),
    }


@contextmanager
def swapped(values: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Inside, the parameters hold other values; afterwards their own storage is back, bit for bit."""
    kept = {parameter: parameter.data for parameter in values}
    try:
        for parameter, value in values.items():
            parameter.data = value
        yield
    finally:
        for parameter, data in kept.items():
            parameter.data = data


def through(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor rounded to ``dtype``, in its own dtype."""
    return tensor.detach().to(dtype).to(tensor.dtype)


@contextmanager
def rounded_base(encoder: nn.Module, base: dict[str, Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Inside, the frozen base parameters are rounded to ``dtype``."""
    frozen = {p: through(p, dtype) for path, p in encoder.named_parameters() if path in base and not p.requires_grad}
    with torch.no_grad(), swapped(frozen):
        yield


@contextmanager
def without_adaptation(encoder: nn.Module, base: dict[str, Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Inside, the encoder is the rounded base alone."""
    trained = {p: through(base[path], dtype) for path, p in trainable_parameters(encoder).items() if path in base}
    # Not activate(): it refuses where trained base parameters would stay, which are swapped out here as well.
    switches = [(host.switch, host.switch.active) for host in hosts(encoder).values()]
    with swapped(trained):
        for switch, _ in switches:
            switch.active = {}
        try:
            yield
        finally:
            for switch, active in switches:
                switch.active = active


@contextmanager
def stored_merged(encoder: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the encoder is what a merged checkpoint in ``dtype`` would hold."""
    trained = {
        p: through(p, dtype) for path, p in trainable_parameters(encoder).items() if ".adapter." not in f".{path}"
    }
    with merged(encoder, Rounding(str(dtype)[6:])), swapped(trained):  # type: ignore[arg-type]
        yield
