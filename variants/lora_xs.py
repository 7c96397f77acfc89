"""LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters (Balazy et al., 2024, arXiv 2405.17604)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, Tensors, register
from variants.core.fields import NotNegative
from variants.core.linalg import top
from variants.core.lowrank import FrozenBases


@register("lora_xs")
@dataclass(frozen=True, kw_only=True)
class LoRAXS(FrozenBases):
    """B = U and A = diag(S) V^T of the top singular triplets of W (section 3, as in the authors' code).

    The singular values sit on the input side; on the other side the same learning rate would mean something else. R
    starts as noise of standard deviation ``init_std``, so the start is close to the base, not equal to it.
    """

    paper = "arXiv 2405.17604"
    lr_ratio = 10.0  # published rates are 10 to 100 times LoRA's, because R is small
    init_std: NotNegative = 1e-5

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del stats
        U, S, Vh = top(W, self.rank)
        R = self.init_std * torch.randn(self.rank, self.rank, generator=rng, dtype=W.dtype)
        return Init(train={"R": R}, frozen={"A": S[:, None] * Vh, "B": U})
