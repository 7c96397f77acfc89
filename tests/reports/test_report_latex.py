"""Tables as LaTeX: decimal columns, heads, long tables, and that a real TeX sets all of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from report_samples import all_records, relabelled, suite, write_folder

from reports import load
from reports.latex import LONG, PACKAGES, to_latex
from reports.table import Cell, Column, Table, count, digits, text, with_half
from reports.write import all_tables

HOSTILE = r"a_b & 50 % of $x^2$ #{~} \\[1em] <|>"


def table(rows, *columns) -> Table:
    return Table("t", "T", "", (Column("name", "name", text, align="left"), *columns), tuple(rows))


def layout(latex: str) -> str:
    """What stands between ``tabular`` and the first rule."""
    return next(line for line in latex.splitlines() if line.startswith(r"\begin{tabular}"))[16:-1]


def body(latex: str) -> list[list[str]]:
    """The cells of every row."""
    rows = latex[latex.rindex(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
    return [row.removesuffix(r" \\").split(" & ") for row in rows]


def test_plain_numbers_are_aligned_at_the_point():
    rows = [(Cell("a"), Cell(73728), Cell(-1.5)), (Cell("b"), Cell(8), Cell(None)), (Cell("c"), Cell(0), Cell(12.25))]
    latex = to_latex(table(rows, Column("n", "parameters", count), Column("x", "gain", digits(4))))
    assert layout(latex) == "lS[table-format=5]S[table-format=+2.3]"
    assert body(latex) == [["a", "73728", "-1.500"], ["b", "8", "{---}"], ["c", "0", "12.25"]]
    assert r"{\textbf{parameters}}" in latex


@pytest.mark.parametrize("cell", [Cell(1.0, mark="†"), Cell(1.0, best=True), Cell(2e-7)])
def test_what_is_not_plain_is_no_decimal_column(cell):
    latex = to_latex(table([(Cell("a"), cell), (Cell("b"), Cell(3.0))], Column("x", "x", digits(2))))
    assert layout(latex) == "lr"
    assert body(latex)[1] == ["b", r"\num{3.0}"]


def test_an_interval_is_an_uncertainty():
    latex = to_latex(table([(Cell("a"), Cell(1.0, 0.5, 1.5))], Column("x", "x", with_half())))
    assert (layout(latex), body(latex)) == ("lr", [["a", r"\num{1.0 +- 0.5}"]])


def test_a_long_table_goes_over_pages():
    rows = [(Cell(f"m{i}"), Cell(i)) for i in range(LONG + 1)]
    assert r"\begin{longtable}" in to_latex(table(rows, Column("n", "n", count)))
    assert r"\begin{longtable}" not in to_latex(table(rows[:-1], Column("n", "n", count)))


def test_heads_are_stacked():
    latex = to_latex(table([(Cell("a"), Cell("b"))], Column("x", "saved for backward", text, unit="MiB", align="left")))
    assert r"\shortstack[l]{\textbf{saved for}\\\textbf{backward}\\\textbf{(MiB)}}" in latex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_a_real_tex_sets_every_table(tmp_path):
    """Of a whole report, with a label that attacks LaTeX, so that a missing escape or package fails."""
    records, described = relabelled(all_records(), "dora", HOSTILE), relabelled(suite(), "dora", HOSTILE)
    tables = all_tables(load(write_folder(tmp_path, records, described)))
    written = "\n".join(map(to_latex, tables.values()))
    done = compiled(tmp_path, written)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "document.pdf").stat().st_size > 20_000
    assert "too large for page" not in done.stdout
    missing = written.replace(r"\end{tabular}", "", 1)
    assert compiled(tmp_path, missing).returncode != 0


def compiled(folder: Path, tables: str) -> subprocess.CompletedProcess[str]:
    """pdflatex on a document with these tables."""
    head = rf"\documentclass{{article}}\usepackage[landscape,margin=1cm]{{geometry}}{PACKAGES}\begin{{document}}"
    (folder / "document.tex").write_text(head + "\n" + tables + r"\end{document}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "document.tex"]
    # TeX breaks its log at 79 letters unless it is told otherwise.
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "max_print_line": "1000"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
