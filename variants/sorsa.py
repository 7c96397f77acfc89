"""SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation (Cao, 2024, arXiv 2409.00055)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, States, Tensors, register
from variants.core.fields import NotNegative
from variants.core.linalg import top
from variants.core.lowrank import DiagonalPair, Rebased, orthogonality_defects


@register("sorsa")
@dataclass(frozen=True, kw_only=True)
class SORSA(DiagonalPair, Rebased):
    """``W_res + s B diag(E) A`` from the top triplets ``B = U, E = S, A = V^T``; W_res is W less that (section 3).

    The penalty is the mean of the squared defects of all A and B from orthonormality. The authors leave the square out
    and add the gradient only after clipping (``faithful="code"``); it then has a constant size however small the defect
    is. Their weight is gamma over the initial learning rate: 4e-4 / 3e-5.
    """

    paper = "arXiv 2409.00055"
    lr_ratio = 0.1  # as for PiSSA, which trains the same directions
    constraint = "soft: A, B orthonormal (penalty)"
    orthonormal = ("A", "B")
    no_weight_decay = ("A", "B", "E")
    penalty_weight: NotNegative = 13.0
    faithful: Literal["paper", "code"] = "paper"

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        U, S, Vh = top(W, self.rank)
        frozen = {"A0": Vh, "B0": U * S}
        return Init(train={"A": Vh, "B": U, "E": S}, frozen=frozen, base=W - self.scale * (U * S) @ Vh)

    def penalty(self, states: States) -> Tensor | None:
        if self.faithful == "code":
            return None
        return self.penalty_weight * orthogonality_defects(states, self.orthonormal).square().mean()

    def before_step(self, states: States) -> None:
        factors = [state.t[key] for state in states for key in self.orthonormal if state.t[key].grad is not None]
        if self.faithful == "paper" or not factors:
            return
        with torch.enable_grad():
            mean = orthogonality_defects(states, self.orthonormal).mean()
            pull = torch.autograd.grad(self.penalty_weight * mean, factors)
        for factor, extra in zip(factors, pull, strict=True):
            if factor.grad is not None:
                factor.grad.add_(extra)
