"""Methods and benchmarks from outside the package: files, modules, and installed packages that announce themselves;
and folders of data.

They are the user's own code and run with the user's rights; nothing that a suite or a download names is loaded.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import evaluation.peers  # noqa: F401  registers the names peft:NAME
import variants  # noqa: F401  registers the shipped methods, before anything can take their names
from evaluation.benchmarks.folders import is_benchmark, register_folder
from evaluation.spec import Unusable
from variants.core import method, names

GROUP = "svdbench.variants"  # the entry points of installed packages


def load_plugins(plugins: Sequence[str | Path]) -> list[str]:
    """Imports what registers further methods or benchmarks: every installed entry point of the group, and each of
    ``plugins``, a Python file, a dotted module name, or a folder of data, which becomes a benchmark.

    Returns:
        The names of the methods which ``plugins`` registered, sorted.

    Raises:
        Unusable: no such file or module, or it cannot be imported.
    """
    for point in entry_points(group=GROUP):
        _imported(f"entry point {point.name!r} of {point.value}", point.load)
    modules = {_load(str(plugin)) for plugin in plugins}
    return [name for name in names() if method(name).__module__ in modules]


def _load(plugin: str) -> str:
    """Imports one plug-in; the name of its module."""
    file = Path(plugin)
    if is_benchmark(file):
        return register_folder(file)
    if file.is_file():
        return _load_file(file)
    if plugin.endswith(".py") or not all(part.isidentifier() for part in plugin.split(".")):
        raise Unusable(f"no plug-in file {plugin!r}")
    _imported(f"plug-in {plugin}", lambda: importlib.import_module(plugin))
    return plugin


def _load_file(file: Path) -> str:
    # By the whole path: of two files of the same name, the later one would stand in for the earlier one.
    name = f"svdbench_plugin_{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise Unusable(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up by its name
    loader = spec.loader
    _imported(f"plug-in {file}", lambda: loader.exec_module(module))
    return name


def _imported(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except Exception as error:
        raise Unusable(f"{what}: {type(error).__name__}: {error}") from error
