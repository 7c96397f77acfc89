"""What a benchmark is, and benchmarks by name: each file registers its loader with ``@register_benchmark``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

from evaluation.spec import Unusable
from variants.core.registry import suggestion

SPLITS = ("train", "validation", "test")
# What may be a benchmark's primary measure: the one that learning rates are chosen by and verdicts are about.
METRICS = {"classification": ("accuracy", "macro_f1", "matthews"), "regression": ("spearman", "pearson")}


@dataclass(frozen=True)
class Example:
    """One text, or a pair of texts, with its class or number.

    ``id`` names the example in every record; ``label`` indexes the benchmark's labels, or is what regression predicts.
    """

    id: str
    text: str
    label: float
    text_pair: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """A task, split for good. No two examples share an id.

    Args:
        labels: the classes; empty for regression.
        metric: its primary measure, one of ``METRICS``; decides whether the task is classification or regression.

    Raises:
        ValueError: an unknown metric, an id that occurs twice, a label that is out of range or not a finite number.
    """

    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        known = [metric for metrics in METRICS.values() for metric in metrics]
        if self.metric not in known:
            raise ValueError(f"benchmark {self.name!r}: no metric {self.metric!r}: {suggestion(self.metric, known)}")
        ids = [example.id for _, example in self._all()]
        if len(set(ids)) < len(ids):
            raise ValueError(f"benchmark {self.name!r}: an id occurs twice")
        labels = [example.label for _, example in self._all()]
        if self.kind == "regression":
            if self.labels or not all(map(math.isfinite, labels)):
                raise ValueError(f"benchmark {self.name!r}: regression has finite numbers to predict, and no `labels`")
        elif any(not isinstance(label, int) or not 0 <= label < len(self.labels) for label in labels):
            raise ValueError(f"benchmark {self.name!r}: a label is not one of {len(self.labels)}")

    @property
    def kind(self) -> Literal["classification", "regression"]:
        return "regression" if self.metric in METRICS["regression"] else "classification"

    @cached_property
    def digest(self) -> str:
        """The sha256 over the labels, the metric and every (split, id, text, label, second text), in order."""
        sha = hashlib.sha256(json.dumps(self.labels).encode())
        if self.metric != "accuracy":  # what all have in common is left out: published keys stand on it
            sha.update(json.dumps(self.metric).encode())
        for split, example in self._all():
            pair = () if example.text_pair is None else (example.text_pair,)
            sha.update(json.dumps([split, example.id, example.text, example.label, *pair]).encode())
        return sha.hexdigest()

    def _all(self) -> Iterator[tuple[str, Example]]:
        for split in SPLITS:
            for example in getattr(self, split):
                yield split, example


FOLDER = "data:"  # how the names of benchmarks begin which are folders of files
Loader = Callable[[], Benchmark]
_LOADERS: dict[str, Loader] = {}
_DECLARED: dict[str, tuple[str | None, tuple[int, int, int] | None]] = {}


def register_benchmark(
    name: str, *, metric: str | None = None, sizes: tuple[int, int, int] | None = None
) -> Callable[[Loader], Loader]:
    """Makes a loader known under ``name``; the first line of its docstring describes the benchmark.

    Args:
        metric, sizes: primary measure and number of training, validation and test examples, to be listed before
            anything is downloaded; held against what is loaded.

    Raises:
        ValueError: the name is taken by another loader.
    """

    def add(loader: Loader) -> Loader:
        taken = _LOADERS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (loader.__module__, loader.__qualname__):
            raise ValueError(f"the benchmark name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
        _LOADERS[name], _DECLARED[name] = loader, (metric, sizes)
        return loader

    return add


def names() -> dict[str, str]:
    """The registered benchmarks, sorted, each with one line about it."""
    return {name: (loader.__doc__ or "").strip().partition("\n")[0] for name, loader in sorted(_LOADERS.items())}


def cards() -> list[dict[str, object]]:
    """The registered benchmarks with what was declared of them; None where nothing was."""
    rows: list[dict[str, object]] = []
    for name, text in names().items():
        metric, sizes = _DECLARED.get(name, (None, None))
        kind = metric and next(kind for kind, metrics in METRICS.items() if metric in metrics)
        counts = dict(zip(SPLITS, sizes or (None,) * 3, strict=True))
        rows.append({"name": name, "kind": kind, "metric": metric, **counts, "description": text})
    return rows


def load_benchmark(name: str) -> Benchmark:
    """The benchmark registered under ``name``; made once in a process.

    Raises:
        Unusable: no benchmark of that name, with the nearest ones, its data cannot be fetched, or its loader fails.
    """
    if name not in _LOADERS:
        hint = "give its folder with --data, or with --plugin" if name.startswith(FOLDER) else ""
        raise Unusable(f"unknown benchmark {name!r}: {hint or suggestion(name, sorted(_LOADERS))}")
    try:
        made = _load(_LOADERS[name])
        _hold_against(made, *_DECLARED.get(name, (None, None)))
        return made
    except Unusable:
        raise
    except Exception as error:  # a stranger's code
        raise Unusable(f"benchmark {name!r}: {type(error).__name__}: {error}") from error


@cache
def _load(loader: Loader) -> Benchmark:
    made = loader()
    if not isinstance(made, Benchmark):
        raise TypeError(f"its loader gave a {type(made).__name__}, expected a Benchmark")
    for split in SPLITS:
        if not getattr(made, split):
            raise ValueError(f"there is no {split} example")
    return made


def _hold_against(made: Benchmark, metric: str | None, sizes: tuple[int, int, int] | None) -> None:
    found = tuple(len(getattr(made, split)) for split in SPLITS)
    if metric not in (None, made.metric) or sizes not in (None, found):
        raise ValueError(f"declared as {metric} and {sizes}, but it is {made.metric} and {found}")
