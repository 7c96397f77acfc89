"""U diag(s) V^T on the Stiefel manifold (after StelLA, Li et al., 2025, arXiv 2510.01938, with s = 0 at the start)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from variants.core import States, Tensors, register
from variants.core.linalg import orthogonality_defect, polar, qr, retract_cayley, tangent
from variants.core.lowrank import USV

# (points, tangent steps) -> points, each (..., n, r). The Cayley curve does not correct what rounding adds up, hence
# double precision.
RETRACTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "polar": lambda X, D: polar(X + D),
    "qr": lambda X, D: qr(X + D)[0],
    "cayley": lambda X, D: retract_cayley(X.double(), D.double()).to(X.dtype),
}


@register("stiefel")
@dataclass(frozen=True, kw_only=True)
class Stiefel(USV):
    """``W + c U diag(s) V^T``: U (out, rank) and V (in, rank) keep orthonormal columns under any optimiser.

    The optimiser steps freely; the step is then projected onto the tangent space at the point it left, and retracted
    (section 3.3), by the polar factor unless ``retraction`` says otherwise. Projecting the gradient instead would not
    do: Adam's coordinate-wise scaling takes a tangent gradient off the tangent space.
    """

    paper = "arXiv 2510.01938"
    lr_ratio = 5.0  # the paper's 5e-4 against 1e-4 for its tuned LoRA
    constraint = "U, V orthonormal (retraction)"
    retraction: Literal["polar", "qr", "cayley"] = "polar"

    def step_factor(self, n: int, states: States) -> float:
        """The factor on the steps of factors with n rows."""
        del n, states
        return 1.0

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        return {f"{key}^T {key} = I": orthogonality_defect(t[key]) for key in ("U", "V")}

    @torch.no_grad()
    def before_step(self, states: States) -> None:
        for state in states:
            state.scratch["left"] = {key: state.t[key].clone() for key in ("U", "V")}

    @torch.no_grad()
    def after_step(self, states: States, step: int, total: int) -> None:
        del step, total
        alike: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for state in states:
            for key, left in state.scratch.pop("left").items():
                alike[left.shape, left.dtype, left.device].append((left, state.t[key]))
        for (shape, *_), pairs in alike.items():  # one batched retraction for all factors of a shape
            X = torch.stack([left for left, _ in pairs])
            D = tangent(X, self.step_factor(shape[0], states) * (torch.stack([arrived for _, arrived in pairs]) - X))
            if not bool(D.isfinite().all()):
                raise FloatingPointError("the training has diverged, a step is not finite: lower the learning rate")
            for (_, arrived), retracted in zip(pairs, RETRACTIONS[self.retraction](X, D), strict=True):
                arrived.copy_(retracted)
