"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, Tensors, register
from variants.core.lowrank import Pair, zero_pair


@register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(Pair):
    """``W + s B A`` with ``s = alpha / rank``; A (rank, in) uniform, B (out, rank) zero (section 4.1, equation 3).

    The paper's text has a Gaussian A; the authors' code, which we follow, draws it uniformly within +-1/sqrt(in).
    """

    paper = "arXiv 2106.09685"

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        A, B = zero_pair(self.rank, W, rng)
        return Init(train={"A": A, "B": B})
