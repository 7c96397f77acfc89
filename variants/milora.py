"""MiLoRA: Harnessing Minor Singular Components (Wang et al., 2024, arXiv 2406.09044)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import register
from variants.core.linalg import bottom
from variants.pissa import PiSSA


@register("milora")
@dataclass(frozen=True, kw_only=True)
class MiLoRA(PiSSA):
    """PiSSA at the other end of the spectrum: the pair starts as the ``rank`` smallest triplets of W (section 3)."""

    paper = "arXiv 2406.09044"
    lr_ratio = 0.3  # best rate found 3.2 times below LoRA's (arXiv 2602.04998)

    def triplets(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, S, Vh = bottom(W, self.rank)
        # A singular value of zero would make both factors zero, a point from which no gradient leads away.
        return U, S.clamp_min(torch.finfo(S.dtype).eps * float(torch.linalg.vector_norm(W))), Vh
