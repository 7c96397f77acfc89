"""What a bench is asked to measure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evaluation.bench.pairs import Entry, entries
from evaluation.spec import Unusable

WARMUP = 1
ROUNDS, LONG_ROUNDS, LONG = 12, 7, 512  # rounds; of batches of LONG tokens or more. An interval takes 6
SHAPES = {"minilm": ((32, 32), (8, 16), (16, 128)), "smollm2": ((4, 128),)}


@dataclass(frozen=True)
class Settings:
    """What is measured. ``rounds`` of None chooses by shape."""

    methods: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    threads: int
    rounds: int | None = None
    rank: int = 8
    where: tuple[str, ...] = ("all",)
    starts: bool = False
    peers: bool = True
    compile: bool = False

    def rounds_of(self, shape: tuple[int, int]) -> int:
        rows, tokens = shape
        return self.rounds or (LONG_ROUNDS if rows * tokens >= LONG else ROUNDS)

    @property
    def total(self) -> int:
        """Steps which every contestant takes: rounds, and one more a shape for memory."""
        return sum(WARMUP + self.rounds_of(shape) + 1 for shape in self.shapes)

    def entries(self) -> list[Entry]:
        """What is timed.

        Raises:
            Unusable: a method is unknown, or not to be had with these hyperparameters.
        """
        return entries(self.methods, self.rank, self.total, self.peers)


def parsed_shape(text: str) -> tuple[int, int]:
    """Rows and tokens of a batch, written as in ``32x128``.

    Raises:
        Unusable: it is not written so.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if not found:
        raise Unusable(f"shape {text!r}: write rows x tokens of a batch, for example 32x128")
    return int(found[1]), int(found[2])
