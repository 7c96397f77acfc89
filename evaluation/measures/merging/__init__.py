"""Merge behaviour: what is left of an adapter once it is added to weights of limited precision."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evaluation.clock import Clock
from evaluation.data import Split
from evaluation.known import KnownBase
from evaluation.measures.merging import cost, drift, factors
from evaluation.measures.merging.outputs import Case, in_format
from evaluation.measures.merging.updates import changed_layers, relative_size, spread, survival
from evaluation.peers import is_peer
from evaluation.spec import Merging
from evaluation.training import Classifier
from variants.core import Variant
from variants.core.host import hosts


def merging(
    model: Classifier,
    variant: Variant,
    base: dict[str, Tensor],
    split: Split,
    spec: Merging,
    clock: Clock,
    seed: int = 0,
    known: KnownBase | None = None,
) -> dict[str, Any]:
    """Compares the adapted with the merged model on the first ``spec.items`` items of a split.

    For each storage format the base is rounded to it first, to nearest: every parameter to a half precision, the
    weights of linear layers to int8 and NF4. The adapter stays in float32. The merged weight, computed on the rounded
    base, is rounded once, and scales are those of the merged weight. All arithmetic is float32, so what is measured is
    the rounding of the stored weights and not the kernels of one machine. A method that had replaced the base goes on
    in its exact form, so that all methods merge into the same stock weights. For a method that trains the base itself,
    storing it in the format is its merge.

    Args:
        base: the base's parameters by path, as they were before training.
        seed: of stochastic rounding.
        known: what was found of this base before.

    Returns:
        items; mergeable (None for a peer, where nothing more is measured); formats, empty unless mergeable. Then
        relative_size: ``sqrt(sum ||D||^2 / sum ||W||^2)`` of the update D over the linear layers whose weight W the
            method changes; None if it changes none.
        cost: seconds of merging all layers for good, and extra_bytes at its highest; None without adapters on layers.
        formats: per format
            overflow: True where the format cannot hold the weights, so that outputs are not finite; all else is None.
            effect: ||adapted - base|| / ||base||, of the logits. accuracy_adapted.
            error: ||merged - adapted|| / ||adapted - base||; None where the method does not change the base's outputs.
            max_logit_change, flipped (share of items whose prediction changes), accuracy_merged.
            gained, lost: items which only the merged, only the adapted model gets right.
            Of regression, whose outputs are in standard deviations of the training labels, accuracy_adapted,
            accuracy_merged, flipped, gained and lost are None, and so is the accuracy of deployments.
            kept, update_error: of the update in the weights (``updates.survived``).
            stochastic: error ... update_error once more, for rounding by chance; None for float32.
            deployments: for int8 and NF4, accuracy and error of four ways to use the adapter: the pair ``beside`` the
                quantised weight; merged into it after dequantising and stored in ``bfloat16``; merged into the
                ``original`` weight and stored in bfloat16; merged after dequantising and ``requantised``. Here error is
                ||logits - logits*|| / ||logits* - base||, with logits* of the adapter on the float32 base. Only the
                layers which the method changes differ between the four: all others are as the format stores them. None
                for other formats, and where the weight of such a layer trains itself.
        And if ``spec.depth`` is ``full`` (deployments are None otherwise)
        survival: ``updates.survival``, on survival_layers layers spread over the model.
        drift: ``drift.drift``, on drift_layers layers.
        factors: ``factors.factors``.
    """
    split, encoder, full = split.head(spec.items), model.encoder, spec.depth == "full"
    mergeable = None if is_peer(encoder) else variant.mergeable
    result: dict[str, Any] = {"items": len(split), "mergeable": mergeable, "formats": {}}
    if not variant.mergeable:
        return result
    for host in hosts(encoder).values():
        host.unrebase()
    layers = changed_layers(encoder, base)
    case = Case(model, base, layers, split, clock, seed, known or KnownBase())
    result["relative_size"] = relative_size(layers)
    result["formats"] = {format: in_format(case, format, deployments=full) for format in spec.formats}
    if full:
        sample = spread(layers)
        result["survival"], result["survival_layers"] = survival(sample, spec.formats, seed), len(sample)
        result["drift"], result["drift_layers"] = drift.drift(layers, variant, spec.formats, spec.cycles)
        result["factors"] = factors.factors(encoder, layers, spec.formats)
    result["cost"] = cost.cost(encoder, model.head.weight.device)
    return result
