"""The same work on many layers: a worker for each thread that torch may use, with one thread each.

A single matrix of a layer is too small to keep several threads busy; several layers are not. As every worker has one
thread, results do not depend on how many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_ALONE = threading.Lock()  # a worker's thread count is for a moment that of threads which have not used torch yet
_SELF = threading.local()  # ``works``: in a worker


def over_layers(work: Callable[[T], R], layers: Iterable[T]) -> list[R]:
    """``work`` of each, in order. It must not change what others read; of several errors the first layer's is raised.

    Modes of the calling thread (``no_grad``, autocast) do not reach the work; under a dispatch mode, as of tensors
    without data, it is done in the calling thread, and so is work within such work.
    """
    if getattr(_SELF, "works", False) or torch._C._len_torch_dispatch_stack():
        return [work(layer) for layer in layers]
    with _ALONE:
        threads = torch.get_num_threads()
        try:  # torch counts threads for each thread that asks, so every worker has to say it
            with ThreadPoolExecutor(threads, initializer=_begin) as pool:
                return list(pool.map(work, layers))
        finally:
            torch.set_num_threads(threads)


def _begin() -> None:
    torch.set_num_threads(1)
    _SELF.works = True
