"""Latency of a forward pass: the base, and every method beside it, folded into two products, and merged into it.

All models take their turn in every round, in an order drawn anew, so that drift of the machine cancels in the ratios to
the base, which are formed within a round. The base runs several times in a round: a single pass is noisier than what is
to be told apart. Merged models are plain ones, whatever the method: pooled over the methods they say more than each.
For that they have rounds of their own, beside as many unmerged twins: the base, with its adapted layers copied to new
memory as those of the merged model were.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
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
PASSES = 2  # of a turn, one untimed
POOLED_ROUNDS = 2  # rounds of the merged models and their twins, for each round of all forms
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
        rounds; seconds: of all passes together; base: seconds by shape, ``token`` or ``batch``; merged: by shape, the
        ratio of the median merged model of a round to the median twin, where only methods with adapters on layers
        count: the others have nothing to merge; noise: the same of the twins, timed again, to themselves;
        pooled_rounds: of these two; methods: label -> shape -> kind -> seconds and ratio to the base, or None where
        there is no such form. ``adapted``: as it trains. ``folded``: its exact low-rank pair, scale and diagonal
        multiplied in beforehand, as two thin products beside the base; where the pair has a layer's full rank they
        are not thin, and there is no such form. ``merged``: a plain model with the effective weights. Intervals as in
        ``interval``.
    """
    models: dict[Which, Classifier] = dict.fromkeys(BASES, base)
    for label, (model, variant) in adapted.items():
        models[label, "adapted"] = model
        models |= {(label, kind): made for kind, made in _deployed(model, base, variant).items()}
    pool = {which: models[which] for label in adapted if (which := (label, "merged")) in models}
    pool = {which: model for which, model in pool.items() if hosts(adapted[which[0]][0].encoder)}
    twins = {(label, "twin"): _twin(adapted[label][0]) for label, _ in pool}
    pool |= twins | {(label, "again"): twin for (label, _), twin in twins.items()}
    for model in (*models.values(), *twins.values()):
        model.eval()
    shapes = {
        "token": Batch(batch.input_ids[:1, :1], batch.attention_mask[:1, :1], batch.labels[:1]),
        "batch": batch,
    }
    found = {shape: _seconds(models, rows, rounds, precision, device) for shape, rows in shapes.items()}
    pooled = {
        shape: _seconds(pool, rows, POOLED_ROUNDS * rounds, precision, device) if pool else {}
        for shape, rows in shapes.items()
    }
    return {
        "rounds": rounds,
        "pooled_rounds": POOLED_ROUNDS * rounds,
        "seconds": PASSES * sum(float(laps.sum()) for s in (*found.values(), *pooled.values()) for laps in s.values()),
        "base": {shape: interval(_base(seconds)) for shape, seconds in found.items()},
        "noise": {shape: _pooled(seconds, "again") for shape, seconds in pooled.items()},
        "merged": {shape: _pooled(seconds, "merged") for shape, seconds in pooled.items()},
        "methods": {
            label: {shape: {kind: _entry(seconds, label, kind) for kind in KINDS} for shape, seconds in found.items()}
            for label in adapted
        },
    }


def _twin(model: Classifier) -> Classifier:
    """The base below an adapted model, in memory as its merged model is."""
    plain = mergeable_copy(model.encoder)
    detach(plain, merge=False)
    return _with_encoder(model, plain)


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


def _base(seconds: Seconds) -> np.ndarray:
    return np.median([seconds[turn] for turn in BASES], axis=0)


def _pooled(seconds: Seconds, kind: str) -> dict[str, float] | None:
    """All models of one kind against as many twins: the ratio of their medians, formed within a round."""
    if not seconds:
        return None
    kinds = (kind, "twin")
    medians = (np.median([laps for (_, other), laps in seconds.items() if other == k], axis=0) for k in kinds)
    return interval(np.divide(*medians))


def _entry(seconds: Seconds, label: str, kind: str) -> dict[str, Any] | None:
    if (label, kind) not in seconds:
        return None
    mine = seconds[label, kind]
    return {"seconds": interval(mine), "ratio": interval(mine / _base(seconds))}
