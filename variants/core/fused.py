"""The product with ``W + scale B C A`` as one step of autograd, in whichever way takes less, forward and backward:
thin products accumulated in place on the frozen one, or the changed weight formed for a moment.

What passes the bottleneck is kept transposed, (k, tokens): then every thin product, forward and backward, reads the
long matrices in the layout in which they lie, which on a CPU halves their time. Nothing is computed for a tensor that
needs no gradient, and the input is kept only where A or W trains. Large temporary tensors are avoided, since on a CPU
it is their fresh memory which costs most: for many tokens a gain multiplies the factors in the backward pass, and not
the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variants.core.contraction import computed_in, forms
from variants.core.products import linear, over_rows
from variants.core.thin import Thin


def fused(x: Tensor, W: Tensor, bias: Tensor | None, thin: Thin) -> Tensor:  # shape: (..., out)
    """``gain * x (W + scale B C A)^T + bias`` in x's dtype, or in autocast's.

    Can be differentiated any number of times.
    """
    dtype = computed_in(x)
    A, B, C, gain = (None if M is None else M.to(dtype) for M in (thin.A, thin.B, thin.core, thin.gain))
    rows, W, bias = x.to(dtype).reshape(-1, x.shape[-1]), W.to(dtype), None if bias is None else bias.to(dtype)
    # Not in the function: what it gives as a view may not be changed in place, as an activation after the layer may do.
    y: Tensor = _Fused.apply(rows, W, bias, A, B, C, gain, thin.scale)[0]
    return y.view(*x.shape[:-1], W.shape[0])


def _through(C: Tensor | None, h: Tensor) -> Tensor:  # shapes: (k, tokens)
    """``C h``."""
    if C is None:
        return h
    return C[:, None] * h if C.ndim == 1 else C @ h


def _times(scale: float, M: Tensor) -> Tensor:
    """``scale M``."""
    return M if scale == 1 else scale * M


def _rows_scaled(gain: Tensor | None, M: Tensor) -> Tensor:  # shapes: (out,), (out, ...)
    """``diag(gain) M``."""
    return M if gain is None else gain[:, None] * M


def _summed_product(g: Tensor, z: Tensor) -> Tensor:  # shapes: (tokens, out) -> (out,)
    """``(g * z).sum(0)``, in parts of at most 2^17 numbers."""
    rows = max(1, 2**17 // max(1, g.shape[1]))
    if len(g) <= rows:
        return (g * z).sum(0)
    parts = [(a * b).sum(0) for a, b in zip(g.split(rows), z.split(rows), strict=True)]
    return torch.stack(parts).sum(0)


class _Fused(torch.autograd.Function):
    """(x (tokens, in), W, bias, A, B, C, gain, scale) -> y (tokens, out), and two tensors on the way to it, which
    nobody else sees: ``h = A x^T`` (k, tokens) where it is needed, and with a gain z (tokens, out), the product before
    it.

    They are outputs so that they can be kept for backward and differentiated again, by way of the gradients which then
    arrive for them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        C: Tensor | None,
        gain: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        _, for_W, _, for_A, for_B, for_C, for_gain, _ = ctx.needs_input_grad
        formed = forms(x.shape[0], W.shape[1], x.dtype)
        h = linear(A, x) if for_B or for_C or not formed else None
        own = bias if gain is None else None
        if formed or h is None:
            z = linear(x, Thin(A, B, C, scale).weight(W), own)
        else:
            z = linear(x, W, own).addmm_(_through(C, h).t(), B.t(), alpha=scale)
        y = z if gain is None else z * gain if bias is None else torch.addcmul(bias, z, gain)
        kept = (x if for_A or for_W else None, h if for_B or for_C else None, z if for_gain else None)
        ctx.save_for_backward(*kept, W, A, B, C, gain)
        ctx.set_materialize_grads(False)
        ctx.scale = scale
        return y, h, None if gain is None else z

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gh: Tensor | None, gz: Tensor | None) -> tuple[Tensor | None, ...]:
        x, h, z, W, A, B, C, gain = ctx.saved_tensors
        for_x, for_W, for_bias, for_A, for_B, for_C, for_gain, _ = ctx.needs_input_grad
        dx = dW = dbias = dB = dC = dgain = None
        g = gy
        if g is not None:
            dbias = g.sum(0) if for_bias else None
            dgain = _summed_product(g, z) if for_gain else None
        if gz is not None:  # only where gradients are differentiated again
            g = gz if g is None else gz + g * gain
            gain = None
        if gain is not None and g is not None and not forms(g.shape[0], W.shape[1], g.dtype):
            g, gain = g * gain, None  # fewer numbers than the factors and the weight have together
        for_h = gh  # what goes on through A to x
        if g is not None:
            formed = forms(g.shape[0], W.shape[0], g.dtype)
            if for_W:
                dW = _rows_scaled(gain, over_rows(g, x))
            if for_B:
                dB = _rows_scaled(gain, _times(ctx.scale, linear(_through(C, h), g.t())).t())
            if for_x:
                V = Thin(A, B, C, ctx.scale, gain).weight(W) if formed else _rows_scaled(gain, W)
                dx = linear(g, V.t())
            if for_A or for_C or (for_x and not formed):
                up = linear(_times(ctx.scale, _rows_scaled(gain, B)).t(), g)
                if for_C:
                    dC = (up * h).sum(1) if C.ndim == 1 else linear(up, h)
                through = _through(C if C is None or C.ndim == 1 else C.t(), up)
                gh = through if gh is None else gh + through
                for_h = for_h if formed else gh
        dA = linear(gh, x.t()) if for_A and gh is not None else None
        if for_x and for_h is not None:
            dx = for_h.t() @ A if dx is None else dx.addmm_(for_h.t(), A)
        return dx, dW, dbias, dA, dB, dC, dgain, None
