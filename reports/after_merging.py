"""What merging does to SVD-form updates, as verdicts: whether they can be merged, and whether they cost latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from reports.costs import INPUTS, bounds, latency_of
from reports.merging import EXACT, LOSSY, accuracy_change, paired, values
from reports.records import Json, Results
from reports.rounding import bracketed, percent, significant
from reports.tables import POINTS
from reports.words import UNDECIDED, Verdict, in_words, refuted

MERGED = 1e-4  # error of a merge in float32, relative to the adapter's effect, up to which it is exact
LATENCY = 0.02  # how far from the base's a latency may lie and still be the same
UNMERGED = ("adapted", "folded")
Ratio = tuple[float, float, float]  # median, low, high


def merging_verdict(results: Results) -> Verdict | None:
    """Whether SVD-form updates can be merged, exactly in float32 and with what loss elsewhere; None if none was."""
    exact = {label: found for label in results.labels if "error" in (found := values(results, label, EXACT))}
    exact = {label: found for label, found in exact.items() if found["error"] is not None}
    named = [label for label in paired(results) if label in exact]
    if not named:
        return None
    held = [label for label in exact if _merges(results, label, exact[label])]
    passed = sum(label in held for label in named)
    return Verdict(
        key="merging",
        statement="An SVD-form update cannot be merged",
        short="they cannot be merged",
        word=refuted(passed, len(named)),
        evidence=tuple(_merging_evidence(results, exact, named, held)),
        rule=(
            "Refuted for a method if in float32 the distance of the merged from the adapted logits is below "
            f"{significant(MERGED, 1)} of the adapter's effect, and the 95 % interval of the paired difference in "
            "accuracy includes 0. Every update with an exact pair of less than full rank counts, LoRA's too."
        ),
    )


def _merging_evidence(
    results: Results, exact: Mapping[str, Json], named: Sequence[str], held: Sequence[str]
) -> Iterator[str]:
    yield _exact_merges(results, exact, named, held)
    if others := [label for label in exact if label not in named]:
        passed = sum(label in held for label in others)
        yield f"Of the {len(others)} other methods that were merged, {passed} pass{'es' * (passed == 1)} too."
    if lost := [said for name in LOSSY if (said := _rounding_loss(results, named, name))]:
        yield f"What merging does lose is rounding, as a share of the effect: {'; '.join(lost)}."


def _merges(results: Results, label: str, measured: Json) -> bool:
    change = accuracy_change(measured, results.merging(label).get("items", 0))
    return measured["error"] < MERGED and (change is None or change.low <= 0 <= change.high)  # regression has none


def _exact_merges(results: Results, exact: Mapping[str, Json], named: Sequence[str], held: Sequence[str]) -> str:
    worst = max(named, key=lambda label: exact[label]["error"])
    items = max(results.merging(label).get("items", 0) for label in named)
    widths = [(c.high - c.low) / 2 for k in named if (c := accuracy_change(exact[k], items)) is not None]
    failing = [label for label in named if label not in held]
    passed = len(named) - len(failing)
    said = (
        f"In float32, {passed} of {len(named)} updates with an exact low-rank pair pass. The largest error is "
        f"{significant(exact[worst]['error'])} of the effect ({worst}; its logits change by "
        f"{significant(exact[worst].get('max_logit_change') or 0.0)} at most)"
    )
    said += f"; accuracy is known to ±{significant(max(widths) * POINTS)} points on {items:,} items." if widths else "."
    return said + (f" Not so: {in_words(failing, 'methods')}." if failing else "")


def _rounding_loss(results: Results, named: Sequence[str], format: str) -> str:
    errors = {k: e for k in named if (e := values(results, k, format).get("error")) is not None}
    overflowed = sum((results.merging(k)["formats"].get(format) or {}).get("overflow") is True for k in named)
    if not errors:
        return f"{format} overflows for all {overflowed}" if overflowed else ""
    worst = max(errors, key=lambda label: errors[label])
    said = f"{format} {percent(median(errors.values()))} in the median, {percent(errors[worst])} at most ({worst})"
    kept = [k for label in errors if (k := values(results, label, format).get("kept")) is not None]
    said += f", {percent(median(kept))} of the update kept" if kept else ""
    return said + (f", and {overflowed} overflow" if overflowed else "")


def latency_verdict(results: Results) -> Verdict | None:
    """Whether SVD-form updates add latency once they are merged, and what they cost before; None if not measured."""
    named = [k for k in paired(results) or results.labels if any(latency_of(results, k, g, "folded") for g in INPUTS)]
    places = [(label, given) for label in named for given in INPUTS]
    merged = {place: ratio for place in places if (ratio := _ratio(results, *place, "merged"))}
    together = {given: bounds(found) for given in INPUTS if (found := _measured(results, "latency_merged", given))}
    if not merged or not together:
        return None
    unmerged = [r for place in places for kind in UNMERGED if (r := _ratio(results, *place, kind))]
    said = (_unmerged_latency(results, named, given) for given in INPUTS)
    return Verdict(
        key="latency",
        statement="An SVD-form update needs an extra product and so adds latency",
        short="they add latency",
        word=_latency_word(list(together.values()), unmerged),
        evidence=(_merged_latency(results, merged, together), *filter(None, said)),
        rule=(
            f"The bounds are ±{100 * LATENCY:.0f} % of the base's latency, the intervals are of 95 %. True of merged "
            "models if their interval lies above, for one token or for a batch. True only while unmerged if both lie "
            "within and at least one update with an exact low-rank pair, adapted or folded, has an interval above. "
            "Refuted if all of these lie within too; otherwise not decided. In every round, the median of all merged "
            "models is compared with that of as many unmerged copies of the base."
        ),
    )


def _latency_word(together: Sequence[Ratio], unmerged: Sequence[Ratio]) -> str:
    if any(map(_slower, together)):
        return "holds"
    if not all(map(_within, together)):
        return UNDECIDED
    if any(map(_slower, unmerged)):
        return "holds only while unmerged"
    return "refuted" if unmerged and all(map(_within, unmerged)) else UNDECIDED


def _slower(ratio: Ratio) -> bool:
    return ratio[1] > 1 + LATENCY


def _within(ratio: Ratio) -> bool:
    return ratio[1] >= 1 - LATENCY and ratio[2] <= 1 + LATENCY


def _measured(results: Results, name: str, given: str) -> Json | None:
    """What the speed run says for an input as a whole, not of one method."""
    found: Json | None = ((results.speed or {}).get(name) or {}).get(given)
    return found


def _ratio(results: Results, label: str, given: str, serving: str) -> Ratio | None:
    found = latency_of(results, label, given, serving)
    return bounds(found["ratio"]) if found else None


def _merged_latency(results: Results, merged: Mapping[tuple[str, str], Ratio], together: Mapping[str, Ratio]) -> str:
    noise = {given: bounds(found) for given in INPUTS if (found := _measured(results, "latency_noise", given))}
    inside = sum(map(_within, merged.values()))
    said = [f"{bracketed(*ratio)} times the base's latency for {INPUTS[given]}" for given, ratio in together.items()]
    known = [f"{bracketed(*ratio)} for {INPUTS[given]}" for given, ratio in noise.items()]
    return (
        f"Merged models take {' and '.join(said)}"
        + (f" (those copies against themselves: {' and '.join(known)})" if known else "")
        + f"; of the {len(merged)} intervals of updates with an exact low-rank pair, {inside} lie within the bounds."
    )


def _unmerged_latency(results: Results, named: Sequence[str], given: str) -> str:
    said = []
    for serving in UNMERGED:
        ratios = {label: ratio for label in named if (ratio := _ratio(results, label, given, serving))}
        if ratios:
            middle = median(value for value, _, _ in ratios.values())
            worst = max(ratios, key=lambda label: ratios[label][0])
            said.append(
                f"{serving} {significant(middle, 3)} in the median, {bracketed(*ratios[worst])} at most ({worst})"
            )
    bottleneck = (k for k in results.labels if results.method(k)["name"] == "adapter")
    said += [
        f"the bottleneck adapter, which cannot be merged, {bracketed(*ratio)}"
        for label in bottleneck
        if (ratio := _ratio(results, label, given, "adapted"))
    ]
    return f"Unmerged, for {INPUTS[given]}: {'; '.join(said)}." if said else ""
