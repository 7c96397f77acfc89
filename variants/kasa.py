"""KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models (Wang et al., 2024, arXiv 2412.06071)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, Refused, States, Tensors, register
from variants.core.fields import NotNegative
from variants.core.linalg import bottom
from variants.core.lowrank import DiagonalPair, Rebased, orthogonality_defects, zero_pair


@register("kasa")
@dataclass(frozen=True, kw_only=True)
class KaSA(DiagonalPair, Rebased):
    """``W_trunc + s B diag(E) A``: W loses its ``rank`` smallest singular components for good, LoRA with a normal
    diagonal E comes on top (sections 3.2-3.3). What was dropped is kept as ``s B0 A0``.

    The penalty, averaged over layers, is ``beta ||E||^2`` and gamma times the squared defects of A and B (equations
    9-12, there not squared). The authors' code keeps in - rank components instead of min(out, in) - rank, and penalises
    ``||A^T A - I||_F`` and ``||B B^T - I||_F``, here less the constant below which they cannot fall.
    """

    paper = "arXiv 2412.06071"
    exact_init = False  # the smallest components are gone
    lr_ratio = 2.0  # published rates are 3e-4 to 5e-4
    constraint = "soft: A, B orthonormal (penalty)"
    orthonormal = ("A", "B")
    no_weight_decay = ()  # B starts at zero, as in LoRA
    beta: NotNegative = 1e-4
    gamma: NotNegative = 1e-3
    faithful: Literal["paper", "code"] = "paper"

    def check(self, out: int, in_: int) -> None:
        if self.rank >= min(out, in_):
            fits = f"write a rank from 1 to {min(out, in_) - 1}" if min(out, in_) > 1 else "leave the layer out"
            raise Refused(f"rank {self.rank} leaves nothing of a {out} x {in_} layer: {fits}")

    def _dropped(self, W: Tensor) -> tuple[Tensor, Tensor]:  # shapes: (rank, in), (out, rank)
        U, S, Vh = bottom(W, self.rank)
        spared = max(0, W.shape[1] - W.shape[0]) if self.faithful == "code" else 0
        return Vh, U * torch.where(torch.arange(self.rank) < spared, 0.0, S)

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        (A, B), (A0, B0) = zero_pair(self.rank, W, rng), self._dropped(W)
        E = torch.randn(self.rank, generator=rng, dtype=W.dtype)
        return Init(train={"A": A, "B": B, "E": E}, frozen={"A0": A0, "B0": B0 / self.scale}, base=W - B0 @ A0)

    def initial_weight(self, W: Tensor, stats: Tensors | None) -> Tensor | None:
        A0, B0 = self._dropped(W)
        return W - B0 @ A0

    def penalty(self, states: States) -> Tensor | None:
        defects = orthogonality_defects(states, self.orthonormal).square()
        if self.faithful == "code":  # ||A^T A - I||^2 == ||A A^T - I||^2 + in - rank, without an (in, in) product
            least = defects.new_tensor([n - self.rank for state in states for n in reversed(state.W.shape)])
            defects = (defects + least).sqrt() - least.sqrt()
        values = torch.stack([state.t["E"].square().sum() for state in states])
        return (self.beta * values.sum() + self.gamma * defects.sum()) / len(states)
