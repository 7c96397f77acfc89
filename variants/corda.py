"""CorDA: Context-Oriented Decomposition Adaptation of Large Language Models (Yang et al., 2024, arXiv 2406.05223)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import LoRAPair, Tensors, register
from variants.core.fields import Positive
from variants.core.linalg import above_rounding, bottom, top
from variants.core.lowrank import Rebased
from variants.core.statistics import covariance


@register("corda")
@dataclass(frozen=True, kw_only=True)
class CorDA(Rebased):
    """PiSSA in the geometry of the layer's inputs: with their damped covariance C', ``W C' = U S V^T`` and hence
    ``W = U S V^T C'^(-1)``; the pair starts as ``rank`` triplets of that (section 3.2).

    ``mode="ipa"`` (instruction-previewed, calibrated on the task) adapts the first triplets, ``"kpa"``
    (knowledge-preserved, calibrated on what to keep) the last ones. ``B = U sqrt(S / s)``,
    ``A = sqrt(S / s) V^T C'^(-1)``: the product does not depend on the unit of C, the balance between the factors does.
    """

    paper = "arXiv 2406.05223"
    needs = frozenset({"covariance"})
    mode: Literal["ipa", "kpa"] = "ipa"
    damping: Positive = 0.01  # of the mean variance

    def starting_pair(self, W: Tensor, rng: torch.Generator, stats: Tensors | None) -> LoRAPair:
        # In float64 the damped covariance, whose condition number is at most in / damping + 1, needs none of the
        # doublings of the damping by which the authors make its inverse accurate.
        C = covariance(stats)
        C = C + self.damping * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
        WC = W.double() @ C
        U, S, Vh = (top if self.mode == "ipa" else bottom)(WC, self.rank)
        A, B = self.split(U, above_rounding(S, WC.to(W.dtype)), torch.linalg.solve(C, Vh.T).T)
        return LoRAPair(A.to(W.dtype), B.to(W.dtype))
