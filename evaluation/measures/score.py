"""Task score: of classes or of numbers, with every item's outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from evaluation.data import Split, task_loss


def score(outputs: Tensor, split: Split) -> dict[str, Any]:
    """Scores of outputs of shape (items, classes), for regression (items, 1), on a split.

    Returns:
        metric: the name of the primary measure, one of the following.
        accuracy, macro_f1: shares from 0 to 1. matthews: correlation of classes, where it is the primary measure. Or
        spearman, pearson: correlations of the numbers.
        loss: mean cross-entropy in nats, or mean squared error in variances of the training labels.
        items: ids, gold and predicted labels, in the split's order and in the benchmark's own units.
    """
    gold = np.array(split.labels)
    if split.scale is None:
        predicted = outputs.argmax(1).numpy()
        found = {"accuracy": float((predicted == gold).mean()), "macro_f1": macro_f1(gold, predicted)}
        found |= {"matthews": matthews(gold, predicted)} if split.metric == "matthews" else {}
    else:
        mean, deviation = split.scale
        predicted = outputs.squeeze(1).double().numpy() * deviation + mean
        found = {"spearman": pearson(rankdata(gold), rankdata(predicted)), "pearson": pearson(gold, predicted)}
    loss = task_loss(outputs, split.targets()).item()
    items = {"id": list(split.ids), "gold": gold.tolist(), "predicted": predicted.tolist()}
    return {"metric": split.metric, **found, "loss": loss, "items": items}


def primary(score: Mapping[str, Any]) -> float:
    """The primary measure of a record's score; accuracy where an older record does not name it."""
    return float(score[score.get("metric", "accuracy")])


def macro_f1(gold: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Unweighted mean of F1 over the classes that occur among the gold labels, the same classes for every method."""
    classes = np.unique(gold)
    hits = np.array([np.sum((gold == c) & (predicted == c)) for c in classes])
    total = np.array([np.sum(gold == c) + np.sum(predicted == c) for c in classes])
    return float(np.mean(2 * hits / total))


def matthews(gold: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Matthews' correlation of two classes, Gorodkin's (2004) of more, from -1 to 1; 0 where one side is constant."""
    classes = np.union1d(gold, predicted)
    G, P = (labels[:, None] == classes for labels in (gold, predicted))  # shape: (items, classes)
    G, P = G - G.mean(0), P - P.mean(0)
    size = np.sqrt((G**2).sum() * (P**2).sum())
    return float((G * P).sum() / size) if size else 0.0


def pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Pearson's correlation; 0 where one side is constant, as a model is which learnt nothing."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # not after subtracting the mean, which rounds
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
