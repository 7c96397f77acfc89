"""OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models (Buyukakyuz, 2024, arXiv 2406.01775)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import LoRAPair, Tensors, register
from variants.core.linalg import qr
from variants.core.lowrank import Rebased


@register("olora")
@dataclass(frozen=True, kw_only=True)
class OLoRA(Rebased):
    """``W - s Q_r R_r + s B A`` from ``B = Q_r``, ``A = R_r``: the first columns and rows of ``W = Q R``, not pivoted.

    Q_r spans the first ``rank`` columns of W, whichever inputs these are, and not its principal subspace. s is not
    divided out, as in the reference code: far from 1 it takes the residual far from W.
    """

    paper = "arXiv 2406.01775"
    lr_ratio = 1 / 18  # arXiv 2602.04998

    def starting_pair(self, W: Tensor, rng: torch.Generator, stats: Tensors | None) -> LoRAPair:
        Q, _ = qr(W[:, : self.rank])
        return LoRAPair(Q.T @ W, Q)  # R_r = Q_r^T W: no later column of Q is needed
