"""What is run and what comes out: suites, runs and records.

A suite file (TOML) says what to compare. The protocol turns it into runs; a run is a complete, self-contained
description of one piece of work, and its key, the hash of its canonical JSON, is its name in the store. The same key
means the same numbers on the same type of machine.
"""

from __future__ import annotations

from evaluation.spec.files import (
    SUITES as SUITES,
    load_suite as load_suite,
)
from evaluation.spec.runs import (
    FORMAT as FORMAT,
    Identity as Identity,
    QuantisedRun as QuantisedRun,
    Record as Record,
    Run as Run,
    ScoreRun as ScoreRun,
    SpeedRun as SpeedRun,
    alike as alike,
    key as key,
)
from evaluation.spec.sections import (
    AXES as AXES,
    ENTRY_KEYS as ENTRY_KEYS,
    TUNABLE as TUNABLE,
    Axis as Axis,
    Calibration as Calibration,
    Curve as Curve,
    Entry as Entry,
    Merging as Merging,
    Method as Method,
    Protocol as Protocol,
    Quantised as Quantised,
    Spectrum as Spectrum,
    Speed as Speed,
    Training as Training,
)
from evaluation.spec.suite import (
    Suite as Suite,
)
from evaluation.spec.values import (
    Unusable as Unusable,
    is_span as is_span,
)
