"""PSOFT: Orthogonal Fine-Tuning with PrincipalCore Subspace Adaptation (Wu et al., 2025, arXiv 2505.11235)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, Tensors, register
from variants.core.fields import Terms
from variants.core.linalg import rotation_from
from variants.core.singular import PrincipalCore


@register("psoft")
@dataclass(frozen=True, kw_only=True)
class PSOFT(PrincipalCore):
    """``W + U diag(S) (C - I) V^T`` with ``C = diag(b) R diag(a)`` and a rotation R, on the top triplets of W.

    With S on the output side and a = b = 1 (``vectors=False``) this is W times a rotation of its inputs: ``W' W'^T ==
    W W^T`` and all singular values stay (section 4); the trained vectors a and b give that up for a better fit.
    ``neumann`` cuts the inverse in R to a series of ``terms`` (as PEFT counts them; the authors' 5 are 7 here).
    """

    paper = "arXiv 2505.11235"
    no_weight_decay = ("a", "b")  # 1 means W
    constraint = "R orthogonal (Cayley)"
    inverse: Literal["exact", "neumann"] = "exact"
    vectors: bool = True
    terms: Terms = 5

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        train = {"K": torch.zeros(self.rank * (self.rank - 1) // 2, dtype=W.dtype)}
        if self.vectors:
            train |= {"a": torch.ones(self.rank, dtype=W.dtype), "b": torch.ones(self.rank, dtype=W.dtype)}
        return Init(train=train, frozen=self.bases(W))

    def rotation(self, t: Tensors) -> Tensor:  # shape: (rank, rank)
        """R, exactly orthogonal unless ``neumann``."""
        return rotation_from(t["K"], self.rank, self.inverse, self.terms)

    def core(self, t: Tensors) -> Tensor:
        C = self.rotation(t)
        if self.vectors:
            C = t["b"][:, None] * C * t["a"]
        return t["s"][:, None] * (C - torch.eye(self.rank, dtype=C.dtype, device=C.device))

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (self.rank - 1) // 2 + 2 * self.rank * self.vectors

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        found = super().defects(W, t)
        if self.inverse == "exact" and not self.vectors:
            turned, gram = self.weight(W, t), W @ W.T
            found["W W^T"] = torch.linalg.matrix_norm(turned @ turned.T - gram) / (1 + torch.linalg.matrix_norm(gram))
        return found
