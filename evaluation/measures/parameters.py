"""Parameter count: what trains, what is stored, what is left after merging."""

from __future__ import annotations

from typing import Any

from safetensors.torch import save
from torch import nn

from variants.core import Variant, adapter_state, trainable_parameters
from variants.core.host import hosts


def parameters(encoder: nn.Module, variant: Variant) -> dict[str, Any]:
    """Counts for the method attached to ``encoder``; the task head, the same for all, is not counted.

    Returns:
        trainable: numbers that training changes, counted in the tensors.
        closed_form: the same from ``parameter_count``; for methods that train the base itself, from the base's shapes.
        stored_bytes: size of the adapter file, bases included where a method keeps them.
        left_after_merging: parameters beyond the base's after merging; None where merging is impossible.
        base: parameters of the base model.
        share: trainable / base.

    Raises:
        ValueError: closed form and tensors disagree.
    """
    adapted = hosts(encoder).values()
    trainable = sum(p.numel() for p in trainable_parameters(encoder).values())
    adapters = {id(p) for host in adapted for p in host.adapter.parameters()}
    base = {path: p.numel() for path, p in encoder.named_parameters() if id(p) not in adapters}
    shapes = [host.original_dense().shape for host in adapted]
    closed_form = sum(variant.parameter_count(out, in_) for out, in_ in shapes)
    closed_form += sum(size for path, size in base.items() if variant.trains_base(path))
    if closed_form != trainable:
        raise ValueError(f"{variant.name}: parameter_count says {closed_form}, the tensors hold {trainable}")
    state = {path: tensor.contiguous() for path, tensor in adapter_state(encoder).items()}
    return {
        "trainable": trainable,
        "closed_form": closed_form,
        "stored_bytes": len(save(state)) if state else 0,
        "left_after_merging": 0 if variant.mergeable else None,
        "base": sum(base.values()),
        "share": trainable / sum(base.values()),
    }
