"""Spectral measurements: which directions an update uses, beside those of the base, and what the base loses by it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.clock import Clock
from evaluation.data import Split
from evaluation.measures.merging.factors import Factored
from evaluation.measures.merging.stored import linear_layers
from evaluation.measures.merging.updates import Changed, changed_layers
from evaluation.measures.spectrum.defects import defect_at, marks
from evaluation.measures.spectrum.forgetting import features, forgetting
from evaluation.measures.spectrum.matrices import (
    amplification,
    decomposed,
    effective_rank,
    intruders,
    shares,
    stable_rank,
)
from evaluation.peers import is_peer
from evaluation.spec import Spectrum
from evaluation.training import Classifier
from variants.core import Variant
from variants.core.cache import not_kept
from variants.core.host import hosts
from variants.core.linalg import bottom, full_precision, svd, top
from variants.core.targets import matches

DRAWN = 64  # singular values of an update that a figure shows, at most


@dataclass
class Watch:
    """A run's spectral measurements, before the method is attached, while it trains and afterwards.

    Args:
        base: the base's parameters by path, as they were before training.
        where: patterns of the layers among which those are chosen whose directions are kept: the same for all methods
            on these layers, whatever else they change, so that they can be compared.
        text: of another benchmark, to see what is forgotten; None leaves that out.
        before: the untouched base's ``features`` of it.
        steps: of the training.
        left_out: texts of that benchmark which the one trained on has too.
    """

    spec: Spectrum
    base: dict[str, Tensor]
    where: Sequence[str]
    text: Split | None
    before: Tensor | None
    steps: int
    clock: Clock
    left_out: int = 0
    series: list[dict[str, Any]] = field(default_factory=list)

    def at(self, encoder: nn.Module, step: int) -> None:
        """To be called before training with step 0, and after every step."""
        unconstrained = step > 0 and not self.series  # known since step 0
        if self.spec.depth == "full" and step in marks(self.steps, self.spec.points) and not unconstrained:
            with self.clock("spectrum"):
                found = defect_at(encoder, step)
            self.series += [found] if found else []

    def after(self, model: Classifier, variant: Variant) -> dict[str, Any]:
        """Everything about the trained model; a method that had replaced the base goes on in its exact form.

        Returns:
            update: ``update_spectra``, and directions: ``kept_directions``; both None for a method whose update of the
            weights is not defined (it depends on the input) or not known (a peer), or which changes no linear layer.
            And unless ``spec.depth`` is ``directions``
            defects: rows of ``defect_at``, None without a constrained factor.
            forgetting: ``forgetting``, with the number of items and of those left out; None where not asked for.
        """
        with self.clock("spectrum"):
            layers = self._layers(model.encoder, variant)
            directions = kept_directions(layers, _chosen(model.encoder, self.where, self.spec.layers), self.spec)
            found: dict[str, Any] = {"directions": directions or None}
            if self.spec.depth == "directions":
                return found
            lost = None
            if self.text is not None and self.before is not None:
                measured = forgetting(self.before, features(model, self.text))
                lost = {"items": len(self.text), "left_out": self.left_out, **measured}
            return found | {
                "update": update_spectra(layers, self.spec) if layers else None,
                "defects": self.series or None,
                "forgetting": lost,
            }

    def _layers(self, encoder: nn.Module, variant: Variant) -> dict[str, Changed]:
        if is_peer(encoder) or not variant.mergeable:
            return {}
        for host in hosts(encoder).values():
            host.unrebase()
        paths = {layer: path for path, layer in linear_layers(encoder).items()}
        return {paths[one.layer]: one for one in changed_layers(encoder, self.base)}


@torch.no_grad()
def update_spectra(layers: Mapping[str, Changed], spec: Spectrum) -> dict[str, Any]:
    """The update of every layer, beside the base weight W (out, in), in float64.

    Returns:
        directions: the number k of singular directions at either end of W. layers: a row for each
            path; relative_size ``||D||_F / ||W||_F``; rank, without what is rounding;
            effective_rank, stable_rank, amplification: of ``matrices``.
            top_left, top_right, bottom_left, bottom_right: the share of the update's energy in the span of W's k
            largest, k smallest left (outputs) or right (inputs) singular vectors; chance_left, chance_right: what they
            would be for directions drawn by chance, k / out and k / in.
            intruders: among the ``spec.intruders`` leading singular vectors of W + D.
        median, max: of each of these over the layers that have it. intruders: of all layers together, out of examined.
        values: singular values divided by the largest, the median over the layers, 64 at most; a layer whose update has
            fewer counts with zeros, and the list ends where half of them have none left.
    """
    parts = {path: decomposed(one) for path, one in layers.items()}
    rows = [{"path": path, **_measured(parts[path], one.W, spec)} for path, one in layers.items()]
    kinds = [kind for kind in rows[0] if kind != "path"]
    present = {kind: [row[kind] for row in rows if row[kind] is not None] for kind in kinds}
    return {
        "directions": spec.directions,
        "layers": rows,
        "median": {kind: median(found) if found else None for kind, found in present.items()},
        "max": {kind: max(found, default=None) for kind, found in present.items()},
        "intruders": sum(present["intruders"]),
        "examined": sum(min(spec.intruders, *one.W.shape) for one in layers.values()),
        "values": _values([part.s for part in parts.values()]),
    }


@full_precision
def _measured(D: Factored, W: Tensor, spec: Spectrum) -> dict[str, Any]:
    k = min(spec.directions, *W.shape)
    lead, tail = top(W, k), bottom(W, k)
    inside, outside = shares(D, lead[0], lead[2]), shares(D, tail[0], tail[2])
    with not_kept():  # of a weight that no other run will see
        changed = top(W.double() + (D.U * D.s) @ D.Vh, min(spec.intruders, *W.shape))[0]
    return {
        "relative_size": float(D.s.norm() / W.double().norm()),
        "rank": len(D.s),
        "effective_rank": effective_rank(D.s),
        "stable_rank": stable_rank(D.s),
        "amplification": amplification(D, W, k),
        "top_left": inside[0],
        "top_right": inside[1],
        "bottom_left": outside[0],
        "bottom_right": outside[1],
        "chance_left": k / W.shape[0],
        "chance_right": k / W.shape[1],
        "intruders": intruders(changed, svd(W)[0], spec.epsilon),
    }


def _values(spectra: Sequence[Tensor]) -> list[float]:
    padded = torch.zeros(len(spectra), DRAWN, dtype=torch.float64)
    for row, s in zip(padded, spectra, strict=True):
        row[: len(s)] = (s / s[0])[:DRAWN]
    middle = padded.quantile(0.5, dim=0)
    return [float(value) for value in middle if value > 0]


def _chosen(encoder: nn.Module, where: Sequence[str], count: int) -> list[str]:
    """Paths of a few layers which the suite's patterns mean, evenly spread over the model, first and last included."""
    paths = [p for p in linear_layers(encoder) if any(pattern == "all" or matches(pattern, p) for pattern in where)]
    count = min(count, len(paths))
    return [paths[i * (len(paths) - 1) // max(1, count - 1)] for i in range(count)]


@torch.no_grad()
def kept_directions(layers: Mapping[str, Changed], paths: Sequence[str], spec: Spectrum) -> list[dict[str, Any]]:
    """The leading singular directions of the update on a few layers, for comparing it with other runs' updates.

    They are part of the record, which is all that reports see: float16, of which 11 bits suffice for a similarity to
    three decimals, in base64, 33 KB for two layers of MiniLM with 8 directions.

    Returns:
        path; left (out, rank) and right (in, rank), row by row, as text; out, in, rank. A layer which the update does
        not change is left out.
    """
    found = []
    for path in paths:
        if path not in layers:
            continue
        D = decomposed(layers[path])
        rank = min(spec.directions, len(D.s))
        left, right = D.U[:, :rank], D.Vh[:rank].mT
        sizes = {"out": len(left), "in": len(right), "rank": rank}
        found.append({"path": path, **sizes, "left": packed(left), "right": packed(right)})
    return found


def packed(X: Tensor) -> str:
    """A matrix in float16, little-endian, row by row, as base64."""
    return base64.b64encode(X.contiguous().half().cpu().numpy().astype("<f2").tobytes()).decode()
