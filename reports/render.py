"""The same table for the terminal, Markdown and CSV. (The page's template renders it as HTML, ``latex`` as LaTeX.)"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence

import rich.box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from reports.table import Cell, Column, Table, plain, shown
from reports.words import Verdict

STATEMENTS = "Four statements about SVD-form updates"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escape_markdown(text: str) -> str:
    """Text that a Markdown table shows as it is, inline HTML included."""
    return _MARKDOWN.sub(r"\\\1", "".join(_HTML.get(c, c) for c in plain(text)))


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured table under a heading, with caption and footnotes."""
    columns, rows = table.at("document")
    heads = [escape_markdown(column.title) for column in columns]
    rules = ["---:" if column.align == "right" else ":---" for column in columns]
    body = [[_markdown_cell(*pair) for pair in zip(columns, row, strict=True)] for row in rows]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, rules, *body)]
    notes = [f"{mark} {escape_markdown(note)}" for mark, note in table.used_notes]
    parts = [f"## {escape_markdown(table.title)}", "\n".join(lines), escape_markdown(table.caption), *notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def statements_markdown(verdicts: Sequence[Verdict]) -> list[str]:
    """The section of the verdicts; nothing without any."""
    if not verdicts:
        return []
    blocks = [
        f"**“{escape_markdown(v.statement)}”: {escape_markdown(v.word)}.** "
        + escape_markdown(" ".join(v.evidence))
        + f"\n\nRule: {escape_markdown(v.rule)}"
        for v in verdicts
    ]
    return ["\n\n".join([f"## {STATEMENTS}", *blocks]) + "\n"]


def _markdown_cell(column: Column, cell: Cell) -> str:
    text = escape_markdown(shown(column, cell))
    return (f"**{text}**" if cell.best else text) + (f" {cell.mark}" if cell.mark else "")


def to_csv(table: Table) -> str:
    """Every column, in full precision: floats as Python writes them, nothing rounded, nothing marked."""
    columns, rows = table.at("data")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [name for c in columns for name in (c.key, *((f"{c.key}_low", f"{c.key}_high") if c.interval else ()))]
    )
    for row in rows:
        pairs = zip(columns, row, strict=True)
        writer.writerow([v for c, cell in pairs for v in (cell.value, *((cell.low, cell.high) if c.interval else ()))])
    return out.getvalue()


def to_rich(table: Table) -> RenderableType:
    """For the terminal: the essential columns, then the footnotes. Text is never read as markup."""
    columns, rows = table.at("terminal")
    heading = Text(plain(table.title), style="bold")
    grid = RichTable(box=rich.box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
    for column in columns:
        lines = [*textwrap.wrap(plain(column.header), 11), *([f"({plain(column.unit)})"] if column.unit else [])]
        grid.add_column(Text("\n".join(lines)), justify=column.align, overflow="fold")
    for row in rows:
        grid.add_row(*(_rich_cell(*pair) for pair in zip(columns, row, strict=True)))
    notes = [Text(f"{mark} {plain(note)}", style="dim") for mark, note in table.used_notes]
    return Group(heading, grid, *notes)


def _rich_cell(column: Column, cell: Cell) -> Text:
    mark = f" {cell.mark}" if cell.mark else ""
    return Text(shown(column, cell, brief=True) + mark, style="bold" if cell.best else "")
