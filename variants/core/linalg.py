"""Decompositions and maps on matrices, in float32 or above, with canonical signs.

Half-precision input is raised to float32 and autocast is off inside, because the factorisations either refuse half
precision or silently return wrong numbers in it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeVar, cast

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

from variants.core.cache import Triplets, kept
from variants.core.products import reverse_mode_only

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs ``function`` with autocast off."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return wrapped


def raised(W: Tensor) -> Tensor:
    """W in float32 if it is in half precision, else W itself."""
    return W.float() if W.dtype in (torch.float16, torch.bfloat16) else W


def _eye(X: Tensor) -> Tensor:  # shapes: (..., n, r) -> (r, r)
    return torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)


# ---- decompositions -------------------------------------------------------------------------------------------------

FULL_UP_TO = 512  # the smaller side up to which the full decomposition is computed whatever the rank
LANCZOS_SHARE = 8  # above it, Lanczos as long as no more than this part of the spectrum is asked for


@contextmanager
def decomposed_in_full() -> Iterator[None]:
    """Inside, iterative methods are left aside: a tensor that has only a shape cannot say when they should stop."""
    global FULL_UP_TO
    before, FULL_UP_TO = FULL_UP_TO, sys.maxsize
    try:
        yield
    finally:
        FULL_UP_TO = before


def iterates() -> bool:
    """Whether iterative methods may be used, which ask for numbers: not inside ``decomposed_in_full``."""
    return sys.maxsize > FULL_UP_TO


def svd(W: Tensor) -> Triplets:
    """Thin singular value decomposition ``W = U diag(s) Vh`` with s descending.

    Each left vector's entry of largest magnitude is positive, so that methods which keep only a core in these bases
    mean the same thing on every machine (up to degenerate singular values).
    """
    return top(W, min(W.shape))


def top(W: Tensor, rank: int) -> Triplets:
    """The ``rank`` largest singular triplets: U (out, rank), s (rank,), Vh (rank, in); signs as in ``svd``.

    Small matrices are decomposed in full and cut. Of large ones Lanczos bidiagonalisation gives the leading triplets,
    to a relative residual of 1e-6, for the next power of two, and these are cut. So the bits depend on W and the rank
    alone, whatever was kept on disk before, and few decompositions serve all ranks.
    """
    W = raised(W.detach())
    side = triplets_in(W, rank)
    if side <= FULL_UP_TO or rank * LANCZOS_SHARE > side:
        return _cut(kept(W, "full", _full), rank)
    most = min(side, 1 << (rank - 1).bit_length())  # one decomposition serves all ranks up to a power of two
    return _cut(kept(W, f"leading {most}", functools.partial(_leading, rank=most)), rank)


def bottom(W: Tensor, rank: int) -> Triplets:
    """The ``rank`` smallest of the min(W.shape) singular triplets, still in descending order."""
    triplets_in(W, rank)
    U, s, Vh = svd(W)
    return U[:, -rank:].contiguous(), s[-rank:].contiguous(), Vh[-rank:].contiguous()


@torch.no_grad()
@full_precision
def top_randomised(W: Tensor, rank: int, rng: torch.Generator, oversampling: int = 10, iterations: int = 4) -> Triplets:
    """The ``rank`` largest triplets approximately, by a randomised range finder (Halko, Martinsson and Tropp 2011,
    algorithms 4.4 and 5.1) with ``oversampling`` further columns and ``iterations`` power iterations."""
    W = raised(W)
    columns = min(rank + oversampling, triplets_in(W, rank))
    Q = W @ torch.randn(W.shape[1], columns, generator=rng, dtype=torch.float64).to(W)
    for _ in range(iterations):  # re-orthonormalised on both sides, or small directions would be lost in rounding
        Q = W @ torch.linalg.qr(W.T @ torch.linalg.qr(Q).Q).Q
    Q = torch.linalg.qr(Q).Q
    U, s, Vh = torch.linalg.svd(Q.T @ W, full_matrices=False)
    return canonical(Q @ U[:, :rank], s[:rank], Vh[:rank])


def above_rounding(S: Tensor, W: Tensor) -> Tensor:  # shapes: (rank,), (out, in) -> (rank,)
    """Singular values kept above W's rounding. Split between two factors, one of zero would make a row of A and a
    column of B zero together, a point from which no gradient leads away."""
    return S.clamp_min(torch.finfo(W.dtype).eps * float(torch.linalg.vector_norm(W)))


def triplets_in(W: Tensor, rank: int) -> int:
    """The number of singular triplets, at least ``rank``."""
    side = min(W.shape)
    if not 1 <= rank <= side:
        raise ValueError(f"a {W.shape[0]} x {W.shape[1]} matrix has 1 to {side} singular triplets, not {rank}")
    return side


@torch.no_grad()
@full_precision
def _full(W: Tensor) -> Triplets:
    return canonical(*torch.linalg.svd(W, full_matrices=False))


@torch.no_grad()
def _leading(W: Tensor, rank: int) -> Triplets:
    """By PROPACK in float64. Its own limit on iterations is too low for flat spectra, and what it returns is not taken
    on trust: if it gives up, or the residual is too large, the full decomposition is cut instead."""
    A = W.double().cpu().numpy()
    start = np.random.default_rng(0).standard_normal(A.shape[:1])
    try:
        U, s, Vh = svds(A, k=rank, solver="propack", v0=start, maxiter=10 * min(A.shape))
    except np.linalg.LinAlgError:
        return _cut(_full(W), rank)
    order = np.argsort(-s)
    U, s, Vh = U[:, order], s[order], Vh[order]
    residual = max(np.abs(A @ Vh.T - U * s).max(), np.abs(A.T @ U - Vh.T * s).max())
    skew = max(np.abs(U.T @ U - np.eye(rank)).max(), np.abs(Vh @ Vh.T - np.eye(rank)).max())
    if not (residual <= 1e-6 * s[0] and skew <= 1e-6):
        return _cut(_full(W), rank)
    return canonical(*(torch.from_numpy(np.ascontiguousarray(part)).to(W) for part in (U, s, Vh)))


def _cut(triplets: Triplets, rank: int) -> Triplets:
    U, s, Vh = triplets
    return U[:, :rank].contiguous(), s[:rank].contiguous(), Vh[:rank].contiguous()


def canonical(U: Tensor, s: Tensor, Vh: Tensor) -> Triplets:
    sign = torch.sign(U.gather(0, U.abs().argmax(0, keepdim=True)))  # shape: (1, k)
    return (U * sign).contiguous(), s.contiguous(), (Vh * sign.T).contiguous()


@torch.no_grad()
@full_precision
def qr(W: Tensor) -> tuple[Tensor, Tensor]:
    """Reduced QR decomposition, not pivoted, with a non-negative diagonal of R (which makes it unique)."""
    Q, upper = torch.linalg.qr(raised(W))
    sign = torch.where(torch.diagonal(upper, dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(Q.dtype)
    return Q * sign.unsqueeze(-2), sign.unsqueeze(-1) * upper


@torch.no_grad()
@full_precision
def random_orthonormal(n: int, rank: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tall factor (n, rank) with orthonormal columns, uniform over the Stiefel manifold.

    QR of a Gaussian matrix; the sign fix makes the distribution the uniform one (Mezzadri 2007).
    """
    return qr(torch.randn(n, rank, generator=rng, dtype=torch.float64, device=rng.device))[0].to(dtype)


# ---- the Stiefel manifold: tall X with orthonormal columns ----------------------------------------------------------


@full_precision
def tangent(X: Tensor, D: Tensor) -> Tensor:  # shapes: (..., n, r)
    """Orthogonal projection of D onto the tangent space of the Stiefel manifold at X: ``D - X sym(X^T D)``."""
    X, D = raised(X), raised(D)
    XtD = X.mT @ D
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
        raise FloatingPointError("the training has diverged, the factor is not finite: lower the learning rate")
    values, vectors = torch.linalg.eigh(Y64.mT @ Y64)
    if not bool((values[..., 0] > 1e-12 * values[..., -1]).all()):
        raise FloatingPointError("polar retraction needs a factor of full column rank: lower the learning rate")
    return (Y64 @ (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT).to(Y.dtype)


@full_precision
def retract_cayley(X: Tensor, D: Tensor) -> Tensor:  # shapes: (..., n, r)
    """The point which a tangent step D from an orthonormal X leads to along a Cayley curve (Wen and Yin 2013, lemma 4):
    a 2r x 2r system instead of an n x n one."""
    X, D = raised(X), raised(D)
    PD = D - X @ (X.mT @ D) / 2
    U, V = torch.cat([PD, X], dim=-1), torch.cat([X, -PD], dim=-1)
    return X + U @ torch.linalg.solve(_eye(U) - V.mT @ U / 2, V.mT @ X)


@full_precision
def landing(X: Tensor, G: Tensor, attraction: float) -> Tensor:  # shapes: (..., n, r)
    """The landing field ``(G X^T - X G^T) X + attraction * X (X^T X - I)`` (Ablin and Peyre 2022), in factored form.

    A step against it lowers the loss with gradient G and draws X to the manifold, without ever being on it.
    """
    X, G = raised(X), raised(G)
    gram = X.mT @ X
    return G @ gram - X @ (G.mT @ X) + attraction * X @ (gram - _eye(X))


# ---- rotations ------------------------------------------------------------------------------------------------------


def skew_from(entries: Tensor, n: int) -> Tensor:  # shapes: (..., n (n - 1) / 2) -> (..., n, n)
    """The skew-symmetric matrix with these entries above its diagonal, row by row."""
    rows, columns = torch.triu_indices(n, n, offset=1, device=entries.device)
    upper = entries.new_zeros(*entries.shape[:-1], n * n).index_copy(-1, rows * n + columns, entries)
    upper = upper.unflatten(-1, (n, n))
    return upper - upper.mT


@full_precision
def cayley(K: Tensor) -> Tensor:  # shapes: (..., n, n)
    """The rotation ``(I + K)(I - K)^(-1)`` of a skew-symmetric K; every rotation without eigenvalue -1 is one."""
    K = raised(K)
    return 2 * torch.linalg.inv(_eye(K) - K) - _eye(K)  # as (I + K) = 2 I - (I - K), whose norm is at least 1


@full_precision
def cayley_inverse(R: Tensor) -> Tensor:  # shapes: (..., n, n)
    """The skew-symmetric K with ``cayley(K) == R``."""
    R = raised(R)
    return torch.linalg.solve(R + _eye(R), R - _eye(R))


@full_precision
def cayley_neumann(K: Tensor, terms: int) -> Tensor:  # shapes: (..., n, n)
    """``(I + K)(I + K + ... + K^(terms - 2))``: the Cayley map with the inverse cut after ``terms - 1`` powers.

    Its singular values are ``|1 - (i a)^(terms - 1)|`` for K's eigenvalues +-ia: nearly orthogonal only for small K.
    """
    K = raised(K)
    if reverse_mode_only():
        return cast(Tensor, _CayleyNeumann.apply(K, terms))
    return (_eye(K) + K) @ _partial_sums(K, terms)[-1]


def _partial_sums(K: Tensor, terms: int) -> list[Tensor]:
    """``I``, ``I + K``, ..., ``I + K + ... + K^(terms - 2)``, by Horner's rule."""
    sums = [_eye(K).expand_as(K)]
    for _ in range(terms - 2):
        sums.append(_eye(K) + K @ sums[-1])
    return sums


class _CayleyNeumann(torch.autograd.Function):
    """(K (..., n, n), terms) -> the map. Keeps K alone for backward: sums cost less than the memory to hold them."""

    @staticmethod
    def forward(ctx: Any, K: Tensor, terms: int) -> Tensor:
        ctx.save_for_backward(K)
        ctx.terms = terms
        return (_eye(K) + K) @ _partial_sums(K, terms)[-1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (K,) = ctx.saved_tensors
        *inner, last = _partial_sums(K, ctx.terms)
        dK = g @ last.mT
        g = g + K.mT @ g  # of the last sum, and then of the one before it, and so on
        for series in reversed(inner):
            dK = dK + g @ series.mT
            g = K.mT @ g
        return dK, None


def rotation_from(entries: Tensor, n: int, inverse: Literal["exact", "neumann"], terms: int) -> Tensor:
    """The rotations (..., n, n) whose skew-symmetric matrices have these entries (..., n (n - 1) / 2), by the Cayley
    map or, up to a defect, by the one with a series of ``terms`` for its inverse."""
    K = skew_from(entries, n)
    return cayley(K) if inverse == "exact" else cayley_neumann(K, terms)


@full_precision
def reflections(U: Tensor) -> Tensor:  # shapes: (n, r) -> (r, r)
    """The upper triangular G with ``prod_i (I - 2 u_i u_i^T) == I + U G U^T`` for unit columns u_i (compact WY)."""
    U = raised(U)
    eye = _eye(U)
    return -torch.linalg.solve_triangular(torch.triu(U.T @ U, diagonal=1) + eye / 2, eye, upper=True)


# ---- how far a matrix is from what it should be: zero exactly where it belongs --------------------------------------


@full_precision
def orthogonality_defect(X: Tensor) -> Tensor:  # shape: (..., n, r) -> (...)
    """``||X^T X - I||_F``: 0 exactly for orthonormal columns."""
    X = raised(X)
    return torch.linalg.matrix_norm(X.mT @ X - _eye(X))


def skew_defect(K: Tensor) -> Tensor:  # shape: (..., n, n) -> (...)
    """``||K + K^T||_F``."""
    K = raised(K)
    return torch.linalg.matrix_norm(K + K.mT)


@full_precision
def tangent_defect(X: Tensor, D: Tensor) -> Tensor:  # shapes: (..., n, r) -> (...)
    """``||X^T D + D^T X||_F``: zero for tangent vectors D of the Stiefel manifold at X."""
    XtD = raised(X).mT @ raised(D)
    return torch.linalg.matrix_norm(XtD + XtD.mT)


def rank_defect(D: Tensor, rank: int) -> Tensor:  # shape: (out, in) -> ()
    """The distance from D to the nearest matrix of this rank, in the Frobenius norm."""
    return torch.linalg.svdvals(D)[rank:].norm()
