"""LoRA-Null: Low-Rank Adaptation via Null Space for Large Language Models (Tang et al., 2025, arXiv 2503.02659)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, LoRAPair, Tensors, register
from variants.core.linalg import above_rounding, bottom, svd
from variants.core.lowrank import Rebased
from variants.core.statistics import covariance


@register("lora_null")
@dataclass(frozen=True, kw_only=True)
class LoRANull(Rebased):
    """``W - s B0 A0 + s B A`` from ``W N N^T = U S V^T``, split as ``B = U sqrt(S / s)``, ``A = sqrt(S / s) V^T``: N
    (in, rank) holds the directions in which the calibration inputs have least energy (section 3).

    ``version="v2"`` freezes A, whose rows stay in the span of N: what was calibrated on is left alone throughout, half
    of the parameters train, and the update ``s (B - B0) A`` on the original weight is a pair of rank ``rank``.
    """

    paper = "arXiv 2503.02659"
    needs = frozenset({"covariance"})
    version: Literal["v1", "v2"] = "v1"

    def starting_pair(self, W: Tensor, rng: torch.Generator, stats: Tensors | None) -> LoRAPair:
        N = bottom(covariance(stats), self.rank)[0].to(W.dtype)
        U, S, Qh = svd(W @ N)  # W N N^T = U S (N Q)^T: thin products only
        return self.split(U, above_rounding(S, W), Qh @ N.T)

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        whole = super().init(W, rng, stats)
        if self.version == "v1":
            return whole
        A, B = whole.train["A"], whole.train["B"]
        return Init(train={"B": B}, frozen={"A": A, "B0": B}, base=whole.base)

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (out + (in_ if self.version == "v1" else 0))

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return super().as_lora(W, t) if self.version == "v1" else LoRAPair(t["A"], self.scale * (t["B"] - t["B0"]))
