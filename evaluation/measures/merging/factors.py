"""What merging does to the factors of a low-rank update: nothing to those kept, and how well the weight gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evaluation.measures.merging.updates import Changed, spread
from variants.core import LoRAPair, merged
from variants.core.cache import not_kept
from variants.core.host import Adapter, Host, hosts
from variants.core.linalg import full_precision, orthogonality_defect, qr, raised, top
from variants.core.rounding import Format, Rounding

PROMISE = re.compile(r"\w|(\w+)\^T \1 = I")  # what Variant.defects calls a promise of orthonormality: "U", "U^T U = I"
NEGLIGIBLE = 1e-6  # singular values below this share of the largest are rounding


class Factored(NamedTuple):
    """One layer's update ``U diag(s) Vh``: U (out, rank), s (rank,), Vh (rank, in), in float64."""

    U: Tensor
    s: Tensor
    Vh: Tensor


@torch.no_grad()
def factors(encoder: nn.Module, layers: Sequence[Changed], formats: Iterable[Format]) -> dict[str, Any] | None:
    """Orthonormality of the stored factors around a merge, and the factors as the merged weight alone gives them.

    Returns:
        None unless every changed layer has an exact low-rank pair, of less than full rank. Else
        rank: of the pairs, at most. defect_before, defect_after: ``worst_defect`` before and after merging and
        unmerging. recovered: per format, on a few layers spread over the model,
        singular_values: relative error of the leading ones of S - Q against those of the update, over all layers;
        subspace: the smallest cosine of a principal angle between the spaces which the leading singular vectors of the
        two span, left or right.
    """
    pairs = [pair_of(layer) for layer in layers]
    ranks = [len(pair.A) for pair in pairs if pair is not None]
    if not ranks or len(ranks) < len(pairs) or any(r >= min(one.W.shape) for r, one in zip(ranks, layers, strict=True)):
        return None
    before = worst_defect(encoder)
    with merged(encoder):
        pass
    return {
        "rank": max(ranks),
        "defect_before": before,
        "defect_after": worst_defect(encoder),
        "recovered": {format: recovered(spread(layers), Rounding(format)) for format in formats},
    }


def pair_of(layer: Changed, W: Tensor | None = None) -> LoRAPair | None:
    """The exact low-rank pair of the adapter alone on a layer, on W instead of the layer's own weight if given."""
    if layer.trained or not isinstance(layer.layer, Host) or (adapter := layer.layer.alone()) is None:
        return None
    return adapter.variant.as_lora(layer.W if W is None else W, adapter.tensors())


@torch.no_grad()
def worst_defect(encoder: nn.Module) -> float | None:
    """The largest ``||X^T X - I||_F``, or distance promised to be zero, of a factor which the method keeps, or draws
    towards, orthonormal; None if it has none."""
    found = [d for host in hosts(encoder).values() if (adapter := host.alone()) for d in _defects(host, adapter)]
    return float(torch.stack(found).max()) if found else None


def _defects(host: Host, adapter: Adapter) -> list[Tensor]:
    t, variant = adapter.tensors(), adapter.variant
    drawn = [t[name] if t[name].shape[0] > t[name].shape[1] else t[name].mT for name in variant.orthonormal]
    promised = variant.defects(raised(host.original_dense().detach()), t)
    kept = [distance.max() for name, distance in promised.items() if PROMISE.fullmatch(name)]
    return [orthogonality_defect(X) for X in drawn] + kept


@full_precision
def factored(pair: LoRAPair) -> Factored:
    """The singular value decomposition of ``B A`` through two thin factors, without directions that are rounding."""
    Q_B, R_B = qr(pair.B.double())
    Q_A, R_A = qr(pair.A.double().mT)
    U, s, Vh = torch.linalg.svd(R_B @ R_A.mT)
    real = s > NEGLIGIBLE * s[0]
    return Factored((Q_B @ U)[:, real], s[real], (Vh @ Q_A.mT)[real])


@not_kept()
def recovered(layers: Sequence[Changed], rounding: Rounding) -> dict[str, float | None]:
    """What ``factors`` says of one format: the update's factors against those of ``S - Q``."""
    off = size = 0.0
    smallest = 1.0
    for layer in layers:
        Q, _, S = layer.stored(rounding)
        pair = pair_of(layer, Q)
        assert pair is not None, "factors() has seen one on every layer"
        if not bool((S - Q).isfinite().all()):
            return {"singular_values": None, "subspace": None}
        true = factored(pair)
        U, s, Vh = (part.double() for part in top(S - Q, len(true.s)))
        off, size = off + float((s - true.s).square().sum()), size + float(true.s.square().sum())
        cosines = torch.cat([torch.linalg.svdvals(true.U.mT @ U), torch.linalg.svdvals(true.Vh @ Vh.mT)])
        smallest = min(smallest, float(cosines.min()))
    return {"singular_values": (off / size) ** 0.5, "subspace": smallest}
