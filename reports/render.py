"""The same table for the terminal, Markdown, LaTeX and CSV. (The page's template renders it as HTML.)"""

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
_NUMBER = re.compile(r"(?<!\w)([+−-]?\d[\d,]*(?:\.\d+)?(?:e[+−-]?\d+)?)(?: ± (\d[\d,]*(?:\.\d+)?))?(?!\w)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # after \\, a bracket would be read as a length
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "—": "---",
    "–": "--",
    "≤": r"$\leq$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "·": r"$\cdot$",
}


def escape_markdown(text: str) -> str:
    """Text that a Markdown table shows as it is, inline HTML included."""
    return _MARKDOWN.sub(r"\\\1", "".join(_HTML.get(c, c) for c in plain(text)))


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is, outside mathematics."""
    return _escaped(plain(text))


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


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


def to_latex(table: Table) -> str:
    """A booktabs table with siunitx numbers; the document needs ``\\usepackage{booktabs,siunitx}``."""
    columns, rows = table.at("document")
    heads = [rf"\textbf{{{escape_latex(column.title)}}}" for column in columns]
    body = [[_latex_cell(*pair) for pair in zip(columns, row, strict=True)] for row in rows]
    notes = [f"{escape_latex(mark)} {escape_latex(note)}" for mark, note in table.used_notes]
    caption = " ".join([escape_latex(f"{table.title}. {table.caption}".strip()), *notes])
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        r"\sisetup{separate-uncertainty = true, retain-explicit-plus = true}",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{table.key}}}",
        rf"\begin{{tabular}}{{{''.join(column.align[0] for column in columns)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(column: Column, cell: Cell) -> str:
    text = shown(column, cell)
    # A bold number stays text: how siunitx is told of the weight differs between its versions.
    numeric = column.align == "right" and not cell.best
    text = _latex_numbers(text) if numeric else escape_latex(text)
    mark = rf"\textsuperscript{{{escape_latex(cell.mark)}}}" if cell.mark else ""
    return (rf"\textbf{{{text}}}" if cell.best else text) + mark


def _latex_numbers(text: str) -> str:
    """Every number of the text in siunitx's hands: grouping, signs, uncertainties and powers of ten."""
    parts, end = [], 0
    for found in _NUMBER.finditer(text):
        value, half = (group and group.replace(",", "").replace("−", "-") for group in found.groups())
        one = rf"\num{{{value} +- {half}}}" if half and float(half) else rf"\num{{{value}}}"
        # siunitx drops an uncertainty of zero, which is a statement here.
        zero = rf" $\pm$ \num{{{half}}}" if half and not float(half) else ""
        parts += [_escaped(text[end : found.start()]), one, zero]
        end = found.end()
    return "".join([*parts, _escaped(text[end:])])


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
