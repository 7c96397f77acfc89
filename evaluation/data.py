"""Tokenised examples and how they are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.benchmarks import Benchmark, Example

WINDOW = 16  # batches sorted by length together: enough to make rows of a batch alike, few enough to keep them mixed


@dataclass(frozen=True)
class Batch:
    """Rows padded to the longest of them: input_ids and attention_mask (rows, tokens), labels (rows,)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Split:
    """One tokenised split."""

    ids: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    pad: int

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, n: int | None) -> Split:
        """The first ``n`` examples."""
        return self if n is None else Split(self.ids[:n], self.tokens[:n], self.labels[:n], self.pad)

    def drawn(self, n: int | None, seed: int) -> Split:
        """``n`` examples by chance, in the split's order; all of them where there are no more, or for None."""
        if n is None or n >= len(self):
            return self
        index = np.sort(np.random.default_rng(seed).permutation(len(self))[:n])
        ids, tokens, labels = zip(*((self.ids[i], self.tokens[i], self.labels[i]) for i in index), strict=True)
        return Split(ids, tokens, labels, self.pad)

    def batch(self, index: Sequence[int]) -> Batch:
        rows = [self.tokens[i] for i in index]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[self.pad] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return Batch(ids, mask, torch.tensor([self.labels[i] for i in index]))


@dataclass(frozen=True)
class Data:
    """A benchmark, tokenised for one model."""

    train: Split
    validation: Split
    test: Split
    classes: int

    def head(self, n: int | None) -> Data:
        return Data(self.train.head(n), self.validation.head(n), self.test.head(n), self.classes)


def tokenise(benchmark: Benchmark, tokenizer: Any, max_length: int) -> Data:
    """The benchmark's splits as token ids, cut at ``max_length`` tokens."""

    def split(examples: Sequence[Example]) -> Split:
        encoded = tokenizer([e.text for e in examples], truncation=True, max_length=max_length)["input_ids"]
        rows = tuple(tuple(row) for row in encoded)
        return Split(tuple(e.id for e in examples), rows, tuple(e.label for e in examples), tokenizer.pad_token_id or 0)

    return Data(split(benchmark.train), split(benchmark.validation), split(benchmark.test), len(benchmark.labels))


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


def evaluation_batches(split: Split, batch_size: int = 64) -> list[list[int]]:
    """Index lists that cover the split once, rows of similar length together."""
    order = sorted(range(len(split)), key=lambda i: (len(split.tokens[i]), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
