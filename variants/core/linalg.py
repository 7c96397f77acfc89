"""Decompositions and maps on matrices, in float32 or above, with canonical signs.

Half-precision input is raised to float32 and autocast is off inside, because the factorisations either refuse half
precision or silently return wrong numbers in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs ``function`` with autocast off."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return wrapped


def raised(W: Tensor) -> Tensor:
    """W in float32 if it is in half precision, else W itself."""
    return W.float() if W.dtype in (torch.float16, torch.bfloat16) else W


@torch.no_grad()
@full_precision
def svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition ``W = U diag(s) Vh`` with s descending.

    Each left vector's entry of largest magnitude is positive, so that methods which keep only a core in these bases
    mean the same thing on every machine (up to degenerate singular values).
    """
    U, s, Vh = torch.linalg.svd(raised(W), full_matrices=False)
    sign = torch.sign(U.gather(0, U.abs().argmax(0, keepdim=True)))  # shape: (1, k)
    return U * sign, s, Vh * sign.T


def top(W: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` largest singular triplets: U (out, rank), s (rank,), Vh (rank, in)."""
    U, s, Vh = svd(W)
    return U[:, :rank].contiguous(), s[:rank].contiguous(), Vh[:rank].contiguous()


def bottom(W: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` smallest of the min(W.shape) singular triplets, still in descending order."""
    U, s, Vh = svd(W)
    return U[:, -rank:].contiguous(), s[-rank:].contiguous(), Vh[-rank:].contiguous()


@torch.no_grad()
@full_precision
def random_orthonormal(n: int, rank: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tall factor (n, rank) with orthonormal columns, uniform over the Stiefel manifold.

    QR of a Gaussian matrix; the sign fix makes the distribution the uniform one (Mezzadri 2007).
    """
    G = torch.randn(n, rank, generator=rng, dtype=torch.float64, device=rng.device)
    Q, upper = torch.linalg.qr(G)
    uniform: Tensor = Q * torch.sign(torch.diagonal(upper))
    return uniform.to(dtype)


@full_precision
def tangent(X: Tensor, D: Tensor) -> Tensor:  # shapes: (..., n, r)
    """Orthogonal projection of D onto the tangent space of the Stiefel manifold at X: ``D - X sym(X^T D)``."""
    X, D = raised(X), raised(D)
    XtD: Tensor = X.mT @ D
    return D - X @ ((XtD + XtD.mT) / 2)


@full_precision
def polar(Y: Tensor) -> Tensor:  # shape: (..., n, r)
    """The orthonormal factor nearest to Y: ``Y (Y^T Y)^(-1/2)``, through the r x r Gram matrix in float64.

    After a tangent step D from an orthonormal X the Gram matrix is I + D^T D, never ill-conditioned. A Gram matrix
    whose smallest eigenvalue is not positive means that Y has lost a column.

    Raises:
        FloatingPointError: Y is rank deficient or not finite.
    """
    Y64 = Y.double()
    if not bool(Y64.isfinite().all()):  # eigh itself answers NaN with NaN, or an error of its own, or neither
        raise FloatingPointError("polar retraction needs finite entries: the training has diverged")
    values, vectors = torch.linalg.eigh(Y64.mT @ Y64)
    if not bool((values[..., 0] > 1e-12 * values[..., -1]).all()):
        raise FloatingPointError("polar retraction needs a factor of full column rank")
    nearest: Tensor = Y64 @ (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT
    return nearest.to(Y.dtype)


@full_precision
def orthogonality_defect(X: Tensor) -> Tensor:  # shape: (..., n, r) -> (...)
    """``||X^T X - I||_F``: 0 exactly for orthonormal columns."""
    X = raised(X)
    gap = X.mT @ X - torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    defect: Tensor = torch.linalg.matrix_norm(gap)
    return defect
