"""PiSSA: Principal Singular Values and Singular Vectors Adaptation (Meng et al., 2024, arXiv 2404.02948)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import LoRAPair, Tensors, register
from variants.core.fields import Whole
from variants.core.krylov import SVD, leading
from variants.core.lowrank import Rebased


@register("pissa")
@dataclass(frozen=True, kw_only=True)
class PiSSA(Rebased):
    """``W_res + s B A``: the pair starts as the top ``rank`` singular triplets of W (equations 2-4), W_res is the rest.

    ``B = U sqrt(S / s)``, ``A = sqrt(S / s) V^T``. The randomised decomposition is the paper's fast one; the authors
    take it with ``oversampling=0``, which finds another subspace where the spectrum is flat. "krylov" is fast too, and
    finds the exact one's residual to 1e-4, unless the cut lies in a cluster of nearly equal values, where only the
    residual's norm is that of the exact one. The start is exact anyway.
    """

    paper = "arXiv 2404.02948"
    # Principal directions have about 10 times LoRA's top curvature (arXiv 2602.04998).
    lr_ratio = 0.1
    svd: SVD = "exact"
    oversampling: Whole = 10
    iterations: Whole = 4

    def starting_pair(self, W: Tensor, rng: torch.Generator, stats: Tensors | None) -> LoRAPair:
        return self.split(*leading(W, self.rank, self.svd, rng, self.oversampling, self.iterations))
