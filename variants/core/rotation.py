"""Rotations of the input by sparse factors, as several methods share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core.contraction import computed_in
from variants.core.interface import Tensors, Variant
from variants.core.linalg import orthogonality_defect

# A square matrix which is the identity but for blocks (k, b, b) on disjoint places (k, b); None: side by side.
BlockFactor = tuple[Tensor | None, Tensor]


PASS, SCATTERED = 100, 250  # measured on a CPU: 384 x 384, 1,024 tokens, blocks of 32 side by side and of 8 apart


def multiplied(x: Tensor, factor: BlockFactor) -> Tensor:  # shape: (..., n)
    """``x @ F`` for a sparse F (n, n)."""
    places, blocks = factor
    part = x.unflatten(-1, blocks.shape[:2]) if places is None else x[..., places]
    part = torch.einsum("...kj,kji->...ki", part, blocks.to(x.dtype)).flatten(-2).to(x.dtype)
    return part if places is None else x.index_copy(-1, places.flatten(), part)


def side(tokens: int, W: Tensor, factors: Sequence[BlockFactor]) -> Literal["input", "weight"]:
    """What is cheaper to rotate in training, the input or the weight, which then takes the gradient of a dense one.

    A factor costs a row of n numbers its multiply-adds, n times the width of a block, and the time of ``PASS`` more for
    each number, or ``SCATTERED`` where its places lie apart; three times, with both gradients.
    """
    out, in_ = W.shape
    row = sum(3 * in_ * (blocks.shape[-1] + (PASS if places is None else SCATTERED)) for places, blocks in factors)
    return "input" if tokens * row <= tokens * out * in_ + out * row else "weight"


@dataclass(frozen=True, kw_only=True)
class RotatedInput(Variant):
    """``W R^T`` with ``R = F_m ... F_1`` of sparse factors. The input is rotated (as in OFTv2, arXiv 2506.19847),
    or the weight, whichever is cheaper. Where the factors are rotations, rows of W keep their norms and angles, and W
    its singular values."""

    def factors(self, t: Tensors, n: int) -> list[BlockFactor]:
        """``F_1, ..., F_m`` for inputs of width n, in this order."""
        raise NotImplementedError

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        for places, blocks in self.factors(t, W.shape[1]):
            W = multiplied(W, (places, blocks.mT))
        return W

    def operands(self, x: Tensor, W: Tensor, t: Tensors) -> tuple[Tensor, Tensor]:
        factors = self.factors(t, x.shape[-1])
        # Where all lengths of a batch share one graph, no number of tokens may decide.
        compiling, blocks = torch.compiler.is_compiling(), factors[0][1]
        rotated = "input" if compiling else side(x.numel() // x.shape[-1], W, factors)
        if rotated == "weight" and computed_in(x) == W.dtype == blocks.dtype:  # half precision rounds rotations away
            return x, RotatedInput.weight(self, W, t)
        for factor in reversed(factors):
            x = multiplied(x, factor)
        return x, W

    def explain(self, W: Tensor, t: Tensors, tokens: int) -> str:
        factors = self.factors(t, W.shape[1])
        return f"{side(tokens, W, factors)} rotated at {tokens} tokens, {len(W)} x {W.shape[1]}, {len(factors)} factors"

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        before, after = (torch.linalg.vector_norm(M, dim=1) for M in (W, RotatedInput.weight(self, W, t)))
        norms = (after - before).abs() / before.clamp_min(torch.finfo(W.dtype).tiny)
        factors = torch.stack([orthogonality_defect(blocks).max() for _, blocks in self.factors(t, W.shape[1])])
        return {"F^T F = I": factors, "norms of the rows": norms}
