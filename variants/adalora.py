"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al., 2023, arXiv 2303.10512)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, LayerState, LoRAPair, States, Tensors, register
from variants.core.fields import Count, Fraction, NotNegative, Share
from variants.core.lowrank import DiagonalPair, orthogonality_defects


@register("adalora")
@dataclass(frozen=True, kw_only=True)
class AdaLoRA(DiagonalPair):
    """``W + s B diag(E) A``: the triplets of all layers compete for a budget, from ``rank`` down to ``target`` a layer.

    A triplet counts by the sensitivity |w dL/dw| of its entries, smoothed, times its smoothed deviation (equations
    8-11). The budget falls with the cube of the time left, between the first ``tinit`` and the last ``tfinal`` of the
    run, as in the authors' code (equation 12 would make it jump up); then the mask stays. The penalty is the sum of
    squared defects of A and B (equation 4); the authors' code has the mean of plain ones and s = alpha / (rank + 1e-5).
    """

    paper = "arXiv 2303.10512"
    lr_ratio = 5.0  # published rates are 5e-4 to 2.2e-3, against 1e-4 to 4e-4 for LoRA
    constraint = "soft: A, B orthonormal (penalty)"
    orthonormal = ("A", "B")
    rank: Count = 12
    target: Count | None = None  # on average over layers; None: two thirds of the rank, as published
    tinit: Share = 0.1
    tfinal: Share = 0.5
    interval: Count = 1  # steps from one mask to the next
    beta1: Fraction = 0.85
    beta2: Fraction = 0.85
    penalty_weight: NotNegative = 0.1
    faithful: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and self.target > self.rank:
            raise ValueError(f"target is a whole number from 1 to the rank {self.rank}, not {self.target!r}")
        if self.tinit + self.tfinal >= 1:
            raise ValueError(f"tinit {self.tinit} and tfinal {self.tfinal} are shares of a run with some left between")

    @property
    def scale(self) -> float:
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank + (1e-5 if self.faithful == "code" else 0.0))

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        (out, in_), r = W.shape, self.rank
        A, B = (0.02 * torch.randn(shape, generator=rng, dtype=W.dtype) for shape in ((r, in_), (out, r)))
        return Init(train={"A": A, "B": B, "E": torch.zeros(r, dtype=W.dtype)})

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        kept = t["E"] != 0  # pruned triplets need no place in the pair
        return super().as_lora(W, {"A": t["A"][kept], "B": t["B"][:, kept], "E": t["E"][kept]})

    def penalty(self, states: States) -> Tensor | None:
        defects = orthogonality_defects(states, self.orthonormal)
        return self.penalty_weight * (defects.mean() if self.faithful == "code" else defects.square().sum())

    def phases(self, total: int) -> tuple[int, int]:
        """After which step the budget starts to fall, and at which it has fallen."""
        return round(self.tinit * total), total - round(self.tfinal * total)

    def budget(self, step: int, total: int, layers: int) -> int:
        """How many triplets there may be after this step, in all layers together."""
        first, last = self.phases(total)
        left = min(1.0, max(0.0, 1 - (step - first) / max(1, last - first)))
        target = max(1, round(self.rank * 2 / 3)) if self.target is None else self.target
        return int(layers * (self.rank - target) * left**3 + layers * target)

    @torch.no_grad()
    def after_step(self, states: States, step: int, total: int) -> None:
        first, last = self.phases(total)
        for state in states:
            if step < last or not state.scratch:  # from then on the scores rest, and with them the mask
                self._watch(state)
        due = step >= last or step % self.interval == 0
        if step <= first or not due or not any(state.scratch for state in states):
            return
        scores = torch.cat([self._scores(state) for state in states])
        pruned = torch.ones_like(scores, dtype=torch.bool)
        pruned[scores.topk(self.budget(step, total, len(states))).indices] = False
        for state, own in zip(states, pruned.split(self.rank), strict=True):
            state.t["E"].masked_fill_(own, 0.0)

    def _watch(self, state: LayerState) -> None:
        for name in ("A", "B", "E"):
            w = state.t[name]
            if w.grad is not None:
                sensitivity = (w * w.grad).abs()
                smooth, deviation = state.scratch.get(name, (torch.zeros_like(w), torch.zeros_like(w)))
                smooth = self.beta1 * smooth + (1 - self.beta1) * sensitivity
                deviation = self.beta2 * deviation + (1 - self.beta2) * (sensitivity - smooth).abs()
                state.scratch[name] = smooth, deviation

    def _scores(self, state: LayerState) -> Tensor:  # shape: (rank,)
        products = {name: smooth * deviation for name, (smooth, deviation) in state.scratch.items()}
        A, B, E = (products.get(name, torch.zeros_like(state.t[name])) for name in ("A", "B", "E"))
        return E + A.mean(dim=1) + B.mean(dim=0)
