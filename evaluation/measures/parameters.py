"""Parameter count: what trains, what is stored, what is left after merging."""

from __future__ import annotations

from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from evaluation import peers
from evaluation.peers import is_peer
from variants.core import Variant, adapter_state, trainable_parameters
from variants.core.host import hosts


def parameters(encoder: nn.Module, variant: Variant) -> dict[str, Any]:
    """Counts for the method attached to ``encoder``; the task head, the same for all, is not counted.

    Returns:
        trainable: numbers that training changes, counted in the tensors.
        closed_form: the same from ``parameter_count``; for methods that train the base itself, from the base's shapes;
            None for a peer.
        stored_bytes: size of the adapter file, bases included where a method keeps them.
        tensor_bytes: of them, those of the tensors; the rest is the file's header.
        left_after_merging: parameters beyond the base's after merging; None where merging is impossible.
        base: parameters of the base model.
        share: trainable / base.

    Raises:
        ValueError: closed form and tensors disagree.
    """
    if is_peer(encoder):
        return _of_peer(encoder)
    adapted = hosts(encoder).values()
    trainable = sum(p.numel() for p in trainable_parameters(encoder).values())
    adapters = {id(p) for host in adapted for p in host.adapter.parameters()}
    base = {path: p.numel() for path, p in encoder.named_parameters() if id(p) not in adapters}
    closed_form = sum(
        host.carried(name).variant.parameter_count(*host.original_dense().shape)
        for host in adapted
        for name in host.adapter
    )
    closed_form += sum(size for path, size in base.items() if variant.trains_base(path))
    if closed_form != trainable:
        raise ValueError(f"{variant.name}: parameter_count says {closed_form}, the tensors hold {trainable}")
    return {
        "trainable": trainable,
        "closed_form": closed_form,
        **_stored(adapter_state(encoder)),
        "left_after_merging": 0 if variant.mergeable else None,
        "base": sum(base.values()),
        "share": trainable / sum(base.values()),
    }


def _of_peer(encoder: nn.Module) -> dict[str, Any]:
    """A peer's library says itself what it stores. The base's parameters are those it had before."""
    trainable = sum(p.numel() for p in trainable_parameters(encoder).values())
    base = peers.base_size(encoder)
    return {
        "trainable": trainable,
        "closed_form": None,
        **_stored(peers.tensors(encoder)),
        "left_after_merging": None,
        "base": base,
        "share": trainable / base,
    }


def _stored(tensors: dict[str, Tensor]) -> dict[str, int]:
    whole = len(save({path: tensor.detach().contiguous() for path, tensor in tensors.items()})) if tensors else 0
    return {"stored_bytes": whole, "tensor_bytes": sum(t.numel() * t.element_size() for t in tensors.values())}
