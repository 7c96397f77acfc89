"""Full fine-tuning (a baseline): every parameter of the base model trains."""

from __future__ import annotations

from dataclasses import dataclass

from variants.core import Variant, register


@register("full")
@dataclass(frozen=True, kw_only=True)
class Full(Variant):
    """Trains the base in place; merging has nothing to do."""

    trains = "base"
    lr_ratio = 0.1  # LoRA's best rate is about 10 times full fine-tuning's ("LoRA Without Regret", 2025)

    def parameter_count(self, out: int, in_: int) -> int:
        return out * in_

    def trains_base(self, path: str) -> bool:
        return True
