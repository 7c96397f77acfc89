"""Linear probe (the baseline which an adapter must beat): the base stays frozen, only the task head trains."""

from __future__ import annotations

from dataclasses import dataclass

from variants.core import Variant, register


@register("probe")
@dataclass(frozen=True, kw_only=True)
class Probe(Variant):
    """Trains nothing on the base; its learning rate is the head's."""

    trains = "head"

    def parameter_count(self, out: int, in_: int) -> int:
        return 0
