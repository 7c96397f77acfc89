"""U diag(s) V^T parametrised (Lezcano-Casado and Martinez-Rubio, 2019, arXiv 1901.08428; as torch does, but thin)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, Tensors, register
from variants.core.linalg import cayley, full_precision, orthogonality_defect
from variants.core.lowrank import USV


@register("usv_parametrized")
@dataclass(frozen=True, kw_only=True)
class USVParametrized(USV):
    """``U = phi(X U0^T - U0 X^T) U0`` of a free X that starts at zero, and V of Y alike: orthonormal whatever X is.

    ``phi`` is the Cayley map ``(I + A/2)(I - A/2)^(-1)`` or the matrix exponential, as in
    ``torch.nn.utils.parametrizations.orthogonal`` with its base, without a matrix of size n x n. ``householder`` takes
    the reflectors of U0 for X, as torch does without a base, and keeps the signs, (rank,), as U0: inside the trained
    tensor, where torch has them, weight decay turns them into zeros.
    """

    paper = "arXiv 1901.08428"
    constraint = "U, V orthonormal (parametrised)"
    no_weight_decay = ("X", "Y")
    map: Literal["cayley", "matrix_exp", "householder"] = "cayley"

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        free = super().init(W, rng, stats).train
        anchored = reflectors if self.map == "householder" else lambda U: (torch.zeros_like(U), U)
        (X, U0), (Y, V0) = anchored(free["U"]), anchored(free["V"])
        return Init(train={"X": X, "s": free["s"], "Y": Y}, frozen={"U0": U0, "V0": V0})

    def factors(self, t: Tensors) -> tuple[Tensor, Tensor]:
        if self.map == "householder":
            return reflected(t["X"]) * t["U0"], reflected(t["Y"]) * t["V0"]
        return self._turned(t["X"], t["U0"]), self._turned(t["Y"], t["V0"])

    @full_precision
    def _turned(self, X: Tensor, U0: Tensor) -> Tensor:  # shapes: (n, rank)
        """``A = X U0^T - U0 X^T`` maps the span of [U0, X] into itself, ``A [U0, X] = [U0, X] K``, hence phi(A) too."""
        eye, cross = torch.eye(self.rank, dtype=X.dtype, device=X.device), U0.T @ X
        K = torch.cat([torch.cat([-cross.T, -X.T @ X], dim=1), torch.cat([eye, cross], dim=1)]).double()
        turn = cayley(K / 2) if self.map == "cayley" else torch.matrix_exp(K)
        return torch.cat([U0, X], dim=1) @ turn[:, : self.rank].to(X.dtype)

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        U, V = self.factors(t)
        return {"U^T U = I": orthogonality_defect(U), "V^T V = I": orthogonality_defect(V)}


@full_precision
def reflected(X: Tensor) -> Tensor:  # shapes: (n, rank)
    """The product of the reflections along X's columns below their unit diagonal, cut to its first columns."""
    below = X.tril(-1)
    return torch.linalg.householder_product(below, 2 / (1 + below.square().sum(0)))


def reflectors(Q: Tensor) -> tuple[Tensor, Tensor]:  # shape: (n, rank) -> (n, rank), (rank,)
    """X and signs with ``reflected(X) * signs == Q``. Where LAPACK uses no reflection, ``reflected`` flips a sign."""
    packed, tau = torch.geqrf(Q)
    return packed.tril(-1), packed.diagonal().sign() * torch.where(tau == 0, -1.0, 1.0).to(Q.dtype)
