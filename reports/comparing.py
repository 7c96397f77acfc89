"""Who is better than whom: the statistics of paired seeds, applied to the scores of the records."""

from __future__ import annotations

from collections.abc import Iterable

from reports import statistics
from reports.records import Results, ScoreRun
from reports.statistics import Comparison, Pair


def comparisons(results: Results, reference: str, labels: Iterable[str] | None = None) -> dict[str, Comparison]:
    """Every method's score (or that of ``labels``) against one of them, paired by seed, Holm-corrected.

    A method of which some seeds diverged is judged by the seeds that survived; it may be worse, never better and never
    practically equal.
    """
    chosen = results.labels if labels is None else (reference, *labels)
    return statistics.compare_with(
        {label: results.outcomes(label) for label in chosen},
        reference,
        level=level(results),
        resolution=results.resolution,
        margin=results.margin,
        diverged=diverged(results),
    )


def pair_comparisons(results: Results) -> dict[Pair, Comparison]:
    """Every pair of methods (later, earlier) in display order, Holm-corrected over all of them."""
    outcomes = {label: results.outcomes(label) for label in results.labels}
    if len(results.looks) == 1:
        return statistics.all_pairs(
            outcomes, resolution=results.resolution, margin=results.margin, diverged=diverged(results)
        )
    return _looked(results).comparisons


def level(results: Results) -> float:
    """Of every test and of the interval of every difference: 95 %, or more where seeds were added by looks."""
    return statistics.look_level(len(results.looks))


def waiting(results: Results) -> tuple[frozenset[str], int] | None:
    """The methods of undecided pairs which lack seeds, and how many each is to have; None where no look is due."""
    if len(results.looks) == 1:
        return None
    looked = _looked(results)
    return None if looked.next_seeds is None else (looked.waiting, looked.next_seeds)


def _looked(results: Results) -> statistics.Looks:
    """Of the methods that have a score: one whose whole search diverged is not waited for."""
    return statistics.sequential_decision(
        {label: found for label in results.labels if (found := results.outcomes(label))},
        results.looks,
        resolution=results.resolution,
        margin=results.margin,
        diverged=diverged(results),
    )


def diverged(results: Results) -> frozenset[str]:
    """The methods that lost seeds."""
    return frozenset(label for label in results.labels if results.diverged_seeds(label))


def best_method(results: Results) -> str | None:
    """The only method that may be set in bold. One that always diverged competes no more; one not yet run does."""
    lost = {label for label in results.labels if _all_diverged(results.of(label, "final"))}
    outcomes = {label: results.outcomes(label) for label in results.labels if label not in lost}
    best = statistics.best_beyond_interval(outcomes, level(results), results.resolution)
    return None if best is None or results.diverged_seeds(best) else best


def _all_diverged(runs: Iterable[ScoreRun]) -> bool:
    return {run.status for run in runs} == {"diverged"}


def unbeaten_probe(results: Results) -> list[str]:
    """The methods that share two seeds or more with the probe and do not beat it, each comparison on its own."""
    if results.probe is None:
        return []
    probe = results.outcomes(results.probe)
    paired = (label for label in results.labels if len(results.outcomes(label).keys() & probe.keys()) > 1)
    verdicts = {
        label: statistics.beats(results.outcomes(label), probe, level(results), results.resolution, results.margin)
        for label in paired
        if label != results.probe
    }
    return [label for label, verdict in verdicts.items() if verdict != "better"]
