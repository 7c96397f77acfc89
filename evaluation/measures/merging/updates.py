"""What becomes of the update itself, in the weights: how large it is, and what of it outlives being stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evaluation.data import axis_seed
from evaluation.measures.merging.stored import linear_layers, swapped
from variants.core.host import Host, oriented
from variants.core.linalg import full_precision, raised
from variants.core.rounding import Format, Rounding

SIZES = tuple(10 ** (k / 2 - 4) for k in range(9))  # relative sizes of the survival curve: 1e-4 to 1
SAMPLED_LAYERS, SAMPLED_WEIGHTS = 2, 2**20  # what the curve and the factors are measured on, at most


class Stored(NamedTuple):
    """One layer's weights, each (out, in): ``Q`` the rounded base, ``D`` the update, ``S`` what is stored after
    merging. The update of an adapter is that on Q; of a weight that trains itself, that on the base it was trained
    from, so that what the base loses by rounding is not taken for a part of the update."""

    Q: Tensor
    D: Tensor
    S: Tensor


@dataclass(frozen=True)
class Changed:
    """A linear layer whose weight the method changes: one that carries an adapter, or whose weight trains.

    ``W`` (out, in) is the weight before training, in full precision, ``D`` (out, in) the update on it.
    """

    layer: nn.Module
    W: Tensor
    D: Tensor

    @property
    def trained(self) -> bool:
        """Whether the weight itself trains, so that the result is the same whatever base it is put on."""
        return bool(self.layer.get_parameter("weight").requires_grad)

    def present(self) -> Tensor:  # shape: (out, in)
        """The weight which the layer holds at this moment."""
        return raised(oriented(self.layer, self.layer.get_parameter("weight").detach()))

    def effective(self) -> Tensor:  # shape: (out, in)
        """The weight which layer and adapter amount to at this moment."""
        return self.layer.effective_weight() if isinstance(self.layer, Host) else self.present()

    @torch.no_grad()
    def effective_on(self, Q: Tensor) -> Tensor:  # shapes: (out, in)
        """The effective weight with Q in the place of the base weight."""
        if self.trained:
            return self.effective()
        with swapped({self.layer.get_parameter("weight"): oriented(self.layer, Q)}):
            return self.effective()

    def stored(self, rounding: Rounding) -> Stored:
        """The base rounded to nearest, and what merging into it stores."""
        Q = Rounding(rounding.format)(self.W)
        E = self.effective_on(Q)
        return Stored(Q, self.D if self.trained else E - Q, rounding(E))

    def scaled(self, Q: Tensor, factor: float, rounding: Rounding) -> Stored:
        """What is stored of a multiple of the update, on the rounded base Q (out, in) unless the weight trains."""
        D = self.D * factor
        return Stored(Q, D, rounding((self.W if self.trained else Q) + D))


@torch.no_grad()
def changed_layers(encoder: nn.Module, base: Mapping[str, Tensor]) -> list[Changed]:
    """The linear layers whose weight differs from the base's, in model order. Adapters must be in their exact form.

    Args:
        base: the base's parameters by path, as they were before training.
    """
    found = []
    for path, layer in linear_layers(encoder).items():
        if f"{path}.weight" not in base:
            continue
        W = raised(oriented(layer, base[f"{path}.weight"]))
        change = Changed(layer, W, W)
        if isinstance(layer, Host) or change.trained:
            D = change.effective() - W
            if bool(D.any()):
                found.append(Changed(layer, W, D))
    return found


def spread(layers: Sequence[Changed], most: int = SAMPLED_LAYERS, weights: int = SAMPLED_WEIGHTS) -> list[Changed]:
    """At most so many layers, evenly spread over the model, with at most so many weights; at least one."""
    count = min(most, len(layers))
    chosen = [layers[i * (len(layers) - 1) // max(1, count - 1)] for i in range(count)]
    kept: list[Changed] = []
    total = 0
    for layer in chosen:
        total += layer.W.numel()
        if not kept or total <= weights:
            kept.append(layer)
    return kept


def relative_size(layers: Iterable[Changed]) -> float | None:
    """``sqrt(sum ||D||^2 / sum ||W||^2)`` over the layers; None if there are none."""
    pairs = [(_dot(layer.D, layer.D), _dot(layer.W, layer.W)) for layer in layers]
    return _finite(math.sqrt(sum(d for d, _ in pairs) / sum(w for _, w in pairs))) if pairs else None


@full_precision
def survived(layers: Iterable[Stored]) -> dict[str, float | None]:
    """How much of the update is in the stored weights, over all layers together.

    Returns:
        kept: ``<S - Q, D> / <D, D>``, the share of the update that survives.
        update_error: ``||S - Q - D|| / ||D||``. Both are None where nothing changes, or a number is not finite.
    """
    along = lost = size = 0.0
    for Q, D, S in layers:
        change = S - Q
        along, size = along + _dot(change, D), size + _dot(D, D)
        lost += _dot(change - D, change - D)
    if not size or not math.isfinite(along + lost + size):
        return {"kept": None, "update_error": None}
    return {"kept": along / size, "update_error": math.sqrt(lost / size)}


@torch.no_grad()
def survival(layers: Sequence[Changed], formats: Iterable[Format], seed: int) -> list[dict[str, Any]]:
    """The update scaled to each of ``SIZES`` and stored: how much of it survives as a function of its relative size.

    Returns:
        One row for every format but float32, rounding (nearest, stochastic) and size: format, rounding, relative_size,
        kept and error, which is ``update_error``.
    """
    own = relative_size(layers)
    if not own:
        return []
    rows = []
    for format in formats:
        if format == "float32":
            continue
        bases = [Rounding(format)(layer.W) for layer in layers]
        for name, rounding in (("nearest", Rounding(format)), ("stochastic", by_chance(format, seed))):
            for size in SIZES:
                scaled = (one.scaled(Q, size / own, rounding) for one, Q in zip(layers, bases, strict=True))
                found = survived(scaled)
                row = {"format": format, "rounding": name, "relative_size": size}
                rows.append(row | {"kept": found["kept"], "error": found["update_error"]})
    return rows


def by_chance(format: Format, seed: int) -> Rounding:
    """Stochastic rounding to a format, whose draws do not depend on what else is measured."""
    return Rounding(format, torch.Generator().manual_seed(axis_seed(f"rounding to {format}", seed)))


def _dot(A: Tensor, B: Tensor) -> float:
    return float((A * B).sum(dtype=torch.float64))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
