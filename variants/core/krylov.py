"""The leading singular triplets to a stated accuracy, by a block Krylov method (Musco and Musco 2015, algorithm 2).

Between the exact decomposition and a randomised one with a fixed number of iterations: as accurate as a start from the
top of the spectrum needs, and measured before it is believed.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from variants.core.cache import Triplets
from variants.core.linalg import canonical, full_precision, iterates, raised, top, top_randomised, triplets_in
from variants.core.products import linear

SVD = Literal["exact", "krylov", "randomised"]  # how a method finds the top of a spectrum
TOLERANCE = 1e-4  # of the residual's norm
NARROWEST = 8  # columns of a block, at least: narrower products take about as long
FEWEST = 16  # blocks in the smaller side, at least: with fewer, the full decomposition is as quick
SHARE = 0.75  # of the smaller side, at most: a basis as large as this costs what the full decomposition does
SMALLEST = 1e-12  # norm: the squares of smaller numbers are none in float32
FIRST = 8  # blocks before the first look
GAIN = 3.0  # by which a block divides the error, about, until two looks tell


def leading(W: Tensor, rank: int, how: SVD, rng: torch.Generator, oversampling: int, iterations: int) -> Triplets:
    """The ``rank`` largest singular triplets, found so; the last two numbers are for the randomised way."""
    if how == "exact":
        return top(W, rank)
    return top_krylov(W, rank, rng) if how == "krylov" else top_randomised(W, rank, rng, oversampling, iterations)


@torch.no_grad()
@full_precision
def top_krylov(W: Tensor, rank: int, rng: torch.Generator, tolerance: float = TOLERANCE) -> Triplets:
    """The ``rank`` largest singular triplets, as ``top``: U (out, rank), s (rank,), Vh (rank, in).

    Blocks are added until the residual ``W - U diag(s) Vh`` is estimated to be off by less than ``tolerance`` times
    the norm of the exact one. Small matrices, large ranks, and spectra which take too many blocks get the exact
    decomposition, and so does a matrix which is zero, not finite, or out of the range where squares can be taken.

    Args:
        rng: draws the first block; another draw finds another answer within the tolerance.
        tolerance: in the Frobenius norm. Half the digits of W's precision, at most, can be had.
    """
    W = raised(W.detach())
    side, block = triplets_in(W, rank), max(rank, NARROWEST)
    if not iterates() or FEWEST * block > side:
        return top(W, rank)
    size = torch.linalg.vector_norm(torch.linalg.vector_norm(W, dim=1).double())  # so as not to copy W in float64
    if not SMALLEST < float(size) < math.inf:
        return top(W, rank)
    tall = W.shape[0] >= W.shape[1]
    start = torch.randn(block, side, generator=rng, dtype=torch.float64, device=rng.device).to(W)
    found = _krylov((W if tall else W.T) / size.to(W), rank, start, tolerance)
    if found is None:
        return top(W, rank)
    left, s, right = found
    s = s * float(size)
    return canonical(left.T, s, right) if tall else canonical(right.T, s, left)


def _krylov(A: Tensor, rank: int, start: Tensor, tolerance: float) -> Triplets | None:
    """Triplets of A (m, n) of norm 1, with vectors as rows: left (rank, m), s (rank,), right (rank, n). None if the
    basis would grow too large."""
    (m, n), block = A.shape, len(start)
    most = int(SHARE * n) // block
    basis = A.new_empty(most * block, n)  # orthonormal rows
    images = A.new_empty(most * block, m)  # basis @ A.T
    gram = torch.zeros(most * block, most * block, dtype=torch.float64, device=A.device)  # of images, lower triangle
    Q = torch.linalg.qr(start.T).Q.T
    look, last, gain = FIRST, (0, math.inf), GAIN
    for blocks in range(1, most + 1):
        known = blocks * block
        new, near = slice(known - block, known), slice(max(0, known - 2 * block), known)
        basis[new], images[new] = Q, linear(Q, A)
        gram[new, near] = images[new].double() @ images[near].double().T  # those further off are zero, up to rounding
        if blocks == look:
            found, off = _ritz(A, basis[:known], images[:known], gram[:known, :known], rank)
            left = math.sqrt(max(0.0, 1 - float(found[1].double().square().sum())))
            excess = off / (tolerance * left + 4 * torch.finfo(A.dtype).eps)
            if excess <= 1:
                return found
            if last[1] < math.inf:
                gain = max(2.0, (last[1] / excess) ** (1 / (blocks - last[0])))
            last, look = (blocks, excess), blocks + math.ceil(math.log(excess, gain))
        Q = _beyond(linear(images[new], A.T), basis[:known], basis[near])
    return None


def _beyond(rows: Tensor, basis: Tensor, near: Tensor) -> Tensor:  # shapes: (block, n), (k, n), (2 block, n)
    """Orthonormal rows (block, n) for what these have outside the basis: outside its last two blocks, in which the rest
    lies but for rounding, and then, as that may be all there is, outside the whole of it."""
    for known in (near, basis):
        rows = torch.linalg.qr((rows - (rows @ known.T) @ known).T).Q.T
    return rows


def _ritz(A: Tensor, basis: Tensor, images: Tensor, gram: Tensor, rank: int) -> tuple[Triplets, float]:
    """The best triplets with right vectors in the basis, and about how far their product is from that of A's own.

    With ``A^T u_i - s_i v_i`` of length e_i (``A v_i = s_i u_i`` holds by construction), v_i is turned out of the basis
    by ``t_i = s_i e_i / (s_i^2 - f^2)`` to first order, where the basis lacks only directions of singular values below
    f: two blocks further down than the last wanted one. Inside, it is turned towards the nearest unwanted one by the
    product of both errors. A turn by t moves ``s_i u_i v_i^T`` by at most sqrt(2) s_i t.
    """
    values, vectors = torch.linalg.eigh(gram)
    y = vectors[:, -rank - 1 :].flip(1).T  # one more than wanted: the nearest of the others
    U, R = torch.linalg.qr((y.to(A) @ images).T.double())  # the triplets once more, from unsquared numbers
    a, s, b = torch.linalg.svd(R)
    left, right = (U @ a).T.to(A), (b @ y).to(A) @ basis
    e = s * torch.linalg.vector_norm(linear(left, A.T) - s.to(A)[:, None] * right, dim=1)
    wanted, tiny = s[:-1].square(), torch.finfo(torch.float64).tiny
    far = values[-rank - 2 * max(rank, NARROWEST)]
    turn = e[:-1] / (wanted - far).clamp_min(tiny) * (1 + e[-1] / (wanted - s[-1].square()).clamp_min(tiny))
    off = math.sqrt(2) * float(torch.linalg.vector_norm(s[:-1] * turn.clamp_max(1)))
    return (left[:rank], s[:rank].to(A), right[:rank]), off
