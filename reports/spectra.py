"""The spectra of trained updates: a row a method, and how alike the directions of two runs are."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from reports.records import Json, Results, ScoreRun
from reports.table import Cell, Column, Table, count, digits, text
from reports.tables import METHOD, POINTS
from reports.words import span

Side = str  # "left": of the layer's outputs; "right": of its inputs
Bases = Mapping[tuple[str, Side], NDArray[np.float64]]


def spectrum_of(results: Results, label: str) -> Json:
    """The full measurement of the first final run that has one; empty without."""
    found = (run.measures.get("spectrum") or {} for run in results.of(label, "final"))
    return next((spectrum for spectrum in found if "update" in spectrum), {})


def subspace_similarity(A: NDArray[np.float64], B: NDArray[np.float64]) -> float:
    """``||A^T B||_F^2 / min(i, j)`` of orthonormal columns A (n, i) and B (n, j): 1 where the smaller span lies in the
    larger one, 0 where they are orthogonal, about ``max(i, j) / n`` by chance.

    Hu et al. 2021 (arXiv 2106.09685), section 7.2, equation 4.
    """
    return float(np.square(A.T @ B).sum() / min(A.shape[1], B.shape[1]))


def directions_of(run: ScoreRun) -> dict[tuple[str, Side], NDArray[np.float64]]:
    """(path, side) -> the update's leading singular directions there, as columns (n, rank)."""
    kept = (run.measures.get("spectrum") or {}).get("directions") or ()
    return {
        (one["path"], side): np.frombuffer(base64.b64decode(one[side]), "<f2").astype(float).reshape(n, one["rank"])
        for one in kept
        for side, n in (("left", one["out"]), ("right", one["in"]))
    }


def alike(a: Bases, b: Bases, side: Side) -> float | None:
    """The mean similarity over the layers that both have; None without one."""
    shared = [subspace_similarity(a[place], b[place]) for place in a.keys() & b.keys() if place[1] == side]
    return fmean(shared) if shared else None


def by_chance(bases: Bases, side: Side) -> float | None:
    """What directions drawn by chance would give: the mean of rank / n over the layers."""
    shares = [X.shape[1] / X.shape[0] for (_, found), X in bases.items() if found == side]
    return fmean(shares) if shares else None


def between_seeds(results: Results, label: str, side: Side) -> float | None:
    """The mean similarity of all pairs of a method's final runs; None with fewer than two."""
    runs = [found for run in results.of(label, "final") if (found := directions_of(run))]
    pairs = [alike(a, b, side) for i, a in enumerate(runs) for b in runs[:i]]
    known = [value for value in pairs if value is not None]
    return fmean(known) if known else None


def between_methods(results: Results, one: str, other: str, side: Side) -> float | None:
    """The mean similarity of two methods' final runs of the same seed, which saw the same batches under the same head;
    also of one method at two ranks."""
    first, second = (
        {run.seed: found for run in results.of(label, "final") if (found := directions_of(run))}
        for label in (one, other)
    )
    pairs = [alike(first[seed], second[seed], side) for seed in first.keys() & second.keys()]
    known = [value for value in pairs if value is not None]
    return fmean(known) if known else None


def spectrum_table(results: Results) -> Table:
    """A row a method: ranks of its update, where it lies in the base's spectrum, and what was forgotten."""
    columns = (
        METHOD,
        Column("relative_size", "relative size", digits(2)),
        Column("effective_rank", "effective rank", digits(3), place="terminal"),
        Column("effective_rank_max", "largest", digits(3), place="data"),
        Column("stable_rank", "stable rank", digits(3), place="terminal"),
        Column("stable_rank_max", "largest stable rank", digits(3), place="data"),
        Column("amplification", "amplification", digits(2), place="terminal"),
        Column("top_left", "in the top, outputs", digits(2, POINTS), "%"),
        Column("top_right", "in the top, inputs", digits(2, POINTS), "%", place="terminal"),
        Column("bottom_left", "in the bottom, outputs", digits(2, POINTS), "%"),
        Column("bottom_right", "in the bottom, inputs", digits(2, POINTS), "%"),
        Column("chance_right", "by chance, inputs", digits(2, POINTS), "%", place="terminal"),
        Column("chance_left", "by chance, outputs", digits(2, POINTS), "%", place="data"),
        Column("intruders", "intruders", count, place="terminal"),
        Column("examined", "of", count),
        Column("seeds_left", "seeds alike, outputs", digits(2)),
        Column("seeds_right", "seeds alike, inputs", digits(2), place="terminal"),
        Column("cosine_distance", "forgetting: cosine distance", digits(2), place="terminal"),
        Column("relative_change", "forgetting: relative change", digits(2)),
        Column("similarity_kept", "similarities kept", digits(3), place="terminal"),
        Column("remark", "remark", text, align="left"),
    )
    rows = tuple(_row(results, label) for label in results.labels if spectrum_of(results, label))
    return Table("spectrum", "Spectra of the updates", _caption(results), columns, rows)


def _row(results: Results, label: str) -> tuple[Cell, ...]:
    found = spectrum_of(results, label)
    update: Json = found.get("update") or {}
    middle, most = (update.get(kind) or {} for kind in ("median", "max"))
    lost: Json = found.get("forgetting") or {}
    ranks = (part.get(kind) for kind in ("effective_rank", "stable_rank") for part in (middle, most))
    places = ("top_left", "top_right", "bottom_left", "bottom_right", "chance_right", "chance_left")
    return (
        Cell(label),
        Cell(middle.get("relative_size")),
        *map(Cell, ranks),
        Cell(middle.get("amplification")),
        *(Cell(middle.get(kind)) for kind in places),
        Cell(update.get("intruders")),
        Cell(update.get("examined")),
        *(Cell(between_seeds(results, label, side)) for side in ("left", "right")),
        *(Cell(lost.get(kind)) for kind in ("cosine_distance", "relative_change", "similarity_kept")),
        Cell("" if update else "no update of weights"),
    )


def _caption(results: Results) -> str:
    spec: Json = results.suite.get("spectrum") or {}
    k, epsilon = spec.get("directions", "?"), spec.get("epsilon", "?")
    said = (
        "Of each method's first final seed, the median over its layers; intruders are counted over all layers. Ranks: "
        "effective, the exponential of the entropy of the singular values; stable, the squared Frobenius norm over the "
        f"squared spectral norm. Amplification: the size of the update's {k} leading directions over what the base "
        "weight has in them. In the top or bottom: the share of the update's energy inside the base weight's "
        f"{k} largest or smallest singular directions, beside what chance would put there. Intruders: of the "
        f"{spec.get('intruders', '?')} leading left singular vectors of each changed weight, those whose cosine with "
        f"every one of the base's is below {epsilon}. Seeds alike: the similarity of the update's {k} leading "
        "directions between final seeds, from 0 (orthogonal) to 1 (the same), on a few layers; by chance it is the "
        "chance share."
    )
    return f"{said} {_forgetting_caption(results, spec['forgetting'])}" if spec.get("forgetting") else said


def _forgetting_caption(results: Results, name: str) -> str:
    """What the texts were, as far as the records say: older ones looked at no overlap."""
    measured = [lost for label in results.labels if (lost := spectrum_of(results, label).get("forgetting"))]
    texts = f"{span(one['items'] for one in measured)} texts of {name}" if measured else f"texts of {name}"
    if measured and all("left_out" in one for one in measured):
        benchmark, others = results.suite.get("benchmark", "the benchmark"), max(one["left_out"] for one in measured)
        texts += f" that are not in {benchmark}" + (f" ({others} that are were left out)" if others else "")
    return (
        f"Forgetting: how the embeddings of {texts} differ from those of the untouched base; similarities kept: the "
        "rank correlation of their pairwise cosines before and after."
    )
