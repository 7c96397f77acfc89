"""The product with ``W + scale B C A`` as one step of autograd: thin products accumulated in place on the frozen one.

What passes the bottleneck is kept transposed, (k, tokens): then every thin product, forward and backward, reads the
long matrices in the layout in which they lie, which on a CPU halves their time. Nothing is computed for a tensor that
needs no gradient, and the input is kept only where A or W trains.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from variants.core.contraction import computed_in
from variants.core.thin import Thin


def fuses() -> bool:
    """Whether ordinary reverse-mode autograd is all that watches: compilers, transforms of ``torch.func`` and
    forward-mode differentiation take the single operations instead."""
    watched = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return not watched and forward_ad._current_level < 0


def fused(x: Tensor, W: Tensor, bias: Tensor | None, thin: Thin) -> Tensor:  # shape: (..., out)
    """``gain * x (W + scale B C A)^T + bias`` in x's dtype, or in autocast's.

    Can be differentiated any number of times.
    """
    dtype = computed_in(x)
    A, B, C, gain = (None if M is None else M.to(dtype) for M in (thin.A, thin.B, thin.core, thin.gain))
    x, W, bias = x.to(dtype), W.to(dtype), None if bias is None else bias.to(dtype)
    y: Tensor = _Fused.apply(x, W, bias if gain is None else None, A, B, C, thin.scale)[0]
    if gain is None:
        return y
    return y * gain if bias is None else torch.addcmul(bias, y, gain)


def _through(C: Tensor | None, h: Tensor) -> Tensor:  # shapes: (k, tokens)
    """``C h``."""
    if C is None:
        return h
    return C[:, None] * h if C.ndim == 1 else C @ h


class _Fused(torch.autograd.Function):
    """(x, W, bias, A, B, C, scale) -> y and ``h = A x^T`` (k, tokens).

    h is an output so that it can be kept for backward and differentiated again, by way of the gradient which then
    arrives for it; nobody else sees it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, C: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        h = A @ rows.t()
        y = F.linear(rows, W, bias).addmm_(_through(C, h).t(), B.t(), alpha=scale)
        _, for_W, _, for_A, for_B, for_C, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_A or for_W else None, W, A, B, C, h if for_B or for_C else None)
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], y.shape[-1]), h

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gh: Tensor | None) -> tuple[Tensor | None, ...]:
        x, W, A, B, C, h = ctx.saved_tensors
        for_x, for_W, for_bias, for_A, for_B, for_C, _ = ctx.needs_input_grad
        dx = dW = dbias = dB = dC = None
        if gy is not None:
            g = gy.reshape(-1, gy.shape[-1])
            if for_bias:
                dbias = g.sum(0)
            if for_W:
                dW = g.t() @ x.reshape(-1, x.shape[-1])
            if for_B:
                dB = ctx.scale * (_through(C, h) @ g).t()
            if for_x:
                dx = g @ W
            if for_x or for_A or for_C:
                up = ctx.scale * (B.t() @ g.t())
                if for_C:
                    dC = (up * h).sum(1) if C.ndim == 1 else up @ h.t()
                through = _through(C if C is None or C.ndim == 1 else C.t(), up)
                gh = through if gh is None else gh + through
        dA = gh @ x.reshape(-1, x.shape[-1]) if for_A and gh is not None else None
        if for_x and gh is not None:
            dx = gh.t() @ A if dx is None else dx.addmm_(gh.t(), A)
        return None if dx is None else dx.view(ctx.shape), dW, dbias, dA, dB, dC, None
