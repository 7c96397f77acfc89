"""U diag(s) V^T under an orthogonality penalty (after AdaLoRA, Zhang et al., 2023, arXiv 2303.10512, at one rank)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from variants.core import States, register
from variants.core.fields import NotNegative
from variants.core.lowrank import USV, orthogonality_defects


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
    penalty_weight: NotNegative = 0.1  # 0: the same three factors without any constraint, to compare with

    def penalty(self, states: States) -> Tensor | None:
        if not self.penalty_weight:
            return None
        defects = orthogonality_defects(states, self.orthonormal)
        return self.penalty_weight * (defects.square().sum() if self.form == "squared" else defects.mean())
