"""LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou et al., 2024, arXiv 2402.12354)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from variants.core import States, register
from variants.core.fields import positive
from variants.lora import LoRA


@register("lora_plus")
@dataclass(frozen=True, kw_only=True)
class LoRAPlus(LoRA):
    """LoRA whose B learns ``ratio`` times faster than A: with equal rates a wide layer's A hardly learns features.

    The rate which is handed in is A's. Weight decay stays what the optimiser was given, for both factors.
    """

    paper = "arXiv 2402.12354"
    lr_ratio = 0.5  # the authors' README: about half of LoRA's rate for A
    ratio: Annotated[float, positive(" (1 is LoRA)")] = 16.0  # they use 20 to 80, higher for harder tasks

    def param_groups(self, states: States, lr: float) -> list[dict[str, Any]]:
        return [
            {"params": [state.t["A"] for state in states], "lr": lr},
            {"params": [state.t["B"] for state in states], "lr": lr * self.ratio},
        ]
