"""Baselines and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.variants.oracles.dense import Oracle, outer_sum


def vera(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    del v
    out, in_ = W.shape
    B, A = (t["B"][i] * t["b"][i] for i in range(out)), (t["A"][k, :in_] * t["d"][k] for k in range(t["d"].shape[0]))
    return W + outer_sum(torch.stack(list(B)), torch.stack(list(A)))


def delora(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    """Term by term: each is a unit matrix, times the strength over the rank, times the length of W's column."""
    total = torch.zeros_like(W)
    for k in range(v.rank):
        a, b = t["A"][k], t["B"][:, k]
        a, b = a / a.square().sum().sqrt(), b / b.square().sum().sqrt()
        total = total + t["strength"] / v.rank * torch.outer(b, a)
    return W + torch.stack([total[:, j] * W[:, j].square().sum().sqrt() for j in range(W.shape[1])], dim=1)


def ia3(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    scaling = torch.diag(t["l"])
    return W @ scaling if v.side == "input" else scaling @ W


def dense(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    del v
    rows = [torch.stack([W[i, j] + t["D"][i, j] for j in range(W.shape[1])]) for i in range(W.shape[0])]
    return torch.stack(rows)


ORACLES: dict[str, Oracle] = {"vera": vera, "delora": delora, "ia3": ia3, "dense": dense}
