"""Operators that make one change of a model out of several.

A *task vector* maps the path of every layer to what a task changes there: an update (out, in), its weight included, or
zeros. Operators see whole task vectors, as in the papers, and updates rather than factors: PEFT's ``linear`` adds A's
and B's separately, so that the product has cross terms A1 B2, and depends on how an update happens to be factorised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from variants.core.interface import LoRAPair

TaskVector = Mapping[str, Tensor]
CUT = 1e-5  # singular values below this part of the largest one carry no basis vector
ROUNDING = 1e-12  # and numbers below this part of it are none


def total(tasks: Sequence[TaskVector]) -> dict[str, Tensor]:
    """Task arithmetic: the sum (Ilharco et al., arXiv 2212.04089)."""
    return {path: torch.stack([task[path] for task in tasks]).sum(0) for path in tasks[0]}


# ---- TIES (Yadav et al., arXiv 2306.01708, section 4.2 and algorithm 1) ---------------------------------------------


def trimmed(task: TaskVector, density: float) -> dict[str, Tensor]:
    """The share ``density`` of all numbers of the task vector with the largest magnitudes, the others zero. Numbers
    equal in magnitude to the last one kept are kept too."""
    magnitudes = torch.cat([change.abs().flatten().cpu() for change in task.values()])
    if not len(magnitudes):
        return dict(task)
    keep = max(1, round(density * len(magnitudes)))
    least = float(magnitudes.kthvalue(len(magnitudes) - keep + 1).values)
    return {path: torch.where(change.abs() >= least, change, 0.0) for path, change in task.items()}


def elected(tasks: Sequence[TaskVector]) -> dict[str, Tensor]:
    """For each number the sign with the larger total, and the mean of the tasks that have it there.

    Where the signs cancel exactly neither is elected, and the result is zero.
    """
    merged = {}
    for path in tasks[0]:
        changes = torch.stack([task[path] for task in tasks])  # shape: (tasks, out, in)
        agree = changes.sign() == changes.sum(0).sign()
        merged[path] = torch.where(agree, changes, 0.0).sum(0) / agree.sum(0).clamp_min(1)
    return merged


def ties(tasks: Sequence[TaskVector], density: float) -> dict[str, Tensor]:
    """TIES: trim every task vector as a whole, elect signs, average what agrees."""
    return elected([trimmed(task, density) for task in tasks])


# ---- DARE (Yu et al., arXiv 2311.03099, section 3.1) ----------------------------------------------------------------


def dare(task: TaskVector, density: float, rng: torch.Generator) -> dict[str, Tensor]:
    """Every number is kept with probability ``density`` and divided by it, else dropped: the expected value stays."""
    kept = {
        path: (torch.rand(change.shape, generator=rng, dtype=torch.float64, device=rng.device) < density)
        for path, change in task.items()
    }
    return {path: torch.where(kept[path].to(change.device), change / density, 0.0) for path, change in task.items()}


# ---- KnOTS (Stoica et al., arXiv 2410.19735, section 4) -------------------------------------------------------------


class Basis(NamedTuple):
    """A basis of the output space in which all tasks are written: ``dW_i = U @ blocks[i]``."""

    U: Tensor  # shape: (out, k), orthonormal columns
    blocks: list[Tensor]  # one for each task, shape (k, in): diag(s) V_i


def common_basis(updates: Sequence[Tensor]) -> Basis:  # shape of each: (out, in)
    """From the singular value decomposition, in float64, of the updates side by side, (out, tasks * in)."""
    return _basis(torch.cat([change.double() for change in updates], dim=1), [change.shape[1] for change in updates])


def common_basis_of_pairs(pairs: Sequence[LoRAPair]) -> Basis:
    """``common_basis`` of the products, by way of a core (sum of ranks, tasks * in): all of them lie in the space of
    the B's."""
    Q, R = torch.linalg.qr(torch.cat([pair.B.double() for pair in pairs], dim=1))
    parts = R.split([len(pair.A) for pair in pairs], dim=1)
    U, blocks = common_basis([part @ pair.A.double() for part, pair in zip(parts, pairs, strict=True)])
    return Basis(Q @ U, blocks)


def _basis(side_by_side: Tensor, widths: list[int]) -> Basis:
    U, s, Vh = torch.linalg.svd(side_by_side, full_matrices=False)
    largest = s[:1].sum()  # 0 if there is none
    held = s > CUT * largest  # KnOTS' code compares with 1e-5 itself, whatever the scale
    rows = s[held, None] * Vh[held]
    # A task with no part in a direction has rounding there, which by chance would agree with the sign of another's.
    rows = torch.where(rows.abs() > ROUNDING * largest, rows, 0.0)
    return Basis(U[:, held], list(rows.split(widths, dim=1)))


def knots(bases: Mapping[str, Basis], density: float | None) -> dict[str, LoRAPair]:
    """The tasks' blocks, taken together over all layers, merged by TIES, or summed if ``density`` is None; as pairs."""
    layers = zip(*(basis.blocks for basis in bases.values()), strict=True)  # for each task a block of every layer
    tasks = [dict(zip(bases, blocks, strict=True)) for blocks in layers]
    merged = total(tasks) if density is None else ties(tasks, density)
    return {path: LoRAPair(merged[path], basis.U) for path, basis in bases.items()}
