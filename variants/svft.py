"""SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors (Lingam et al., 2024, arXiv 2405.19597)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from variants.core import Init, Refused, Tensors, register
from variants.core.fields import Whole
from variants.core.linalg import svd
from variants.core.singular import SingularCore


@register("svft")
@dataclass(frozen=True, kw_only=True)
class SVFT(SingularCore):
    """``W + U M V^T``: a sparse M (k, k), k = min(out, in), trains between all singular vectors of W (section 3).

    ``pattern``: the diagonal (plain, whatever the band), the diagonal and ``band`` more on each side, or as many places
    at random or where ``|u_i^T v_j|`` is largest. M starts at 0. The authors' code starts it at random behind a trained
    gate ``sigmoid(g)``, which the paper does not have; its repeated places and its other score are not imitated.
    """

    paper = "arXiv 2405.19597"
    size = "band"
    indices = ("places",)
    lr_ratio = 10.0  # the paper's 1e-3 to 5e-3 (5e-2 for plain), against 1e-4 to 4e-4 for LoRA
    band: Whole = 8
    pattern: Literal["banded", "plain", "random", "top_k"] = "banded"
    faithful: Literal["paper", "code"] = "paper"

    @property
    def exact_init(self) -> bool:
        return self.faithful == "paper"

    def check(self, out: int, in_: int) -> None:
        if self.pattern != "plain" and self.band >= min(out, in_):
            fits = f"write a band from 0 to {min(out, in_) - 1}"
            raise Refused(
                f"band {self.band} does not fit the {min(out, in_)} triplets of a {out} x {in_} layer: {fits}"
            )
        if self.pattern == "top_k" and out != in_:
            raise Refused(f"u_i^T v_j needs a square layer, not {out} x {in_}: write pattern banded or random")

    def _entries(self, k: int) -> int:
        return k if self.pattern == "plain" else k * (2 * self.band + 1) - self.band * (self.band + 1)

    def _places(self, U: Tensor, Vh: Tensor, rng: torch.Generator) -> Tensor:  # shape: (2, entries)
        k = U.shape[1]
        if self.pattern == "top_k":
            chosen = (U.T @ Vh.T).abs().flatten().topk(self._entries(k)).indices
        elif self.pattern == "random":
            chosen = torch.randperm(k * k, generator=rng)[: self._entries(k)]
        else:
            band = 0 if self.pattern == "plain" else self.band
            # Along each diagonal, from (0, d) or (-d, 0) on: without a (k, k) mask.
            lines = [(d if d > 0 else -d * k) + (k + 1) * torch.arange(k - abs(d)) for d in range(-band, band + 1)]
            chosen = torch.cat(lines)
        chosen = chosen.sort().values
        return torch.stack([chosen // k, chosen % k])

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        U, s, Vh = svd(W)
        frozen = {"U": U, "s": s, "Vh": Vh, "places": self._places(U, Vh, rng)}
        m = torch.zeros(self._entries(len(s)), dtype=W.dtype)
        if self.faithful == "paper":
            return Init(train={"m": m}, frozen=frozen)
        m = torch.randn(m.shape, generator=rng, dtype=W.dtype) * (2 / len(m)) ** 0.5
        return Init(train={"m": m, "g": torch.zeros(1, dtype=W.dtype)}, frozen=frozen)

    def core(self, t: Tensors) -> Tensor:
        """M written out: gathering its entries for each input takes more memory beyond k / (2 band + 1) inputs."""
        m, k = t["m"] if self.faithful == "paper" else torch.sigmoid(t["g"]) * t["m"], len(t["s"])
        if self.pattern == "plain":
            return m
        rows, columns = t["places"]
        return m.new_zeros(k * k).index_copy(0, rows * k + columns, m).unflatten(0, (k, k))

    def parameter_count(self, out: int, in_: int) -> int:
        return self._entries(min(out, in_)) + (self.faithful == "code")
