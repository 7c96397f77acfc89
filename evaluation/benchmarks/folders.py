"""A folder with train, validation and test as CSV, TSV or JSONL files: a benchmark without any code.

Columns are ``text``, perhaps ``text2`` (or ``text_pair``) for pairs, in all three or in none, and ``label``. Labels are
classes, unless all are numbers and one has a fraction: then it is regression. A column ``target`` instead of ``label``
always means regression.
The folder's own split is kept, except that a text which is in a later split too is left out of the earlier one. It is
the same text if only case, white space or the encoding of accents differ: "great :)" and "great :(" are two.
Rows are shuffled by their contents, so that the first of them are a sample however the files are sorted.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from evaluation.benchmarks.base import FOLDER, SPLITS, Benchmark, Example, register_benchmark
from evaluation.benchmarks.rows import FORMATS, Row, read_rows
from evaluation.benchmarks.splits import folded, identity
from evaluation.spec import Unusable

log = logging.getLogger("svdbench")
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
LARGEST_NUMBER = 1e15  # whose square is far from the largest number there is, and below which every whole number exists
_folders: dict[str, Path] = {}


def is_benchmark(folder: Path) -> bool:
    """Whether the folder holds training data."""
    return any((folder / f"train.{suffix}").is_file() for suffix in FORMATS)


def register_folder(folder: Path) -> str:
    """Registers the folder as a benchmark; its name, ``data:`` and the folder's, which no record's key depends on.

    Raises:
        Unusable: it is not a folder, or another one of that name is registered.
    """
    path = folder.expanduser().resolve()
    if not path.is_dir():
        raise Unusable(f"{folder} is not a folder: give one with train, validation and test as {_formats()} files")
    for split in SPLITS:
        _file(path, split)
    name = FOLDER + (re.sub(r"[^\w.-]", "_", path.name) or "folder")
    if _folders.setdefault(name, path) != path:
        raise Unusable(f"two folders of data are called {path.name}: rename one")

    def load() -> Benchmark:
        return read_folder(path, name)

    load.__doc__ = f"The files of the folder {path.name}."
    register_benchmark(name)(load)
    return name


def read_folder(folder: Path, name: str) -> Benchmark:
    """The benchmark which a folder holds.

    Raises:
        Unusable: a file is missing or cannot be read, or a row is not what it should be; the message names both.
    """
    rows = {split: list(read_rows(_file(folder, split))) for split in SPLITS}
    _refuse_some_pairs(rows)
    _leave_out_repeated(rows, folder)
    for split, found in rows.items():
        if not found:
            raise Unusable(f"{_file(folder, split)}: there is no row which is not in a later split too")
    if _is_regression(rows):
        labels: tuple[str, ...] = ()
        parts = [_examples(rows[split], _number) for split in SPLITS]
        if len({example.label for example in parts[0]}) < 2:
            raise Unusable(f"{_file(folder, 'train')}: all numbers are the same, there is nothing to learn")
    else:
        _refuse_ambiguous(rows)
        labels = tuple(sorted({row.label for row in rows["train"]}))
        if len(labels) < 2:
            raise Unusable(f"{_file(folder, 'train')}: expected two classes or more, found only {labels[0]!r}")
        known = {label: i for i, label in enumerate(labels)}
        parts = [_examples(rows[split], lambda row: _index(row, known)) for split in SPLITS]
    train, validation, test = parts
    return Benchmark(name, labels, train, validation, test, "accuracy" if labels else "spearman")


def _formats() -> str:
    return f"{', '.join(f'.{suffix}' for suffix in FORMATS[:-1])} or .{FORMATS[-1]}"


def _file(folder: Path, split: str) -> Path:
    found = [path for suffix in FORMATS if (path := folder / f"{split}.{suffix}").is_file()]
    if not found:
        raise Unusable(f"{folder} has no file {split}{_formats().replace(' .', f' {split}.')}")
    if len(found) > 1:
        raise Unusable(f"{folder} has {' and '.join(path.name for path in found)}: leave one")
    return found[0]


def _refuse_some_pairs(rows: dict[str, list[Row]]) -> None:
    """A misnamed column is one that is not known, and so would be left out of one file without a word."""
    every = [row for found in rows.values() for row in found]
    pair = next((row for row in every if row.pair is not None), None)
    alone = next((row for row in every if row.pair is None), None)
    if pair and alone:
        raise Unusable(f"{alone.place}: expected a second text as in {pair.place}: name it `text2` in all, or in none")


def _is_regression(rows: dict[str, list[Row]]) -> bool:
    every = [row for found in rows.values() for row in found]
    if len({row.target for row in every}) > 1:
        raise Unusable(f"{every[0].place}: `target` in some rows, `label` in others: the same in all, please")
    numbers = [_as_number(row.label) for row in every]
    whole = all(number is not None and number.is_integer() for number in numbers)
    return every[0].target or (all(number is not None for number in numbers) and not whole)


def _as_number(label: str) -> float | None:
    return float(label) if re.fullmatch(NUMBER, label) else None


def _number(row: Row) -> float:
    number = _as_number(row.label)
    if number is None or abs(number) > LARGEST_NUMBER:
        raise Unusable(
            f"{row.place}: expected a number from {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}, found {row.label[:40]!r}"
        )
    return number


def _refuse_ambiguous(rows: dict[str, list[Row]]) -> None:
    """``1`` and ``1.0``, or ``true`` and ``True``, or ``1`` and ``true``, are different texts and so would be different
    classes: whoever wrote both hardly meant that."""
    truth = {"true": 1.0, "false": 0.0}
    first: dict[float, Row] = {}
    for row in (row for split in SPLITS for row in rows[split]):
        value = truth.get(row.label.lower(), _as_number(row.label))
        if value is not None and (other := first.setdefault(value, row)).label != row.label:
            said = f"{row.label[:40]!r} and {other.label[:40]!r} ({other.place}) would be two classes"
            raise Unusable(f"{row.place}: {said}: write one of them in all rows, or a word for each class")


def _index(row: Row, known: dict[str, int]) -> int:
    if row.label not in known:
        raise Unusable(f"{row.place}: expected a class which train has, found {row.label[:40]!r}")
    return known[row.label]


def _identity(row: Row) -> str:
    return identity(row.text if row.pair is None else (row.text, row.pair), folded)


def _leave_out_repeated(rows: dict[str, list[Row]], folder: Path) -> None:
    later: set[str] = set()
    for split in reversed(SPLITS):
        ids = {row.place: _identity(row) for row in rows[split]}
        kept = [row for row in rows[split] if ids[row.place] not in later]
        if lost := len(rows[split]) - len(kept):
            log.info("%s: left out of %s, as their text is in a later split too: %d rows", folder, split, lost)
        rows[split], later = kept, later | set(ids.values())


def _examples(rows: list[Row], label: Callable[[Row], float]) -> tuple[Example, ...]:
    """In the order of a hash of each row, which that of the rows in their file has no part in."""
    seen: Counter[str] = Counter()
    found = {}
    for row in sorted(rows, key=lambda row: (row.text, row.pair or "", row.label)):
        name = _identity(row)
        seen[name] += 1
        name += "" if seen[name] == 1 else f"-{seen[name]}"
        found[hashlib.sha256(name.encode()).digest()] = Example(name, row.text, label(row), row.pair)
    return tuple(example for _, example in sorted(found.items()))
