"""What the records allow to say, in sentences, and what is missing from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from reports.comparing import best_method, comparisons, level, unbeaten_probe, waiting
from reports.matching import match_sentences
from reports.new_items import new_items_sentence
from reports.racing import racing_sentences
from reports.rate_windows import rate_windows_sentence
from reports.records import Results
from reports.rounding import bracketed, percent, plus_minus
from reports.shared_rates import shared_rates_sentences
from reports.statistics import VERDICTS, Comparison
from reports.tables import EDGE, POINTS, in_points, main_table, mean_cell
from reports.verdicts import in_one_sentence
from reports.words import MANY, Verdict, in_words, listed, span


def opening(results: Results, verdicts: Sequence[Verdict]) -> list[str]:
    """The sentences a report opens with: what was compared, who is better, what it costs, and what weakens it."""
    sentences = [_what_was_compared(results), _best(results), _against_baseline(results)]
    sentences += [new_items_sentence(results), _probe(results)]
    sentences += [*shared_rates_sentences(results), *racing_sentences(results)]
    sentences += [rate_windows_sentence(results), *match_sentences(results)]
    sentences += [_step_time(results), in_one_sentence(verdicts), _edges(results), _unscored(results)]
    sentences += [_mixed_sources(results)]
    if gaps := missing(results):
        sentences.append(f"The comparison is not complete: {'; '.join(gaps)}.")
    return [sentence for sentence in sentences if sentence]


def _what_was_compared(results: Results) -> str:
    suite = results.suite
    seeds = span(results.final_seeds(label) for label in results.labels)
    return (
        f"{len(results.labels)} methods were compared on {suite['benchmark']} with {suite['model']}: {_rates(results)} "
        f"and only runs with fresh seeds ({seeds} a method) on test data are reported."
        + (" Numbers of steps were chosen for the same training time." if results.time_matched else "")
    )


def _rates(results: Results) -> str:
    searched = [points for points in map(results.points, results.labels) if points > 1]
    if not searched:
        return "each ran at one learning rate, which the suite gives,"
    single = len(results.labels) - len(searched)
    whose = "of each" if not single else f"of {len(searched)}"
    rest = f" ({single} ran at the one which the suite gives)" if single else ""
    what = "setting" if results.space else "learning rate"
    how = " by racing" if results.racing else ""
    return f"the {what} {whose} was chosen among {span(searched)} on validation data{how}{rest},"


def _best(results: Results) -> str:
    scored = [label for label in results.labels if results.outcomes(label)]
    if not scored:
        return "Nothing may be claimed yet: no final run has a score."
    if max(len(results.outcomes(label)) for label in scored) < 2:
        return "Nothing may be claimed about differences between methods: one seed gives no interval."
    best = best_method(results)
    if best is None:
        return "No method is better than every other one beyond the interval of the paired difference."
    cell = mean_cell(results, best, "primary")
    accuracy = plus_minus(float(cell.value or 0) * POINTS, None if cell.half is None else cell.half * POINTS)
    return f"{best} is better than every other method beyond the interval of the paired difference ({accuracy} points)."


def _against_baseline(results: Results) -> str:
    found = {k: c for k, c in comparisons(results, results.baseline).items() if c.difference is not None}
    if not found:
        return ""
    groups: dict[str, list[str]] = {kind: [] for kind in VERDICTS}
    for label, comparison in found.items():
        groups[comparison.verdict].append(label)
    how = f"paired by seed, Holm-corrected at {percent(1 - level(results), 3)}"
    if len(groups["undecided"]) == len(found) > MANY:
        return f"Nothing is decided between {results.baseline} and the other {len(found)} methods ({how})."
    notes = {
        "practically equal": f" (within ±{in_points(results.margin)})",
        "undecided": _more_seeds([found[label] for label in groups["undecided"]]),
    }
    parts = [
        f"{in_words(names, 'methods')} {_be(names)} {kind}{notes.get(kind, '')}"
        for kind, names in groups.items()
        if names
    ]
    return f"Against {results.baseline}, {'; '.join(parts)} ({how})."


def _more_seeds(undecided: Sequence[Comparison]) -> str:
    """About how many more seeds the open comparisons would take; empty where that is not known of any."""
    numbers = [c.more_seeds for c in undecided if c.more_seeds is not None]
    if not numbers:
        return ""
    whose = "" if len(numbers) == len(undecided) else f" for {len(numbers)} of them"
    return f" (about {span(numbers)} more seed{'' if max(numbers) == 1 else 's'}{whose})"


def _probe(results: Results) -> str:
    unbeaten = unbeaten_probe(results)
    if not unbeaten:
        return ""
    do = "does" if len(unbeaten) == 1 else "do"
    return f"{in_words(unbeaten, 'methods')} {do} not beat the probe, which trains the task head alone."


def _step_time(results: Results) -> str:
    ratios = {
        k: m["ratio_baseline"] for k, m in (results.speed or {}).get("methods", {}).items() if k != results.baseline
    }
    ratios = {label: ratio for label, ratio in ratios.items() if label in results.labels}
    if not ratios:
        return ""
    ends = [min(ratios, key=lambda k: ratios[k]["median"]), max(ratios, key=lambda k: ratios[k]["median"])]
    said = [f"{bracketed(*(ratios[k][end] for end in ('median', 'low', 'high')))} ({k})" for k in dict.fromkeys(ends)]
    return f"A training step takes {' to '.join(said)} times as long as with {results.baseline}."


def _edges(results: Results) -> str:
    edged = [str(row[0].value) for row in main_table(results).rows if any(cell.mark == EDGE for cell in row)]
    if not edged:
        return ""
    rate, lie = ("learning rate", "lies") if len(edged) == 1 else ("learning rates", "lie")
    where = "on the edge of the searched grid: a wider one may do better"
    return f"The chosen {rate} of {in_words(edged, 'methods')} {lie} {where}."


def _unscored(results: Results) -> str:
    counts = Counter(run.status for run in results.runs)
    parts = [f"{counts[kind]} of {len(results.runs)} runs {kind}" for kind in ("diverged", "failed") if counts[kind]]
    return f"{listed(parts)}: they are listed with their reasons." if parts else ""


def _mixed_sources(results: Results) -> str:
    for name in ("model", "data"):
        if len({str(record["run"].get("identity", {}).get(name)) for record in results.records}) > 1:
            return f"Careful: the records come from more than one version of the {name}."
    for name in ("cpu", "gpu"):
        if len({str(record.get("environment", {}).get(name)) for record in results.records}) > 1:
            return f"Careful: the records come from machines with more than one {name.upper()}."
    if len({str((record.get("environment") or {}).get("products")) for record in results.records}) > 1:
        return "Careful: in these records matrices were multiplied by more than one library (products)."
    return ""


def missing(results: Results) -> list[str]:
    """What the suite asks for and the records do not have, one short phrase each."""
    gaps = [gap for label in results.labels if (gap := _missing_runs(results, label))]
    if due := waiting(results):
        gaps.append(f"seeds up to {due[1]} are still to be run for {listed(sorted(due[0]))}")
    if results.suite.get("speed") and not results.speed:
        gaps.append(f"speed is not measured{f' ({results.speed_error})' if results.speed_error else ''}")
    if results.suite.get("merging"):
        first = {label: next(iter(results.of(label, "final")), None) for label in results.labels}
        done = [label for label, run in first.items() if run and run.status == "done"]  # a diverged run merges nothing
        if unmerged := [label for label in done if not results.merging(label)]:
            gaps.append(f"merging is not measured for {listed(unmerged)}")
    return gaps


def _missing_runs(results: Results, label: str) -> str:
    searched, points = results.settings(label), results.points(label)
    finals = {run.seed for run in results.of(label, "final") if run.status != "failed"}
    absent = [str(seed) for seed in range(1, results.seeds(label) + 1) if seed not in finals]
    if not finals and 1 < points > len(searched):
        what = "settings" if results.space else "learning rates"
        return f"{label} has {len(searched)} of {points} {what} and no final runs"
    return f"{label} lacks final seed{'s' if len(absent) > 1 else ''} {listed(absent)}" if absent else ""


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
