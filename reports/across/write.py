"""Results folders of several benchmarks become one report, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from reports.across.claims import opening
from reports.across.folders import Across, across, refuse_runs
from reports.across.tables import all_tables
from reports.table import Table
from reports.write import Report, documents, written


def write_across(directories: Sequence[Path], out: Path) -> Report:
    """Writes report.html, table.md, table.tex, CSV files, SVG and PDF files, as the report of one folder has them.

    The files are a pure function of the folders' records: the same records in the same order give the same bytes.

    Args:
        directories: results folders, one a benchmark, two or more.
        out: where to write; it must not hold runs.

    Raises:
        UnusableResults: a folder is damaged, they cannot be compared, or ``out`` holds runs; nothing is written then.
    """
    found = across(directories)
    refuse_runs(out)
    sentences, tables = opening(found), all_tables(found)
    return written(out, sentences, tables, _contents(found, sentences, tables))


def _contents(found: Across, sentences: list[str], tables: dict[str, Table]) -> Iterator[tuple[str, str | bytes]]:
    from reports.across.figures import figures  # altair is slow to import: those who only read records do without it
    from reports.across.page import across_page
    from reports.drawing import drawn

    charts = figures(found)
    drawings, prints = drawn(charts)
    yield "report.html", across_page(found, sentences, tables, charts, drawings, prints)
    yield from documents(found.title, sentences, tables, drawings, prints)
