"""Updates between the singular vectors of W, as several methods share them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core.fields import Count
from variants.core.interface import LoRAPair, Tensors
from variants.core.linalg import orthogonality_defect, top
from variants.core.lowrank import Additive, Ranked
from variants.core.thin import Thin


@dataclass(frozen=True, kw_only=True)
class SingularCore(Additive):
    """``W + U C V^T``: a core C between frozen singular vectors U (out, k), Vh (k, in) of W, with singular values s."""

    def core(self, t: Tensors) -> Tensor:  # shape: (k, k), or (k,) for a diagonal
        """What is added to ``diag(s)``."""
        raise NotImplementedError

    def thin(self, W: Tensor, t: Tensors) -> Thin | None:
        return Thin(t["Vh"], t["U"], self.core(t))

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        C = self.core(t)
        return LoRAPair(t["Vh"], t["U"] * C if C.ndim == 1 else t["U"] @ C)

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        """Both bases orthonormal; the values of ``diag(s) + C`` beside those of W which have no part in it."""
        C = self.core(t)
        moved = torch.linalg.svdvals(torch.diag(t["s"]) + (torch.diag(C) if C.ndim == 1 else C))
        want = torch.cat([moved, torch.linalg.svdvals(W)[len(moved) :]]).sort(descending=True).values
        spectrum = (torch.linalg.svdvals(self.weight(W, t)) - want).norm() / (1 + want.norm())
        return {"U": orthogonality_defect(t["U"]), "V": orthogonality_defect(t["Vh"].mT), "spectrum": spectrum}


@dataclass(frozen=True, kw_only=True)
class PrincipalCore(SingularCore, Ranked):
    """A core between the ``rank`` top singular vectors. There is no alpha: a scale would cancel."""

    rank: Count = 32

    def least_rank(self) -> int:
        return 2  # in one dimension there is nothing to rotate

    def bases(self, W: Tensor) -> dict[str, Tensor]:
        """The frozen tensors: U, s and Vh of the top triplets."""
        return dict(zip(("U", "s", "Vh"), top(W, self.rank), strict=True))
