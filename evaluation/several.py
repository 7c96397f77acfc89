"""One suite on several benchmarks: which suites that makes, and where their results go."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.spec import Unusable, load_suite


@dataclass(frozen=True)
class OnBenchmark:
    """The suite on one benchmark: the changes that make it, and its results folder."""

    changes: Mapping[str, str]
    directory: Path


def on_benchmarks(
    suite: str, benchmarks: Sequence[str], changes: Mapping[str, str], out: Path | None
) -> tuple[list[OnBenchmark], Path]:
    """The suite once for each benchmark, under the name SUITE-BENCHMARK, and the folder of the report over them.

    Args:
        suite: name or TOML file.
        benchmarks: two or more.
        changes: ``key=value`` as a mapping, which each of them gets.
        out: holds BENCHMARK and across; without it they are results/SUITE-BENCHMARK and results/SUITE-across.

    Raises:
        Unusable: fewer than two benchmarks, one twice, a change of the benchmark, or a suite that cannot be read.
    """
    if len(benchmarks) < 2:
        raise Unusable(f"--on {benchmarks[0]}: give two benchmarks or more, or write --set benchmark={benchmarks[0]}")
    if twice := [name for name, number in Counter(benchmarks).items() if number > 1]:
        raise Unusable(f"--on {twice[0]} is given twice: name each benchmark once")
    if "benchmark" in changes:
        raise Unusable("--on names the benchmarks: leave out --set benchmark=..., and --data")
    name = load_suite(suite, dict(changes)).name

    def folder(last: str) -> Path:
        return Path("results") / f"{name}-{last}" if out is None else out / last

    made = []
    for benchmark in benchmarks:
        last = benchmark.replace(":", "-").replace("/", "-")  # as in data:my_reviews
        edits = {"benchmark": json.dumps(benchmark), "name": json.dumps(f"{name}-{last}")}
        made.append(OnBenchmark({**changes, **edits}, folder(last)))
    across = folder("across")
    if shared := [d for d, number in Counter([*(one.directory for one in made), across]).items() if number > 1]:
        raise Unusable(f"two of the benchmarks and their report would go into {shared[0]}: run one of them on its own")
    return made, across
