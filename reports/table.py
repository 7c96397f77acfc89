"""One table, whatever it is written as: columns that know their unit and how to round, and rows of raw numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from reports.rounding import NOTHING, bracketed, decimals, fixed, plus_minus, rate, significant

Value = str | int | float | bool | None
Place = Literal["terminal", "document", "data"]  # each shows what the one before shows, and more
PLACES: tuple[Place, ...] = ("terminal", "document", "data")


@dataclass(frozen=True)
class Cell:
    """A raw value in the unit of the record, perhaps with its 95 % interval, a footnote mark, and set as the best."""

    value: Value
    low: float | None = None
    high: float | None = None
    mark: str = ""
    best: bool = False

    @property
    def half(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


EMPTY = Cell(None)
Show = Callable[[Cell], str]


@dataclass(frozen=True)
class Column:
    """A column.

    Args:
        key: name in CSV files, with the unit of the raw value.
        header, unit: what people read; the unit is that of the shown text.
        show: rounds a cell that has a value.
        interval: do its cells carry intervals? A CSV file then has two more columns, key_low and key_high.
        place: the least detailed place that shows it.
        brief: what the terminal shows instead, if that is less.
    """

    key: str
    header: str
    show: Show
    unit: str = ""
    align: Literal["left", "right"] = "right"
    interval: bool = False
    place: Place = "document"
    brief: Show | None = None

    @property
    def title(self) -> str:
        return f"{self.header} ({self.unit})" if self.unit else self.header


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns, with what a reader must know. ``notes`` maps a mark to its footnote."""

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if wrong := [len(row) for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"table {self.key}: a row has {wrong[0]} cells for {len(self.columns)} columns")

    def at(self, place: Place) -> tuple[tuple[Column, ...], tuple[tuple[Cell, ...], ...]]:
        """Columns and rows as this place shows them."""
        kept = [i for i, column in enumerate(self.columns) if PLACES.index(column.place) <= PLACES.index(place)]
        return tuple(self.columns[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in self.rows)

    @property
    def used_notes(self) -> tuple[tuple[str, str], ...]:
        """The footnotes whose mark stands in some cell."""
        used = {cell.mark for row in self.rows for cell in row}
        return tuple((mark, text) for mark, text in self.notes if mark in used)


def plain(text: str) -> str:
    """On one line, without characters that could command a terminal or turn the direction of writing."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def shown(column: Column, cell: Cell, brief: bool = False) -> str:
    """The cell's text, without its mark."""
    if cell.value is None or cell.value == "":
        return NOTHING if column.align == "right" else ""
    return plain((column.brief or column.show)(cell) if brief else column.show(cell))


def text(cell: Cell) -> str:
    return str(cell.value)


def yes_no(cell: Cell) -> str:
    return "yes" if cell.value else "no"


def count(cell: Cell) -> str:
    return fixed(_number(cell), 0)


def learning_rate(cell: Cell) -> str:
    return rate(_number(cell))


def digits(number: int, scale: float = 1.0) -> Show:
    """To a number of significant digits, for measurements without an interval."""
    return lambda cell: significant(_number(cell) * scale, number)


def with_half(scale: float = 1.0, signed: bool = False) -> Show:
    """Value ± half-width, times ``scale``."""
    return lambda cell: plus_minus(_number(cell) * scale, None if cell.half is None else cell.half * scale, signed)


def with_bounds(scale: float = 1.0, least: int = 0) -> Show:
    """Value [low, high], times ``scale``, with ``least`` decimals or more."""

    def show(cell: Cell) -> str:
        low, high = (None if bound is None else bound * scale for bound in (cell.low, cell.high))
        return bracketed(_number(cell) * scale, low, high, least)

    return show


def to_its_interval(scale: float = 1.0) -> Show:
    """The value alone, times ``scale``, with the digits that its interval supports."""

    def show(cell: Cell) -> str:
        half = None if cell.half is None else cell.half * scale
        return fixed(_number(cell) * scale, decimals(half, otherwise=2))

    return show


def _number(cell: Cell) -> float:
    if isinstance(cell.value, str) or cell.value is None:
        raise TypeError(f"a number was expected in this column, got {cell.value!r}")
    return float(cell.value)
