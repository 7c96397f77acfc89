"""SVF: Transformer-Squared, Self-Adaptive LLMs (Sun et al., 2025, arXiv 2501.06252)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, Tensors, register
from variants.core.linalg import svd
from variants.core.singular import SingularCore


@register("svf")
@dataclass(frozen=True, kw_only=True)
class SVF(SingularCore):
    """``U diag(s * z) V^T``: one trained factor z for each singular value, 1 at the start (section 3.1).

    The authors' code has ``z = sigmoid(p)``, p normal around 0.1, and rescales the sum to W's nuclear norm, so that
    only relative factors can be learned. Mixing experts is adding their changes of W, as ``activate`` does: one alone
    is that expert, none the base, and z is mixed, never p.
    """

    paper = "arXiv 2501.06252"
    no_weight_decay = ("z", "p")  # 0 does not mean W
    lr_ratio = 10.0  # the paper's 2e-3, against 2e-4 for LoRA
    faithful: Literal["paper", "code"] = "paper"

    @property
    def exact_init(self) -> bool:
        return self.faithful == "paper"

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        U, s, Vh = svd(W)
        frozen = {"U": U, "s": s, "Vh": Vh}
        if self.faithful == "code":
            return Init(train={"p": 0.1 + 0.01 * torch.randn(s.shape, generator=rng, dtype=s.dtype)}, frozen=frozen)
        return Init(train={"z": torch.ones_like(s)}, frozen=frozen)

    def core(self, t: Tensors) -> Tensor:
        if self.faithful == "paper":
            return t["s"] * (t["z"] - 1)
        scaled = t["s"] * torch.sigmoid(t["p"])
        return scaled * (t["s"].sum() / scaled.sum()) - t["s"]

    def parameter_count(self, out: int, in_: int) -> int:
        return min(out, in_)
