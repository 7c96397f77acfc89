"""The same work on many layers: a worker for each thread that torch may use, with one thread each.

A single matrix of a layer is too small to keep several threads busy; several layers are not. As every worker has one
thread, results do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def over_layers(work: Callable[[T], R], layers: Iterable[T]) -> list[R]:
    """``work`` of each, in order. It must not change what others read; of several errors the first layer's is raised.

    Modes of the calling thread (``no_grad``, autocast) do not reach the work.
    """
    threads = torch.get_num_threads()
    try:  # torch counts threads for each thread that asks, so every worker has to say it
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, layers))
    finally:
        torch.set_num_threads(threads)
