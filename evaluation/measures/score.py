"""Task score: accuracy and macro-F1, with every item's outcome."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from evaluation.data import Split


def score(logits: Tensor, split: Split) -> dict[str, Any]:
    """Scores of outputs of shape (items, classes) on a split.

    Returns:
        accuracy, macro_f1: shares from 0 to 1. loss: mean cross-entropy in nats.
        items: ids, gold labels and predicted labels, in the split's order.
    """
    predicted = logits.argmax(1).numpy()
    gold = np.array(split.labels)
    return {
        "accuracy": float((predicted == gold).mean()),
        "macro_f1": macro_f1(gold, predicted),
        "loss": F.cross_entropy(logits, logits.new_tensor(split.labels).long()).item(),
        "items": {"id": list(split.ids), "gold": gold.tolist(), "predicted": predicted.tolist()},
    }


def macro_f1(gold: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Unweighted mean of F1 over the classes that occur among the gold labels, the same classes for every method."""
    classes = np.unique(gold)
    hits = np.array([np.sum((gold == c) & (predicted == c)) for c in classes])
    total = np.array([np.sum(gold == c) + np.sum(predicted == c) for c in classes])
    return float(np.mean(2 * hits / total))
