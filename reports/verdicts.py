"""Four statements about SVD-form updates, each with what the records say of it and the rule that decides.

A statement about which nothing was measured has no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.after_merging import latency_verdict, merging_verdict
from reports.orthogonality import orthogonality_verdict
from reports.records import Results
from reports.starts import start_verdict
from reports.words import Verdict


def verdicts(results: Results) -> list[Verdict]:
    """Those that the records allow, in a fixed order."""
    makers: tuple[Callable[[Results], Verdict | None], ...] = (
        merging_verdict,
        latency_verdict,
        start_verdict,
        orthogonality_verdict,
    )
    return [verdict for make in makers if (verdict := make(results)) is not None]


def in_one_sentence(found: Sequence[Verdict]) -> str:
    """All verdicts for the opening of a report; empty without any."""
    parts = [f"that {verdict.short}: {verdict.word}" for verdict in found]
    return f"Of SVD-form updates it is said {'; '.join(parts)}." if parts else ""
