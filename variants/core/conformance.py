"""The conformance suite: what every method must keep.

Used as ``python3 tasks.py check NAME`` and, in pytest, as

    @pytest.mark.parametrize(("check", "variant", "case"), matrix(MyVariant), ids=identifier)
    def test_conforms(check, variant, case):
        check(variant, case)

The checks are in ``variants.core.checks``, the layers they use in ``variants.core.cases``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from variants.core.attach import attach
from variants.core.cases import CASES, Case, model_of
from variants.core.checks import CHECKS, SLOW_CHECKS, Check
from variants.core.interface import Variant


def settings(cls: type[Variant]) -> list[Variant]:
    """The method small, and once for each other choice that its fields offer (Literal and bool).

    A scale other than 1 makes visible where one was forgotten.
    """
    hints = get_type_hints(cls)
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    common: dict[str, Any] = {"alpha": 3.0} if "alpha" in fields else {}
    if cls.size:
        common[cls.size] = _small(cls, common)
    found = [cls(**common)]
    for name, default in fields.items():
        options = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
        options = (True, False) if hints[name] is bool else options
        found += [cls(**common | {name: option}) for option in options if option != default]
    return found


def _small(cls: type[Variant], others: dict[str, Any]) -> int:
    """A size which the method takes: 2, or the next that it does not refuse whatever the layer."""
    for size in range(2, 64):
        with contextlib.suppress(ValueError):
            return int(getattr(cls(**others, **{cls.size: size}), cls.size))
    raise ValueError(f"{cls.name} takes no {cls.size} from 2 to 63")


def fitted(variant: Variant, case: Case) -> Variant | None:
    """The variant with the first size that works on the case's layer, its own before all others; None if none does."""
    for size in (None, *range(1, 1 + max(case.out, case.in_))) if variant.size else (None,):
        try:
            candidate = variant if size is None else dataclasses.replace(variant, **{variant.size: size})
            candidate.check(case.out, case.in_)
            if candidate.trains == "base":  # whether it finds anything to train is a matter of the whole model
                attach(model_of(case), candidate, "layer")
        except ValueError:  # Refused here, or a value that the method takes nowhere, such as an odd rank
            continue
        return candidate
    return None


def matrix(*classes: type[Variant]) -> list[tuple[Check, Variant, Case]]:
    """Every check with every method and case: the usual setting on all cases, each other setting on one. Checks which a
    method is expected to fail are left out.

    Raises:
        ValueError: a method refuses every case, so that nothing would be checked.
    """
    return [tried for cls in classes for tried in _tried(cls) if tried[0].__name__ not in cls.expected_failures]


def _tried(cls: type[Variant]) -> list[tuple[Check, Variant, Case]]:
    fitting = [
        (variant, case, i, k)
        for i, setting in enumerate(settings(cls))
        for k, case in enumerate(CASES)
        if (k == 0 or i == 0) and (variant := fitted(setting, case)) is not None
    ]
    if not fitting:
        raise ValueError(f"{cls.name} refuses every layer of the conformance suite: {', '.join(map(str, CASES))}")
    return [(c, v, case) for v, case, _, k in fitting for c in (*CHECKS, *SLOW_CHECKS) if k == 0 or c in CHECKS]


def identifier(part: object) -> str:
    """What a part of the matrix is called in pytest."""
    return part.__name__ if callable(part) and hasattr(part, "__name__") else str(part)


@dataclass(frozen=True)
class Outcome:
    """How one check went for one method: over all its settings and cases, or up to the first failure."""

    check: str
    status: Literal["held", "failed", "expected", "unexpectedly held"]
    message: str
    seconds: float


def conform(cls: type[Variant]) -> Iterator[Outcome]:
    """Tries every check on a method, one outcome each."""
    try:
        tried = _tried(cls)
    except Exception as error:  # the method is somebody's own code: not even its settings may be possible
        yield Outcome("settings", "failed", " ".join(str(error).split()), 0.0)
        return
    for check in (*CHECKS, *SLOW_CHECKS):
        began = time.perf_counter()
        message = next((m for c, variant, case in tried if c is check and (m := complaint(check, variant, case))), "")
        reason = cls.expected_failures.get(check.__name__)
        status: Literal["held", "failed", "expected", "unexpectedly held"]
        if reason is None:
            status = "failed" if message else "held"
        else:
            status, message = ("expected" if message else "unexpectedly held"), reason
        yield Outcome(check.__name__, status, message, time.perf_counter() - began)


def complaint(check: Check, variant: Variant, case: Case) -> str:
    """What a check says against a method, in one line; empty if nothing."""
    try:
        check(variant, case)
    except Exception as error:  # the method is somebody's own code: anything may come
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return f"{variant} on {case}: {kind}{' '.join(str(error).split())}"
    return ""
