"""Whether an orthogonality constraint costs accuracy: constrained methods against the same form without constraint.

The control is U diag(s) V^T with a penalty of weight zero: it has the factors of the constrained methods and none of
their geometry. LoRA, which has two factors, stands beside it. A comparison counts only where both sides searched enough
learning rates and ran enough seeds. A loss counts only if the method's rate is no edge of its grid, a tie only if the
control's is none.
"""

from __future__ import annotations

from collections import Counter
from statistics import mean, median

from reports.comparing import comparisons
from reports.metrics import primary_name
from reports.records import Results
from reports.rounding import fixed, plus_minus, significant
from reports.statistics import Comparison
from reports.table import EMPTY, Cell, Column, Table, count, digits, text, with_half
from reports.tables import EDGE, EDGE_NOTE, METHOD, POINTS, mean_cell
from reports.words import MANY, UNDECIDED, Verdict, listed

RATES, SEEDS = 6, 5  # of each method, for its comparison to count
CRIPPLING = 1 / 3  # of what the control gains over the probe: a method that loses so much is crippled
MARGIN = 0.01  # accuracy that may be lost where no probe says what there is to gain
ORTHONORMAL = 0.5  # worst ||X^T X - I||_F of the trained factors up to which a constraint counts as one
COSTLY, UNSURE, FREE, LOOSE = "costs accuracy", "undecided", "does not cripple", "not orthonormal"
CONTROL = "usv_penalty"  # with a penalty of weight zero
CONSTRAINED = {  # method -> what is orthogonal in it, and how it stays so
    "stiefel": "factors, by retraction",
    "stella": "factors, by retraction",
    "polar": "factors, by landing",
    "usv_parametrized": "factors, by parametrisation",
    "usv_penalty": "factors, by a penalty",
    "psoft": "rotation in a subspace",
    "oft": "rotation in blocks",
    "boft": "rotation, butterfly",
    "hra": "rotation, reflections",
    "goft": "rotation, Givens",
}


def is_control(results: Results, label: str) -> bool:
    method = results.method(label)
    return method["name"] == CONTROL and (method.get("hyperparameters") or {}).get("penalty_weight") == 0


def constrained(results: Results) -> list[str]:
    """The labels of the constrained methods which searched enough rates and ran enough seeds."""
    return [
        label
        for label in results.labels
        if results.method(label)["name"] in CONSTRAINED and not is_control(results, label) and _enough(results, label)
    ]


def control(results: Results) -> str | None:
    return next((k for k in results.labels if is_control(results, k) and _enough(results, k)), None)


def lora(results: Results) -> str | None:
    return next((k for k in results.labels if results.method(k)["name"] == "lora" and _enough(results, k)), None)


def _enough(results: Results, label: str) -> bool:
    rates = {run.lr for run in results.of(label, "search") if run.status != "failed"}
    return len(rates) >= RATES and len(results.outcomes(label)) >= SEEDS


def against(results: Results, reference: str | None) -> dict[str, Comparison]:
    """Every constrained method against the reference, paired by seed, Holm-corrected; empty without a reference."""
    if reference is None:
        return {}
    return comparisons(results, reference, constrained(results))


def margin(results: Results) -> float:
    """The loss of accuracy from which a constraint cripples."""
    free, probe = control(results), results.probe
    scores = [list(results.outcomes(label).values()) for label in (free, probe) if label is not None]
    if len(scores) < 2 or not all(scores):
        return MARGIN
    return max(MARGIN, CRIPPLING * (mean(scores[0]) - mean(scores[1])))


def defect(results: Results, label: str) -> float | None:
    """How far the trained factors are from orthonormal columns; None where not measured, or where there are none."""
    found: float | None = (results.merging(label).get("factors") or {}).get("defect_after")
    return found


def loose(results: Results) -> dict[str, float]:
    """The constrained methods whose factors are not orthonormal, so that they say nothing, with their defects."""
    defects = {label: found for label in constrained(results) if (found := defect(results, label)) is not None}
    return {label: found for label, found in defects.items() if not found <= ORTHONORMAL}


def judged(results: Results, label: str, reference: str, comparison: Comparison) -> str:
    """``costs accuracy`` (more than the margin), ``does not cripple`` (less), ``undecided`` or ``not orthonormal``."""
    if label in loose(results):
        return LOOSE
    difference, bound = comparison.difference, -margin(results)
    if difference is None or difference.low is None or difference.high is None or not difference.half:
        return UNSURE
    if difference.high < bound:
        return COSTLY if comparison.verdict == "worse" and not results.on_edge(label) else UNSURE
    if difference.low > bound:
        return UNSURE if results.on_edge(reference) or results.diverged_seeds(label) else FREE
    return UNSURE


def median_over_rates(results: Results, label: str) -> float | None:
    """Mean validation score at the middle of the searched rates; a run that diverged counts as zero."""
    scores = _by_rate(results, label)
    return median(scores) if scores else None


def best_over_rates(results: Results, label: str) -> float | None:
    return max(_by_rate(results, label), default=None)


def _by_rate(results: Results, label: str) -> list[float]:
    """The mean over the seeds of every rate."""
    rates: dict[float, list[float]] = {}
    for run in results.full_length(label):
        if run.status != "failed":
            rates.setdefault(run.lr, []).append(run.score("primary") or 0.0)
    return [mean(scores) for scores in rates.values()]


def orthogonality_table(results: Results) -> Table:
    """A row for each constrained method, after the control and LoRA; without rows where nothing can be compared."""
    named, free, plain_lora = constrained(results), control(results), lora(results)
    signed = with_half(POINTS, signed=True)
    columns = (
        METHOD,
        Column("constraint", "orthogonal", text, align="left"),
        Column("defect", "defect", digits(2)),
        Column("rates", "rates", count),
        Column("seeds", "seeds", count),
        Column(results.metric, primary_name(results), with_half(POINTS), "points", interval=True, place="terminal"),
        Column("against_control", "against the control", signed, "points", interval=True, place="terminal"),
        Column("verdict", "the constraint", text, align="left", place="terminal"),
        Column("against_lora", "against LoRA", signed, "points", interval=True, place="terminal"),
        Column("best_rate", "validation, best rate", digits(3, POINTS), "points"),
        Column("median_rate", "validation, median rate", digits(3, POINTS), "points"),
    )
    references = [label for label in (plain_lora, free) if label is not None]
    to_control, to_lora = against(results, free), against(results, plain_lora)
    rows = (
        tuple(_row(results, label, free, to_control, to_lora) for label in [*references, *named])
        if named and references
        else ()
    )
    caption = (
        f"Methods with at least {RATES} searched rates and {SEEDS} final seeds. The control is U diag(s) V^T without "
        "penalty. Differences are paired by seed, with 95 % t-intervals. Best and median over the searched rates are "
        "of one validation run each and have no interval. Defect: the largest ||X^T X - I||_F of the trained factors, "
        f"empty where it was not measured; above {ORTHONORMAL} the method is not judged."
    )
    return Table("orthogonality", "Constrained and unconstrained", caption, columns, rows, ((EDGE, EDGE_NOTE),))


def _row(
    results: Results,
    label: str,
    free: str | None,
    to_control: dict[str, Comparison],
    to_lora: dict[str, Comparison],
) -> tuple[Cell, ...]:
    what = "control" if is_control(results, label) else CONSTRAINED.get(results.method(label)["name"], "")
    return (
        Cell(label),
        Cell(what),
        Cell(defect(results, label)),
        Cell(len({run.lr for run in results.of(label, "search")}), mark=EDGE if results.on_edge(label) else ""),
        Cell(len(results.outcomes(label))),
        mean_cell(results, label, "primary"),
        _difference(to_control.get(label)),
        Cell(judged(results, label, free, to_control[label])) if free and label in to_control else EMPTY,
        _difference(to_lora.get(label)),
        Cell(best_over_rates(results, label)),
        Cell(median_over_rates(results, label)),
    )


def _difference(comparison: Comparison | None) -> Cell:
    difference = comparison.difference if comparison else None
    return EMPTY if difference is None else Cell(difference.mean, difference.low, difference.high)


def orthogonality_verdict(results: Results) -> Verdict | None:
    """Whether constrained methods lose accuracy against the control; None unless some had enough rates and seeds."""
    named, free, plain_lora = constrained(results), control(results), lora(results)
    if not named or (free is None and plain_lora is None):
        return None
    found = against(results, free)
    kinds = Counter(judged(results, label, free or "", comparison) for label, comparison in found.items())
    return Verdict(
        key="orthogonality",
        statement="Orthogonality cripples optimisation",
        short="orthogonality cripples optimisation",
        word=_orthogonality_word(kinds, len(named) - len(loose(results))),
        evidence=_orthogonality_evidence(results, found, free, plain_lora),
        rule=(
            f"At least {RATES} learning rates and {SEEDS} seeds for every method and for the unconstrained control, "
            f"paired by seed. Refuted for a method if the 95 % interval rules out a loss of {_margin(results)}; holds "
            "if the interval lies wholly beyond that loss and the method is worse after Holm's correction at 5 %; "
            "otherwise undecided. A rate on the edge of its grid decides nothing against the method that has it. "
            f"Left out: methods whose trained factors have a defect ||X^T X - I||_F above {ORTHONORMAL}."
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
    said += [_comparisons(results, against(results, plain_lora), plain_lora)] if plain_lora else []
    ends = [f"{label} ends at a defect of {significant(end)}" for label, end in loose(results).items()]
    said += [f"{listed(ends)}: nothing is said about {'it' if len(ends) == 1 else 'them'}."] if ends else []
    said += [_at_the_median(results, free)] if free else []
    return tuple(filter(None, said))


def _at_the_median(results: Results, free: str) -> str:
    strict = (label for label in constrained(results) if label not in loose(results))
    middles = [found for label in strict if (found := median_over_rates(results, label)) is not None]
    middle = median_over_rates(results, free)
    if not middles or middle is None:
        return ""
    return (
        "At the median of the searched rates (on validation data, without an interval), "
        f"{sum(found < middle for found in middles)} of {len(middles)} lie below the control's "
        f"{fixed(middle * POINTS, 1)} points."
    )


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
    return f"Against {reference}, at the best rate of each: {'; '.join(parts)}." if parts else ""
