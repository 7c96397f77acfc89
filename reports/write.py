"""A results folder becomes a report: page, tables and figures beside the records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from reports.checklist import checklist_markdown, search_space_table
from reports.claims import opening
from reports.costs import latency_table, merge_cost_table, speed_table
from reports.curves import time_table
from reports.files import write_atomically
from reports.forecast import forecast_table
from reports.latex import PACKAGES, to_latex
from reports.loading import load
from reports.matching import matched_table
from reports.merging import deployments_table, merging_full_table, merging_table
from reports.orthogonality import orthogonality_table
from reports.pairs import pairs_table
from reports.racing import racing_table
from reports.rate_windows import rate_windows_table
from reports.rates import rates_table
from reports.records import Results
from reports.render import escape_markdown, statements_markdown, to_csv, to_markdown, to_rich
from reports.runlog import runs_table, unscored_table
from reports.shared_rates import shared_rates_table
from reports.spectra import spectrum_table
from reports.starts import quantised_table, start_table
from reports.table import Table, plain
from reports.tables import main_table, methods_table
from reports.verdicts import verdicts
from reports.weights import drift_table, factors_table
from reports.words import Verdict


@dataclass(frozen=True)
class Report:
    """What was written, and the same in memory. ``tables`` maps main, merging, speed, ... to the tables."""

    sentences: tuple[str, ...]
    tables: dict[str, Table]
    files: tuple[Path, ...]

    def terminal(self, *keys: str) -> RenderableType:
        """For ``rich.print``: the main table, or the tables named, and what may be claimed."""
        chosen = [to_rich(self.tables[key]) for key in (keys or ("main",)) if key in self.tables]
        return Group(*chosen, Text(), *(Text(f"• {plain(sentence)}") for sentence in self.sentences))


def write_report(directory: Path) -> Report:
    """Writes report.html, table.md, table.tex, table.csv, a CSV file for each other table, SVG and PDF for each figure.

    The files are a pure function of the records: the same records give the same bytes.

    Raises:
        UnusableResults: a file of the folder is missing or damaged; nothing is written then.
    """
    results = load(directory)
    judged, tables = verdicts(results), all_tables(results)
    sentences = opening(results, judged)
    return written(directory, sentences, tables, contents(results, sentences, judged, tables))


def written(
    folder: Path, sentences: list[str], tables: dict[str, Table], files: Iterable[tuple[str, str | bytes]]
) -> Report:
    """Writes the files, (name, content), once all of them are made."""
    made = [(folder / name, content) for name, content in files]
    for path, content in made:
        write_atomically(path, content)
    return Report(tuple(sentences), tables, tuple(path for path, _ in made))


def all_tables(results: Results) -> dict[str, Table]:
    """Every table that has rows, by key."""
    makers = (
        main_table,
        matched_table,
        pairs_table,
        shared_rates_table,
        racing_table,
        orthogonality_table,
        start_table,
        merging_table,
        merging_full_table,
        drift_table,
        factors_table,
        deployments_table,
        quantised_table,
        spectrum_table,
        merge_cost_table,
        latency_table,
        speed_table,
        time_table,
        rate_windows_table,
        rates_table,
        forecast_table,
        methods_table,
        unscored_table,
        search_space_table,
        runs_table,
    )
    made = (make(results) for make in makers)
    return {table.key: table for table in made if table is not None and table.rows}


def contents(
    results: Results, sentences: list[str], judged: list[Verdict], tables: dict[str, Table]
) -> Iterator[tuple[str, str | bytes]]:
    """(file name, content) of every file of the report."""
    from reports.drawing import drawn  # altair is slow to import: those who only read records do without it
    from reports.figures import figures
    from reports.page import page

    charts = figures(results)
    drawings, prints = drawn(charts)
    yield "report.html", page(results, sentences, judged, tables, charts, drawings, prints)
    title, last = str(results.suite.get("name", "Report")), [checklist_markdown(results)]
    yield from documents(title, sentences, tables, drawings, prints, statements_markdown(judged), last)


def documents(
    title: str,
    sentences: Sequence[str],
    tables: Mapping[str, Table],
    drawings: Mapping[str, str],
    prints: Mapping[str, bytes],
    first: Sequence[str] = (),
    last: Sequence[str] = (),
) -> Iterator[tuple[str, str | bytes]]:
    """(file name, content) of what stands beside a page: the tables in every format, and the figures.

    Args:
        title: of the Markdown document, which begins with the sentences.
        tables: by key; the CSV file of ``main`` is ``table.csv``.
        drawings, prints: the figures as SVG and PDF, by key.
        first, last: sections of the Markdown document before and after its tables.
    """
    said = "".join(f"- {escape_markdown(sentence)}\n" for sentence in sentences)
    sections = [*first, *map(to_markdown, tables.values()), *last]
    yield "table.md", "\n".join([f"# {escape_markdown(title)}\n\n{said}", *sections])
    yield "table.tex", "\n".join([f"% {PACKAGES}\n", *map(to_latex, tables.values())])
    for key, table in tables.items():
        yield ("table.csv" if key == "main" else f"table_{key}.csv"), to_csv(table)
    for key in drawings:
        yield f"figure_{key}.svg", drawings[key]
        yield f"figure_{key}.pdf", prints[key]
