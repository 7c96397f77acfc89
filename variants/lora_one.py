"""LoRA-One: One-Step Full Gradient Could Suffice for Fine-Tuning (Zhang et al., 2025, arXiv 2502.01235)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, Tensors, register
from variants.core.fields import Positive
from variants.core.linalg import top
from variants.core.statistics import gradient
from variants.rslora import RSLoRA


@register("lora_one")
@dataclass(frozen=True, kw_only=True)
class LoRAOne(RSLoRA):
    """``W + s B A``, ``s = alpha / sqrt(rank)``, from one normalised step of rank ``rank`` against the full gradient:

    ``B = U sqrt(S / (gamma S_1))`` and ``A = sqrt(S / (gamma S_1)) V^T`` with the top triplets of ``-G``. The base is
    not compensated: training starts at ``W - s (G)_r / (gamma ||G||_2)`` on purpose. (The authors' code; the formula of
    their README lacks the root and S_1.) Their preconditioned optimiser is another method and not part of this one.
    """

    paper = "arXiv 2502.01235"
    needs = frozenset({"gradient"})
    exact_init = False  # starts after one step
    gamma: Positive = 128.0

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        U, S, Vh = top(-gradient(stats), self.rank)
        root = (S / S[0] / self.gamma).sqrt()
        return Init(train={"A": root[:, None] * Vh, "B": U * root})

    def initial_weight(self, W: Tensor, stats: Tensors | None) -> Tensor | None:
        U, S, Vh = top(gradient(stats), self.rank)
        return W - self.scale / self.gamma * (U * S / S[0]) @ Vh
