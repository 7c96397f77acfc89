"""BitFit: Simple Parameter-efficient Fine-tuning (Ben Zaken et al., 2021, arXiv 2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass

from variants.core import Variant, register


@register("bitfit")
@dataclass(frozen=True, kw_only=True)
class BitFit(Variant):
    """``W x + b`` with only b trained, in place: all biases of the base, those of its norms included (section 3).

    A model without biases, such as LLaMA, has nothing to train and is refused.
    """

    paper = "arXiv 2106.10199"
    trains = "base"

    def parameter_count(self, out: int, in_: int) -> int:
        return out

    def trains_base(self, path: str) -> bool:
        return path.endswith("bias")  # also in_proj_bias of torch's attention
