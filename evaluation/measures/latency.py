"""Latency of a forward pass: the base, and every method beside it, folded into two products, and merged into it.

All models take their turn in every round, in an order drawn anew, so that drift of the machine cancels in the ratios to
the base, which are formed within a round. The base runs several times in a round: a single pass is noisier than what is
to be told apart. Merged models are plain ones, whatever the method: pooled over the methods they say more than each.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation.clock import Clock
from evaluation.data import Batch
from evaluation.measures.intervals import interval
from evaluation.measures.replicas import mergeable_copy, sharing
from evaluation.training import Classifier, autocast
from variants.core import LoRAPair, Refused, Variant, detach
from variants.core.conversion import attach_pairs, to_pairs
from variants.core.host import hosts

KINDS = ("adapted", "folded", "merged")
BASES = tuple(("", f"base {i}") for i in range(8))  # the base's turns in a round
HALF = len(BASES) // 2
Which = tuple[str, str]  # label and kind
Seconds = Mapping[Which, np.ndarray]  # one number a round


def latency(
    adapted: Mapping[str, tuple[Classifier, Variant]],
    base: Classifier,
    batch: Batch,
    rounds: int,
    precision: str,
    device: torch.device,
) -> dict[str, Any]:
    """Times one forward pass of a single token and of the whole batch.

    Args:
        adapted: label -> the model that carries the method's adapter, and the method.
        base: the same model without any.

    Returns:
        rounds; base: seconds by shape, ``token`` or ``batch``; noise: by shape, the ratio of the base's first turns in
        a round to its last; merged: by shape, the ratio to the base of the median merged model of a round, where only
        methods with adapters on layers count: the others have nothing to merge; methods: label -> shape -> kind ->
        seconds and ratio to the base, or None where there is no such form. ``adapted``: as it trains. ``folded``: its
        exact low-rank pair, scale and diagonal multiplied in beforehand, as two thin products beside the base; where
        the pair has a layer's full rank they are not thin, and there is no such form. ``merged``: a plain model with
        the effective weights. Intervals as in ``interval``.
    """
    models: dict[Which, Classifier] = dict.fromkeys(BASES, base)
    for label, (model, variant) in adapted.items():
        models[label, "adapted"] = model
        models |= {(label, kind): made for kind, made in _deployed(model, base, variant).items()}
    for model in models.values():
        model.eval()
    shapes = {
        "token": Batch(batch.input_ids[:1, :1], batch.attention_mask[:1, :1], batch.labels[:1]),
        "batch": batch,
    }
    had_adapters = {label for label, (model, _) in adapted.items() if hosts(model.encoder)}
    found = {shape: _seconds(models, rows, rounds, precision, device) for shape, rows in shapes.items()}
    return {
        "rounds": rounds,
        "base": {shape: interval(_base(seconds)) for shape, seconds in found.items()},
        "noise": {
            shape: interval(_base(seconds, BASES[:HALF]) / _base(seconds, BASES[HALF:]))
            for shape, seconds in found.items()
        },
        "merged": {shape: _merged_together(seconds, had_adapters) for shape, seconds in found.items()},
        "methods": {
            label: {shape: {kind: _entry(seconds, label, kind) for kind in KINDS} for shape, seconds in found.items()}
            for label in adapted
        },
    }


def _deployed(model: Classifier, base: Classifier, variant: Variant) -> dict[str, Classifier]:
    """The other forms in which the adapter can be used; the model itself stays as it is."""
    if not variant.mergeable:
        return {}
    plain = mergeable_copy(model.encoder)
    detach(plain, merge=True)
    found = {"merged": _with_encoder(model, plain)}
    try:
        pairs = to_pairs(model.encoder).pairs
    except Refused:  # it has no exact pair
        return found
    if pairs and all(_thin(pair) for pair in pairs.values()):
        encoder = sharing(base.encoder)
        attach_pairs(encoder, pairs)
        found["folded"] = _with_encoder(model, encoder)
    return found


def _thin(pair: LoRAPair) -> bool:
    rank, in_ = pair.A.shape
    return rank < min(len(pair.B), in_)


def _with_encoder(model: Classifier, encoder: nn.Module) -> Classifier:
    made = copy.copy(model)
    made._modules = {**model._modules, "encoder": encoder}
    return made


def _seconds(
    models: Mapping[Which, Classifier], batch: Batch, rounds: int, precision: str, device: torch.device
) -> Seconds:
    rng = random.Random(0)
    laps: dict[Which, list[float]] = {which: [] for which in models}
    for _ in range(rounds):
        for which in rng.sample(list(models), len(models)):
            laps[which].append(_timed(lambda model=models[which]: model(batch), precision, device))  # type: ignore[misc]
    return {which: np.array(seconds) for which, seconds in laps.items()}


@torch.inference_mode()
def _timed(forward: Callable[[], object], precision: str, device: torch.device) -> float:
    clock = Clock(device)
    with autocast(device, precision):
        forward()  # untimed: the first pass after another model finds its own weights out of the cache
        with clock("pass"):
            forward()
    return clock.seconds()["pass"]


def _base(seconds: Seconds, turns: Sequence[Which] = BASES) -> np.ndarray:
    return np.median([seconds[turn] for turn in turns], axis=0)


def _merged_together(seconds: Seconds, labels: Collection[str]) -> dict[str, float] | None:
    merged = [values for (label, kind), values in seconds.items() if kind == "merged" and label in labels]
    if not merged:
        return None
    # Times are skewed: medians of many are lower and less scattered than those of few. So the merged models are taken
    # in groups of about as many as the base has turns, and the base in no more turns than there are models.
    turns = BASES[: len(merged)]
    count = len(merged) // len(turns)
    groups = [np.median(merged[i::count], axis=0) for i in range(count)]
    return interval(np.mean(groups, axis=0) / _base(seconds, turns))


def _entry(seconds: Seconds, label: str, kind: str) -> dict[str, Any] | None:
    if (label, kind) not in seconds:
        return None
    mine = seconds[label, kind]
    return {"seconds": interval(mine), "ratio": interval(mine / _base(seconds))}
