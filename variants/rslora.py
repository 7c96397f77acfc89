"""rsLoRA: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski, 2023, arXiv 2312.03732)."""

from __future__ import annotations

from dataclasses import dataclass

from variants.core import register
from variants.lora import LoRA


@register("rslora")
@dataclass(frozen=True, kw_only=True)
class RSLoRA(LoRA):
    """LoRA with ``s = alpha / sqrt(rank)``, which keeps outputs and gradients from shrinking as the rank grows.

    ``alpha = None`` means alpha = rank, as everywhere; s is then sqrt(rank), which also acts as a larger learning rate.
    """

    paper = "arXiv 2312.03732"

    @property
    def scale(self) -> float:
        return (self.rank if self.alpha is None else self.alpha) / self.rank**0.5
