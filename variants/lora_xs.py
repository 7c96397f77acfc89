"""LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters (Balazy et al., 2024, arXiv 2405.17604)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, Tensors, register
from variants.core.fields import NotNegative, Whole
from variants.core.krylov import SVD, leading
from variants.core.lowrank import FrozenBases


@register("lora_xs")
@dataclass(frozen=True, kw_only=True)
class LoRAXS(FrozenBases):
    """B = U and A = diag(S) V^T of the top singular triplets of W (section 3, as in the authors' code).

    The singular values sit on the input side; on the other side the same learning rate would mean something else. R
    starts as noise of standard deviation ``init_std``, so the start is close to the base, not equal to it.

    The randomised decomposition is of the kind that the authors' code takes (scikit-learn's truncated one). It finds a
    subspace near the top one, another for each seed, and what lies outside is never trained: unlike PiSSA's start,
    these bases stay.
    """

    paper = "arXiv 2405.17604"
    lr_ratio = 10.0  # published rates are 10 to 100 times LoRA's, because R is small
    init_std: NotNegative = 1e-5
    svd: SVD = "exact"
    oversampling: Whole = 10
    iterations: Whole = 4

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del stats
        U, S, Vh = leading(W, self.rank, self.svd, rng, self.oversampling, self.iterations)
        R = self.init_std * torch.randn(self.rank, self.rank, generator=rng, dtype=W.dtype)
        return Init(train={"R": R}, frozen={"A": S[:, None] * Vh, "B": U})
