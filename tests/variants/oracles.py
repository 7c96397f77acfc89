"""What each method means, written from its paper with dense matrices: slow, obvious, and sharing no code with it.

``ORACLES[name](W, t, s)`` is the effective weight (out, in) on the ORIGINAL weight W, for tensors t and scale s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

Oracle = Callable[[Tensor, Mapping[str, Tensor], float], Tensor]


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


def lora(W: Tensor, t: Mapping[str, Tensor], s: float) -> Tensor:
    return W + s * outer_sum(t["B"], t["A"])


def dora(W: Tensor, t: Mapping[str, Tensor], s: float) -> Tensor:
    V = W + s * outer_sum(t["B"], t["A"])
    length = V.square().sum(dim=1).sqrt().detach()  # section 4.3: constant in the gradient
    return torch.stack([t["m"][i] * V[i] / length[i] for i in range(V.shape[0])])


def pissa(W: Tensor, t: Mapping[str, Tensor], s: float) -> Tensor:
    return W - singular_part(W, slice(0, t["A"].shape[0])) + s * outer_sum(t["B"], t["A"])


def milora(W: Tensor, t: Mapping[str, Tensor], s: float) -> Tensor:
    smallest = slice(min(W.shape) - t["A"].shape[0], min(W.shape))
    return W - singular_part(W, smallest) + s * outer_sum(t["B"], t["A"])


def lora_xs(W: Tensor, t: Mapping[str, Tensor], s: float) -> Tensor:
    return W + s * outer_sum(outer_sum(t["B"], t["R"]), t["A"])


def stiefel(W: Tensor, t: Mapping[str, Tensor], s: float) -> Tensor:
    scaled = torch.stack([t["s"][k] * t["V"][:, k] for k in range(t["s"].shape[0])])
    return W + s * outer_sum(t["U"], scaled)


ORACLES: dict[str, Oracle] = {
    "lora": lora,
    "dora": dora,
    "pissa": pissa,
    "milora": milora,
    "lora_xs": lora_xs,
    "stiefel": stiefel,
}
