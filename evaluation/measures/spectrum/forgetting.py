"""Forgetting: what training on one task does to the encoder's view of other text."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from evaluation import training
from evaluation.clock import Clock
from evaluation.data import Split
from evaluation.training import Classifier


def features(model: Classifier, split: Split) -> Tensor:
    """The embeddings of a split in its own order, which are what the task head sees: the mean of the last hidden states
    over the real tokens. Shape (items, hidden), float64 on the CPU, computed in float32 without dropout."""
    return training.features(model, split, Clock(), model.head.weight.device).double().cpu()


def forgetting(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Embeddings of the same text from the untouched base and from the trained model, each (items, hidden).

    Returns:
        cosine_distance: mean over the items of ``1 - cos(before, after)``; 0 where only lengths change.
        relative_change: ``||after - before||_F / ||before||_F``.
        similarity_kept: Spearman's correlation of the cosines of all pairs of items, before and after: 1 where text
        that was nearer than other text still is, whatever rotation or scale came in. None where all pairs are alike.
    """
    a, b = (torch.nn.functional.normalize(X, dim=1) for X in (before, after))
    pairs = torch.triu_indices(len(a), len(a), offset=1)
    near, still = ((X @ X.mT)[pairs[0], pairs[1]].tolist() for X in (a, b))
    constant = min(near) == max(near) or min(still) == max(still)
    return {
        "cosine_distance": float((a - b).square().sum(1).mean()) / 2,  # of unit vectors; exactly 0 for equal ones
        "relative_change": float((after - before).norm() / before.norm()),
        "similarity_kept": None if constant else float(spearmanr(near, still).statistic),
    }
