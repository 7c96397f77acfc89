"""Methods from files outside the package."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from evaluation.spec import Unusable


def load_plugins(files: list[Path]) -> None:
    """Imports Python files which register methods. They are the user's own code and run with the user's rights.

    Raises:
        Unusable: no such file, or it cannot be imported.
    """
    for file in files:
        if not file.is_file():
            raise Unusable(f"no plug-in file {str(file)!r}")
        # By the whole path: of two files of the same name, the later one would stand in for the earlier one.
        name = f"svdbench_plugin_{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise Unusable(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look the module up by its name
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise Unusable(f"plug-in {file}: {type(error).__name__}: {error}") from error
