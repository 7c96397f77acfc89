"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, LoRAPair, Tensors, Variant, check_rank, project, register
from variants.core.interface import FrozenProduct


@register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(Variant):
    """``W + s B A`` with ``s = alpha / rank``; A (rank, in) uniform, B (out, rank) zero (section 4.1, equation 3).

    The paper's text has a Gaussian A; the authors' code, which we follow, draws it uniformly within +-1/sqrt(in).
    ``alpha = None`` means alpha = rank, that is s = 1.
    """

    paper = "arXiv 2106.09685"
    rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank is a whole number from 1, not {self.rank!r}")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha is a positive number, not {self.alpha!r}")

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del stats
        check_rank(self.rank, W)
        out, in_ = W.shape
        A = torch.empty(self.rank, in_, dtype=W.dtype).uniform_(-1, 1, generator=rng) / in_**0.5
        return Init(train={"A": A, "B": torch.zeros(out, self.rank, dtype=W.dtype)})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + self.scale * t["B"] @ t["A"]

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return linear(x) + project(self.scale * project(x, t["A"]), t["B"])

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (out + in_)

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return LoRAPair(t["A"], self.scale * t["B"])
