"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from variants.core.interface import Refused


@contextmanager
def replaced(folder: Path, own: frozenset[str]) -> Iterator[Path]:
    """A new folder, whose contents are those of ``folder`` when the block ends well and gone when it does not.

    Raises:
        Refused: ``folder`` holds something else than files with the names in ``own``, which are written over.
    """
    folder = folder.expanduser().resolve()
    there = folder.exists()
    if there and not folder.is_dir():
        raise Refused(f"{folder} is a file: give the name of a folder")
    if there and (foreign := sorted({item.name for item in folder.iterdir()} - own)):
        raise Refused(f"{folder} holds {foreign[0]!r}, which is not replaced: give a new or an empty folder")
    # Within a folder that is there: it may be another file system than its parent, or the working directory.
    place = folder if there else folder.parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=place) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        yield new
        if there:
            old.mkdir()
            away = [(folder / name, old / name) for name in sorted(own) if (folder / name).exists()]
            _moved([*away, *((item, folder / item.name) for item in new.iterdir())])
        else:
            os.replace(new, folder)


def _moved(moves: list[tuple[Path, Path]]) -> None:
    """Makes all of these moves, or none."""
    try:
        for start, end in moves:
            os.replace(start, end)
    except BaseException:
        for start, end in reversed(moves):
            if end.exists() and not start.exists():  # an interrupt can come right after a move
                os.replace(end, start)
        raise
