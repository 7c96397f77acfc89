"""What a score run measures and keeps besides its score: in full in a method's first final run."""

from __future__ import annotations

from typing import Any, Literal

from evaluation.search import Setting
from evaluation.spec import Entry, Spectrum, Suite
from evaluation.strategies import strategy
from variants.core import method

Stage = Literal["search", "final"]


def measured(suite: Suite, entry: Entry, stage: Stage, setting: Setting, seed: int) -> dict[str, Any]:
    """Fields of the ``ScoreRun`` of one setting and seed."""
    first = stage == "final" and seed == 1
    return {
        "merging": suite.merging if first else None,
        "spectrum": _spectrum(suite, stage, first),
        "calibration": suite.calibration if method(entry.method.name).needs else None,
        "keep": _keeps(suite, entry, stage, first),
        "vary": suite.vary,
        "forecast": _forecasts(suite, entry, stage, setting, seed),
        "curve": suite.curve if stage == "final" else None,
    }


def _spectrum(suite: Suite, stage: Stage, first: bool) -> Spectrum | None:
    """In full on a method's first final run; of the others, what comparing seeds takes."""
    spec = suite.spectrum
    if spec is None or stage == "search":
        return None
    return spec if first else spec.model_copy(update={"depth": "directions"})


def _keeps(suite: Suite, entry: Entry, stage: Stage, first: bool) -> bool:
    """Whether a run keeps its trained adapter. A peer's belongs to its own library."""
    wanted = {"all": stage == "final", "first": first, "none": False}[suite.keep]
    return wanted and ":" not in entry.method.name


def _forecasts(suite: Suite, entry: Entry, stage: Stage, setting: Setting, seed: int) -> bool:
    """Whether a run measures the curvature at the start: the first of its method, as a forecast comes before."""
    if not suite.protocol.forecast:
        return False
    # By its setting, not by its place in the search: it stays the same run whatever the search is extended by.
    first = next(iter(strategy(suite, entry).propose(())), None)
    return (stage, seed) == ("final", 1) if first is None else (stage, seed, setting) == ("search", 0, first)
