"""Four statements about SVD-form updates, each with what the records say of it and the rule that decides.

A statement about which nothing was measured has no verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from reports.after_merging import latency_verdict, merging_verdict, svd_form
from reports.orthogonality import (
    COSTLY,
    FREE,
    MARGIN,
    ORTHONORMAL,
    RATES,
    SEEDS,
    UNSURE,
    against,
    constrained,
    control,
    judged,
    loose,
    lora,
    margin,
    median_over_rates,
)
from reports.records import Json, Results
from reports.rounding import fixed, plus_minus, significant
from reports.starts import PRESERVING, change_of, start_of
from reports.statistics import Comparison
from reports.tables import POINTS, mean_cell
from reports.words import MANY, UNDECIDED, Verdict, listed


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


def start_verdict(results: Results) -> Verdict | None:
    """Whether the start destroys the pretrained function; the probe, which changes nothing, is left out."""
    starts = {k: start for k in results.labels if k != results.probe and (start := start_of(results, k))}
    if not starts:
        return None
    moved = [label for label in starts if not change_of(starts[label]) < PRESERVING]
    paired = [label for label in svd_form(results) if label in starts]
    named, form = paired or list(starts), "methods with an exact low-rank pair" if paired else "methods"
    still = sum(label not in moved for label in named)
    evidence = [f"{still} of {len(named)} {form} start at the pretrained function."]
    if others := [label for label in starts if label not in named]:
        evidence.append(f"Of other methods, {sum(label not in moved for label in others)} of {len(others)} do.")
    if moved and len(moved) <= MANY:
        evidence.append(f"Not so: {'; '.join(_moved(results, label, starts[label]) for label in moved)}.")
    elif moved:
        evidence.append(f"Not so: {len(moved)} methods, in the table of starts.")
    partly = f"refuted for {still} of {len(named)} methods" if still else "holds"
    return Verdict(
        key="start",
        statement="The start of an SVD-form update destroys the pretrained function",
        short="their start destroys the pretrained function",
        word="refuted" if still == len(named) else partly,
        evidence=tuple(evidence),
        rule=(
            "A start preserves the function if in float32 no logit changes by more than "
            f"{significant(PRESERVING, 1)} of the largest logit, before any training and with the same head."
        ),
    )


def _moved(results: Results, label: str, start: Json) -> str:
    said = [f"relative change {significant(change_of(start))}"]
    losses = [loss for name in ("loss_base", "loss_start") if (loss := start.get(name)) is not None]
    said += [f"loss {' to '.join(significant(loss, 3) for loss in losses)}"] if len(losses) == 2 else []
    cell = mean_cell(results, label, "accuracy")
    if isinstance(cell.value, float):
        half = None if cell.half is None else cell.half * POINTS
        said.append(f"and it ends at {plus_minus(cell.value * POINTS, half)} points")
    return f"{label} ({', '.join(said)})"


def orthogonality_verdict(results: Results) -> Verdict | None:
    """Whether constrained methods lose accuracy against the control; None unless some had enough rates and seeds."""
    named, free, plain_lora = constrained(results), control(results), lora(results)
    if not named or (free is None and plain_lora is None):
        return None
    found = against(results, free)
    kinds = Counter(judged(results, label, free or "", comparison) for label, comparison in found.items())
    counted = len(named) - len(loose(results))
    return Verdict(
        key="orthogonality",
        statement="Orthogonality cripples optimisation",
        short="orthogonality cripples optimisation",
        word=_orthogonality_word(kinds, counted),
        evidence=_orthogonality_evidence(results, found, free, plain_lora),
        rule=(
            f"At least {RATES} learning rates and {SEEDS} seeds for every method and for the unconstrained control, "
            f"paired by seed. Refuted for a method if the 95 % interval rules out a loss of {_margin(results)}; holds "
            "if the interval lies wholly beyond that loss and the method is worse after Holm's correction at 5 %; "
            "otherwise undecided. A rate on the edge of its grid decides nothing against the method that has it. "
            f"Trained factors with a defect ||X^T X - I|| above {ORTHONORMAL} are not orthonormal, and their method is "
            "left out."
        ),
    )


def _margin(results: Results) -> str:
    points = f"{fixed(margin(results) * POINTS, 1)} points"
    return points if margin(results) == MARGIN else f"{points}, a third of what the control gains over the probe"


def _orthogonality_word(kinds: Counter[str], methods: int) -> str:
    if not kinds[FREE] and not kinds[COSTLY]:
        return UNDECIDED
    if kinds[FREE] == methods:
        return "refuted"
    said = {"holds": kinds[COSTLY], "refuted": kinds[FREE], "undecided": methods - kinds[COSTLY] - kinds[FREE]}
    return f"{listed([f'{word} for {number}' for word, number in said.items() if number])} of {methods} methods"


def _orthogonality_evidence(
    results: Results, found: dict[str, Comparison], free: str | None, plain_lora: str | None
) -> tuple[str, ...]:
    said = [_comparisons(results, found, free)] if free else ["No control without constraint was measured."]
    if plain_lora:
        said.append(_comparisons(results, against(results, plain_lora), plain_lora))
    ends = [f"{label} ends at a defect of {significant(found)}" for label, found in loose(results).items()]
    said += [f"{listed(ends)}: nothing is said about {'it' if len(ends) == 1 else 'them'}."] if ends else []
    strict = (label for label in constrained(results) if label not in loose(results))
    middles = {k: m for k in strict if (m := median_over_rates(results, k)) is not None}
    middle = median_over_rates(results, free) if free else None
    if middles and middle is not None:
        behind = sum(value < middle for value in middles.values())
        said.append(
            f"At the median of the searched rates (one validation run each, without an interval), {behind} of "
            f"{len(middles)} lie below the control's {fixed(middle * POINTS, 1)} points."
        )
    return tuple(said)


def _comparisons(results: Results, found: dict[str, Comparison], reference: str) -> str:
    parts = []
    kinds = {label: judged(results, label, reference, comparison) for label, comparison in found.items()}
    for kind in (COSTLY, UNSURE, FREE):
        known = {k: c.difference for k, c in found.items() if kinds[k] == kind and c.difference is not None}
        if len(known) > MANY:
            widest = max(difference.half or 0.0 for difference in known.values())
            parts.append(f"{kind} for {len(known)} methods (half-widths up to {fixed(widest * POINTS, 1)} points)")
        elif known:
            numbers = (f"{k} {plus_minus(d.mean * POINTS, (d.half or 0.0) * POINTS, True)}" for k, d in known.items())
            parts.append(f"{kind}: {', '.join(numbers)} points")
    return f"Against {reference}, at the best rate of each: {'; '.join(parts)}."
