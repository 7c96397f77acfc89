"""What the records of several benchmarks allow to say, in sentences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from reports.across.aggregates import enough_seeds, ranking, verdicts_by_task
from reports.across.folders import Across, benchmark
from reports.across.normalised import scale
from reports.claims import missing
from reports.comparing import unbeaten_probe
from reports.records import Results
from reports.statistics import ENOUGH, LEVEL, VERDICTS, Refusal
from reports.words import MANY, in_words, listed, span


def opening(across: Across) -> list[str]:
    """The sentences the report opens with: what was compared, who is better where, and what cannot be said."""
    said = [_what_was_compared(across), *_against_baseline(across), _over_tasks(across), _few_seeds(across)]
    said += [_probe(across), _scale(across), _left_out(across), *_gaps(across), _unlike(across), _mixed(across)]
    return [sentence for sentence in said if sentence]


def _what_was_compared(across: Across) -> str:
    seeds = span(len(runs) for label in across.labels for runs in across.scores(label).values())
    return (
        f"{len(across.labels)} methods were compared on {len(across.tasks)} benchmarks "
        f"({in_words(across.tasks, 'benchmarks')}) with {across.model}: {_rates(across)}, and only final runs with "
        f"fresh seeds ({seeds} a method and benchmark) on test data are reported."
    )


def _rates(across: Across) -> str:
    searched = {results.points(label) > 1 for results in across.results for label in across.labels}
    if searched == {True}:
        return "each was tuned on the validation data of each benchmark"
    where = "the learning rate is that which the suite gives"
    return f"{where}, or was chosen on validation data where it gives several" if True in searched else where


def _against_baseline(across: Across) -> list[str]:
    """A sentence for the methods with the same verdicts, the open ones last."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for label, verdicts in verdicts_by_task(across).items():
        counts = Counter(verdicts.values())
        alike.setdefault(tuple(counts[word] for word in VERDICTS), []).append(label)
    ordered = sorted(alike, reverse=True)  # more benchmarks on which a method is better come first
    if len(ordered) > MANY:
        return [f"The table counts the verdicts of {sum(map(len, alike.values()))} methods against {across.baseline}."]
    return [_record(alike[counts], dict(zip(VERDICTS, counts, strict=True)), across) for counts in ordered]


def _record(labels: Sequence[str], counts: Mapping[str, int], across: Across) -> str:
    """``pissa is better than lora on 3 of 5 benchmarks, practically equal on 1 and undecided on 1.``"""
    total, base = len(across.tasks), across.baseline
    first, *rest = [word for word in VERDICTS if counts[word]]
    who, be = in_words(labels, "methods"), "is" if len(labels) == 1 else "are"
    than = {"practically equal": "to", "undecided": "against"}.get(first, "than")
    where = "on all" if not rest else f"on {counts[first]} of"
    named = f"{first} {than} {base} {where} {total} benchmarks"
    return f"{who} {be} {listed([named, *(f'{word} on {counts[word]}' for word in rest)])}."


def _over_tasks(across: Across) -> str:
    found = ranking(across)
    if isinstance(found, Refusal):
        return f"No ranking over benchmarks may be claimed: {found.reason}"
    apart = [f"{better} above {worse}" for (better, worse), p in found.p.items() if p < 1 - LEVEL]
    how = "(Wilcoxon's signed-rank test over benchmarks, Holm-corrected at 5 %)"
    if not apart:
        return f"Over the benchmarks no pair of methods is told apart {how}."
    if len(apart) > MANY:
        return f"Over the benchmarks the ranking tells {len(apart)} of {len(found.p)} pairs of methods apart {how}."
    return f"Over the benchmarks the ranking places {listed(apart)} {how}."


def _few_seeds(across: Across) -> str:
    if enough_seeds(across):
        return ""
    return (
        f"Interquartile means and chances to beat {across.baseline} have no interval, and no claim rests on them: that "
        f"takes {ENOUGH} seeds of every method and benchmark."
    )


def _probe(across: Across) -> str:
    unbeaten = Counter(label for one in across.results for label in unbeaten_probe(one) if label in across.labels)
    said = [f"{label} (on {number} of {len(across.tasks)} benchmarks)" for label, number in unbeaten.items()]
    return f"Not better than the probe, which trains the task head alone: {in_words(said, 'methods')}." if said else ""


def _scale(across: Across) -> str:
    why = scale(across).why
    return f"Careful: scores are not normalised by the probe, because {why}." if why else ""


def _left_out(across: Across) -> str:
    said = [f"{label} (no final runs on {in_words(where, 'benchmarks')})" for label, where in across.left_out.items()]
    return f"Left out: {in_words(said, 'methods')}." if said else ""


def _gaps(across: Across) -> list[str]:
    found = [(benchmark(results), missing(results)) for results in across.results]
    return [f"The comparison on {task} is not complete: {'; '.join(gaps)}." for task, gaps in found if gaps]


def _unlike(across: Across) -> str:
    """What of the protocol is not the same on all benchmarks though it may move scores."""
    differ: dict[str, set[object]] = {
        "what is matched, steps or seconds": {results.time_matched for results in across.results},
        "whether and how learning rates race": {(r.racing, r.racing and r.rungs) for r in across.results},
        "what is searched": {json.dumps(results.space, sort_keys=True) for results in across.results},
    }
    named = [what for what, values in differ.items() if len(values) > 1]
    return (
        f"Careful: the benchmarks were not run alike: {listed(named)} differ{'s' * (len(named) == 1)}." if named else ""
    )


def _mixed(across: Across) -> str:
    """What the folders do not share though it may move scores."""
    several = []
    if len({code for one in across.results for code in _codes(one)}) > 1:
        several.append("version of the code")
    for name in ("cpu", "gpu"):
        if len({str((r.get("environment") or {}).get(name)) for one in across.results for r in one.records}) > 1:
            several.append(f"kind of {name.upper()}")
    return f"Careful: the records come from more than one {listed(several)}." if several else ""


def _codes(results: Results) -> set[str]:
    identities = (record["run"].get("identity") or {} for record in results.records)
    return {str(identity["code"]) for identity in identities if identity.get("code")}
