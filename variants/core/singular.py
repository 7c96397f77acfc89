"""Updates between the singular vectors of W, as several methods share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from variants.core.interface import FrozenProduct, LoRAPair, States, Tensors, Variant, project
from variants.core.linalg import orthogonality_defect, top
from variants.core.lowrank import Ranked


@dataclass(frozen=True, kw_only=True)
class SingularCore(Variant):
    """``W + U C V^T``: a core C between frozen singular vectors U (out, k), Vh (k, in) of W, with singular values s."""

    undecayed: ClassVar[tuple[str, ...]] = ()  # trained tensors for which 0 does not mean W

    def core(self, t: Tensors) -> Tensor:  # shape: (k, k), or (k,) for a diagonal
        """What is added to ``diag(s)``."""
        raise NotImplementedError

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + self._left(t) @ t["Vh"]

    def _left(self, t: Tensors) -> Tensor:  # shape: (out, k)
        C = self.core(t)
        return t["U"] * C if C.ndim == 1 else t["U"] @ C

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        C, h = self.core(t), project(x, t["Vh"])
        return linear(x) + project(h * C.to(h.dtype) if C.ndim == 1 else project(h, C), t["U"])

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        return LoRAPair(t["Vh"], self._left(t))

    def param_groups(self, states: States, lr: float) -> list[dict[str, Any]]:
        trained = [(name, p) for state in states for name, p in state.t.items() if p.requires_grad]
        decayed = [p for name, p in trained if name not in self.undecayed]
        others = [p for name, p in trained if name in self.undecayed]
        return [{"params": decayed, "lr": lr}, {"params": others, "lr": lr, "weight_decay": 0.0}]

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        """Both bases orthonormal; the values of ``diag(s) + C`` beside those of W which have no part in it."""
        C = self.core(t)
        moved = torch.linalg.svdvals(torch.diag(t["s"]) + (torch.diag(C) if C.ndim == 1 else C))
        want = torch.cat([moved, torch.linalg.svdvals(W)[len(moved) :]]).sort(descending=True).values
        spectrum = (torch.linalg.svdvals(self.weight(W, t)) - want).norm() / (1 + want.norm())
        return {"U": orthogonality_defect(t["U"]), "V": orthogonality_defect(t["Vh"].mT), "spectrum": spectrum}


@dataclass(frozen=True, kw_only=True)
class Principal(SingularCore, Ranked):
    """A core between the ``rank`` top singular vectors. There is no alpha: a scale would cancel."""

    rank: int = 32

    def least_rank(self) -> int:
        return 2  # in one dimension there is nothing to rotate

    def bases(self, W: Tensor) -> dict[str, Tensor]:
        return dict(zip(("U", "s", "Vh"), top(W, self.rank), strict=True))
