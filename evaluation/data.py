"""Tokenised examples and how they are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.benchmarks import Benchmark, Example

WINDOW = 16  # batches sorted by length together: enough to make rows of a batch alike, few enough to keep them mixed


@dataclass(frozen=True)
class Batch:
    """Rows padded to the longest of them: input_ids and attention_mask (rows, tokens), labels (rows,): class indices,
    or the standardised numbers of regression."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """On the device; from pinned memory, the host does not wait for the copy."""
        tensors = (self.input_ids, self.attention_mask, self.labels)
        return Batch(*(tensor.to(device, non_blocking=tensor.is_pinned()) for tensor in tensors))

    def pinned(self) -> Batch:
        """In memory that a GPU can copy from by itself."""
        return Batch(self.input_ids.pin_memory(), self.attention_mask.pin_memory(), self.labels.pin_memory())


@dataclass(frozen=True)
class Split:
    """One tokenised split.

    Args:
        labels: class indices; for regression the numbers themselves.
        metric: the benchmark's primary measure.
        scale: for regression, mean and standard deviation of the training labels; None for classification.
    """

    ids: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    labels: tuple[float, ...]
    pad: int
    metric: str = "accuracy"
    scale: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, n: int | None) -> Split:
        """The first ``n`` examples."""
        return self if n is None else replace(self, ids=self.ids[:n], tokens=self.tokens[:n], labels=self.labels[:n])

    def rows(self, index: Sequence[int]) -> Split:
        """The examples at these places, in the order of ``index``."""
        ids, tokens = tuple(self.ids[i] for i in index), tuple(self.tokens[i] for i in index)
        return replace(self, ids=ids, tokens=tokens, labels=tuple(self.labels[i] for i in index))

    def targets(self, index: Sequence[int] | None = None) -> Tensor:  # shape: (items,)
        """What a model's outputs are held against: class indices, or labels of mean 0 and variance 1 over training."""
        labels = self.labels if index is None else [self.labels[i] for i in index]
        if self.scale is None:
            return torch.tensor(labels)
        mean, deviation = self.scale
        return (torch.tensor(labels, dtype=torch.float64) - mean).div(deviation).float()

    def drawn(self, n: int | None, seed: int) -> Split:
        """``n`` examples by chance, in the split's order; all of them where there are no more, or for None."""
        if n is None or n >= len(self):
            return self
        return self.rows(np.sort(np.random.default_rng(seed).permutation(len(self))[:n]).tolist())

    def batch(self, index: Sequence[int]) -> Batch:
        rows = [self.tokens[i] for i in index]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[self.pad] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return Batch(ids, mask, self.targets(index))


@dataclass(frozen=True)
class Data:
    """A benchmark, tokenised for one model. ``classes``: how many outputs it asks for; regression asks for one."""

    train: Split
    validation: Split
    test: Split
    classes: int

    def head(self, n: int | None) -> Data:
        return Data(self.train.head(n), self.validation.head(n), self.test.head(n), self.classes)


def tokenise(benchmark: Benchmark, tokenizer: Any, max_length: int) -> Data:
    """The benchmark's splits as token ids, cut at ``max_length`` tokens; of a pair, the longer text is cut."""
    scale = None
    if benchmark.kind == "regression":
        numbers = np.array([example.label for example in benchmark.train])
        scale = float(numbers.mean()), float(numbers.std()) or 1.0

    def split(examples: Sequence[Example]) -> Split:
        labels, pad = tuple(e.label for e in examples), tokenizer.pad_token_id or 0
        rows = _token_ids(examples, tokenizer, max_length)
        return Split(tuple(e.id for e in examples), rows, labels, pad, benchmark.metric, scale)

    outputs = len(benchmark.labels) or 1
    return Data(split(benchmark.train), split(benchmark.validation), split(benchmark.test), outputs)


def _token_ids(examples: Sequence[Example], tokenizer: Any, max_length: int) -> tuple[tuple[int, ...], ...]:
    """Single texts and pairs are encoded apart: a tokenizer takes one or the other at a time."""
    rows: list[tuple[int, ...]] = [()] * len(examples)
    for paired in (False, True):
        chosen = [i for i, e in enumerate(examples) if (e.text_pair is not None) is paired]
        if chosen:
            columns = [[examples[i].text for i in chosen]]
            columns += [[str(examples[i].text_pair) for i in chosen]] if paired else []
            encoded = tokenizer(*columns, truncation=True, max_length=max_length)["input_ids"]
            for i, row in zip(chosen, encoded, strict=True):
                rows[i] = tuple(row)
    return tuple(rows)


def task_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits (rows, classes) with class indices, or the mean squared error of outputs (rows, 1) with
    standardised numbers; labels (rows,)."""
    if labels.is_floating_point():
        return F.mse_loss(outputs.squeeze(1), labels)
    return F.cross_entropy(outputs, labels)


def axis_seed(axis: str, index: int) -> int:
    """The seed of one named source of randomness (those of ``spec.AXES``, and of measurements) within seed ``index``.

    Runs of different methods with the same index share the data order and the head, which pairs them.
    """
    return int.from_bytes(hashlib.sha256(f"{axis}:{index}".encode()).digest()[:6], "big")


def training_batches(split: Split, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless index lists of ``batch_size`` rows of similar length, every row once an epoch.

    The remainder of an epoch that does not fill a batch is left out of that epoch; chance decides which rows these are.
    """
    rng = np.random.default_rng(seed)
    lengths = np.array([len(row) for row in split.tokens])
    size = min(batch_size, len(split))
    while True:
        # Cut before sorting: cut afterwards, it would be the longest rows that are left out, the same every epoch.
        order = rng.permutation(len(split))[: len(split) - len(split) % size]
        windows = [order[i : i + WINDOW * size] for i in range(0, len(order), WINDOW * size)]
        by_length = [window[np.argsort(lengths[window], kind="stable")] for window in windows]
        batches = [window[i : i + size] for window in by_length for i in range(0, len(window), size)]
        for k in rng.permutation(len(batches)):
            yield batches[k].tolist()


def extremes(split: Split, batches: Sequence[Sequence[int]]) -> tuple[Sequence[int], ...]:
    """The batches of the fewest and of the most tokens a row: what depends on the length is seen at its ends."""
    width = [max(len(split.tokens[i]) for i in rows) for rows in batches]
    narrow, wide = width.index(min(width)), width.index(max(width))
    return (batches[narrow],) if width[narrow] == width[wide] else (batches[narrow], batches[wide])


def evaluation_batches(split: Split, most: int, padding: float = 0.1) -> list[list[int]]:
    """Index lists that cover the split once, rows of similar length together.

    Args:
        most: tokens of a batch, padding included; a longer row is a batch of its own.
        padding: share of ``most`` that may be padding.
    """
    batches: list[list[int]] = []
    real = 0  # tokens of the last batch
    for i in sorted(range(len(split)), key=lambda i: (len(split.tokens[i]), i)):
        length = len(split.tokens[i])
        size = length * (len(batches[-1]) + 1) if batches else 0
        if not batches or size > most or size - real - length > padding * most:
            batches.append([])
            real = 0
        batches[-1].append(i)
        real += length
    return batches
