"""Adapter: Parameter-Efficient Transfer Learning for NLP (Houlsby et al., 2019, arXiv 1902.00751)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from variants.core import FrozenProduct, Init, Tensors, Variant, products, register
from variants.core.fields import Count


@register("adapter")
@dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(Variant):
    """``y + up act(down y + c) + e`` on a layer's whole output y (section 2.1), before the residual is added.

    Attach ``houlsby`` to the dense layers at the end of the attention and of the feed-forward block (in BERT
    ``output.dense``), ``pfeiffer`` (AdapterFusion, arXiv 2005.00247) to the latter only (``layer.?.output.dense``). The
    base's norms stay frozen. Not linear, hence not mergeable. ``start="bert"`` draws both matrices from N(0, 0.02^2),
    as AdapterHub does: near the base, not at it.
    """

    paper = "arXiv 1902.00751"
    mergeable = False
    size = "bottleneck"
    bottleneck: Count = 48  # a sixteenth of BERT-base's width, AdapterHub's default reduction
    kind: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    start: Literal["zero", "bert"] = "zero"

    @property
    def exact_init(self) -> bool:
        return self.start == "zero"

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        width, r = len(W), self.bottleneck
        down, up = (0.02 * torch.randn(s, generator=rng, dtype=W.dtype) for s in ((r, width), (width, r)))
        if self.start == "zero":
            up.zero_()
        return Init(train={"down": down, "c": W.new_zeros(r), "up": up, "e": W.new_zeros(width)})

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return linear(x)

    def output(self, y: Tensor, t: Tensors) -> Tensor:
        down, c, up, e = (t[name].to(y.dtype) for name in ("down", "c", "up", "e"))
        z = products.linear(y, down, c)
        return y + products.linear(F.relu(z) if self.kind == "pfeiffer" else F.silu(z), up, e)

    def parameter_count(self, out: int, in_: int) -> int:
        return 2 * out * self.bottleneck + self.bottleneck + out
