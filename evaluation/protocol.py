"""From a suite to its runs: learning rates, seeds, splits.

Every method gets the same number of learning rates over the same number of decades, each grid around the method's own
prior. They are tried with seed 0 and scored on validation; the best rate is run again with fresh seeds, and only those
are scored, once, on test.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from evaluation.architectures import Architecture, architecture, layers
from evaluation.sizes import parsed_budget
from evaluation.spec import (
    Entry,
    Identity,
    Merging,
    Method,
    QuantisedRun,
    Record,
    Run,
    ScoreRun,
    SpeedRun,
    Suite,
    Unusable,
    key,
)
from variants import core
from variants.core import Refused, UnknownHyperparameter, UnknownMethod, Variant, create, method
from variants.core.budget import largest

SEARCH_SEED = 0


@dataclass(frozen=True)
class Tally:
    """How many runs of one method (None: of all together) and stage are done, and how many are left."""

    entry: Entry | None
    stage: str
    done: int
    left: int


@dataclass(frozen=True)
class Plan:
    """A suite on one machine: methods with all hyperparameters spelt out, digests, device and threads."""

    suite: Suite
    identity: Identity
    device: str
    threads: int

    def runs(self, records: Mapping[str, Record]) -> list[Run]:
        """Every run that is known to be needed, given the records so far: a method's final runs appear when its search
        is complete, the speed run when nothing else is left."""
        entries = costly_first(self.suite.methods)
        searches = [self.search(entry) for entry in entries]
        # Rate by rate, so that after the first round the time of every method's runs is known.
        found: list[Run] = [run for rank in zip_longest(*searches) for run in rank if run is not None]
        for entry in entries:
            best = self.rate(entry, records)
            if best is not None:
                found += self.final(entry, best)
        if self.suite.quantised:
            found.append(self.quantised_run())
        if self.suite.speed and all(key(run) in records for run in found):
            found.append(self.speed_run())
        return found

    def total(self) -> int:
        """How many runs the suite has when no learning-rate search diverges altogether."""
        suite = self.suite
        scores = sum(len(self.search(entry)) + suite.seeds_of(entry) for entry in suite.methods)
        return scores + bool(suite.quantised) + bool(suite.speed)

    def tallies(self, records: Mapping[str, Record]) -> list[Tally]:
        """What of each method and stage is recorded, and what is left; runs of another setting do not count."""
        found = []
        for entry in costly_first(self.suite.methods):
            search = self.search(entry)
            best = self.rate(entry, records)
            lost = best is None and all(key(run) in records for run in search)
            final = [] if best is None else self.final(entry, best)
            expected = {"search": len(search), "final": 0 if lost else self.suite.seeds_of(entry)}
            for stage, runs in (("search", search), ("final", final)):
                done = sum(key(run) in records for run in runs)
                if expected[stage] or runs:
                    found.append(Tally(entry, stage, done, expected[stage] - done))
        for run in self._of_all_methods():
            done = int(key(run) in records)
            found.append(Tally(None, run.kind, done, 1 - done))
        return found

    def _of_all_methods(self) -> list[QuantisedRun | SpeedRun]:
        suite = self.suite
        found: list[QuantisedRun | SpeedRun] = [self.quantised_run()] if suite.quantised else []
        return [*found, self.speed_run()] if suite.speed else found

    def search(self, entry: Entry) -> list[ScoreRun]:
        """The runs among which a method's learning rate is chosen; none where there is only one."""
        points = self.suite.points_of(entry)
        rates = grid(self.centre(entry), points, self.suite.protocol.per_decade)
        return [self._score_run(entry, "search", rate, SEARCH_SEED) for rate in rates] if points > 1 else []

    def rate(self, entry: Entry, records: Mapping[str, Record]) -> float | None:
        """The learning rate of the final runs: the only one there is, or the best of the search; None until then."""
        if self.suite.points_of(entry) == 1:
            return grid(self.centre(entry), 1, self.suite.protocol.per_decade)[0]
        return chosen_rate(self.search(entry), records)

    def final(self, entry: Entry, rate: float) -> list[ScoreRun]:
        return [self._score_run(entry, "final", rate, 1 + i) for i in range(self.suite.seeds_of(entry))]

    def speed_run(self) -> SpeedRun:
        assert self.suite.speed is not None
        return SpeedRun(
            methods={entry.label: entry.method for entry in self.suite.methods},
            places={entry.label: entry.where for entry in self.suite.methods if entry.where},
            baseline=self.suite.baseline,
            where=self.suite.where,
            speed=self.suite.speed,
            threads=self.threads,
            **self._common(self.suite.methods),
        )

    def quantised_run(self) -> QuantisedRun:
        assert self.suite.quantised is not None
        return QuantisedRun(where=self.suite.where, quantised=self.suite.quantised, **self._common(()))

    def centre(self, entry: Entry) -> float:
        """The middle of a method's grid: its own ``lr`` in the suite, else the prior relative to LoRA's."""
        if entry.lr is not None:
            return entry.lr
        cls = method(entry.method.name)
        return self.suite.training.head_lr if cls.trains == "head" else self.suite.protocol.lr * cls.lr_ratio

    def _score_run(self, entry: Entry, stage: Literal["search", "final"], rate: float, seed: int) -> ScoreRun:
        first = stage == "final" and seed == 1
        merging: Merging | None = self.suite.merging if first else None
        return ScoreRun(
            stage=stage,
            method=entry.method,
            lr=rate,
            seed=seed,
            split="validation" if stage == "search" else "test",
            where=self.suite.layers_of(entry),
            merging=merging,
            calibration=self.suite.calibration if method(entry.method.name).needs else None,
            keep=self._keeps(entry, stage, first),
            **self._common((entry,)),
        )

    def _keeps(self, entry: Entry, stage: str, first: bool) -> bool:
        """Whether a run keeps its trained adapter. A peer's belongs to its own library."""
        wanted = {"all": stage == "final", "first": first, "none": False}[self.suite.keep]
        return wanted and ":" not in entry.method.name

    def _common(self, entries: tuple[Entry, ...]) -> dict[str, Any]:
        suite = self.suite
        # Only the digests of the methods in this run: a method added to the suite leaves the others' runs valid.
        digests = {entry.method.name: self.identity.methods[entry.method.name] for entry in entries}
        return {
            "model": suite.model,
            "benchmark": suite.benchmark,
            "limit": suite.limit,
            "training": suite.training,
            "device": self.device,
            "identity": self.identity.model_copy(update={"methods": digests}),
        }


def resolve(suite: Suite) -> Suite:
    """The suite with every hyperparameter of every method spelt out, sizes by its budget included.

    Raises:
        Unusable: an unknown method or hyperparameter, the same method twice, or a budget that a method cannot meet.
    """
    if suite.budget is None:
        entries = tuple(map(_resolved, suite.methods))
    else:
        found = architecture(suite.model)
        most = parsed_budget(suite.budget, found.parameters)
        entries = tuple(_resolved(_sized(entry, found, suite.layers_of(entry), most)) for entry in suite.methods)
    for i, entry in enumerate(entries):
        for other in entries[:i]:
            if entry.method == other.method and suite.layers_of(entry) == suite.layers_of(other):
                # Their runs could not be told apart.
                raise Unusable(f"{other.label!r} and {entry.label!r} are the same method with the same hyperparameters")
    return suite.model_copy(update={"methods": entries})


def _sized(entry: Entry, found: Architecture, where: tuple[str, ...], budget: int) -> Entry:
    """The entry with the largest size within the budget, if there is one to choose."""
    given = entry.method.hyperparameters
    try:
        cls = method(entry.method.name)
        if cls.trains != "layers" or not cls.size or cls.size in given:
            return entry
        create(entry.method.name, given)  # says what is wrong with the other hyperparameters
        sized = largest(cls, given, layers(found, where).values(), budget)
    except (UnknownMethod, UnknownHyperparameter, Refused) as error:
        raise Unusable(f"{entry.label}: {error}") from error
    chosen = Method(name=entry.method.name, hyperparameters={**given, cls.size: getattr(sized, cls.size)})
    return entry.model_copy(update={"method": chosen})


def _resolved(entry: Entry) -> Entry:
    try:
        variant = create(entry.method.name, entry.method.hyperparameters)
    except (UnknownMethod, UnknownHyperparameter) as error:
        raise Unusable(str(error)) from error
    spelt_out = Method(name=entry.method.name, hyperparameters=dataclasses.asdict(variant))
    return entry.model_copy(update={"method": spelt_out})


def grid(centre: float, points: int, per_decade: int) -> list[float]:
    """``points`` rates on a log grid around ``centre``, ``per_decade`` to a factor of ten, to 3 significant digits.

    Raises:
        Unusable: so many to a decade that rates coincide, or a span beyond what a number can hold.
    """
    exponents = [(i - (points - 1) / 2) / per_decade for i in range(points)]
    rates = [float(f"{centre * 10**e:.3g}") for e in exponents] if max(map(abs, exponents)) < 100 else []
    if len(set(rates)) < points or not all(0 < rate < float("inf") for rate in rates):
        raise Unusable(f"protocol: {points} points, {per_decade} per decade, around {centre:g} are not {points} rates")
    return rates


def chosen_rate(search: list[ScoreRun], records: Mapping[str, Record]) -> float | None:
    """The rate with the best validation accuracy (the lower loss decides ties), when all of the search has been run.

    None while a run is missing or failed, and where every run diverged.
    """
    results = [records.get(key(run)) for run in search]
    if any(record is None or record.status == "failed" for record in results):
        return None
    scored = [(r.measures["score"], run.lr) for r, run in zip(results, search, strict=True) if r and r.status == "done"]
    return max(scored, key=lambda item: (item[0]["accuracy"], -item[0]["loss"]))[1] if scored else None


def costly_first(entries: tuple[Entry, ...]) -> list[Entry]:
    """Methods that train the base first and head-only ones last: long runs at the end would leave workers idle."""

    def rank(entry: Entry) -> int:
        return ("base", "layers", "head").index(method(entry.method.name).trains)

    return sorted(entries, key=rank)


def source_digest(cls: type[Variant]) -> str:
    """Digest of the code that defines a method: the files of its class and of the classes it extends.

    It is part of every run's key: a changed method is computed again.
    """
    modules: dict[str, ModuleType] = {}
    for c in cls.__mro__:
        if issubclass(c, Variant) and c is not Variant:
            _collect(inspect.getmodule(c), modules)
    release = f"release = {getattr(cls, 'release', '')!r}"  # of the library whose method it is
    return _digest_of_sources([release, *map(_source, modules.values())])


def _collect(module: ModuleType | None, found: dict[str, ModuleType]) -> None:
    """Adds a module and what it imports of a plug-in's own modules: not of installed libraries, nor of ours, which the
    harness's digest and the methods' own classes cover."""
    if module is None or module.__name__ in found:
        return
    found[module.__name__] = module
    for node in ast.walk(ast.parse(_source(module))):
        for name in _imported(node, module.__package__ or ""):
            imported = sys.modules.get(name)
            if imported is not None and _is_of_the_user(imported):
                _collect(imported, found)


def _source(module: ModuleType) -> str:
    file = module.__file__
    return inspect.getsource(module) if file is None or Path(file).stat().st_size else ""  # inspect finds none if empty


def _imported(node: ast.AST, package: str) -> list[str]:
    """Absolute names of the modules that an import statement may mean: of ``from a import b`` both a and a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    stem = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    return [stem, *(f"{stem}.{alias.name}" for alias in node.names)]


def _is_of_the_user(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] in ("variants", "evaluation", "torch"):
        return False
    places = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(Path(file).is_relative_to(place) for place in places)


def harness_digest() -> str:
    """Digest of what trains and measures, the same for all methods: the adapter interface, the loop, the measurements,
    and the versions of the libraries that compute. Part of every run's key, so records of another code do not pass for
    this one's."""
    here = Path(__file__).parent
    apart = {"budget", "cases", "checks", "combining", "conformance", "task_vectors"}  # no run goes through them
    files = [path for path in Path(core.__file__).parent.glob("*.py") if path.stem not in apart]
    files += (here / "measures").rglob("*.py")
    files += [
        here / f"{name}.py" for name in ("calibration", "data", "execute", "models", "mounting", "peers", "training")
    ]
    libraries = ("numpy", "scipy", "tokenizers", "torch", "transformers")
    versions = [f"{name} = {version(name)!r}" for name in libraries]
    return _digest_of_sources([path.read_text(encoding="utf-8") for path in sorted(files)] + versions)


def _digest_of_sources(texts: Iterable[str]) -> str:
    """Comments and docstrings do not count."""
    trees = [ast.parse(text) for text in texts]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256("\n".join(map(ast.dump, trees)).encode()).hexdigest()[:16]
