"""LoRA, and LoRA from another start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.variants.oracles.dense import Oracle, outer_sum, singular_part


def lora(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    return W + v.scale * outer_sum(t["B"], t["A"])


def rank_stabilised(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    alpha = v.rank if v.alpha is None else v.alpha
    return W + alpha / v.rank**0.5 * outer_sum(t["B"], t["A"])


def dora(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    V = W + v.scale * outer_sum(t["B"], t["A"])
    length = V.square().sum(dim=1).sqrt()
    length = length.detach() if v.detach_norm else length  # section 4.3: constant in the gradient
    return torch.stack([t["m"][i] * V[i] / length[i] for i in range(V.shape[0])])


def pissa(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    return W - singular_part(W, slice(0, t["A"].shape[0])) + v.scale * outer_sum(t["B"], t["A"])


def milora(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    smallest = slice(min(W.shape) - t["A"].shape[0], min(W.shape))
    return W - singular_part(W, smallest) + v.scale * outer_sum(t["B"], t["A"])


def olora(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    """The start is W projected onto the span of its first columns, found here one column at a time."""
    basis: list[Tensor] = []
    for k in range(t["A"].shape[0]):
        rest = W[:, k]
        for _ in range(2):  # Gram-Schmidt loses digits on nearly parallel columns, and gets them back when repeated
            for q in basis:
                rest = rest - (q @ rest) * q
        basis.append(rest / rest.square().sum().sqrt())
    start = outer_sum(torch.stack(basis, dim=1), torch.stack([q @ W for q in basis]))
    return W - v.scale * start + v.scale * outer_sum(t["B"], t["A"])


def rebased(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    """Where data decided the start, which is kept."""
    return W - v.scale * outer_sum(t["B0"], t["A0"]) + v.scale * outer_sum(t["B"], t["A"])


def lora_ga(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    return rank_stabilised(W, t, v) + W - rank_stabilised(W, {"A": t["A0"], "B": t["B0"]}, v)


def lora_null(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    return rebased(W, t, v) if v.version == "v1" else W + v.scale * outer_sum(t["B"] - t["B0"], t["A"])


ORACLES: dict[str, Oracle] = {
    "lora": lora,
    "rslora": rank_stabilised,
    "lora_plus": lora,
    "scaled_lora": lora,
    "dora": dora,
    "pissa": pissa,
    "milora": milora,
    "olora": olora,
    "lora_ga": lora_ga,
    "corda": rebased,
    "eva": lora,
    "lora_one": rank_stabilised,
    "lora_null": lora_null,
}
