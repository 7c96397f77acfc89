"""Several adapters on one model made into one more, by the operators of ``variants.core.task_vectors``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from variants.core.conversion import Conversion, attach_pairs, bias_change, carriers, exact_pair, update
from variants.core.host import Host, hosts
from variants.core.interface import Init, LoRAPair, Refused, Variant
from variants.core.linalg import full_precision, raised
from variants.core.pairs import Cut, check_rank, concatenated, fitted, truncated, truncated_pair
from variants.core.placing import check_name
from variants.core.registry import create
from variants.core.restoring import restore
from variants.core.task_vectors import (
    TaskVector,
    common_basis,
    common_basis_of_pairs,
    dare,
    elected,
    knots,
    ties,
    total,
)

How = Literal["linear", "svd", "ties", "dare", "dare_ties", "knots", "knots_ties"]
Layers = Mapping[str, Host]
Weights = Mapping[str, float]


class Combined(NamedTuple):
    """What was attached."""

    method: str  # "lora"; "dense" where the combination has no low rank
    ranks: dict[str, int]  # path -> rank of the layer's pair; empty for dense
    errors: dict[str, float]  # path -> ||M - attached||_F / ||M||_F, where M is what the operator gives
    error: float  # the same over all layers together; not 0 only where a rank cut M


@torch.no_grad()
@full_precision
def combine(
    model: nn.Module,
    weights: Weights,
    into: str,
    how: How = "linear",
    *,
    rank: int | None = None,
    density: float = 0.2,
    rng: torch.Generator | None = None,
) -> Combined:
    """Attaches a combination of adapters under a new name and switches to it. Its sources stay as they are.

    ``linear`` is the sum which ``activate(weights)`` computes, ``svd`` that sum cut to ``rank``; ``ties`` and
    ``knots_ties`` (TIES in KnOTS' basis) keep the largest ``density`` of each task vector, ``dare`` (summed) and
    ``dare_ties`` (elected without trimming) keep a random one. ``knots`` sums in KnOTS' basis, which differs from
    ``linear`` only by what that leaves out.

    Args:
        weights: name -> factor on what this adapter does.
        rank: cuts what the operator gives to pairs of at most this rank. Without it ``linear`` keeps the sum of all
            ranks, if every source has exact pairs, and KnOTS the rank of its basis; anything else becomes ``dense``.
        density: share of its numbers which a task vector keeps, layers where only other sources act included.
        rng: decides what DARE drops.

    Raises:
        Refused: an unknown name, or one that is taken; a source that is no change of weights alone (it depends on the
            input, trains the base, changes biases); an argument that does not fit ``how``. The model is as it was.
    """
    _check_arguments(weights, how, rank, density, rng)
    check_name(model, create("lora"), into)
    layers = _layers(model, weights)
    pairs = _pairs(layers, weights) if how in ("linear", "svd", "knots", "knots_ties") else None
    merged: Mapping[str, LoRAPair | Tensor]
    if pairs is None:
        merged = _merged(_tasks(layers, weights), how, density, rng)
    elif how in ("linear", "svd"):
        merged = {path: concatenated(found) for path, found in pairs.items()}
    else:
        bases = {path: common_basis_of_pairs(found) for path, found in pairs.items()}
        merged = knots(bases, density if how == "knots_ties" else None)
    return _attach(model, into, merged, rank)


def _check_arguments(weights: Weights, how: str, rank: int | None, density: float, rng: torch.Generator | None) -> None:
    if how not in get_args(How):
        raise Refused(f"no way {how!r} to combine adapters: there are {', '.join(get_args(How))}")
    if not weights or not all(map(math.isfinite, weights.values())):
        raise Refused(f"give each adapter that should be combined a finite weight, not {dict(weights)}")
    if (rank is None) if how == "svd" else (rank is not None and how == "linear"):
        raise Refused("linear is the exact sum, svd is the sum cut to a rank: leave the rank out, or give one to svd")
    check_rank(rank)
    if not 0 < density <= 1:
        raise Refused(f"density is the share of numbers that are kept, above 0 and at most 1, not {density}")
    if how.startswith("dare") and rng is None:
        raise Refused(f"{how} drops numbers by chance: give the generator that decides, rng=torch.Generator()")


def _layers(model: nn.Module, weights: Weights) -> Layers:
    """The layers which any of the sources changes, by path, in model order."""
    carried = {name: carriers(model, name) for name in weights}
    for name, layers in carried.items():
        if biased := [path for path, host in layers.items() if bias_change(host, name)]:
            raise Refused(f"{name!r} changes the bias of {biased[0]} too: only changes of weights can be combined")
    return {path: host for path, host in hosts(model).items() if any(path in layers for layers in carried.values())}


def _pairs(layers: Layers, weights: Weights) -> dict[str, list[LoRAPair]] | None:
    """Every source's exact pair on every layer, weighted, of rank 0 where it does nothing; None unless all have one."""
    found: dict[str, list[LoRAPair]] = {}
    for path, host in layers.items():
        W = raised(host.original_dense())
        nothing = LoRAPair(W.new_zeros(0, W.shape[1]), W.new_zeros(len(W), 0))
        pairs = [exact_pair(host, name) if name in host.adapter else nothing for name in weights]
        found[path] = [
            LoRAPair(pair.A, w * pair.B) for pair, w in zip(pairs, weights.values(), strict=True) if pair is not None
        ]
        if len(found[path]) < len(weights):
            return None
    return found


def _tasks(layers: Layers, weights: Weights) -> list[TaskVector]:
    """Every source's task vector."""
    return [
        {
            path: w * update(host, name) if name in host.adapter else torch.zeros_like(raised(host.original_dense()))
            for path, host in layers.items()
        }
        for name, w in weights.items()
    ]


def _merged(
    tasks: list[TaskVector], how: How, density: float, rng: torch.Generator | None
) -> Mapping[str, LoRAPair | Tensor]:
    if how in ("knots", "knots_ties"):
        bases = {path: common_basis([task[path] for task in tasks]) for path in tasks[0]}
        return knots(bases, density if how == "knots_ties" else None)
    if how == "ties":
        return ties(tasks, density)
    if rng is not None and how in ("dare", "dare_ties"):
        tasks = [dare(task, density, rng) for task in tasks]
    return elected(tasks) if how == "dare_ties" else total(tasks)


def _attach(model: nn.Module, into: str, merged: Mapping[str, LoRAPair | Tensor], rank: int | None) -> Combined:
    """As pairs where they are that, or a rank makes them that; else as dense updates."""
    cuts: dict[str, Cut] = {}
    whole: dict[str, tuple[Variant, Init]] = {}
    for path, M in merged.items():
        if isinstance(M, LoRAPair):
            cuts[path] = truncated_pair(fitted(M), rank)
        elif rank is not None:
            cuts[path] = truncated(M, rank)
        else:
            whole[path] = create("dense"), Init(train={"D": M})
    if whole:
        restore(model, create("dense"), whole, name=into)
        return Combined("dense", {}, dict.fromkeys(whole, 0.0), 0.0)
    found = Conversion.of(cuts)
    attach_pairs(model, found.pairs, into)
    return Combined("lora", {path: len(pair.A) for path, pair in found.pairs.items()}, found.errors, found.error)
