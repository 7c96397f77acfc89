"""(IA)^3: Infused Adapter by Inhibiting and Amplifying Inner Activations (Liu et al., 2022, arXiv 2205.05638)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from variants.core import FrozenProduct, Init, LoRAPair, Refused, Tensors, Variant, register
from variants.core.targets import matches


@register("ia3")
@dataclass(frozen=True, kw_only=True)
class IA3(Variant):
    """``diag(l) W`` with the bias scaled too, or ``W diag(l)`` on the input side; l starts at 1 (section 3.3).

    The paper scales keys, values and the hidden activations of feed-forward blocks: attach to key, value and the second
    feed-forward layer, and name the latter in ``feedforward``, patterns of paths separated by commas.
    """

    paper = "arXiv 2205.05638"
    no_weight_decay = ("l",)  # 1 means W, 0 nothing
    lr_ratio = 20.0  # 10 to 50 times LoRA's (method comparison of huggingface/peft on MetaMathQA)
    side: Literal["output", "input"] = "output"
    feedforward: str = ""

    def allocate(self, shapes: Mapping[str, tuple[int, int]], stats: Mapping[str, Tensors]) -> Mapping[str, Variant]:
        patterns = [pattern.strip() for pattern in self.feedforward.split(",") if pattern.strip()]
        hits = {pattern: [path for path in shapes if matches(pattern, path)] for pattern in patterns}
        if lost := [pattern for pattern, paths in hits.items() if not paths]:
            raise Refused(f"feedforward {lost[0]!r} matches none of the adapted layers: {', '.join(shapes)}")
        inner = {path for paths in hits.values() for path in paths}
        return {path: replace(self, side="input") if path in inner else self for path in shapes}

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        return Init(train={"l": W.new_ones(self.parameter_count(*W.shape))})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W * (t["l"] if self.side == "input" else t["l"][:, None])

    def bias(self, b: Tensor, t: Tensors) -> Tensor:
        return b if self.side == "input" else t["l"] * b

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        if self.side == "input":
            return linear(x * t["l"].to(x.dtype))
        y = linear(x)
        return y * t["l"].to(y.dtype)

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        if self.side == "output":
            return None  # it would leave out what happens to the bias
        eye, change = torch.eye(min(W.shape), dtype=W.dtype, device=W.device), t["l"] - 1
        return LoRAPair(W * change, eye) if len(W) <= len(change) else LoRAPair(torch.diag(change), W)

    def parameter_count(self, out: int, in_: int) -> int:
        return in_ if self.side == "input" else out
