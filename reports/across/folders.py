"""Results folders that may be compared with one another: one model, one baseline, each benchmark once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reports.loading import UnusableResults, load
from reports.records import Json, Results
from reports.table import plain
from reports.words import MANY, listed

HOLDS_RUNS = ("runs", "suite.json", "records.jsonl")


@dataclass(frozen=True)
class Across:
    """The results of several benchmarks.

    Args:
        results: one a benchmark, in the order of the folders.
        labels: the methods with final runs on every benchmark, in the order of the first folder.
        left_out: label -> the benchmarks on which it has none.
    """

    results: tuple[Results, ...]
    labels: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The benchmarks' names."""
        return tuple(map(benchmark, self.results))

    @property
    def baseline(self) -> str:
        return self.results[0].baseline

    @property
    def model(self) -> str:
        return str(self.results[0].suite["model"])

    @property
    def title(self) -> str:
        names = listed(self.tasks) if len(self.tasks) <= MANY else f"{len(self.tasks)} benchmarks"
        return f"{self.model} on {names}"

    def scores(self, label: str) -> dict[str, list[float | None]]:
        """benchmark -> the scores of a method's final runs, by seed; a diverged run is a result, without a score."""
        return {benchmark(results): final_scores(results, label) for results in self.results}


def benchmark(results: Results) -> str:
    """The name of the benchmark on which the methods ran."""
    return str(results.suite["benchmark"])


def final_scores(results: Results, label: str) -> list[float | None]:
    """The scores of a method's final runs, by seed; failed runs are no results, diverged ones are None."""
    scored = [(run.status, run.score("primary")) for run in results.of(label, "final")]
    return [score for status, score in scored if status == "diverged" or score is not None]


def across(directories: Sequence[Path]) -> Across:
    """The results of several folders, if they can be compared.

    Raises:
        UnusableResults: a folder cannot be read, or they differ in what has to be the same; in one line.
    """
    if len(directories) < 2:
        raise UnusableResults(f"a report across benchmarks takes two results folders or more, got {len(directories)}")
    found = [(str(directory), load(directory)) for directory in directories]
    for problem in _differences(found):
        raise UnusableResults(f"these folders cannot be reported together: {plain(problem)}")
    return _in_common(tuple(results for _, results in found))


def refuse_runs(out: Path) -> None:
    """Refuses to write a report across benchmarks over the results of one.

    Raises:
        UnusableResults: the folder holds runs.
    """
    if held := next((name for name in HOLDS_RUNS if (out / name).exists()), None):
        raise UnusableResults(f"{out} holds the runs of a comparison ({held}): give another folder with --out")


def _differences(found: Sequence[tuple[str, Results]]) -> Iterator[str]:
    """What has to be the same and is not, or the other way round, one line each."""
    for i, (place, results) in enumerate(found):
        if twice := next((other for other, earlier in found[:i] if benchmark(earlier) == benchmark(results)), None):
            yield f"{twice} and {place} are both on {benchmark(results)}; give each benchmark once"
    yield from _unequal(found, "the model", lambda results: str(results.suite.get("model")))
    yield from _unequal(found, "the model's digest", _model_digests)
    yield from _unequal(found, "the baseline", lambda results: results.baseline)
    for label in dict.fromkeys(label for _, results in found for label in results.labels):
        having = [(place, results) for place, results in found if label in results.labels]
        yield from _unequal(having, f"the method {label!r}", partial(_as_run, label=label))


def _unequal(found: Sequence[tuple[str, Results]], what: str, of: Callable[[Results], Any]) -> Iterator[str]:
    """The first folder that differs from the first of all in one thing."""
    place, first = found[0]
    known = of(first)
    other = next(((elsewhere, of(results)) for elsewhere, results in found[1:] if of(results) != known), None)
    if other is not None:
        yield f"{what} is {_said(known)} in {place} and {_said(other[1])} in {other[0]}"


def _model_digests(results: Results) -> frozenset[str]:
    identities = (record["run"].get("identity") or {} for record in results.records)
    return frozenset(str(identity["model"]) for identity in identities if identity.get("model"))


def _as_run(results: Results, label: str) -> Json:
    """What a label stands for: its implementation, where it sits, and its hyperparameters by name."""
    entry = next(entry for entry in results.suite["methods"] if entry["label"] == label)
    settings = entry["method"].get("hyperparameters") or {}
    where = entry.get("where") or results.suite.get("where")
    return {"name": entry["method"]["name"], "where": where, **settings}


def _said(value: Any) -> str:
    if isinstance(value, frozenset):
        return " and ".join(sorted(value)) or "not recorded"
    return ", ".join(f"{key} = {one}" for key, one in value.items()) if isinstance(value, dict) else repr(value)


def _in_common(results: tuple[Results, ...]) -> Across:
    """The methods that have final runs on every benchmark; the others are named, with where they lack some."""
    known = dict.fromkeys(label for one in results for label in one.labels)
    lacking = {label: tuple(benchmark(one) for one in results if not final_scores(one, label)) for label in known}
    labels = tuple(label for label in known if not lacking[label])
    baseline = results[0].baseline
    if lacking[baseline]:
        where = listed(list(map(plain, lacking[baseline])))
        raise UnusableResults(f"the baseline {plain(baseline)!r} has no final runs on {where}: run that to its end")
    if len(labels) < 2:
        raise UnusableResults("nothing to compare: no method but the baseline has final runs on every benchmark")
    return Across(results, labels, {label: missing for label, missing in lacking.items() if missing})
