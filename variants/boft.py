"""BOFT: Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization (Liu et al., 2023, arXiv 2311.06243)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import FrozenProduct, Init, Refused, Tensors, register
from variants.core.fields import Count
from variants.core.rotation import BlockFactor
from variants.oft import OFT


@register("boft")
@dataclass(frozen=True, kw_only=True)
class BOFT(OFT):
    """``diag(s) W R^T`` with ``R = F_m ... F_1``, ``butterflies`` factors of rotations (section 4).

    F_1 is block diagonal, as in OFT; a block of F_i rotates two half blocks which are 2^(i - 1) half blocks apart, so
    that R is dense from block * 2^(m - 1) >= in. Half blocks without a partner rest; the paper has none of them.
    """

    paper = "arXiv 2311.06243"
    no_weight_decay = ("s",)  # it would take the rows of W with it
    block: Count = 8
    butterflies: Count = 2

    def check(self, out: int, in_: int) -> None:
        super().check(out, in_)
        if self.butterflies > 1 and self.block % 2:
            raise Refused(f"several butterflies move half blocks, block {self.block} is odd: write an even block")
        exponent = self.butterflies - 1
        if exponent and (exponent > (2 * in_).bit_length() or self.block * 2**exponent >= 2 * in_):
            wrong = f"{self.butterflies} butterflies in blocks of {self.block} do not fit an input of width {in_}"
            raise Refused(f"{wrong}: write fewer butterflies")

    def places(self, n: int, device: torch.device | None = None) -> list[Tensor]:  # shapes: (k, block)
        """The places which the blocks of F_2, F_3, ... rotate."""
        found, half = [], self.block // 2
        for stride in (2**i for i in range(1, self.butterflies)):
            first = torch.arange(n // half - stride, device=device)
            first = half * first[first // stride % 2 == 0, None] + torch.arange(half, device=device)
            found.append(torch.cat([first, first + half * stride], dim=1))
        return found

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        first = super().init(W, rng, stats).train["K"]
        later = [first.new_zeros(len(places), first.shape[1]) for places in self.places(W.shape[1])]
        return Init(train={"K": torch.cat([first, *later]), "s": torch.ones(len(W), dtype=W.dtype)})

    def factors(self, t: Tensors, n: int) -> list[BlockFactor]:
        later = self.places(n, t["K"].device)
        blocks = self.rotations(t).split([n // self.block, *map(len, later)])
        return list(zip([None, *later], blocks, strict=True))

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return t["s"][:, None] * super().weight(W, t)

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        y = super().forward(x, linear, W, t)
        return t["s"].to(y.dtype) * y

    def parameter_count(self, out: int, in_: int) -> int:
        later = sum(map(len, self.places(in_))) * self.block * (self.block - 1) // 2
        return super().parameter_count(out, in_) + later + out
