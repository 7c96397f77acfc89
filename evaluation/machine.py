"""The machine that runs: its devices, its cores, and what of it numbers depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from evaluation.spec import Unusable
from variants.core import products


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA if there is one.

    Raises:
        Unusable: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu" or (name == "cuda" and torch.cuda.is_available()):
        return torch.device(name)
    raise Unusable(f"no device {name!r} here: use auto, cpu or cuda" + (" (no CUDA found)" if "cuda" in name else ""))


def check_products() -> None:
    """Raises Unusable if the environment asks for a library of products which is not there."""
    try:
        products.library()
    except ValueError as error:
        raise Unusable(str(error)) from error


def cores() -> int:
    """Cores which this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Versions and hardware that numbers depend on."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy", "scipy")},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "products": products.library(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def _cpu_name() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
