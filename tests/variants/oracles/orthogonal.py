"""Methods under an orthogonality constraint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.variants.oracles.dense import Oracle, outer_sum

Given = Mapping[str, Tensor]


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def unit(n: int, i: int) -> Tensor:
    return eye(n)[i]


def reflection(u: Tensor) -> Tensor:
    return eye(u.shape[0]) - 2 * torch.outer(u, u) / (u * u).sum()


def skew(entries: Tensor, n: int) -> Tensor:
    K, place = torch.zeros(n, n, dtype=entries.dtype), 0
    for i in range(n):
        for j in range(i + 1, n):
            K = K + entries[place] * (torch.outer(unit(n, i), unit(n, j)) - torch.outer(unit(n, j), unit(n, i)))
            place += 1
    return K


def cayley(K: Tensor) -> Tensor:
    return (eye(K.shape[0]) + K) @ torch.linalg.inv(eye(K.shape[0]) - K)


def exponential(A: Tensor) -> Tensor:
    """By its series on a matrix halved until the series is short, and squared back."""
    total = power = eye(A.shape[0])
    for k in range(1, 25):
        power = power @ (A / 2**8) / k
        total = total + power
    for _ in range(8):
        total = total @ total
    return total


def embedded(block: Tensor, places: list[int], n: int) -> Tensor:  # shape: (n, n)
    """The identity with a block in the rows and columns of these places."""
    E = torch.stack([unit(n, place) for place in places])
    return eye(n) - E.T @ E + E.T @ block @ E


# ---- U s V^T --------------------------------------------------------------------------------------------------------


def usv(W: Tensor, U: Tensor, s: Tensor, V: Tensor, scale: float) -> Tensor:
    rank = s.shape[0]
    core = s if s.ndim == 2 else sum(s[k] * torch.outer(unit(rank, k), unit(rank, k)) for k in range(rank))
    return W + scale * outer_sum(outer_sum(U, core), V.T)


def plain(W: Tensor, t: Given, v: Any) -> Tensor:
    return usv(W, t["U"], t["s"], t["V"], v.scale)


def parametrized(W: Tensor, t: Given, v: Any) -> Tensor:
    def factor(X: Tensor, start: Tensor) -> Tensor:
        n, rank = X.shape
        if v.map == "householder":
            Q = eye(n)
            for k in range(rank):
                Q = Q @ reflection(unit(n, k) + torch.cat([torch.zeros(k + 1, dtype=X.dtype), X[k + 1 :, k]]))
            return Q[:, :rank] * start
        A = outer_sum(X, start.T) - outer_sum(start, X.T)
        return (cayley(A / 2) if v.map == "cayley" else exponential(A)) @ start

    return usv(W, factor(t["X"], t["U0"]), t["s"], factor(t["Y"], t["V0"]), v.scale)


# ---- W R^T ----------------------------------------------------------------------------------------------------------


def turn(entries: Tensor, v: Any) -> Tensor:  # shape: (block, block)
    K = skew(entries, v.block)
    if v.inverse == "exact":
        return cayley(K)
    return (eye(v.block) + K) @ sum(torch.linalg.matrix_power(K, k) for k in range(v.terms - 1))


def oft(W: Tensor, t: Given, v: Any) -> Tensor:
    n, b = W.shape[1], v.block
    R = eye(n)
    for q in range(n // b):
        R = R @ embedded(turn(t["K"][q], v), list(range(q * b, (q + 1) * b)), n)
    return W @ R.T


def boft(W: Tensor, t: Given, v: Any) -> Tensor:
    n, b = W.shape[1], v.block
    R, generators = eye(n), iter(t["K"])
    for q in range(n // b):
        R = embedded(turn(next(generators), v), list(range(q * b, (q + 1) * b)), n) @ R
    halves = [list(range(i, i + b // 2)) for i in range(0, n, b // 2)] if v.butterflies > 1 else []
    for i in range(1, v.butterflies):
        for group in range(0, len(halves), 2 ** (i + 1)):
            for j in range(group, min(group + 2**i, len(halves) - 2**i)):
                R = embedded(turn(next(generators), v), halves[j] + halves[j + 2**i], n) @ R
    assert next(generators, None) is None, "a generator is left over"
    return torch.diag(t["s"]) @ W @ R.T


def hra(W: Tensor, t: Given, v: Any) -> Tensor:
    rank = t["u"].shape[1]
    if not v.gram_schmidt:
        for k in range(rank):
            W = W @ reflection(t["u"][:, k])
        return W
    basis: list[Tensor] = []
    for k in range(rank):
        u = t["u"][:, k]
        for q in basis:
            u = u - (q * u).sum() * q
        basis.append(u / u.square().sum().sqrt())
    for u in [*basis, *t["U0"].T]:
        W = W @ reflection(u)
    return W


def goft(W: Tensor, t: Given, v: Any) -> Tensor:
    n = W.shape[1]
    R, place, stride = eye(n), 0, 1
    while stride < n:
        for i in range(0, n, 2 * stride):
            if i + stride < n:
                if v.form == "strict":
                    angle = t["angle"][place]
                    c, s = torch.cos(angle), torch.sin(angle)
                    block = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
                else:
                    block = eye(2) + t["E"][place]
                R = embedded(block, [i, i + stride], n) @ R
                place += 1
        stride *= 2
    return W @ R.T


ORACLES: dict[str, Oracle] = {
    "usv_penalty": plain,
    "usv_parametrized": parametrized,
    "stiefel": plain,
    "stella": plain,
    "polar": plain,
    "oft": oft,
    "boft": boft,
    "hra": hra,
    "goft": goft,
}
