"""How orthonormal the factors are that a method holds, or draws towards, orthonormal: now, and over training."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from variants.core.host import Adapter, Host, hosts
from variants.core.linalg import orthogonality_defect, raised

PROMISE = re.compile(r"(\w+)\^T \1 = I")  # what Variant.defects calls the orthonormality of something that trains


def marks(steps: int, points: int) -> frozenset[int]:
    """At most ``points`` numbers of steps, evenly spread from 0, before training, to ``steps``."""
    return frozenset(round(i * steps / (points - 1)) for i in range(points))


@torch.no_grad()
def defect_at(encoder: nn.Module, step: int) -> dict[str, Any] | None:
    """``||X^T X - I||_F / sqrt(r)`` of every factor X with r columns (rows, if wide), over all layers.

    Factors are those that a method lists as ``orthonormal``, and where it has a constraint instead, those of which its
    ``defects`` promise orthonormality. Scaling orthonormal columns by c gives ``|c^2 - 1|``.

    Returns:
        step, largest, mean; None where the method constrains no factor.
    """
    found = [d for host in hosts(encoder).values() if (adapter := host.alone()) for d in _defects(host, adapter)]
    return {"step": step, "largest": max(found), "mean": sum(found) / len(found)} if found else None


def _defects(host: Host, adapter: Adapter) -> list[float]:
    t, variant = adapter.tensors(), adapter.variant
    if variant.orthonormal:
        drawn = (t[name] for name in variant.orthonormal)
        return [scaled_defect(X if X.shape[0] > X.shape[1] else X.mT) for X in drawn]
    if not variant.constraint:
        return []  # such a method can promise only what it never trains
    W = raised(host.original_dense().detach())
    kept = {name: distance.max() for name, distance in variant.defects(W, t).items() if PROMISE.fullmatch(name)}
    return [float(distance) / _columns(name, t, variant) ** 0.5 for name, distance in kept.items()]


def scaled_defect(X: Tensor) -> float:  # shape: (n, r)
    """``||X^T X - I||_F / sqrt(r)``."""
    return float(orthogonality_defect(X)) / X.shape[1] ** 0.5


def _columns(promise: str, t: dict[str, Tensor], variant: object) -> int:
    """How many columns the factor of a promise such as ``U^T U = I`` has: where it is computed from other tensors, the
    method's rank or, for a rotation without one, as many as its blocks have: two in a Givens rotation."""
    name = promise.partition("^")[0]
    if name in t and t[name].ndim == 2:
        return min(t[name].shape)
    return int(getattr(variant, "rank", None) or getattr(variant, "block", None) or 2)
