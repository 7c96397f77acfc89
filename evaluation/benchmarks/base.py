"""What a benchmark is, and benchmarks by name: each file registers its loader with ``@register_benchmark``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

from evaluation.spec import Unusable
from variants.core.registry import suggestion


@dataclass(frozen=True)
class Example:
    """One text with its class. ``id`` names the text in every record; ``label`` indexes the benchmark's labels."""

    id: str
    text: str
    label: int


@dataclass(frozen=True)
class Benchmark:
    """A classification task, split for good. No two examples share an id.

    Raises:
        ValueError: an id occurs twice, or a label is out of range.
    """

    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    def __post_init__(self) -> None:
        ids = [example.id for _, example in self._all()]
        if len(set(ids)) < len(ids):
            raise ValueError(f"benchmark {self.name!r}: an id occurs twice")
        if any(not 0 <= example.label < len(self.labels) for _, example in self._all()):
            raise ValueError(f"benchmark {self.name!r}: a label is not one of {len(self.labels)}")

    @cached_property
    def digest(self) -> str:
        """The sha256 over the labels and every (split, id, text, label), in order."""
        sha = hashlib.sha256(json.dumps(self.labels).encode())
        for split, example in self._all():
            sha.update(json.dumps([split, example.id, example.text, example.label]).encode())
        return sha.hexdigest()

    def _all(self) -> Iterator[tuple[str, Example]]:
        for split in ("train", "validation", "test"):
            for example in getattr(self, split):
                yield split, example


Loader = Callable[[], Benchmark]
_LOADERS: dict[str, Loader] = {}


def register_benchmark(name: str) -> Callable[[Loader], Loader]:
    """Makes a loader known under ``name``; the first line of its docstring describes the benchmark.

    Raises:
        ValueError: the name is taken by another loader.
    """

    def add(loader: Loader) -> Loader:
        taken = _LOADERS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (loader.__module__, loader.__qualname__):
            raise ValueError(f"the benchmark name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
        _LOADERS[name] = loader
        return loader

    return add


def names() -> dict[str, str]:
    """The registered benchmarks, sorted, each with one line about it."""
    return {name: (loader.__doc__ or "").strip().partition("\n")[0] for name, loader in sorted(_LOADERS.items())}


def load_benchmark(name: str) -> Benchmark:
    """The benchmark registered under ``name``; made once in a process.

    Raises:
        Unusable: no benchmark of that name, with the nearest ones, or its data cannot be fetched.
    """
    if name not in _LOADERS:
        raise Unusable(f"unknown benchmark {name!r}: {suggestion(name, sorted(_LOADERS))}")
    return _load(_LOADERS[name])


@cache
def _load(loader: Loader) -> Benchmark:
    return loader()
