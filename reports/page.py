"""One self-contained HTML page: figures interactive, tables and figures to download, nothing loaded from a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports.checklist import CHECKLIST, checklist
from reports.claims import missing
from reports.drawing import Figure
from reports.files import data_uri, inside_script, script_json, vega_libraries
from reports.latex import to_latex
from reports.provenance import protocol, provenance
from reports.records import Results
from reports.render import STATEMENTS, to_csv, to_markdown
from reports.table import Cell, Table, plain, shown
from reports.words import Verdict

NONE: Mapping[str, bytes] = {}
TEMPLATES = Path(__file__).parent / "templates"
DOWNLOADS = (
    ("CSV", "csv", "text/csv", to_csv),
    ("LaTeX", "tex", "text/x-tex", to_latex),
    ("Markdown", "md", "text/markdown", to_markdown),
)


def page(
    results: Results,
    sentences: Sequence[str],
    verdicts: Sequence[Verdict],
    tables: Mapping[str, Table],
    figures: Mapping[str, Figure],
    drawings: Mapping[str, str],
    prints: Mapping[str, bytes] = NONE,
) -> str:
    """The report as one HTML document.

    Args:
        sentences: what may be claimed, in words.
        verdicts: on the statements, all that the records allow.
        tables, figures: by key; a section whose table or figure is absent says so.
        drawings: the figures as SVG documents, by the same keys.
        prints: the figures as PDF documents; one without has no link to it.
    """
    return rendered(
        "report.html.j2",
        tables,
        figures,
        drawings,
        prints,
        suite=results.suite,
        sentences=sentences,
        statements=STATEMENTS,
        verdicts=verdicts,
        missing=missing(results),
        protocol=protocol(results),
        checklist=checklist(results),
        checklist_title=CHECKLIST,
        provenance=provenance(results),
    )


def rendered(
    template: str,
    tables: Mapping[str, Table],
    figures: Mapping[str, Figure],
    drawings: Mapping[str, str],
    prints: Mapping[str, bytes],
    **words: object,
) -> str:
    """A template as one document that holds its tables and figures; ``words`` is what else it asks for."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = lambda value: plain(str(value))
    environment.globals.update(shown=shown, sortkey=sortkey, downloads=downloads)
    return environment.get_template(template).render(
        tables=tables,
        figures=figures,
        images={key: data_uri("image/svg+xml", drawing) for key, drawing in drawings.items()},
        prints={key: data_uri("application/pdf", document) for key, document in prints.items()},
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        behaviour=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        specs=script_json({key: figure.spec for key, figure in figures.items()}),
        libraries=Markup(inside_script(vega_libraries())) if figures else "",
        **words,
    )


def downloads(table: Table) -> list[tuple[str, str, str]]:
    """(format, file name, address) of the table in every format."""
    return [
        (name, f"{table.key}.{end}", data_uri(f"{kind};charset=utf-8", to(table))) for name, end, kind, to in DOWNLOADS
    ]


def sortkey(cell: Cell) -> str | None:
    """What the page sorts a cell by: the raw number, nothing of an empty cell; None where it is the text itself."""
    if cell.value is None or cell.value == "":
        return ""
    # As JavaScript spells it: what never happens comes after all that does.
    return None if isinstance(cell.value, str) else repr(float(cell.value)).replace("inf", "Infinity")
