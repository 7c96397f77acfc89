"""U diag(s) V^T under an orthogonality penalty (after AdaLoRA, Zhang et al., 2023, arXiv 2303.10512, at one rank)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import States, register
from variants.core.linalg import orthogonality_defect
from variants.core.lowrank import USV


@register("usv_penalty")
@dataclass(frozen=True, kw_only=True)
class USVPenalty(USV):
    """U and V are free, and drawn by the sum over all factors of ``||X^T X - I||_F^2`` (``squared``) or by the mean of
    ``||X^T X - I||_F`` (``norm``, as in AdaLoRA's code), whose pull does not fade near the constraint.

    The penalty is part of the loss: an adaptive optimiser sees only its ratio to the task's gradient.
    """

    paper = "arXiv 2303.10512"
    constraint = "soft: U, V orthonormal (penalty)"
    orthonormal = ("U", "V")
    form: Literal["squared", "norm"] = "squared"
    penalty_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalty_weight > 0:
            raise ValueError(f"penalty_weight is a positive number, not {self.penalty_weight!r}")

    def penalty(self, states: States) -> Tensor:
        defects = torch.stack([orthogonality_defect(state.t[key]) for state in states for key in ("U", "V")])
        return self.penalty_weight * (defects.square().sum() if self.form == "squared" else defects.mean())
