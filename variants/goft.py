"""qGOFT: Parameter Efficient Quasi-Orthogonal Fine-Tuning via Givens Rotation (Ma et al., 2024, arXiv 2404.04316)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, Refused, States, Tensors, register
from variants.core.fields import Positive
from variants.core.rotation import BlockFactor, RotatedInput


@register("goft")
@dataclass(frozen=True, kw_only=True)
class GOFT(RotatedInput):
    """``W R^T`` with ``R = G_k ... G_2 G_1``: Givens rotations of the places i and i + d, i = 0, 2 d, 4 d, ..., where
    d doubles from factor to factor. n - 1 angles, at whatever width n, turn the first unit vector into any other.

    ``quasi``: each rotation is any 2 x 2 matrix ``I + E``, whose columns a penalty draws to right angles, not to length
    1: the sum over all pairs of ``<a, b>^2``. The authors' published code pairs neighbours at every d, which makes R
    not orthogonal; this follows the paper.
    """

    paper = "arXiv 2404.04316"
    constraint = "R orthogonal (Givens); quasi: soft"
    form: Literal["strict", "quasi"] = "strict"
    penalty_weight: Positive = 0.1

    def check(self, out: int, in_: int) -> None:
        if in_ < 2:
            raise Refused("an input of width 1 has nothing to rotate: leave the layer out")

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del rng, stats
        pairs = W.shape[1] - 1
        if self.form == "strict":
            return Init(train={"angle": torch.zeros(pairs, dtype=W.dtype)})
        return Init(train={"E": torch.zeros(pairs, 2, 2, dtype=W.dtype)})

    def blocks(self, t: Tensors) -> Tensor:  # shape: (n - 1, 2, 2)
        """The rotations of all pairs (``quasi``: what stands for them), those of G_1 first."""
        if self.form == "quasi":
            return torch.eye(2, dtype=t["E"].dtype, device=t["E"].device) + t["E"]
        c, s = t["angle"].cos(), t["angle"].sin()
        return torch.stack([c, -s, s, c], dim=-1).unflatten(-1, (2, 2))

    def factors(self, t: Tensors, n: int) -> list[BlockFactor]:
        blocks = self.blocks(t)
        strides = [2**k for k in range((n - 1).bit_length())]
        first = [torch.arange(0, n - d, 2 * d, device=blocks.device) for d in strides]
        places = [torch.stack([i, i + d], dim=1) for i, d in zip(first, strides, strict=True)]
        return list(zip(places, blocks.split([len(i) for i in first]), strict=True))

    def parameter_count(self, out: int, in_: int) -> int:
        return (in_ - 1) * (1 if self.form == "strict" else 4)

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        return super().defects(W, t) if self.form == "strict" else {}

    def penalty(self, states: States) -> Tensor | None:
        if self.form == "strict":
            return None
        dots = [self.blocks(state.t).prod(dim=-1).sum(dim=-1) for state in states]
        return self.penalty_weight * torch.stack([dot.square().sum() for dot in dots]).sum()
