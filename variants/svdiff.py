"""SVDiff: Compact Parameter Space for Diffusion Fine-Tuning (Han et al., 2023, arXiv 2303.11305)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, Tensors, register
from variants.core.linalg import svd
from variants.core.singular import SingularCore


@register("svdiff")
@dataclass(frozen=True, kw_only=True)
class SVDiff(SingularCore):
    """``U diag(relu(s + delta)) V^T``: one trained shift for each singular value, 0 at the start (section 3.2).

    A singular value which a step has pushed below 0 stays at 0 and gets no gradient any more.
    """

    paper = "arXiv 2303.11305"
    constraint = "singular values from 0 (ReLU)"
    lr_ratio = 10.0  # 1e-3, a thousand times the rate of full fine-tuning, against 1e-4 for LoRA

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        U, s, Vh = svd(W)
        return Init(train={"delta": torch.zeros_like(s)}, frozen={"U": U, "s": s, "Vh": Vh})

    def core(self, t: Tensors) -> Tensor:
        return torch.relu(t["s"] + t["delta"]) - t["s"]

    def parameter_count(self, out: int, in_: int) -> int:
        return min(out, in_)
