"""What sentences are made of: lists of names, and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MANY = 12  # names up to which a sentence has them all
UNDECIDED = "not decided by these records"


@dataclass(frozen=True)
class Verdict:
    """What the records say of a statement. ``short`` is the statement inside a sentence, after "that"."""

    key: str
    statement: str
    short: str
    word: str  # the verdict, in one to a few words
    evidence: tuple[str, ...]
    rule: str


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def in_words(names: Sequence[str], what: str) -> str:
    """The names, or how many ``what`` there are if a sentence cannot hold them."""
    return listed(names) if len(names) <= MANY else f"{len(names)} {what}"


def refuted(held: int, of: int) -> str:
    """The word on a statement which some of the methods refute."""
    if held == of:
        return "refuted"
    return f"refuted for {held} of {of} methods" if held else "holds"


def span(numbers: Iterable[int]) -> str:
    """``3``, or ``2 to 5`` where they differ."""
    ends = sorted(set(numbers))
    return str(ends[0]) if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
