"""Methods that are timed in one round: as many as fit into memory together, and no more than keep a round short."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.bench.pairs import BASELINE, Entry
from evaluation.peers import PeftPeer
from variants.core import Variant

MEMORY = 10 * 2**30  # bytes for the replicas of a group
MOST = 8  # entries beside the baseline: within a round the machine should stay as it is


def grouped(entries: Sequence[Entry], base_bytes: int, memory: int = MEMORY, most: int = MOST) -> list[list[Entry]]:
    """The entries in groups, in order, each of them led by the baseline. A method and its peer are never parted.

    Args:
        base_bytes: of the base's parameters, which the estimate of a replica's memory is a multiple of.
    """
    lead = [entry for entry in entries if entry.label == BASELINE]
    left = memory - sum(need(entry, base_bytes) for entry in lead)
    groups: list[list[Entry]] = []
    room = 0
    for entry in (entry for entry in entries if entry.label != BASELINE):
        size = need(entry, base_bytes)
        if not groups or size > room or len(groups[-1]) == most:
            groups.append([])
            room = left
        groups[-1].append(entry)
        room -= size
    return [[*lead, *group] for group in groups] or [lead]


def need(entry: Entry, base_bytes: int) -> int:
    """Bytes, about. Every contestant has the whole base; what trains it all has its gradient and two moments too, and
    ``dense`` a change of every layer with these beside it. Of ours, the others have at most the singular bases of every
    layer beside it, and what trains between them; PEFT's little, but for BOFT's permutations as square matrices."""
    return sum(round(_copies(variant) * base_bytes) for variant in entry.contestants().values())


def _copies(variant: Variant) -> float:
    if isinstance(variant, PeftPeer):
        return 3.0 if variant.kind == "BOFT" else 1.5
    return {"full": 4.1, "dense": 5.0}.get(variant.name, 3.2)
