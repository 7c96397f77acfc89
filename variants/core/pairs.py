"""Low-rank pairs as matrices: added, cut to a rank, and brought to a rank which a layer can have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from variants.core.cache import not_kept
from variants.core.interface import LoRAPair, Refused
from variants.core.linalg import top


class Cut(NamedTuple):
    """A pair in place of an update dW: ``error = ||dW - B A||_F / ||dW||_F``, and ``norm = ||dW||_F``."""

    pair: LoRAPair
    error: float
    norm: float


def concatenated(pairs: Sequence[LoRAPair]) -> LoRAPair:
    """The sum of pairs (rank_i, in), (out, rank_i) as one pair, exactly; its rank is the sum of the ranks."""
    return LoRAPair(torch.cat([pair.A for pair in pairs]), torch.cat([pair.B for pair in pairs], dim=1))


def fitted(pair: LoRAPair) -> LoRAPair:
    """The same product with a rank from 1 to min(out, in): one of rank 0 gets a row of zeros, and beyond the smaller
    side one of the factors can be the identity."""
    A, B = pair
    out, in_ = len(B), A.shape[1]
    if len(A) == 0:
        return LoRAPair(A.new_zeros(1, in_), B.new_zeros(out, 1))
    if len(A) <= min(out, in_):
        return pair
    eye = torch.eye(min(out, in_), dtype=A.dtype, device=A.device)
    return LoRAPair(pair.delta(), eye) if out <= in_ else LoRAPair(eye, pair.delta())


def truncated(dW: Tensor, rank: int) -> Cut:
    """The best approximation of an update (out, in) by a pair of at most this rank (Eckart and Young).

    The rows of A are orthonormal and B has the singular values, near the sizes with which LoRA starts: a direction of
    size zero can still be trained.
    """
    with not_kept():  # an update is not asked for again, as a base weight is
        U, s, Vh = top(dW, min(*dW.shape, rank))
    pair, norm = LoRAPair(Vh, U * s), float(dW.norm())
    return Cut(pair, ratio(float((dW - pair.delta()).norm()), norm), norm)


def truncated_pair(pair: LoRAPair, rank: int | None) -> Cut:
    """``truncated(pair.delta(), rank)`` by way of the core between the QR decompositions of the factors; the pair
    itself if its rank is no higher, or ``rank`` is None."""
    (QB, RB), (QA, RA) = (torch.linalg.qr(factor.double()) for factor in (pair.B, pair.A.T))
    core = RB @ RA.T
    if rank is None or rank >= len(pair.A):
        return Cut(pair, 0.0, float(core.norm()))
    (A, B), error, norm = truncated(core, rank)
    return Cut(LoRAPair((A @ QA.T).to(pair.A), (QB @ B).to(pair.B)), error, norm)


def check_rank(rank: int | None) -> None:
    """Raises Refused unless it is one, or None."""
    if rank is not None and rank < 1:
        raise Refused(f"a rank is a whole number from 1, not {rank}")


def ratio(part: float, whole: float) -> float:
    """0 of nothing is nothing, something of nothing is infinite."""
    return part / whole if whole else math.inf if part else 0.0
