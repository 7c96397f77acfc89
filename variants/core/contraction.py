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
BYTE = 4  # multiply-adds in the time of moving one byte: on a core of a server CPU, 100 G a second against 25 GB


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
    trains = torch.is_grad_enabled()
    A, B, core = (trains and part is not None and part.requires_grad for part in (thin.A, thin.B, thin.core))
    by_thin, by_dense = _by_thin(tokens, W, thin, (A, B, core)), _by_dense(tokens, W, thin, (A, B, core))
    return {"thin": by_thin, "dense": by_dense}


def _by_thin(tokens: int, W: Tensor, thin: Thin, trained: tuple[bool, bool, bool]) -> int:
    """What reaches the result, forward and backward, is added to it or formed into the weight; the bottleneck's own
    values, and a product for each factor, come where a gradient needs them."""
    (A, B, core), (out, in_), k = trained, W.shape, len(thin.A)
    size, dtype, form = W.element_size(), thin.A.dtype, _formed(W, thin)
    into = form if forms(tokens, in_, dtype) else tokens * (k * out + 2 * BYTE * size * out)
    back = form if forms(tokens, out, dtype) else tokens * (k * in_ + 2 * BYTE * size * in_)
    down = tokens * (k * in_ + BYTE * size * in_) * (B or core or not forms(tokens, in_, dtype))
    up = tokens * (k * out + BYTE * size * out) * (A or core or not forms(tokens, out, dtype))
    own = tokens * (A * (k + BYTE * size) * in_ + B * (k + BYTE * size) * out + core * _square(thin))
    return into + down + torch.is_grad_enabled() * (back + up) + own


def _by_dense(tokens: int, W: Tensor, thin: Thin, trained: tuple[bool, bool, bool]) -> int:
    """The weight once, and by way of its gradient that of each factor."""
    (A, B, core), (out, in_), k = trained, W.shape, len(thin.A)
    side = min(out, in_)  # of the factor which a core is multiplied with
    gradient = (A or B or core) * out * in_ * (tokens + 2 * BYTE * W.element_size())
    return _formed(W, thin) + gradient + (A + (B or core)) * k * out * in_ + (B + core) * _square(thin) * side


def _formed(W: Tensor, thin: Thin) -> int:
    out, in_ = W.shape
    return len(thin.A) * out * in_ + _square(thin) * min(out, in_) + 2 * BYTE * W.element_size() * out * in_


def _square(thin: Thin) -> int:
    """Multiply-adds of a core with one vector, beyond those of a diagonal."""
    return 0 if thin.core is None or thin.core.ndim == 1 else len(thin.A) ** 2


def described(tokens: int, W: Tensor, thin: Thin) -> str:
    """The order, and what it is estimated to cost, in one line."""
    found, (out, in_), k = costs(tokens, W, thin), W.shape, len(thin.A)
    shares = ", ".join(f"{name} {cost / (2 * tokens * out * in_):.2f}" for name, cost in found.items())
    where = f"{tokens} tokens, {out} x {in_}, bottleneck {k}"
    return f"{order(tokens, W, thin, W.dtype)} at {where} (beside the frozen product: {shares})"
