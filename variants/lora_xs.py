"""LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters (Balazy et al., 2024, arXiv 2405.17604)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, LoRAPair, Tensors, check_rank, project, register
from variants.core.interface import FrozenProduct
from variants.core.linalg import top
from variants.lora import LoRA


@register("lora_xs")
@dataclass(frozen=True, kw_only=True)
class LoRAXS(LoRA):
    """``W + s B R A``: only R (rank, rank) trains; B = U and A = diag(S) V^T of the top singular triplets are frozen.

    The singular values sit on the input side, as in the authors' code; on the other side the same learning rate would
    mean something else. R starts as noise of standard deviation ``init_std``, so the start is close to the base, not
    equal to it. The bases travel in the adapter file: recomputed ones may differ in sign or rotation.
    """

    paper = "arXiv 2405.17604"
    exact_init = False
    lr_ratio = 10.0  # published rates are 10 to 100 times LoRA's, because R is small
    init_std: float = 1e-5

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del stats
        check_rank(self.rank, W)
        U, S, Vh = top(W, self.rank)
        R = self.init_std * torch.randn(self.rank, self.rank, generator=rng, dtype=W.dtype)
        return Init(train={"R": R}, frozen={"A": S[:, None] * Vh, "B": U})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + self.scale * t["B"] @ t["R"] @ t["A"]

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return linear(x) + project(self.scale * project(project(x, t["A"]), t["R"]), t["B"])

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank**2

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return LoRAPair(t["A"], self.scale * t["B"] @ t["R"])
