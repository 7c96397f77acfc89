"""Keeps the libraries beneath from talking on the standard error stream, between a user's lines."""

from __future__ import annotations

import os

QUIET = {
    "KINETO_LOG_LEVEL": "99",  # torch's profiler, which counts memory
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # the same, of memory from before it began
}


def quieten() -> None:
    """Before torch is imported: it reads these once. What the user has set stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
