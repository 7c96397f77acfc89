"""StelLA: Subspace Learning in Low-rank Adaptation using Stiefel Manifold (Li et al., 2025, arXiv 2510.01938)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, States, Tensors, register
from variants.core.fields import Count
from variants.stiefel import Stiefel


@register("stella")
@dataclass(frozen=True, kw_only=True)
class StelLA(Stiefel):
    """``W + c U S V^T`` with S (rank, rank) trained freely, U and V on the Stiefel manifold (section 3.3).

    Before the step the gradient G at X becomes the Riemannian one of the canonical metric, ``G - X G^T X``; after it
    the difference is scaled by ``sqrt(width / n)`` for a factor with n rows, so that factors of all sizes turn alike,
    projected and retracted. The authors start at S = I, off the base model; ``start="zero"`` costs them 0.2 points.
    ``width`` is the model's hidden size; None takes the length which the most adapted layers have for a side.
    """

    middle: Literal["diagonal", "full"] = "full"  # as the authors count; their scripts train a diagonal
    start: Literal["identity", "zero"] = "identity"
    width: Count | None = None

    @property
    def exact_init(self) -> bool:
        return self.start == "zero"

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        init = super().init(W, rng, stats)
        if self.start == "zero":
            return init
        S = torch.ones(self.rank) if self.middle == "diagonal" else torch.eye(self.rank)
        return replace(init, train={**init.train, "s": S.to(W.dtype)})

    def step_factor(self, n: int, states: States) -> float:
        layers = Counter(side for state in states for side in set(state.W.shape))
        width = self.width or max(layers, key=lambda side: (layers[side], -side))
        return (width / n) ** 0.5

    @torch.no_grad()
    def before_step(self, states: States) -> None:
        super().before_step(states)
        for X in (state.t[key] for state in states for key in ("U", "V")):
            if X.grad is not None:
                X.grad.sub_(X @ (X.grad.T @ X))
