"""The model hub, and quiet: what the libraries that talk to it would say is turned into one line, or left unsaid."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluation.spec import Unusable


def from_hub(name: str, download: Callable[[bool], Path]) -> Path:
    """``download(cached)``, from the hub's cache if that has it, else from the network.

    What the cache holds goes before what is newest, so that all workers of a comparison see the same files.

    Raises:
        Unusable: neither gives it; in one line.
    """
    problem: Exception | None = None
    for cached in (True, False):
        try:
            return download(cached)
        except Exception as error:  # the hub's client and its transport raise what they like; none of it is ours
            problem = error
    if isinstance(problem, Unusable):
        raise problem
    raise Unusable(f"no folder {name!r}, and the hub does not give it: {one_line(problem)}") from problem


def one_line(error: BaseException | None) -> str:
    """An error's message on one line of at most 240 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:240] + "..."


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no progress bars and no advice on stderr from transformers and the hub's client."""
    import transformers  # slow to import

    loggers = [logging.getLogger(library) for library in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = transformers.utils.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    _show_bars(False)
    try:
        yield
    finally:
        _show_bars(bars)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _show_bars(shown: bool) -> None:
    import transformers

    talk = transformers.utils.logging
    with warnings.catch_warnings(action="ignore"):  # said when an environment variable has already decided
        (talk.enable_progress_bar if shown else talk.disable_progress_bar)()
