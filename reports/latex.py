"""A table as LaTeX: booktabs rules, siunitx numbers, and several pages where it is long."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from reports.rounding import NOTHING
from reports.table import Cell, Column, Table, plain, shown

PACKAGES = r"\usepackage{booktabs,longtable,siunitx}"
LONG = 40  # rows, beyond which a table does not fit on a page
MANY = 8  # columns, beyond which it is set smaller
HEAD = 12  # letters of a line of a column's head: heads are longer than most numbers
_NUMBER = re.compile(r"(?<!\w)([+−-]?\d[\d,]*(?:\.\d+)?(?:e[+−-]?\d+)?)(?: ± (\d[\d,]*(?:\.\d+)?))?(?!\w)")
_PLAIN = re.compile(r"([+−-]?)(\d[\d,]*)(?:\.(\d+))?")
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


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is, outside mathematics."""
    return _escaped(plain(text))


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def to_latex(table: Table) -> str:
    """The table; the document needs ``PACKAGES``."""
    columns, rows = table.at("document")
    formats = [_format(column, [row[i] for row in rows]) for i, column in enumerate(columns)]
    heads = " & ".join(map(_head, columns, formats)) + r" \\"
    body = [" & ".join(_cell(*parts) for parts in zip(columns, row, formats, strict=True)) + r" \\" for row in rows]
    notes = [f"{escape_latex(mark)} {escape_latex(note)}" for mark, note in table.used_notes]
    caption = " ".join([escape_latex(f"{table.title}. {table.caption}".strip()), *notes])
    size = r"\scriptsize" if len(columns) > MANY else r"\footnotesize"
    settings = size + r"\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}"
    numbers = r"\sisetup{separate-uncertainty = true, retain-explicit-plus = true, group-digits = integer}"
    label = rf"\caption{{{caption}}}\label{{tab:{table.key}}}"
    layout = "".join(formats)
    frame = _long if len(rows) > LONG else _floating
    return "\n".join(frame([settings, numbers], label, layout, heads, body)) + "\n"


def _floating(settings: list[str], label: str, layout: str, heads: str, body: list[str]) -> list[str]:
    rules = [r"\toprule", heads, r"\midrule", *body, r"\bottomrule"]
    tabular = [rf"\begin{{tabular}}{{{layout}}}", *rules, r"\end{tabular}"]
    return [r"\begin{table}", r"\centering", *settings, label, *tabular, r"\end{table}"]


def _long(settings: list[str], label: str, layout: str, heads: str, body: list[str]) -> list[str]:
    """Over several pages, the heads on each: a float is cut off where the page ends."""
    top = [r"\toprule", heads, r"\midrule"]
    start = [rf"\begin{{longtable}}{{{layout}}}", label + r"\\", *top, r"\endfirsthead", *top, r"\endhead"]
    return [r"\begingroup", *settings, *start, *body, r"\bottomrule", r"\end{longtable}", r"\endgroup"]


def _head(column: Column, form: str) -> str:
    """The title in short lines, one above the other; in braces, siunitx does not take it for a number."""
    lines = textwrap.wrap(plain(column.header), HEAD, break_long_words=False)
    lines += [f"({plain(column.unit)})"] if column.unit else []
    stacked = r"\\".join(rf"\textbf{{{escape_latex(line)}}}" for line in lines)
    text = rf"\shortstack[{form if form in ('l', 'r') else 'r'}]{{{stacked}}}" if len(lines) > 1 else stacked
    return text if form in ("l", "r") else f"{{{text}}}"


def _format(column: Column, cells: Sequence[Cell]) -> str:
    """``S[table-format=+2.1]``, aligned at the point, of a column of plain numbers or nothing; else ``l`` or ``r``."""
    if column.align == "left" or any(cell.best or cell.mark for cell in cells):
        return column.align[0]
    texts = [text for cell in cells if (text := shown(column, cell)) not in ("", NOTHING)]
    found = [_PLAIN.fullmatch(text) for text in texts]
    if not found or not all(found):
        return column.align[0]
    parts = [match.groups(default="") for match in found if match]
    sign = "+" if any(sign for sign, _, _ in parts) else ""
    whole, decimals = (max(len(part[i].replace(",", "")) for part in parts) for i in (1, 2))
    return rf"S[table-format={sign}{whole}{f'.{decimals}' if decimals else ''}]"


def _cell(column: Column, cell: Cell, form: str) -> str:
    text = shown(column, cell)
    if form.startswith("S"):
        return _machine(text) if _PLAIN.fullmatch(text) else f"{{{escape_latex(text)}}}"
    # A bold number stays text: how siunitx is told of the weight differs between its versions.
    numeric = column.align == "right" and not cell.best
    text = _numbers(text) if numeric else escape_latex(text)
    mark = rf"\textsuperscript{{{escape_latex(cell.mark)}}}" if cell.mark else ""
    return (rf"\textbf{{{text}}}" if cell.best else text) + mark


def _machine(number: str) -> str:
    """As siunitx reads it."""
    return number.replace(",", "").replace("−", "-")


def _numbers(text: str) -> str:
    """Every number of the text in siunitx's hands: grouping, signs, uncertainties and powers of ten."""
    parts, end = [], 0
    for found in _NUMBER.finditer(text):
        value, half = (group and _machine(group) for group in found.groups())
        one = rf"\num{{{value} +- {half}}}" if half and float(half) else rf"\num{{{value}}}"
        # siunitx drops an uncertainty of zero, which is a statement here.
        zero = rf" $\pm$ \num{{{half}}}" if half and not float(half) else ""
        parts += [_escaped(text[end : found.start()]), one, zero]
        end = found.end()
    return "".join([*parts, _escaped(text[end:])])
