"""EVA: Fine-tuning via Explained Variance Adaptation (Paischer et al., 2024, arXiv 2410.07170)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from variants.core import Init, Refused, Tensors, Variant, register
from variants.core.fields import number_from
from variants.core.linalg import top
from variants.core.statistics import covariance
from variants.lora import LoRA


@register("eva")
@dataclass(frozen=True, kw_only=True)
class EVA(LoRA):
    """LoRA whose A starts as the principal directions of the layer's inputs, B as zero; ranks go where they explain
    the largest shares of their layer's variance (section 3).

    The sum of the ranks over the layers stays ``rank`` times their number; a layer gets at most ``rho * rank``, or no
    adapter at all; s stays what it is at ``rank``. The PCA is exact, from the covariance, where the authors update one
    batch by batch until it converges. ``whiten`` divides each row of A by the root of its singular value, that of the
    inputs over the root of their number, so that the start does not depend on how many were seen.
    """

    paper = "arXiv 2410.07170"
    needs = frozenset({"covariance", "mean"})
    rho: Annotated[float, number_from(1, " (no redistribution)")] = 2.0
    whiten: bool = False

    def allocate(self, shapes: Mapping[str, tuple[int, int]], stats: Mapping[str, Tensors]) -> Mapping[str, Variant]:
        shares: list[tuple[float, str]] = []
        for path, shape in shapes.items():
            self.check(*shape)
            try:
                C = covariance(stats[path], centred=True)
            except Refused as error:
                raise Refused(f"{self.name} on {path}: {error}") from error
            _, variances, _ = top(C, min(int(self.rho * self.rank), *shape))
            shares += [(float(share), path) for share in variances / C.trace()]
        shares.sort(key=lambda pair: -pair[0])  # equal shares stay in model order
        ranks = Counter(path for _, path in shares[: self.rank * len(shapes)])
        keep = {path: None if self.alpha is None else self.scale * n for path, n in ranks.items()}  # alpha for equal s
        return {path: replace(self, rank=n, alpha=keep[path]) for path, n in ranks.items()}

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        V, variances, _ = top(covariance(stats, centred=True), self.rank)
        if self.whiten:
            if not float(variances[-1]) > 100 * torch.finfo(W.dtype).eps * float(variances[0]):
                raise Refused(
                    f"its inputs vary in fewer than {self.rank} directions: write a lower rank or no whitening"
                )
            V = V / variances**0.25
        return Init(train={"A": V.T.to(W.dtype), "B": torch.zeros(W.shape[0], self.rank, dtype=W.dtype)})
