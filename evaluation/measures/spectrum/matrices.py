"""What the singular values and vectors of an update say of it: pure functions of one layer's matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.measures.merging.factors import Factored, factored, pair_of
from evaluation.measures.merging.updates import Changed
from variants.core.linalg import full_precision


def effective_rank(s: Tensor) -> float:
    """``exp(-sum p log p)`` with ``p = s / sum s``, for singular values s (rank,) above zero: from 1 to their number.

    Roy and Vetterli 2007, "The effective rank", definition 1.
    """
    p = s / s.sum()
    return float(torch.special.entr(p).sum().exp())


def stable_rank(s: Tensor) -> float:
    """``||D||_F^2 / ||D||_2^2``, for D's singular values s (rank,), descending: from 1 to the rank."""
    return float((s / s[0]).square().sum())


def amplification(D: Factored, W: Tensor, count: int) -> float | None:
    """``||D_r||_F / ||U^T W V||_F`` with U (out, r) and V (in, r) the leading singular vectors of the update D.

    Hu et al. 2021 (arXiv 2106.09685), section 7.3: by how much the directions which D emphasises are amplified, of what
    W (out, in) has in them. r is ``count``, or D's rank if that is less; D_r is D cut to rank r, so that for an update
    of low rank the numerator is ||D||_F, as published. None where W has nothing in these directions.
    """
    there = torch.linalg.matrix_norm(D.U[:, :count].mT @ W.to(D.U) @ D.Vh[:count].mT)
    return float(torch.linalg.vector_norm(D.s[:count]) / there) if there > 0 else None


def shares(D: Factored, U: Tensor, Vh: Tensor) -> tuple[float, float]:
    """``||U^T D||_F^2 / ||D||_F^2`` and ``||D V||_F^2 / ||D||_F^2``: the parts of the update's energy inside a left and
    a right subspace.

    Args:
        U, Vh: orthonormal bases, (out, k) and (k, in). For directions drawn by chance the parts are k / out and k / in.
    """
    left, right = (U.to(D.U).mT @ D.U) * D.s, (Vh.to(D.Vh) @ D.Vh.mT) * D.s
    whole = D.s.square().sum()
    return float(left.square().sum() / whole), float(right.square().sum() / whole)


def intruders(changed: Tensor, base: Tensor, epsilon: float) -> int:
    """How many columns of ``changed`` (out, k), the leading left singular vectors of ``W + D``, have an absolute cosine
    below epsilon with every left singular vector of W, the columns of ``base`` (out, min(out, in)).

    Shuttleworth et al. 2024 (arXiv 2410.21228); their published code looks at k = 10 with epsilon 0.5. Where singular
    values of W nearly coincide, a small update may turn their vectors among themselves: those can count, and are no
    directions that W did not have.
    """
    return int(((changed.mT @ base.to(changed)).abs().amax(dim=1) < epsilon).sum())


@full_precision
def decomposed(change: Changed) -> Factored:
    """The update's singular value decomposition in float64, without directions that are rounding.

    Through its exact low-rank pair where the method has one. Elsewhere the update is the difference of two weights,
    whose rounding is a random matrix with a largest singular value of about ``eps ||W||_F / sqrt(min(out, in))``: what
    is below four times that is left out.
    """
    pair = pair_of(change)
    if pair is not None and len(pair.A) < min(change.W.shape):
        return factored(pair)
    U, s, Vh = torch.linalg.svd(change.D.double(), full_matrices=False)
    noise = torch.finfo(change.W.dtype).eps * float(change.W.double().norm()) / min(change.W.shape) ** 0.5
    real = s > min(4 * noise, float(s[0]) / 2)  # the largest always stays: the update is not zero
    return Factored(U[:, real], s[real], Vh[real])
