"""HRA: Bridging the Gap between Low-rank and Orthogonal Adaptation (Yuan et al., 2024, arXiv 2405.17484)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, LoRAPair, Refused, States, Tensors, products, register
from variants.core.fields import Count, NotNegative
from variants.core.linalg import full_precision, orthogonality_defect, reflections
from variants.core.lowrank import Additive
from variants.core.thin import Thin


@register("hra")
@dataclass(frozen=True, kw_only=True)
class HRA(Additive):
    """``W H`` with ``H = prod_i (I - 2 u_i u_i^T)``, the columns of u (in, rank) taken at unit length.

    Columns start in equal pairs, whose reflections undo each other, so the rank is even. The chain is
    ``H = I + U G U^T`` with G upper triangular, an update of rank ``rank``: products with H and the pair for LoRA are
    thin. ``gram_schmidt`` makes the columns orthonormal, for which no start gives H = I: H is then multiplied by the
    inverse of its start, the reflections along the frozen U0, and the update has twice the rank. ``penalty_weight`` is
    the paper's lambda, on the sum of ``||U^T U - I||_F^2``; its best value on GLUE is 0.
    """

    paper = "arXiv 2405.17484"
    size = "rank"
    constraint = "H orthogonal (reflections)"
    rank: Count = 8
    gram_schmidt: bool = False
    penalty_weight: NotNegative = 0.0

    def check(self, out: int, in_: int) -> None:
        if self.rank > in_:
            raise Refused(f"{self.rank} reflections are more than an input of width {in_} has dimensions: write fewer")
        if self.rank % 2 and not self.gram_schmidt:
            fits = "write an even rank, or gram_schmidt=True"
            raise Refused(f"an odd number of reflections ({self.rank}) cannot start as the base model: {fits}")

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del stats
        columns = self.rank if self.gram_schmidt else self.rank // 2
        u = torch.empty(W.shape[1], columns, dtype=W.dtype).uniform_(-1, 1, generator=rng) / (self.rank / 2) ** 0.5
        if self.gram_schmidt:
            return Init(train={"u": u}, frozen={"U0": torch.linalg.qr(u).Q})
        return Init(train={"u": u.repeat_interleave(2, dim=1)})

    @full_precision
    def chain(self, t: Tensors) -> tuple[Tensor, Tensor]:  # shapes: (in, k), (k, k)
        """U and G of ``H = I + U G U^T``."""
        if self.gram_schmidt:
            U = torch.cat([torch.linalg.qr(t["u"]).Q, t["U0"]], dim=1)
        else:
            U = t["u"] / torch.linalg.vector_norm(t["u"], dim=0)
        return U, reflections(U)

    def thin(self, W: Tensor, t: Tensors) -> Thin:
        U, G = self.chain(t)
        return Thin(U.T, products.linear(W, U.T.to(W.dtype)), G)

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * in_

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        U, G = self.chain(t)
        return LoRAPair(U.T, W @ (U @ G))

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        U, G = self.chain(t)  # H^T H - I = U (G + G^T + G^T U^T U G) U^T
        return {"H^T H = I": torch.linalg.matrix_norm(G + G.T + G.T @ (U.T @ U) @ G)}

    def penalty(self, states: States) -> Tensor | None:
        if self.gram_schmidt or not self.penalty_weight:
            return None
        units = [self.chain(state.t)[0] for state in states]
        return self.penalty_weight * torch.stack([orthogonality_defect(U).square() for U in units]).sum()
