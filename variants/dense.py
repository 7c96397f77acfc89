"""Full fine-tuning of the chosen layers as an adapter (a baseline): any update, of any rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import FrozenProduct, Init, Tensors, Variant, project, register


@register("dense")
@dataclass(frozen=True, kw_only=True)
class Dense(Variant):
    """``W + D`` with D (out, in) trained from zero: what ``full`` does to these layers, but beside the base, so that it
    can be switched, mixed and taken off. Also carries combinations of adapters that have no low rank.

    The two products are computed apart: in half precision the sum would round away a part of D.
    """

    lr_ratio = 0.1  # as full fine-tuning

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        return Init(train={"D": torch.zeros_like(W)})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + t["D"]

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return linear(x) + project(x, t["D"])

    def parameter_count(self, out: int, in_: int) -> int:
        return out * in_
