"""The rows of a CSV, TSV or JSONL file of examples, each checked; errors name the file and the row.

A label is its text: ``1`` in a table, and ``1`` and ``"1"`` in JSON, are one class; JSON's ``true`` is the text "true".
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from evaluation.spec import Unusable

FORMATS = ("csv", "tsv", "jsonl")
PAIR = ("text2", "text_pair")
LABEL = ("label", "target")
LARGEST_FILE, LARGEST_TEXT, LARGEST_LABEL = 1 << 30, 100_000, 200  # bytes, characters: beyond, something else was meant


class _Written(str):
    """A number of JSON as it is written there."""


@dataclass(frozen=True)
class Row:
    """One checked row; ``place`` names it in errors."""

    place: str
    text: str
    pair: str | None
    label: str
    target: bool  # the label's column asks for regression


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of one file, counted from 1, a heading not included.

    Raises:
        Unusable: the file cannot be read, or a row is not what it should be.
    """
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
            record = json.loads(line, parse_constant=_no_constant, parse_int=_Written, parse_float=_Written)
            if re.search(r"\\u[dD][89a-fA-F]", line):  # an escape can say what UTF-8 cannot
                json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = repr(error.object[error.start])
            raise Unusable(
                f"{file}, row {number}: {half} is half a character: write both halves, or the character itself"
            ) from None
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
    if type(value) is not str or not value.strip():
        raise Unusable(f"{place}: expected a text, found {str(value)[:40]!r}")
    if len(value) > LARGEST_TEXT:
        raise Unusable(f"{place}: expected at most {LARGEST_TEXT:,} characters, found {len(value):,}")
    return value.strip()


def _label(value: Any, place: str) -> str:
    text = str(value).lower() if isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip() or len(text) > LARGEST_LABEL:
        raise Unusable(f"{place}: expected a class or a number, found {str(value)[:40]!r}")
    if re.fullmatch(r"nan|[+-]?inf(inity)?", text.strip(), re.IGNORECASE):
        raise Unusable(f"{place}: expected a class or a finite number, found {text[:40]!r}")
    return str(text.strip())
