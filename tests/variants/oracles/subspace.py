"""Methods inside the singular subspaces of W, and such that train triplets ``B diag(E) A``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.variants.oracles.dense import Oracle, outer_sum, singular_part


def triplets(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T, with the signs as they come: only for what does not depend on them."""
    return tuple(torch.from_numpy(part) for part in np.linalg.svd(W.detach().numpy(), full_matrices=False))


def lora_xs(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    return W + v.scale * outer_sum(outer_sum(t["B"], t["R"]), t["A"])


def svft(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    S = triplets(W)[1]
    total = outer_sum(t["U"] * S, t["Vh"])
    gate = 1.0 if v.faithful == "paper" else 1 / (1 + torch.exp(-t["g"]))
    for n in range(t["m"].shape[0]):
        i, j = int(t["places"][0, n]), int(t["places"][1, n])
        total = total + gate * t["m"][n] * torch.outer(t["U"][:, i], t["Vh"][j])
    return total


def svf(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    U, S, Vh = triplets(W)
    if v.faithful == "paper":
        return outer_sum(U * (S * t["z"]), Vh)
    z = 1 / (1 + torch.exp(-t["p"]))
    return outer_sum(U * (S * z), Vh) * (S.sum() / (S * z).sum())


def svdiff(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    del v
    U, S, Vh = triplets(W)
    moved = torch.stack([x if x > 0 else 0 * x for x in S + t["delta"]])
    return outer_sum(U * moved, Vh)


def diagonal_pair(t: Mapping[str, Tensor], scale: float) -> Tensor:
    return scale * outer_sum(t["B"], torch.diag(t["E"]) @ t["A"])


def kasa(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    r = t["E"].shape[0]
    kept = (min(W.shape) if v.faithful == "paper" else W.shape[1]) - r
    return singular_part(W, slice(0, kept)) + diagonal_pair(t, v.scale)


def sorsa(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    return W - v.scale * singular_part(W, slice(0, t["E"].shape[0])) + diagonal_pair(t, v.scale)


def adalora(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    r = t["E"].shape[0]
    alpha = r if v.alpha is None else v.alpha
    return W + diagonal_pair(t, alpha / (r if v.faithful == "paper" else r + 1e-5))


def cayley(K: Tensor) -> Tensor:
    eye = torch.eye(K.shape[0], dtype=K.dtype)
    return (eye + K) @ torch.linalg.inv(eye - K)


def spectral_adapter(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    """The bases from the adapter, whose signs decide; the values and the rest from W."""
    r = t["U"].shape[1]
    S, rest = triplets(W)[1][:r], W - singular_part(W, slice(0, r))
    if v.form == "additive":
        return rest + outer_sum((t["U"] + t["B"]) * S, t["Vh"] + t["A"])
    left, right = (base @ cayley((t[D] - t[D].T) / 2) for base, D in ((t["U"], "Du"), (t["Vh"].T, "Dv")))
    return rest + outer_sum(left * (S * t["c"] if v.faithful == "code" else S), right.T)


def psoft(W: Tensor, t: Mapping[str, Tensor], v: Any) -> Tensor:
    r = t["U"].shape[1]
    S, rest = triplets(W)[1][:r], W - singular_part(W, slice(0, r))
    K = torch.zeros(r, r, dtype=W.dtype)
    n = 0
    for i in range(r):
        for j in range(i + 1, r):
            unit = torch.zeros(r, r, dtype=W.dtype)
            unit[i, j], unit[j, i] = 1.0, -1.0
            K, n = K + t["K"][n] * unit, n + 1
    if v.inverse == "exact":
        R = cayley(K)
    else:  # I + 2 K + ... + 2 K^(terms - 2) + K^(terms - 1)
        powers = [torch.linalg.matrix_power(K, p) for p in range(v.terms)]
        R = powers[0] + 2 * sum(powers[1:-1], torch.zeros_like(K)) + powers[-1]
    if v.vectors:
        R = torch.diag(t["b"]) @ R @ torch.diag(t["a"])
    return rest + outer_sum(t["U"] * S, R @ t["Vh"])


ORACLES: dict[str, Oracle] = {
    "adalora": adalora,
    "kasa": kasa,
    "lora_sb": lora_xs,
    "lora_xs": lora_xs,
    "psoft": psoft,
    "sorsa": sorsa,
    "spectral_adapter": spectral_adapter,
    "svdiff": svdiff,
    "svf": svf,
    "svft": svft,
}
