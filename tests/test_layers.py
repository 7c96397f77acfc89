"""Who may import whom: variants <- evaluation; reports read records only; nothing but tasks imports commands. The
statistics of the reports stand on their own, so that an evaluation may use them. A method takes from another method's
file only classes which it extends: a run knows a method by the files of its classes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("variants", "evaluation", "reports", "commands")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TENSORS = {"torch", "numpy", "scipy", "safetensors"}


def imported(source: str, package: str = "") -> Iterator[str]:
    """Every module a file imports, anywhere in it, by absolute dotted name.

    Args:
        package: the dotted package of the file, from which relative imports count.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*parents, *([node.module] if node.module else [])])
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)  # from variants import core


def complaints(path: str, modules: Iterator[str]) -> list[str]:
    """The imports which a file at ``path``, relative to the root, may not have."""
    return [module for module in modules if not _allowed(path, module)]


def _allowed(path: str, module: str) -> bool:
    top = module.split(".")[0]
    if path.startswith("commands/"):
        return top not in {"tasks", "tests"}
    if top in {"tasks", "tests", "commands"}:
        return False
    if path.startswith("variants/core/"):
        inside = module == "variants" or module.startswith("variants.core")
        hosted = path in ("variants/core/conv1d.py", "variants/core/cases.py")  # Conv1D, and layers to try it on
        extra = {"transformers"} if hosted else set()
        return inside if top == "variants" else top in TENSORS | extra or top in sys.stdlib_module_names
    if path.startswith("variants/interchange/"):
        ours = module == "variants" or module.startswith(("variants.core", "variants.interchange"))
        return ours if top == "variants" else top in TENSORS or top in sys.stdlib_module_names
    if path.startswith("variants/"):
        return top == "variants" or top in TENSORS or top in sys.stdlib_module_names
    if path.startswith("evaluation/"):
        return top != "reports" or _is_statistics(module)
    if path.startswith("reports/statistics/"):
        return _is_statistics(module) or top in {"numpy", "scipy"} or top in sys.stdlib_module_names
    return top not in {"torch", "variants", "evaluation"}


def _is_statistics(module: str) -> bool:
    return f"{module}.".startswith("reports.statistics.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT)
    found = complaints(str(relative), imported(path.read_text(), ".".join(relative.parent.parts)))
    assert not found, f"{relative} may not import {', '.join(found)}"


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"variants", "evaluation"}


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("variants/lora.py", "import evaluation.store", ["evaluation.store"]),
        ("variants/lora.py", "def f():\n    import pandas", ["pandas"]),
        ("variants/lora.py", "from transformers import Conv1D", ["transformers", "transformers.Conv1D"]),
        ("variants/core/host.py", "from variants import lora", ["variants.lora"]),
        ("variants/core/host.py", "from .. import lora", ["variants.lora"]),
        ("variants/core/host.py", "from ..lora import LoRA", ["variants.lora", "variants.lora.LoRA"]),
        ("variants/core/host.py", "import transformers", ["transformers"]),
        ("evaluation/store.py", "from reports import tables", ["reports", "reports.tables"]),
        ("evaluation/store.py", "from reports.tables import x", ["reports.tables", "reports.tables.x"]),
        ("evaluation/store.py", "import reports.statistics_of", ["reports.statistics_of"]),
        ("evaluation/store.py", "import tasks", ["tasks"]),
        ("reports/write.py", "from commands import shared", ["commands", "commands.shared"]),
        ("commands/speed.py", "import tasks", ["tasks"]),
        ("reports/statistics/search.py", "from reports import table", ["reports", "reports.table"]),
        ("reports/statistics/search.py", "import pandas, torch", ["pandas", "torch"]),
        ("reports/page.py", "import torch.nn", ["torch.nn"]),
        ("reports/page.py", "from variants.core import names", ["variants.core", "variants.core.names"]),
        ("reports/page.py", "if True:\n    from evaluation import store", ["evaluation", "evaluation.store"]),
        ("variants/interchange/pairs.py", "from variants import lora", ["variants.lora"]),
        ("variants/interchange/pairs.py", "from variants import interchange, core\nimport safetensors", []),
        ("variants/lora.py", "import torch, math\nfrom variants.core import linalg", []),
        ("variants/core/conv1d.py", "from transformers.pytorch_utils import Conv1D", []),
        ("variants/core/host.py", "from . import linalg\nimport variants.core.conv1d", []),
        ("evaluation/store.py", "import torch, pandas, variants.core", []),
        ("evaluation/store.py", "from reports.statistics import holm", []),
        ("reports/statistics/search.py", "import math, numpy\nfrom reports.statistics.verdicts import holm", []),
        ("reports/page.py", "import jinja2, numpy", []),
    ],
)
def test_the_rules_notice(path: str, source: str, wrong: list[str]) -> None:
    package = ".".join(path.split("/")[:-1])
    assert complaints(path, imported(source, package)) == wrong


def borrowed(source: str) -> list[str]:
    """What a method's file takes from another method's file otherwise than by extending a class of it."""
    tree = ast.parse(source)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if _is_method(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module == "variants":
            found += [f"variants.{alias.name}" for alias in node.names if alias.name != "core"]
        elif isinstance(node, ast.ImportFrom) and _is_method(node.module or ""):
            own = classes_in(str(node.module))
            used = {alias.name: alias.asname or alias.name for alias in node.names}
            found += [f"{node.module}.{name}" for name, here in used.items() if name not in own or here not in bases]
    return found


def _is_method(module: str) -> bool:
    return module.startswith("variants.") and not f"{module}.".startswith("variants.core.")


def classes_in(module: str) -> set[str]:
    """The classes defined in one of our modules."""
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("path", sorted((ROOT / "variants").glob("*.py")), ids=lambda path: path.stem)
def test_methods_take_from_each_other_only_what_they_extend(path: Path) -> None:
    found = borrowed(path.read_text())
    assert not found, f"{path.name} takes {', '.join(found)}: extend the class, or move the function to variants/core"


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from variants.stiefel import RETRACTIONS", ["variants.stiefel.RETRACTIONS"]),
        ("from variants.stiefel import RETRACTIONS as R\nclass A(R): ...", ["variants.stiefel.RETRACTIONS"]),
        ("from variants.lora import LoRA\nx = LoRA()", ["variants.lora.LoRA"]),
        ("from variants.rslora import LoRA\nclass A(LoRA): ...", ["variants.rslora.LoRA"]),
        ("from variants.lora import LoRA\nfrom variants.oft import OFT\nclass A(LoRA): ...", ["variants.oft.OFT"]),
        ("import variants.lora", ["variants.lora"]),
        ("from variants import lora", ["variants.lora"]),
        ("def f():\n    from variants.lora import LoRA", ["variants.lora.LoRA"]),
        ("from variants.lora import LoRA\nclass A(LoRA): ...", []),
        ("from variants.lora import LoRA as Base\nclass A(Other, Base): ...", []),
        ("from variants.core.linalg import top\nfrom variants import core\nimport torch", []),
    ],
)
def test_what_is_borrowed_is_noticed(source: str, wrong: list[str]) -> None:
    assert borrowed(source) == wrong
