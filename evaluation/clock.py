"""Where the time goes: wall time by phase, on the CPU or with CUDA events."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Collects one lap per ``with clock("phase"):`` block.

    On CUDA a block is bracketed by events on the current stream, so that measuring does not stall the device; the laps
    are read when they are asked for.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda = device is not None and device.type == "cuda"
        self._laps: dict[str, list[float]] = defaultdict(list)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if self._cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((phase, start, end))
        else:
            began = time.perf_counter()
            yield
            self._laps[phase].append(time.perf_counter() - began)

    def laps(self) -> dict[str, list[float]]:
        """Seconds of every block, by phase, in order."""
        if self._events:
            torch.cuda.synchronize()
            for phase, start, end in self._events:
                self._laps[phase].append(start.elapsed_time(end) / 1e3)
            self._events.clear()
        return dict(self._laps)

    def seconds(self) -> dict[str, float]:
        """Total seconds by phase."""
        return {phase: sum(laps) for phase, laps in self.laps().items()}
