"""Lengths of the rows of ``W + s B A`` without forming the sum."""

from __future__ import annotations

import torch
from torch import Tensor

from variants.core.linalg import full_precision, raised


@full_precision
def changed_rows(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:  # shape: (out,)
    """``||W_i + s (B A)_i||`` for each row i, from ``||W_i||^2 + 2 s <W_i, (B A)_i> + s^2 ||(B A)_i||^2``.

    Products with A are thin. What cancels is lost: the relative error is that of rounding times
    ``(||W_i||^2 + ||s (B A)_i||^2) / ||W_i + s (B A)_i||^2``, which stays near 1 unless the update undoes the row.
    """
    A, B = raised(A), raised(B)
    mixed, own = raised(W) @ A.mT, B @ (A @ A.mT)
    squares = squared_rows(W) + (scale * (2 * mixed + scale * own) * B).sum(1)
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def squared_rows(W: Tensor) -> Tensor:  # shape: (out,)
    """``||W_i||^2`` for each row i, in float32 or above."""
    # Not remembered: no sign tells of a write through ``W.data``, and one pass over W costs little more than a look-up.
    return torch.linalg.vector_norm(raised(W), dim=1).square()
