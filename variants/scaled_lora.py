"""Scaled LoRA: Riemannian Preconditioned LoRA for Fine-Tuning Foundation Models (Zhang and Pilanci, 2024,
arXiv 2402.02347)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from variants.core import States, register
from variants.core.fields import Positive
from variants.lora import LoRA


@register("scaled_lora")
@dataclass(frozen=True, kw_only=True)
class ScaledLoRA(LoRA):
    """LoRA whose gradients are preconditioned before the optimiser sees them: ``(B^T B + d I)^(-1) g_A`` and
    ``g_B (A A^T + d I)^(-1)``, the metric of the manifold of matrices of rank ``rank`` (section 3).

    Plain gradient descent then moves ``B A`` alike for every factorisation ``(B G)(G^(-1) A)`` of it, as d goes to 0;
    Adam does not. Both use the factors from before the step (the authors' code lets A step first).
    """

    paper = "arXiv 2402.02347"
    lr_ratio = 4.0  # the paper's GPT-2 runs: 8e-4 against 2e-4; on Mistral between 1 and 6
    damping: Positive = 1e-2  # the paper tunes it between 1e-6 and 100

    @torch.no_grad()
    def before_step(self, states: States) -> None:
        alike: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for state in states:
            A, B = state.t["A"], state.t["B"]
            for gradient, other in ((A.grad, B), (None if B.grad is None else B.grad.mT, A.mT)):
                if gradient is not None:  # shape: (rank, k), to be divided by the Gram matrix of the other factor
                    alike[gradient.shape, other.shape, other.device].append((gradient, other))
        for pairs in alike.values():  # one batched inverse for all factors of a shape
            others = torch.stack([other for _, other in pairs]).double()
            eye = torch.eye(self.rank, dtype=others.dtype, device=others.device)
            inverses = torch.linalg.inv(others.mT @ others + self.damping * eye)
            if not bool(inverses.isfinite().all()):
                raise FloatingPointError("the training has diverged, a factor is not finite: lower the learning rate")
            for (gradient, _), inverse in zip(pairs, inverses, strict=True):
                gradient.copy_(inverse.to(gradient.dtype) @ gradient)
