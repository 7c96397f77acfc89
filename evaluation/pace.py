"""Steps for the same training time: every method takes as many as fit into the time of the baseline's.

The time of a step is the speed run's: measured with the whole machine, interleaved between the methods, so that its
drift cancels in the ratio. What attaching and calibrating take is not in it.
"""

from __future__ import annotations

import math

from evaluation.spec import Record, SpeedRun, Unusable

FEWEST = 3  # steps that any method gets: with fewer it would not train at all
ROUNDING = 1e-9  # of a step: 3 / 0.1 is 30 steps, though its quotient of floats may lie just below


def matched_steps(record: Record) -> dict[str, int]:
    """Label -> steps, from the record of a speed run, whose ``training.steps`` are the baseline's.

    A step that takes r times the baseline's (the median of the ratios within a round) is taken ``floor(steps / r)``
    times, and at least ``FEWEST`` times.

    Raises:
        Unusable: the run failed, or a method's step was not timed.
    """
    run = record.run
    assert isinstance(run, SpeedRun)
    if record.status != "done":
        why = (record.error or record.status).splitlines()[0]
        raise _untimed(f"the speed run {record.status} ({why})")
    return {label: _steps(record, label, run.training.steps) for label in run.methods}


def _steps(record: Record, label: str, steps: int) -> int:
    timed = record.measures["speed"]["methods"].get(label) or {}
    ratio = (timed.get("ratio_baseline") or {}).get("median")
    if ratio is None or not (math.isfinite(ratio) and ratio > 0):
        raise _untimed(f"the speed run has no step time of {label}")
    return max(FEWEST, math.floor(steps / ratio + ROUNDING))


def _untimed(problem: str) -> Unusable:
    return Unusable(f"match = 'seconds' needs the step time of every method, and {problem}: write match = 'steps'")
