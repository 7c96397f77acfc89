"""Batches: padding, coverage, order by seed, and rows of one batch that are alike in length."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from evaluation import data
from evaluation.data import Data, Split, axis_seed, evaluation_batches, tokenise, training_batches
from tests.evaluation import toy


def epoch(split: Split, size: int, seed: int, number: int = 0) -> list[list[int]]:
    """The batches of one epoch."""
    count = len(split) // min(size, len(split))
    return list(islice(training_batches(split, size, seed), number * count, (number + 1) * count))


def padding(split: Split, batches: list[list[int]]) -> float:
    """The share of tokens that are padding."""
    lengths = [[len(split.tokens[i]) for i in rows] for rows in batches]
    return 1 - sum(map(sum, lengths)) / sum(max(rows) * len(rows) for rows in lengths)


# ---- one batch ------------------------------------------------------------------------------------------------------


def test_batch_is_padded_to_its_own_longest_row():
    split = Split(("a", "b", "c"), ((5, 6, 7, 8, 9), (1,), (2, 3)), (0, 2, 1), pad=4)
    batch = split.batch([2, 1])
    assert batch.input_ids.tolist() == [[2, 3], [1, 4]]
    assert batch.attention_mask.tolist() == [[1, 1], [1, 0]]
    assert batch.labels.tolist() == [1, 2]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels)} == {torch.int64}
    assert batch.to(torch.device("meta")).labels.device.type == "meta"


def test_head_keeps_the_first_examples_of_every_split():
    whole, short = toy.data(), toy.data().head(3)
    for name in ("train", "validation", "test"):
        a, b = getattr(whole, name), getattr(short, name)
        assert (b.ids, b.tokens, b.labels, b.pad) == (a.ids[:3], a.tokens[:3], a.labels[:3], a.pad)
    assert short.classes == whole.classes
    assert whole.head(None) == whole
    assert whole.head(10**6) == whole


def test_tokenise_cuts_and_keeps_ids_and_labels():
    made = tokenise(toy.benchmark(), toy.Words(), max_length=5)
    assert isinstance(made, Data)
    assert made.classes == toy.CLASSES
    for name in ("train", "validation", "test"):
        want, got = getattr(toy.data(), name), getattr(made, name)
        assert (got.ids, got.labels, got.pad) == (want.ids, want.labels, 0)
        assert got.tokens == tuple(row[:5] for row in want.tokens)


# ---- training -------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 70), size=st.integers(1, 20), seed=st.integers(0, 5), number=st.integers(0, 2))
def test_every_row_at_most_once_an_epoch_and_only_a_remainder_left_out(n, size, seed, number):
    batches = epoch(toy.split(n, seed), size, seed, number)
    rows = Counter(i for batch in batches for i in batch)
    assert {len(batch) for batch in batches} == {min(size, n)}
    assert max(rows.values()) == 1
    assert set(rows) <= set(range(n))
    assert len(rows) == n - n % min(size, n)


def left_out(split: Split, size: int, epochs: int = 60) -> Counter[int]:
    """How often each row is left out of an epoch."""
    return Counter(
        i
        for number in range(epochs)
        for i in set(range(len(split))) - {i for batch in epoch(split, size, 0, number) for i in batch}
    )


def remainder_is_drawn(split: Split, size: int) -> bool:
    """Whether long rows are left out about as often as short ones (expected: in 60 epochs, 20 times each)."""
    missed = left_out(split, size)
    return all(5 <= missed[i] <= 40 for i in range(len(split)))


def test_chance_leaves_rows_out_not_length():
    assert remainder_is_drawn(toy.split(48, 1, longest=40), 32)


def cut_after_sorting(split: Split, batch_size: int, seed: int):
    """A broken variant: the remainder is what lies at the end of the sorted window."""
    rng = np.random.default_rng(seed)
    lengths = np.array([len(row) for row in split.tokens])
    while True:
        order = rng.permutation(len(split))
        order = order[np.argsort(lengths[order], kind="stable")]
        batches = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
        for k in rng.permutation(len(batches)):
            yield batches[k].tolist()


def test_a_remainder_of_the_longest_rows_is_caught(monkeypatch):
    monkeypatch.setitem(globals(), "training_batches", cut_after_sorting)
    assert not remainder_is_drawn(toy.split(48, 1, longest=40), 32)


def saves_padding(split: Split, size: int = 8) -> bool:
    """Whether batches are padded less than half as much as batches of rows in random order."""
    order = np.random.default_rng(0).permutation(len(split)).tolist()
    unsorted = [order[i : i + size] for i in range(0, len(split), size)]
    return padding(split, epoch(split, size, 0)) < 0.5 * padding(split, unsorted)


def test_rows_of_a_batch_are_alike_in_length():
    split = toy.split(400, 1, longest=40)
    assert saves_padding(split)
    spread = [np.ptp([len(split.tokens[i]) for i in rows]) for rows in epoch(split, 8, 0)]
    assert np.mean(spread) < 5  # of 38


def test_batches_without_windows_are_caught(monkeypatch):
    monkeypatch.setattr(data, "WINDOW", 1)
    assert not saves_padding(toy.split(400, 1, longest=40))


def test_length_does_not_say_when_a_batch_comes():
    split = toy.split(120, 1, longest=40)  # one window
    mean = [np.mean([len(split.tokens[i]) for i in rows]) for rows in epoch(split, 8, 0)]
    assert abs(np.corrcoef(mean, np.arange(len(mean)))[0, 1]) < 0.5


def test_the_seed_decides_the_order():
    split = toy.split(50, 1)
    assert epoch(split, 8, 3) == epoch(split, 8, 3)
    assert epoch(split, 8, 3) != epoch(split, 8, 4)
    assert epoch(split, 8, 3, 0) != epoch(split, 8, 3, 1)


def test_global_generators_are_left_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    epoch(toy.split(50, 1), 8, 3)
    assert torch.equal(torch_before, torch.get_rng_state())
    assert numpy_before == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_axes_have_seeds_of_their_own():
    seeds = {(axis, i): axis_seed(axis, i) for axis in ("data order", "head", "adapter", "dropout") for i in range(50)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**48 for seed in seeds.values())
    assert axis_seed("head", 1) == 121617302635082


# ---- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_evaluation_covers_a_split_once_with_rows_alike(n):
    split = toy.split(n, 1, longest=40)
    batches = evaluation_batches(split, most=256)
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    sizes = [split.batch(batch).attention_mask for batch in batches]
    assert max(mask.numel() for mask in sizes) <= 256
    assert max(int((mask == 0).sum()) for mask in sizes) <= 26, "a tenth may be padding"
    assert len(batches) <= 3 + 40 * n // 128, "no more batches than it takes"
    assert evaluation_batches(split, most=1) == [[i] for batch in batches for i in batch]
    lengths = [len(split.tokens[i]) for batch in batches for i in batch]
    assert lengths == sorted(lengths)
