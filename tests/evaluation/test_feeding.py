"""The order in which batches are made and taken; that copies arrive on a GPU is held by ``test_gpu.py``."""

from __future__ import annotations

import threading

import pytest
import torch

from evaluation.feeding import ahead, fed
from tests.evaluation import toy


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_what_is_made_ahead_comes_in_order_and_once(n: int) -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return 10 * item

    assert list(ahead(make, range(n))) == [10 * i for i in range(n)]
    assert made == list(range(n))


def test_the_next_item_is_made_while_the_one_before_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]
    made = ahead(lambda item: begun[item].set() or item, range(4))
    for expected in range(3):
        assert next(made) == expected
        assert begun[expected + 1].wait(10), "made without being asked for"
        assert not any(event.is_set() for event in begun[expected + 2 :]), "one ahead, and no more"


def test_what_goes_wrong_ahead_is_raised_when_its_turn_comes_and_the_thread_ends() -> None:
    before = threading.active_count()
    made = ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)
    half = ahead(lambda item: item, range(9))
    next(half)
    half.close()
    assert threading.active_count() == before


def test_on_the_cpu_each_batch_is_made_when_it_is_asked_for() -> None:
    split, threads = toy.split(12, 0), threading.active_count()
    asked: list[int] = []
    rows = ([asked.append(i) or i, i + 1] for i in range(5))
    for i, batch in enumerate(fed(split, rows, torch.device("cpu"))):
        assert torch.equal(batch.input_ids, split.batch([i, i + 1]).input_ids)
        assert not batch.input_ids.is_pinned()
        assert asked == list(range(i + 1))
    assert threading.active_count() == threads
