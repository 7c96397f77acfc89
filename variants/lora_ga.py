"""LoRA-GA: Low-Rank Adaptation with Gradient Approximation (Wang et al., 2024, arXiv 2407.05000)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import LoRAPair, Refused, Tensors, register
from variants.core.fields import Positive
from variants.core.linalg import top, top_randomised
from variants.core.lowrank import Rebased
from variants.core.statistics import gradient
from variants.rslora import RSLoRA


@register("lora_ga")
@dataclass(frozen=True, kw_only=True)
class LoRAGA(Rebased, RSLoRA):
    """``W - s B0 A0 + s B A``, ``s = alpha / sqrt(rank)``: the first step of B A follows the best approximation of rank
    2 * rank to a step against the full gradient ``G = U S V^T`` (theorem 3.1).

    ``A = c V_I^T`` and ``B = c U_J`` for disjoint index sets I and J among the top 2 * rank triplets, with
    ``c = out^(1/4) / sqrt(gamma)`` on both (``stable``) or 1; the sign and size of G do not matter. ``faithful="code"``
    finds the triplets as the authors do, by a randomised decomposition with 4 * rank columns.
    """

    paper = "arXiv 2407.05000"
    needs = frozenset({"gradient"})
    lr_ratio = 1 / 18  # arXiv 2602.04998
    direction: Literal["ArB2r", "A2rBr", "ArBr", "random"] = "ArB2r"
    stable: bool = True
    gamma: Positive = 64.0  # in the authors' runs; their code's default is 16
    faithful: Literal["paper", "code"] = "paper"

    def check(self, out: int, in_: int) -> None:
        if 2 * self.rank > min(out, in_):
            fits = f"write a rank from 1 to {min(out, in_) // 2}" if min(out, in_) > 1 else "leave it out"
            raise Refused(f"a {out} x {in_} layer's gradient has no {2 * self.rank} triplets (2 x rank): {fits}")

    def starting_pair(self, W: Tensor, rng: torch.Generator, stats: Tensors | None) -> LoRAPair:
        G, both = gradient(stats), 2 * self.rank
        U, _, Vh = top(G, both) if self.faithful == "paper" else top_randomised(G, both, rng, oversampling=both)
        order = torch.arange(both)  # first A's indices, then B's
        if self.direction == "A2rBr":
            order = order.roll(self.rank)
        elif self.direction == "ArBr":
            order = order.view(-1, 2).flip(1).T.flatten()  # A odd, B even
        elif self.direction == "random":
            order = torch.randperm(both, generator=rng)
        c = W.shape[0] ** 0.25 / self.gamma**0.5 if self.stable else 1.0
        return LoRAPair(c * Vh[order[: self.rank]], c * U[:, order[self.rank :]])
