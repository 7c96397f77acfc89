"""The page across benchmarks: the machinery of the page of one, with sections of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.across.aggregates import ranking
from reports.across.folders import Across, benchmark
from reports.drawing import Figure
from reports.page import rendered
from reports.provenance import protocol, provenance
from reports.statistics import Refusal
from reports.table import Table


def across_page(
    across: Across,
    sentences: Sequence[str],
    tables: Mapping[str, Table],
    figures: Mapping[str, Figure],
    drawings: Mapping[str, str],
    prints: Mapping[str, bytes],
) -> str:
    """The report as one HTML document; arguments as of ``reports.page.page``."""
    found = ranking(across)
    return rendered(
        "across.html.j2",
        tables,
        figures,
        drawings,
        prints,
        title=across.title,
        sentences=sentences,
        refusal=found.reason if isinstance(found, Refusal) else "",
        runs=[(benchmark(one), protocol(one), provenance(one)) for one in across.results],
    )
