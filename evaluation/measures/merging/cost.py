"""What merging costs: time, and memory while it goes on."""

from __future__ import annotations

import statistics

import torch
from torch import nn

from evaluation.clock import Clock
from evaluation.measures.memory import peak_bytes
from variants.core import merged

ROUNDS = 5


def cost(encoder: nn.Module, device: torch.device) -> dict[str, float]:
    """Merging all layers once, and unmerging.

    Returns:
        seconds: median of a few rounds, after one that is not counted.
        extra_bytes: tensor memory at its highest, above what was there.
    """
    clock = Clock(device)
    extra = peak_bytes(lambda: once(encoder), device)
    for _ in range(ROUNDS):
        with clock("merge"):
            once(encoder)
    return {"seconds": statistics.median(clock.laps()["merge"]), "extra_bytes": extra}


def once(encoder: nn.Module) -> None:
    """Merges and unmerges."""
    with merged(encoder):
        pass
