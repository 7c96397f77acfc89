"""A folder with train, validation and test as CSV, TSV or JSONL files: a benchmark without any code.

Columns are ``text``, perhaps ``text2`` (or ``text_pair``) for pairs, and ``label``. Labels are classes, unless all are
numbers and one has a fraction: then it is regression. A column ``target`` instead of ``label`` always means regression.
The folder's own split is kept, except that a text which is in a later split too is left out of the earlier one. It is
the same text if only case, white space or the encoding of accents differ: "great :)" and "great :(" are two.
Rows are shuffled by their contents, so that the first of them are a sample however the files are sorted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from evaluation.benchmarks.base import FOLDER, Benchmark, Example, register_benchmark
from evaluation.benchmarks.splits import folded, identity
from evaluation.spec import Unusable

log = logging.getLogger("svdbench")
SPLITS = ("train", "validation", "test")
FORMATS = ("csv", "tsv", "jsonl")
PAIR = ("text2", "text_pair")
LABEL = ("label", "target")
LARGEST_FILE, LARGEST_TEXT = 1 << 30, 100_000  # bytes, characters: beyond, something else was meant
_folders: dict[str, Path] = {}


@dataclass(frozen=True)
class Row:
    """One checked row; ``place`` names it in errors."""

    place: str
    text: str
    pair: str | None
    label: str
    target: bool  # the label's column asks for regression


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
    rows = {split: list(_rows(_file(folder, split))) for split in SPLITS}
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


def _rows(file: Path) -> Iterator[Row]:
    """The rows of one file, each checked. Rows are counted from 1, a heading not included."""
    records = _of_lines(file) if file.suffix == ".jsonl" else _of_table(file)
    for number, record in enumerate(records, start=1):
        place = f"{file}, row {number}"
        kinds = [kind for kind in LABEL if kind in record]
        pairs = [name for name in PAIR if name in record]
        if "text" not in record or len(kinds) != 1 or len(pairs) > 1:
            known = ", ".join(map(str, record))[:60]
            raise Unusable(f"{place}: expected `text`, perhaps one of `text2`, and `label` or `target`, found {known}")
        texts = [_text(record[name], f"{place}, {name}") for name in ("text", *pairs)]
        label = _label(record[kinds[0]], f"{place}, {kinds[0]}")
        yield Row(place, texts[0], texts[1] if pairs else None, label, kinds[0] == "target")


def _of_table(file: Path) -> Iterator[dict[str, Any]]:
    dialect: dict[str, Any] = {"strict": True}
    if file.suffix == ".tsv":  # where quotes are just quotes
        dialect |= {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    rows = csv.reader(io.StringIO(_decoded(file), newline=""), **dialect)
    number = 0
    try:
        header = [name.strip() for name in next(rows, [])]
        if len(set(header)) < len(header):
            raise Unusable(f"{file}: two columns have the same name")
        for row in rows:
            number += 1
            if row and len(row) != len(header):
                raise Unusable(
                    f"{file}, row {number}: expected {len(header)} fields as in the heading, found {len(row)}"
                )
            if row:
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise Unusable(f"{file}, row {number + 1}: not {file.suffix[1:].upper()} ({error})") from error


def _of_lines(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(filter(str.strip, _decoded(file).split("\n")), start=1):
        try:
            record = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"{file}, row {number}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise Unusable(f'{file}, row {number}: expected an object such as {{"text": ..., "label": ...}}')
        yield record


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _decoded(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise Unusable(f"{file} is larger than {LARGEST_FILE >> 20} MiB")
        raw = file.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise Unusable(f"{file}, line {line}: expected UTF-8, found the byte {raw[error.start]:#04x}") from error
    except OSError as error:
        raise Unusable(f"{file} cannot be read: {error.strerror or error}") from error


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"{place}: expected a text, found {str(value)[:40]!r}")
    if len(value) > LARGEST_TEXT:
        raise Unusable(f"{place}: expected at most {LARGEST_TEXT:,} characters, found {len(value):,}")
    return value.strip()


def _label(value: Any, place: str) -> str:
    """As it is written; numbers of JSON as a table would write them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float) or not str(value).strip() or len(str(value)) > 200:
        raise Unusable(f"{place}: expected a class or a number, found {str(value)[:40]!r}")
    if _as_number(str(value)) in (math.inf, -math.inf) or str(value).strip().lower() == "nan":
        raise Unusable(f"{place}: expected a class or a finite number, found {str(value)[:40]!r}")
    return str(value).strip()


def _is_regression(rows: dict[str, list[Row]]) -> bool:
    every = [row for found in rows.values() for row in found]
    if len({row.target for row in every}) > 1:
        raise Unusable(f"{every[0].place}: `target` in some rows, `label` in others: the same in all, please")
    numbers = [_as_number(row.label) for row in every]
    whole = all(number is not None and number.is_integer() for number in numbers)
    return every[0].target or (all(number is not None for number in numbers) and not whole)


def _as_number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _number(row: Row) -> float:
    number = _as_number(row.label)
    if number is None:
        raise Unusable(f"{row.place}: expected a number, found {row.label[:40]!r}")
    return number


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
            log.info("%s: %d rows of %s are left out, their text is in a later split too", folder, lost, split)
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
