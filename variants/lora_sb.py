"""LoRA-SB: Initialization using Update Approximation (Ponkshe et al., 2024, arXiv 2411.19557)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import Init, Tensors, register
from variants.core.fields import Positive
from variants.core.linalg import orthogonality_defect, top
from variants.core.lowrank import FrozenBases
from variants.core.statistics import gradient


@register("lora_sb")
@dataclass(frozen=True, kw_only=True)
class LoRASB(FrozenBases):
    """``W + s B R A`` from the best rank-r part of full fine-tuning's first step ``D = -first_step sign(dL/dW)``:
    ``B = U``, ``s R = diag(S)``, ``A = V^T`` of D's top singular triplets (section 3).

    With orthonormal bases the gradient of R moves W by the projected full gradient ``B B^T G A^T A``. The first step is
    kept, so training starts off the base, on purpose. Bases stay in full precision: in bfloat16, as in the authors'
    code, they are orthonormal to 4e-3 only. For s = 1 (the paper's) leave alpha alone.
    """

    paper = "arXiv 2411.19557"
    needs = frozenset({"gradient"})
    lr_ratio = 5.0  # published rates are 1e-4 to 2e-3, against 1e-4 to 4e-4 for LoRA
    first_step: Positive = 1e-5  # AdamW's first step: the peak rate divided by the steps of the warm-up

    def _step(self, W: Tensor, stats: Tensors | None) -> tuple[Tensor, Tensor, Tensor]:
        return top(-self.first_step * gradient(stats).to(W.dtype).sign(), self.rank)

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        U, S, Vh = self._step(W, stats)
        return Init(train={"R": torch.diag(S / self.scale)}, frozen={"A": Vh, "B": U})

    def initial_weight(self, W: Tensor, stats: Tensors | None) -> Tensor | None:
        U, S, Vh = self._step(W, stats)
        return W + (U * S) @ Vh

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        return {**super().defects(W, t), "A": orthogonality_defect(t["A"].mT)}
