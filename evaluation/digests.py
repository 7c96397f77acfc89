"""Digests of the code that a run's numbers depend on: part of its key, so that changed code is computed again."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from variants import core
from variants.core import Variant


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
    files.append(here / "benchmarks" / "splits.py")  # says which texts forgetting is measured on
    files += [
        here / f"{name}.py"
        for name in ("calibration", "data", "execute", "known", "models", "mounting", "peers", "training")
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
