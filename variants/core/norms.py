"""Lengths of the rows of ``W + s B A`` without forming the sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from variants.core.linalg import full_precision, raised

_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()  # frozen weight -> its state, and its squared lengths


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
    """``||W_i||^2`` for each row i, in float32 or above; remembered as long as a frozen W lives and is not changed."""
    if W.requires_grad or torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or W.is_inference():
        return raised(W).square().sum(1)
    state = W._version, W.data_ptr(), W.dtype, W.device  # a module's ``to`` puts other data into the same parameter
    known, squares = _KNOWN.get(W, (None, None))
    if known != state:
        squares = raised(W.detach()).square().sum(1)
        _KNOWN[W] = state, squares
    return squares
