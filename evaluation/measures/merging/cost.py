"""What merging costs: time, and memory while it goes on."""

from __future__ import annotations

import statistics

import torch
from torch import nn

from evaluation.clock import Clock
from evaluation.measures.memory import peak_bytes
from evaluation.measures.replicas import mergeable_copy
from variants.core import detach
from variants.core.host import hosts

ROUNDS = 5


def cost(encoder: nn.Module, device: torch.device) -> dict[str, float] | None:
    """Merging all layers for good, on copies of those that have an adapter; None where none has.

    Returns:
        seconds: median of a few rounds, after one that is not counted.
        extra_bytes: tensor memory at its highest, above what was there.
    """
    if not hosts(encoder):
        return None
    trains = {parameter: parameter.requires_grad for parameter in encoder.parameters()}
    clock = Clock(device)
    try:
        first = mergeable_copy(encoder)
        extra = peak_bytes(lambda: once(first), device)
        for _ in range(ROUNDS):
            plain = mergeable_copy(encoder)
            with clock("merge"):
                once(plain)
    finally:
        for parameter, flag in trains.items():  # detaching a copy thaws what it shares
            parameter.requires_grad_(flag)
    return {"seconds": statistics.median(clock.laps()["merge"]), "extra_bytes": extra}


def once(encoder: nn.Module) -> None:
    """Merges; afterwards the model is a plain one."""
    detach(encoder, merge=True)
