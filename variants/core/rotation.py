"""Rotations of the input by sparse factors, as several methods share them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core.interface import FrozenProduct, Tensors, Variant
from variants.core.linalg import orthogonality_defect

# A square matrix which is the identity but for blocks (k, b, b) on disjoint places (k, b); None: side by side.
BlockFactor = tuple[Tensor | None, Tensor]


def multiplied(x: Tensor, factor: BlockFactor) -> Tensor:  # shape: (..., n)
    """``x @ F`` for a sparse F (n, n)."""
    places, blocks = factor
    part = x.unflatten(-1, blocks.shape[:2]) if places is None else x[..., places]
    part = torch.einsum("...kj,kji->...ki", part, blocks.to(x.dtype)).flatten(-2).to(x.dtype)
    return part if places is None else x.index_copy(-1, places.flatten(), part)


@dataclass(frozen=True, kw_only=True)
class RotatedInput(Variant):
    """``W R^T`` with ``R = F_m ... F_1`` of sparse factors. The input is rotated, not the weight (as in OFTv2, arXiv
    2506.19847). Rows of W keep their norms and angles, and W its singular values, where the factors are rotations."""

    def factors(self, t: Tensors, n: int) -> list[BlockFactor]:
        """``F_1, ..., F_m`` for inputs of width n, in this order."""
        raise NotImplementedError

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        for places, blocks in self.factors(t, W.shape[1]):
            W = multiplied(W, (places, blocks.mT))
        return W

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        for factor in reversed(self.factors(t, x.shape[-1])):
            x = multiplied(x, factor)
        return linear(x)

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        before, after = (torch.linalg.vector_norm(M, dim=1) for M in (W, RotatedInput.weight(self, W, t)))
        norms = (after - before).abs() / before.clamp_min(torch.finfo(W.dtype).tiny)
        factors = torch.stack([orthogonality_defect(blocks).max() for _, blocks in self.factors(t, W.shape[1])])
        return {"F^T F = I": factors, "norms of the rows": norms}
