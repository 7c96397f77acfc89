"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., 2023, arXiv 2310.11454)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import FrozenProduct, Init, LoRAPair, Tensors, project, register
from variants.core.contraction import computed_in, order
from variants.core.fields import Count, Nonzero
from variants.core.lowrank import Additive
from variants.core.thin import Thin


@register("vera")
@dataclass(frozen=True, kw_only=True)
class VeRA(Additive):
    """``W + diag(b) B diag(d) A``: b (out,) and d (rank,) train; A and B are random, frozen and the same for all layers
    (section 3.1, equation 2).

    One A (rank, largest in) and one B (largest out, rank) are drawn for the model, uniformly with Kaiming's bound
    sqrt(6 / fan_in) (section 3.2); a smaller layer uses their first columns and rows. They depend on which layers are
    adapted, hence travel in the adapter file. The rank costs one number a layer, so it may exceed the layer's own.
    """

    paper = "arXiv 2310.11454"
    size = "rank"
    lr_ratio = 10.0  # the paper's rates are 4e-3 to 3e-2 on GLUE, against 4e-4 to 5e-4 for LoRA
    rank: Count = 256
    d_init: Nonzero = 0.1  # b starts at 0, and no gradient leads away from both at 0

    def shared(self, shapes: Sequence[tuple[int, int]], rng: torch.Generator) -> dict[str, Tensor]:
        sizes = {"A": (self.rank, max(in_ for _, in_ in shapes)), "B": (max(out for out, _ in shapes), self.rank)}
        uniform = {k: torch.empty(n, dtype=torch.float64).uniform_(-1, 1, generator=rng) for k, n in sizes.items()}
        return {name: entries * (6 / entries.shape[1]) ** 0.5 for name, entries in uniform.items()}

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        return Init(train={"b": W.new_zeros(W.shape[0]), "d": W.new_full((self.rank,), self.d_init)})

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        out, in_ = W.shape
        return LoRAPair(t["d"][:, None] * t["A"][:, :in_], t["b"][:, None] * t["B"][:out])

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        out, in_ = W.shape
        A, B = t["A"][:, :in_], t["B"][:out]
        if order(x.numel() // in_, W, Thin(A, B, t["d"]), computed_in(x)) == "dense":
            return project(x, Thin(A, t["b"][:, None] * B, t["d"]).weight(W))  # keeps less than the scaled pair
        z, y = project(x, A), linear(x)  # the vectors scale activations, so that the large factors are not copied
        return y + project(z * t["d"].to(z.dtype), B) * t["b"].to(y.dtype)

    def parameter_count(self, out: int, in_: int) -> int:
        return out + self.rank
