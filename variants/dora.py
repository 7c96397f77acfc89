"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al., 2024, arXiv 2402.09353)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from variants.core import Init, LoRAPair, Tensors, register
from variants.core.linalg import full_precision, raised
from variants.core.products import with_product
from variants.core.thin import Thin
from variants.lora import LoRA


@register("dora")
@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """``diag(m / ||V||) V`` with ``V = W + s B A``: rows of V, rescaled to the trained magnitudes m (equation 5).

    The norm is taken over the input dimension, one value per output row; the paper calls it column-wise because it
    writes the weight transposed. ``detach_norm`` keeps the norm out of the gradient (section 4.3), as the authors do.
    """

    paper = "arXiv 2402.09353"
    no_weight_decay = ("m",)  # it would take the rows of W with it
    detach_norm: bool = True

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        start = super().init(W, rng, stats)
        return replace(start, train={**start.train, "m": torch.linalg.vector_norm(W, dim=1)})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return self._gain(W, t)[:, None] * super().weight(W, t)

    def thin(self, W: Tensor, t: Tensors) -> Thin | None:
        return Thin(t["A"], t["B"], scale=self.scale, gain=self._gain(W, t))

    @full_precision
    def _gain(self, W: Tensor, t: Tensors) -> Tensor:  # shape: (out,)
        """``m / ||V||``. V is formed for it: from thin products, without V, the norms take twice as long on a CPU."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_norm):
            V = with_product(raised(W), raised(t["B"]), raised(t["A"]), self.scale)
            norm = torch.linalg.vector_norm(V, dim=1)
        return t["m"] / norm.clamp_min(torch.finfo(norm.dtype).tiny)  # a row of zeros stays zero

    def parameter_count(self, out: int, in_: int) -> int:
        return super().parameter_count(out, in_) + out

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return None  # rescaling the rows of W is a full-rank change
