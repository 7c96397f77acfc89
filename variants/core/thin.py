"""A weight changed through a bottleneck, ``diag(gain) (W + scale B C A)``: how most methods of the family look.

A method gives the factors (``Variant.thin``); in which order they are multiplied is decided here and in ``fused``.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from variants.core.products import linear, with_product


def project(x: Tensor, M: Tensor) -> Tensor:  # shapes: (..., k), (j, k) -> (..., j)
    """``x @ M.T`` in x's dtype, whatever the precision in which M is kept."""
    return linear(x, M.to(x.dtype))


class Thin(NamedTuple):
    """The factors of ``diag(gain) (W + scale B C A)`` for a weight W (out, in)."""

    A: Tensor  # (k, in)
    B: Tensor  # (out, k)
    core: Tensor | None = None  # C, shape (k, k), or (k,) for a diagonal; None: the identity
    scale: float = 1.0
    gain: Tensor | None = None  # (out,); None: all ones

    def weight(self, W: Tensor) -> Tensor:  # shape: (out, in)
        """The changed weight, written out."""
        A, B, C = self.A, self.B, self.core
        if C is not None and C.ndim == 1:
            B = B * C
        elif C is not None:  # to the shorter factor
            A, B = (linear(C, A.t()), B) if len(B) > A.shape[1] else (A, linear(B, C.t()))
        V = with_product(W, B, A, self.scale)
        return V if self.gain is None else self.gain[:, None] * V

    def product(self, x: Tensor, y: Tensor) -> Tensor:  # shapes: (..., in), (..., out) -> (..., out)
        """The product of x with the changed weight, where ``y`` is the one with W."""
        y = y + self.change(x)
        return y if self.gain is None else self.gain.to(y.dtype) * y

    def change(self, x: Tensor) -> Tensor:  # shapes: (..., in) -> (..., out)
        """The product of x with ``scale B C A``."""
        h = project(x, self.A)
        if self.core is not None:
            h = h * self.core.to(h.dtype) if self.core.ndim == 1 else project(h, self.core)
        return project(self.scale * h if self.scale != 1 else h, self.B)
