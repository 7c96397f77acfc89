"""DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation (Bini et al., 2025, arXiv 2503.18225)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, LoRAPair, LowRank, Tensors, register
from variants.core.fields import Positive
from variants.core.lowrank import Additive, zero_pair

SHORTEST = 1e-4  # a shorter factor is divided by this instead of its length: B starts at 0


@register("delora")
@dataclass(frozen=True, kw_only=True)
class DeLoRA(Additive, LowRank):
    """``W + (lambda / rank) sum_i b_i a_i / (|b_i| |a_i|) diag(n)`` with n the lengths of W's columns, frozen.

    The factors give directions only; the trained strength lambda, which starts at ``alpha``, bounds the update:
    ``||dW diag(n)^-1||_F <= |lambda|``. A starts uniform and B at zero. While a factor is shorter than 1e-4, as the
    start is, its length counts as the constant 1e-4: the start is exact and has a gradient, as in the authors' code.
    """

    paper = "arXiv 2503.18225"
    constraint = "norm of the update (strength)"
    lr_ratio = 10.0  # 10 to 100 times LoRA's (the authors, github.com/ExplainableML/DeLoRA, issue 2)
    alpha: Positive | None = 15.0

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        A, B = zero_pair(self.rank, W, rng)
        train = {"A": A, "B": B, "strength": W.new_full((1,), self.scale * self.rank)}
        return Init(train=train, frozen={"n": torch.linalg.vector_norm(W, dim=0)})

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        A, B = t["A"], t["B"]
        a, b = (torch.linalg.vector_norm(M, dim=dim).clamp_min(SHORTEST) for M, dim in ((A, 1), (B, 0)))
        return LoRAPair(A * t["n"], B * (t["strength"] / self.rank / (a * b)))

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        relative = self.as_lora(W, {**t, "n": torch.ones_like(t["n"])}).delta()
        return {"update beyond its strength": torch.relu(torch.linalg.matrix_norm(relative) - t["strength"].abs())}

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (out + in_) + 1
