"""OFT: Controlling Text-to-Image Diffusion by Orthogonal Finetuning (Qiu et al., 2023, arXiv 2306.07280)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, Refused, States, Tensors, register
from variants.core.fields import Count, Terms
from variants.core.linalg import rotation_from, skew_from
from variants.core.rotation import BlockFactor, RotatedInput


@register("oft")
@dataclass(frozen=True, kw_only=True)
class OFT(RotatedInput):
    """``W R^T`` with R block diagonal, each block the Cayley map ``(I + K)(I - K)^(-1)`` of a skew-symmetric K (b, b).

    ``neumann`` cuts the inverse after ``terms - 1`` powers of K, without a change of sign: the blocks are then only
    nearly orthogonal, and training stops where K's norm reaches 1, at which they may be singular.
    """

    paper = "arXiv 2306.07280"
    size = "block"
    constraint = "R orthogonal (Cayley)"
    block: Count = 32
    inverse: Literal["exact", "neumann"] = "exact"
    terms: Terms = 5

    def check(self, out: int, in_: int) -> None:
        if self.block == 1 or in_ % self.block:
            sizes = ", ".join(str(size) for size in range(2, in_ + 1) if in_ % size == 0)
            fits = f"write one of {sizes}" if sizes else "leave the layer out"
            raise Refused(f"rotations in blocks of {self.block} do not fit an input of width {in_}: {fits}")

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del rng, stats
        entries = self.block * (self.block - 1) // 2
        return Init(train={"K": torch.zeros(W.shape[1] // self.block, entries, dtype=W.dtype)})

    def rotations(self, t: Tensors) -> Tensor:  # shape: (k, block, block)
        """All blocks of R; exactly orthogonal unless ``neumann``."""
        return rotation_from(t["K"], self.block, self.inverse, self.terms)

    def factors(self, t: Tensors, n: int) -> list[BlockFactor]:
        return [(None, self.rotations(t))]

    def parameter_count(self, out: int, in_: int) -> int:
        return in_ * (self.block - 1) // 2

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        return super().defects(W, t) if self.inverse == "exact" else {}

    @torch.no_grad()
    def after_step(self, states: States, step: int, total: int) -> None:
        for state in states if self.inverse == "neumann" else ():
            K = skew_from(state.t["K"], self.block)  # eigenvalues come in pairs, so ||K||_2 <= ||K||_F / sqrt(2)
            size = torch.linalg.matrix_norm(K)
            if not bool(size.isfinite().all()) or bool((torch.linalg.matrix_norm(K[size >= 2**0.5], ord=2) >= 1).any()):
                message = "the Neumann series has left its radius: write inverse='exact' or a lower learning rate"
                raise FloatingPointError(f"{state.path}: {message}")
