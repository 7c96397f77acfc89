"""Products with a weight, by the faster of the libraries which torch brings.

In float32 torch multiplies dense matrices by MKL, which on AMD's processors leaves AVX-512 unused. oneDNN, which torch
brings too, uses it: 246 against 112 GFLOP a second on one core (AMD EPYC, 384 x 384, 1,024 tokens, torch 2.13). So here
products go there wherever that is known to be faster, and through ``F.linear`` everywhere else.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

Library = Literal["torch", "onednn"]
CHOICE = "SVDBENCH_PRODUCTS"  # environment variable: one of the libraries, instead of the faster one
SMALLEST = 3 * 2**19  # multiply-adds: below them, what oneDNN takes to begin is longer than the product


def reverse_mode_only() -> bool:
    """Whether ordinary reverse-mode autograd is all that watches, and not a compiler or tracer, a dispatch mode, a
    transform of ``torch.func`` or forward-mode differentiation, which need to see single operations of torch."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def linear(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:  # shapes: (..., in), (out, in) -> (..., out)
    """``x @ W.T + bias``, as ``F.linear``. Can be differentiated any number of times."""
    if not _by_onednn(x, W, bias):
        return F.linear(x, W, bias)
    trains = x.requires_grad or W.requires_grad or (bias is not None and bias.requires_grad)
    if not (trains and torch.is_grad_enabled()):
        return _onednn(x, W, bias)
    # Rows, since of more dimensions oneDNN's product is a view, which an activation after it may not change in place.
    y: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), W, bias)
    return y.view(*x.shape[:-1], y.shape[-1])


def with_product(W: Tensor, B: Tensor, A: Tensor, scale: float = 1.0) -> Tensor:  # shape: (out, in)
    """``W + scale B A``."""
    if not _by_onednn(B, A.t(), None) or W.dtype != B.dtype:
        return torch.addmm(W, B, A, alpha=scale)
    return linear(B if scale == 1 else scale * B, A.t()).add_(W)


def over_rows(g: Tensor, x: Tensor) -> Tensor:  # shapes: (rows, out), (rows, in) -> (out, in)
    """``g.T @ x``, the gradient of a weight. oneDNN turns its first operand, which should be the smaller."""
    return linear(g.t(), x.t()) if g.shape[1] <= x.shape[1] else linear(x.t(), g.t()).t()


class FastLinear(nn.Linear):
    """``torch.nn.Linear`` by way of ``linear``. Made by ``variants.core.accelerate``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@functools.cache
def library() -> Library:
    """The library for products in float32 on this machine's CPU.

    Raises:
        ValueError: the environment variable SVDBENCH_PRODUCTS names none, or one which this torch lacks.
    """
    chosen = os.environ.get(CHOICE, "")
    if not chosen:
        return "onednn" if _has_onednn() and _is_faster() else "torch"
    if chosen not in get_args(Library):
        raise ValueError(f"{CHOICE}={chosen}: expected {' or '.join(get_args(Library))}, or nothing for the faster one")
    if chosen == "onednn" and not _has_onednn():
        raise ValueError(f"{CHOICE}=onednn: this build of torch has no oneDNN; write torch")
    return cast(Library, chosen)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_faster() -> bool:
    """Whether this is known of the processor: AMD's with AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    return table.read_text(encoding="utf-8") if table.is_file() else platform.processor()


def _by_onednn(x: Tensor, W: Tensor, bias: Tensor | None) -> bool:
    """In the order of what is asked: whether it pays, what oneDNN can do, who watches. What it cannot do, torch can, or
    refuses in clearer words."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():  # first, for they follow what comes after it
        return False
    if library() == "torch" or x.numel() * W.shape[0] < SMALLEST:
        return False
    if not all(_is_plain(t) for t in (x, W, bias) if t is not None):
        return False
    if W.ndim != 2 or x.shape[-1] != W.shape[1] or not (W.is_contiguous() or W.t().is_contiguous()):
        return False
    if bias is not None and not (bias.shape == W.shape[:1] and bias.is_contiguous()):  # read as it lies
        return False
    return reverse_mode_only() and not torch.is_autocast_enabled("cpu")


def _is_plain(t: Tensor) -> bool:
    """Whether a tensor is nothing but single-precision numbers in the CPU's memory."""
    alone = type(t) is Tensor or type(t) is nn.Parameter
    return alone and t.dtype == torch.float32 and t.is_cpu and t.layout == torch.strided and not t.is_nested


def _onednn(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, W, bias, "none", [], "")
    return y


class _Linear(torch.autograd.Function):
    """(x (rows, in), W, bias) -> (rows, out): what oneDNN's product lacks, a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        for_x, for_W, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_W else None, W if for_x else None)
        return _onednn(x, W, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, W = ctx.saved_tensors
        for_x, for_W, for_bias = ctx.needs_input_grad
        dx = linear(g, W.t()) if for_x else None
        return dx, over_rows(g, x) if for_W else None, g.sum(0) if for_bias else None
