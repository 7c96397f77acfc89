"""In which order the product with ``W + scale B C A`` is multiplied out: a small model of its cost decides.

*thin*: x goes through the bottleneck beside W, ``x W^T + ((x A^T) C^T) B^T``. *dense*: the changed weight is formed in
every step, and takes the gradient of a dense weight. Thin is cheaper for few tokens or a narrow bottleneck; a spectrum
as wide as the layer (SVF), or VeRA's rank of 256, is cheaper dense as soon as the tokens outnumber it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from variants.core.thin import Thin

Order = Literal["thin", "dense"]
BYTE = 2  # multiply-adds in the time of moving one byte: on a core of a server CPU, 50 G a second against 25 GB


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype of a product with x."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def order(tokens: int, W: Tensor, thin: Thin, dtype: torch.dtype) -> Order:
    """The cheaper order for this many tokens computed in ``dtype``, forward and, where autograd records, backward.

    In half precision always thin: a small change would be rounded away in the sum with W.
    """
    (out, in_), k = W.shape, len(thin.A)
    if not dtype == W.dtype == thin.A.dtype or 3 * k * (in_ + out) <= out * in_:  # thin whatever the tokens
        return "thin"
    found = costs(tokens, W, thin)
    return "dense" if found["dense"] < found["thin"] else "thin"


def forms(tokens: int, side: int, dtype: torch.dtype) -> bool:
    """Whether a pass in thin order takes less with the changed weight formed for it alone, ``side`` by the width of its
    result. Adding to the result touches tokens x width numbers, forming the weight side x width; the factors' gradients
    stay thin. Not in half precision, for the reason above."""
    return tokens > side and dtype.itemsize >= 4


def costs(tokens: int, W: Tensor, thin: Thin) -> dict[Order, int]:
    """Multiply-adds of both orders beyond the frozen product, each byte moved as ``BYTE`` of them."""
    (out, in_), k = W.shape, len(thin.A)
    square = 0 if thin.core is None or thin.core.ndim == 1 else k * k
    trains = torch.is_grad_enabled()
    A, B, core = (trains and part is not None and part.requires_grad for part in (thin.A, thin.B, thin.core))
    # thin: one pass each way for x and its gradient, one more for each factor that trains
    passes = tokens * (k * (in_ + out) + square)
    work = passes * (1 + trains) + tokens * (A * k * in_ + B * k * out + core * square)
    moved = tokens * (in_ + 2 * out + trains * (2 * in_ + out) + A * in_ + B * out)
    # dense: the weight, and by way of its gradient that of each factor
    side = min(out, in_)  # of the factor which a core is multiplied with
    formed = k * out * in_ + square * side
    dense = (
        formed + (A or B or core) * tokens * out * in_ + (A + (B or core)) * k * out * in_ + (B + core) * square * side
    )
    weights = out * in_ * (2 + 2 * (A or B or core))
    size = W.element_size()
    return {"thin": work + BYTE * size * moved, "dense": dense + BYTE * size * weights}


def described(tokens: int, W: Tensor, thin: Thin) -> str:
    """The order, and what it is estimated to cost, in one line."""
    found, (out, in_), k = costs(tokens, W, thin), W.shape, len(thin.A)
    shares = ", ".join(f"{name} {cost / (2 * tokens * out * in_):.2f}" for name, cost in found.items())
    where = f"{tokens} tokens, {out} x {in_}, bottleneck {k}"
    return f"{order(tokens, W, thin, W.dtype)} at {where} (beside the frozen product: {shares})"
