"""U diag(s) V^T on the Stiefel manifold (after StelLA, Li et al., 2025, arXiv 2510.01938, with s = 0 at the start)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from variants.core import Init, LoRAPair, States, Tensors, check_rank, project, register
from variants.core.interface import FrozenProduct
from variants.core.linalg import polar, random_orthonormal, tangent
from variants.lora import LoRA


@register("stiefel")
@dataclass(frozen=True, kw_only=True)
class Stiefel(LoRA):
    """``W + c U diag(s) V^T``: U (out, rank) and V (in, rank) keep orthonormal columns under any optimiser.

    The optimiser steps freely; the step is then projected onto the tangent space at the point it left, and retracted by
    the polar factor (section 3.3). Projecting the gradient instead would not do: Adam's coordinate-wise scaling takes a
    tangent gradient off the tangent space.
    """

    paper = "arXiv 2510.01938"
    lr_ratio = 5.0  # the paper's 5e-4 against 1e-4 for its tuned LoRA

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del stats
        check_rank(self.rank, W)
        out, in_ = W.shape
        U = random_orthonormal(out, self.rank, rng, W.dtype)
        V = random_orthonormal(in_, self.rank, rng, W.dtype)
        return Init(train={"U": U, "s": torch.zeros(self.rank, dtype=W.dtype), "V": V})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + self.scale * (t["U"] * t["s"]) @ t["V"].T

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return linear(x) + project(project(x, t["V"].T) * (self.scale * t["s"]).to(x.dtype), t["U"])

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (out + in_ + 1)

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return LoRAPair(t["V"].T, self.scale * t["U"] * t["s"])

    def param_groups(self, states: States, lr: float) -> list[dict[str, Any]]:
        factors = [state.t[key] for state in states for key in ("U", "V")]  # decay would only shorten the step
        return [
            {"params": [state.t["s"] for state in states], "lr": lr},
            {"params": factors, "lr": lr, "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def before_step(self, states: States) -> None:
        for state in states:
            state.scratch["left"] = {key: state.t[key].clone() for key in ("U", "V")}

    @torch.no_grad()
    def after_step(self, states: States, step: int, total: int) -> None:
        del step, total
        alike: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for state in states:
            for key, left in state.scratch.pop("left").items():
                alike[left.shape, left.dtype, left.device].append((left, state.t[key]))
        for pairs in alike.values():  # one batched retraction for all factors of a shape
            X = torch.stack([left for left, _ in pairs])
            Y = polar(X + tangent(X, torch.stack([arrived for _, arrived in pairs]) - X))
            for (_, arrived), retracted in zip(pairs, Y, strict=True):
                arrived.copy_(retracted)
