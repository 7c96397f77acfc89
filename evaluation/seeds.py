"""How many final seeds a method runs: as many as the suite says, and more while a pair of methods is undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.measures.score import primary
from evaluation.spec import Protocol, Record, ScoreRun, key
from reports.statistics import Looks, planned_looks, sequential_decision


def seeds_needed(
    protocol: Protocol, finals: Mapping[str, Sequence[ScoreRun]], records: Mapping[str, Record]
) -> dict[str, int]:
    """The final runs of every method that the records so far call for; a function of the records, so that a killed
    comparison goes on where it was.

    Args:
        finals: label -> the final runs of a method up to the cap, by rising seed.
    """
    counts = dict.fromkeys(finals, protocol.seeds)
    looks = planned_looks(protocol.seeds, protocol.max_seeds)
    for look in looks[:-1]:
        wanted = {label: runs[: min(look, counts[label])] for label, runs in finals.items()}
        seen = {label: [records.get(key(run)) for run in runs] for label, runs in wanted.items()}
        if any(record is None or record.status == "failed" for found in seen.values() for record in found):
            return counts
        decision = _decision(protocol, looks, {label: [r for r in found if r] for label, found in seen.items()})
        if decision.next_seeds is None:
            return counts
        counts |= dict.fromkeys(decision.waiting, decision.next_seeds)
    return counts


def _decision(protocol: Protocol, looks: Sequence[int], seen: Mapping[str, Sequence[Record]]) -> Looks:
    done = {label: [record for record in found if record.status == "done"] for label, found in seen.items()}
    scores = {label: {_seed(record): primary(_score(record)) for record in found} for label, found in done.items()}
    lost = {label for label, found in seen.items() if len(found) > len(done[label])}
    steps = {_step(_score(record)) for found in done.values() for record in found}
    return sequential_decision(
        scores, looks, resolution=max(steps, default=0.0), margin=protocol.margin, diverged=lost, forecast=False
    )


def _seed(record: Record) -> int:
    assert isinstance(record.run, ScoreRun)
    return record.run.seed


def _score(record: Record) -> Mapping[str, object]:
    found: Mapping[str, object] = record.measures["score"]
    return found


def _step(score: Mapping[str, object]) -> float:
    """In which accuracies move: one item's share; correlations have none."""
    items = score.get("items")
    counted = score.get("metric", "accuracy") == "accuracy" and isinstance(items, Mapping)
    return 1 / len(items["gold"]) if counted and isinstance(items, Mapping) else 0.0
