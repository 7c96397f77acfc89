"""What oracles are written with: dense, slow and obvious."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# (original weight W (out, in), the layer's tensors, the method's hyperparameters) -> effective weight (out, in)
Oracle = Callable[[Tensor, Mapping[str, Tensor], Any], Tensor]


def outer_sum(columns: Tensor, rows: Tensor) -> Tensor:  # shapes: (out, r), (r, in) -> (out, in)
    """A sum of rank-one matrices, one at a time."""
    total = torch.zeros(columns.shape[0], rows.shape[1], dtype=columns.dtype)
    for k in range(rows.shape[0]):
        total = total + torch.outer(columns[:, k], rows[k])
    return total


def singular_part(W: Tensor, chosen: slice) -> Tensor:  # shape: (out, in)
    """The part of W that the chosen singular triplets make up."""
    U, S, Vh = np.linalg.svd(W.detach().numpy(), full_matrices=False)
    return torch.from_numpy((U[:, chosen] * S[chosen]) @ Vh[chosen])
