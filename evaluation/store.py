"""Records on disk: one atomic folder a run, named by the run's key."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from evaluation.spec import Record, Unusable, key


class Store:
    """The records of one results folder, open for writing.

    A record is written into a temporary folder first and renamed into place, so that at any moment a run is there whole
    or not at all. Each file carries the digest of its record. One process at a time may hold the store. Nothing in the
    folder is touched whose name is not that of a run.

    Args:
        directory: the results folder; made if it is missing.
        say: told one line for every damaged record.

    Raises:
        Unusable: another process holds it, or the folder cannot be written.
    """

    def __init__(self, directory: Path, say: Callable[[str], None] = print) -> None:
        self.directory, self.say = directory, say
        with writing(directory):
            (directory / "runs").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(directory / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise Unusable(
                    f"{directory} is in use by another svdbench: wait for it, or give another --out"
                ) from None
            for left in run_folders(directory, begun=True):
                shutil.rmtree(left)  # by a process that was killed
        self.records: dict[str, Record] = {}
        for folder in run_folders(directory):
            try:
                self.records[folder.name] = read(folder)
            except Damaged as damage:
                self._set_aside(folder, str(damage))

    def close(self) -> None:
        self._lock.release()

    def begin(self, key: str) -> Path:
        """An empty folder for what a run leaves beside its record, such as its adapter; ``put`` or ``drop`` follows."""
        partial = self._begun(key)
        with writing(self.directory):
            self.drop(key)  # left by a worker that died
            partial.mkdir()
        return partial.absolute()

    def drop(self, key: str) -> None:
        """Removes what a run without a result left."""
        shutil.rmtree(self._begun(key), ignore_errors=True)

    def put(self, record: Record) -> None:
        """Adds a record, with what its run left in the folder of ``begin``; one with the same key is replaced."""
        final, partial = self.directory / "runs" / record.key, self._begun(record.key)
        body = record.model_dump(mode="json")
        with writing(self.directory):
            try:
                partial.mkdir(exist_ok=True)
                with open(partial / "record.json", "w", encoding="utf-8") as file:
                    json.dump({"sha256": digest(body), "record": body}, file, ensure_ascii=False)
                    file.flush()
                    os.fsync(file.fileno())
                if final.exists():
                    shutil.rmtree(final)
                partial.rename(final)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        self.records[record.key] = record

    def _begun(self, key: str) -> Path:
        return self.directory / "runs" / f".{key}"

    def _set_aside(self, folder: Path, why: str) -> None:
        place = self.directory / "damaged"
        with writing(self.directory):
            place.mkdir(exist_ok=True)
            target = next(
                place / f"{folder.name}-{i}" for i in range(10**6) if not (place / f"{folder.name}-{i}").exists()
            )
            folder.rename(target)
        self.say(f"damaged record {folder.name} ({why}): set aside as {target}, its run is done again")


class Damaged(ValueError):
    """A record's file is not what was written."""


def run_folders(directory: Path, begun: bool = False) -> list[Path]:
    """The folders of finished runs, or of those that were only begun."""
    pattern = r"\.[0-9a-f]{16}" if begun else r"[0-9a-f]{16}"
    return sorted(path for path in (directory / "runs").iterdir() if re.fullmatch(pattern, path.name))


def read(folder: Path) -> Record:
    """The record in a run's folder.

    Raises:
        Damaged: with the reason.
    """
    try:
        text = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        record = Record.model_validate(text["record"])
        if digest(text["record"]) != text["sha256"] or not record.key == folder.name == key(record.run):
            raise Damaged("its digest or key does not fit")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(str(error).splitlines()[0]) from error
    return record


def look(directory: Path, say: Callable[[str], None] = print) -> dict[str, Record]:
    """The records of a results folder without holding it or changing anything; damaged ones are named.

    Raises:
        Unusable: it is not a results folder.
    """
    if not (directory / "runs").is_dir():
        raise Unusable(f"{directory} is not a results folder: it has no runs/ in it")
    records = {}
    for folder in run_folders(directory):
        try:
            records[folder.name] = read(folder)
        except Damaged as damage:
            say(f"damaged record {folder.name} ({damage})")
    return records


def digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class writing:  # lower case: it reads as a statement
    """Turns what the file system refuses into one clear line."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full: free some space" if full else f"{error.strerror or error}"
            raise Unusable(f"cannot write to {self.directory}: {reason}; what is done is kept") from error
