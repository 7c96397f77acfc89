"""Starts on a quantised base: how far weights and outputs are from float32, at equal rank.

The base is stored in int8 or NF4 with a low-rank pair beside it in float32, as QLoRA (the pair is zero), LoftQ (it
makes up for the rounding) and QPiSSA (it holds the principal part, and only the rest is quantised) start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from evaluation.clock import Clock
from evaluation.data import Split
from evaluation.measures.merging.stored import swapped
from evaluation.training import Classifier, logits
from variants.core import LoRAPair
from variants.core.cache import not_kept
from variants.core.host import oriented, original_weight
from variants.core.linalg import raised, top
from variants.core.rounding import Format, Rounding
from variants.core.targets import matching_layers

Start = Literal["qlora", "loftq", "qpissa"]
ALTERNATIONS = 5  # as in the experiments of LoftQ (section 4) and in QPiSSA's script
Errors = dict[str, float]


class QuantisedStart(NamedTuple):
    """What one layer starts with: Q (out, in), numbers which the format holds, and the pair beside it, if any."""

    Q: Tensor
    pair: LoRAPair | None

    def weight(self) -> Tensor:  # shape: (out, in)
        return self.Q if self.pair is None else self.Q + self.pair.delta()


@not_kept()  # what is left after rounding is never decomposed again
def quantised_start(
    W: Tensor, rounding: Rounding, start: Start, rank: int, alternations: int = ALTERNATIONS
) -> QuantisedStart:
    """The start of one layer with weight W (out, in).

    ``qlora`` (arXiv 2305.14314) quantises W and has no pair, whatever the rank. The others alternate ``Q = q(W - B A)``
    and ``B A = SVD_rank(W - Q)``: ``loftq`` (arXiv 2310.08659, algorithm 1) from B A = 0, ``qpissa`` (arXiv 2404.02948,
    section on QPiSSA) from the principal part of W.

    Raises:
        ValueError: the rank is none of this matrix, or less than one alternation is asked for.
    """
    if alternations < 1:
        raise ValueError(f"at least one alternation is needed to make a pair, not {alternations}")
    if start == "qlora":
        return QuantisedStart(rounding(W), None)
    pair = _leading(W, rank) if start == "qpissa" else None
    for _ in range(alternations):
        Q = rounding(W if pair is None else W - pair.delta())
        pair = _leading(W - Q, rank)
    return QuantisedStart(Q, pair)


def _leading(W: Tensor, rank: int) -> LoRAPair:
    U, s, Vh = top(W, rank)
    return LoRAPair(Vh, U * s)


@torch.no_grad()
def quantised(
    model: Classifier,
    where: Sequence[str],
    formats: Iterable[Format],
    ranks: Sequence[int],
    split: Split,
    clock: Clock,
    alternations: int = ALTERNATIONS,
) -> dict[str, dict[str, dict[Start, Errors]]]:
    """Quantises the layers that ``where`` matches, in each way, and compares with the float32 model on a split.

    Returns:
        Per format, rank (as text) and start
        weight_error: ``||W - (Q + B A)||_F / ||W||_F`` over all these layers together.
        output_error: ``||logits - logits of float32|| / ||logits of float32||``.
        The model is then as it was.
    """
    layers = {path: model.encoder.get_submodule(path) for path in matching_layers(model.encoder, list(where))}
    weights = {path: raised(original_weight(layer).detach()) for path, layer in layers.items()}
    device = model.head.weight.device
    exact = logits(model, split, clock, device)

    def errors(made: Mapping[str, Tensor]) -> Errors:
        off, size = (sum(float(M.double().square().sum()) for M in Ms) for Ms in (residuals(made), weights.values()))
        values = {layers[path].get_parameter("weight"): oriented(layers[path], W) for path, W in made.items()}
        with swapped(values):
            change = logits(model, split, clock, device) - exact
        return {"weight_error": math.sqrt(off / size), "output_error": float(change.norm() / exact.norm())}

    def residuals(made: Mapping[str, Tensor]) -> Iterable[Tensor]:
        return (W - made[path] for path, W in weights.items())

    def measured(rounding: Rounding, start: Start, rank: int) -> Errors:
        started = {path: quantised_start(W, rounding, start, rank, alternations) for path, W in weights.items()}
        return errors({path: one.weight() for path, one in started.items()})

    found: dict[str, dict[str, dict[Start, Errors]]] = {}
    for format in formats:
        rounding = Rounding(format)
        alone = measured(rounding, "qlora", 1)  # the same for every rank
        found[format] = {
            str(rank): {
                "qlora": alone,
                "loftq": measured(rounding, "loftq", rank),
                "qpissa": measured(rounding, "qpissa", rank),
            }
            for rank in ranks
        }
    return found
