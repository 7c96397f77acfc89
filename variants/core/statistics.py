"""What methods start from when they are calibrated: a layer's statistics, refused where they say nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from variants.core.interface import Refused, Tensors


def gradient(stats: Tensors | None) -> Tensor:  # shape: (out, in)
    """The averaged gradient, which must point somewhere.

    Raises:
        Refused: it is zero or not finite.
    """
    assert stats is not None, "the method needs the gradient"
    G = stats["gradient"]
    if not bool(G.isfinite().all()):
        raise Refused("its gradient is not finite: calibrate with batches whose loss is finite")
    if not bool(G.any()):
        raise Refused("its gradient is zero: leave the layer out, or calibrate with a loss that reaches it")
    return G


def covariance(stats: Tensors | None, *, centred: bool = False) -> Tensor:  # shape: (in, in), float64
    """The mean of x x^T over the layer's inputs; ``centred``: about their mean, that is less m m^T.

    Raises:
        Refused: it is zero (centred: the inputs do not vary) or not finite.
    """
    assert stats is not None, "the method needs the covariance"
    C = stats["covariance"].to("cpu", torch.float64)
    if centred:
        m = stats["mean"].to("cpu", torch.float64)
        C = C - torch.outer(m, m)
    if not bool(C.isfinite().all()):
        raise Refused("its inputs are not finite: calibrate with data that the base model can take")
    if not float(C.trace()) > 0:
        wrong = "do not vary: calibrate with more data" if centred else "are all zero: calibrate with data"
        raise Refused(f"its inputs {wrong} that reaches the layer")
    return C
