"""Batches on their way to the device: on CUDA the next one is made and copied while the step before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from evaluation.data import Batch, Split

Given = TypeVar("Given")
Made = TypeVar("Made")


def fed(split: Split, batches: Iterable[Sequence[int]], device: torch.device) -> Iterator[Batch]:
    """The batches of these rows on the device, in order. On the CPU each is made when it is asked for: there is nothing
    to copy, and a thread would take a core from the step."""
    if device.type == "cuda":
        return _copied_ahead(split, batches, device)
    return (split.batch(rows).to(device) for rows in batches)


def _copied_ahead(split: Split, batches: Iterable[Sequence[int]], device: torch.device) -> Iterator[Batch]:
    """By a stream of its own, from pinned memory; the stream that computes waits for the copy, the host does not."""
    copies = torch.cuda.Stream(device)

    def copy(rows: Sequence[int]) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copies):
            return split.batch(rows).pinned().to(device), copies.record_event()

    for batch, copied in ahead(copy, batches):
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        for tensor in (batch.input_ids, batch.attention_mask, batch.labels):
            tensor.record_stream(computing)  # or its memory could be given to a later copy while the step still reads
        yield batch


def ahead(make: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """``map(make, items)``, in one thread beside this one that is always one item ahead of what was asked for."""
    with ThreadPoolExecutor(1) as thread:
        waiting: Future[Made] | None = None
        for item in items:
            begun = thread.submit(make, item)
            if waiting is not None:
                yield waiting.result()
            waiting = begun
        if waiting is not None:
            yield waiting.result()
