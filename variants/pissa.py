"""PiSSA: Principal Singular Values and Singular Vectors Adaptation (Meng et al., 2024, arXiv 2404.02948)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, LoRAPair, Tensors, check_rank, register
from variants.core.linalg import top
from variants.lora import LoRA


@register("pissa")
@dataclass(frozen=True, kw_only=True)
class PiSSA(LoRA):
    """``W_res + s B A``: the pair starts as the top ``rank`` singular triplets of W (equations 2-4), W_res is the rest.

    ``B = U sqrt(S / s)``, ``A = sqrt(S / s) V^T``. The starting factors are kept as A0 and B0, so that an adapter file
    restores the function on the stock base: ``W + s (B A - B0 A0)``, a pair of rank 2 * rank.
    """

    paper = "arXiv 2404.02948"
    # Principal directions have about 10 times LoRA's top curvature (arXiv 2602.04998).
    lr_ratio = 0.1

    def triplets(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return top(W, self.rank)

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del rng, stats
        check_rank(self.rank, W)
        U, S, Vh = self.triplets(W)
        root = (S / self.scale).sqrt()
        A, B = root[:, None] * Vh, U * root
        return Init(train={"A": A, "B": B}, frozen={"A0": A, "B0": B}, base=W - self.scale * B @ A)

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return LoRAPair(torch.cat([t["A"], t["A0"]]), self.scale * torch.cat([t["B"], -t["B0"]], dim=1))
