"""PoLAR: Polar-Decomposed Low-Rank Adapter Representation (Lion et al., 2025, arXiv 2506.03133)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from variants.core import States, register
from variants.core.fields import Positive
from variants.core.linalg import landing
from variants.core.lowrank import USV


@register("polar")
@dataclass(frozen=True, kw_only=True)
class PoLAR(USV):
    """``W + c U S V^T``: S (rank, rank) is free and starts at zero, U and V start orthonormal and are kept near it.

    No retraction: the gradient G at X becomes the landing field ``(G X^T - X G^T) X + attraction * X (X^T X - I)``. Its
    second term, which draws X back, goes through the optimiser with the first, so that under Adam ``attraction`` is a
    ratio, not a rate: with the authors' value and a large learning rate X may be far off for long.
    """

    paper = "arXiv 2506.03133"
    lr_ratio = 10.0  # the authors' 4e-3 against 4e-4 for their LoRA
    constraint = "soft: U, V orthonormal (landing)"
    orthonormal = ("U", "V")
    middle: Literal["diagonal", "full"] = "full"
    attraction: Positive = 5e-3

    @torch.no_grad()
    def before_step(self, states: States) -> None:
        for X in (state.t[key] for state in states for key in ("U", "V")):
            if X.grad is not None:
                X.grad.copy_(landing(X, X.grad, self.attraction))
