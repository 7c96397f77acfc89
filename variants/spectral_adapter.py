"""Spectral Adapter: Fine-Tuning in Spectral Space (Zhang and Pilanci, 2024, arXiv 2405.13952)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, LoRAPair, Tensors, register
from variants.core.fields import Count
from variants.core.linalg import cayley, full_precision, rank_defect
from variants.core.singular import PrincipalCore
from variants.core.thin import Thin


@register("spectral_adapter")
@dataclass(frozen=True, kw_only=True)
class SpectralAdapter(PrincipalCore):
    """The top singular vectors of W move; the singular values, and all below the top, stay (section 3).

    ``additive``: ``(U + B) diag(S) (V + A^T)^T``. ``rotational``: ``U Q(D_u) diag(S) Q(D_v)^T V^T`` with the Cayley map
    Q of D's skew part (its sign is (I + K)(I - K)^(-1) here; the authors' is the inverse). Their code also trains a
    factor c on the rotated singular values, which the paper's formula does not have.
    """

    paper = "arXiv 2405.13952"
    no_weight_decay = ("c",)  # 1 means W
    constraint = "rotational: spectrum of W (Cayley)"
    lr_ratio = 0.1  # gradients grow with S; the paper's 1e-5 to 2.5e-5 on 7B models, against 1e-4 to 2e-4 for LoRA
    rank: Count = 8
    form: Literal["additive", "rotational"] = "additive"
    faithful: Literal["paper", "code"] = "paper"

    @property
    def _trains_values(self) -> bool:
        return self.form == "rotational" and self.faithful == "code"

    def least_rank(self) -> int:
        return 1 if self.form == "additive" else 2

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        (out, in_), r = W.shape, self.rank
        shapes = {"A": (r, in_), "B": (out, r)} if self.form == "additive" else {"Du": (r, r), "Dv": (r, r)}
        train = {name: torch.zeros(shape, dtype=W.dtype) for name, shape in shapes.items()}
        if self._trains_values:
            train["c"] = torch.ones(r, dtype=W.dtype)
        return Init(train=train, frozen=self.bases(W))

    @full_precision
    def core(self, t: Tensors) -> Tensor:
        Qu, Qv = (cayley((t[D] - t[D].mT) / 2) for D in ("Du", "Dv"))
        return Qu * (t["s"] * t["c"] if self._trains_values else t["s"]) @ Qv.mT - torch.diag(t["s"])

    def thin(self, W: Tensor, t: Tensors) -> Thin | None:
        return super().thin(W, t) if self.form == "rotational" else Thin(*self.as_lora(W, t))

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        if self.form == "rotational":
            return super().as_lora(W, t)
        S = t["s"][:, None]
        return LoRAPair(torch.cat([S * (t["Vh"] + t["A"]), S * t["A"]]), torch.cat([t["B"], t["U"]], dim=1))

    def parameter_count(self, out: int, in_: int) -> int:
        r = self.rank
        return r * (out + in_) if self.form == "additive" else 2 * r**2 + r * self._trains_values

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        moved = self.weight(W, t)
        if self.form == "additive":
            return {"rank of the update": rank_defect(moved - W, 2 * self.rank) / (1 + W.norm())}
        found = super().defects(W, t)
        if not self._trains_values:
            gap = torch.linalg.svdvals(moved) - torch.linalg.svdvals(W)
            found["singular values of W"] = gap.norm() / (1 + W.norm())
        return found
