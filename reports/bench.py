"""A bench becomes a report: its page, tables and figures. A pure function of what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from reports.bench_tables import BY_ONEDNN, PEFT, by_onednn, labels, shape_key, tables
from reports.drawing import Figure, compose, pdf, svg
from reports.files import write_atomically
from reports.provenance import flat
from reports.records import Json
from reports.render import to_rich
from reports.table import plain

OURS, THEIRS = "ours", "PEFT's own"


@dataclass(frozen=True)
class Methods:
    """Their order decides how they look."""

    labels: tuple[str, ...]


def terminal(bench: Json) -> RenderableType:
    """For ``rich.print``: a table for each shape, PiSSA's starts, and what else must be known."""
    made = tables(bench)
    shown = [to_rich(table) for key, table in made.items() if key != "costs"]
    return Group(*shown, Text(), *(Text(f"• {plain(sentence)}") for sentence in sentences(bench)))


def sentences(bench: Json) -> list[str]:
    """How it was measured, how far it can be trusted, and what is not there."""
    environment, threads = bench["environment"], int(bench["threads"])
    machine = f"{environment.get('cpu')}, {environment.get('cores')} cores, torch {environment.get('torch')}"
    of = f", PEFT {environment['peft'].removeprefix('peft ')}" if environment.get("peft") else ""
    known = "; ".join(f"{s['rows']} x {s['tokens']}: ±{100 * float(s['noise']):.1f} %" for s in bench["shapes"])
    places = f"rank {bench['rank']} on {', '.join(bench['where'])} linear layers"
    counted = f"{threads} thread{'s' if threads > 1 else ''}"
    how = ", blocks compiled" if bench.get("compile") else ""
    out = {label: why.removeprefix(f"{label}: ") for label, why in bench["left_out"].items()}
    return [
        f"{bench['model']}, {places}; {counted}{how}; {machine}{of}.",
        *([BY_ONEDNN] if by_onednn(bench) else []),
        f"Noise, as the floor's ratio with itself: {known}.",
        *(f"{label} was left out: {why}" for label, why in out.items()),
    ]


def figure(bench: Json, shape: Json) -> Figure:
    """Step time as a ratio to the floor: ours, and beside it PEFT's own."""
    from reports.cost_figures import height, ratio_datum, ratio_layers, said

    ours, timed = labels(bench), shape["methods"]
    rows = [
        ratio_datum(label, kind, timed[prefix + label]["ratios"]["floor"])
        for label in ours
        for prefix, kind in (("", OURS), (PEFT, THEIRS))
        if prefix + label in timed
    ]
    title = f"Step time, {shape['rows']} rows of {shape['tokens']} tokens"
    caption = (
        "Median ratios of whole training steps to the frozen base's, formed within interleaved rounds, with 95 % "
        "intervals. 1 is dotted."
    )
    layers = ratio_layers(Methods(ours), rows, "step time, ratio to the floor", [OURS, THEIRS])
    return compose(shape_key(shape), title, caption, f"{title}: {said(rows)}.", layers, height(rows))


def write_bench(bench: Json, folder: Path) -> list[Path]:
    """Writes report.html, table.md, table.tex, a CSV file for each table, SVG and PDF for each figure.

    Raises:
        OSError: the folder cannot be written.
    """
    from reports.page import rendered
    from reports.write import documents

    made = tables(bench)
    figures = {shape_key(shape): figure(bench, shape) for shape in bench["shapes"]}
    drawings = {key: svg(drawn) for key, drawn in figures.items()}
    prints = {key: pdf(drawn) for key, drawn in figures.items()}
    title = f"Speed on {bench['model']}"
    page = rendered(
        "bench.html.j2",
        made,
        figures,
        drawings,
        prints,
        title=title,
        sentences=sentences(bench),
        shapes={shape_key(s): f"{s['rows']} x {s['tokens']}" for s in bench["shapes"]},
        provenance=provenance(bench),
    )
    files = {"report.html": page, **dict(documents(title, sentences(bench), made, drawings, prints))}
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def provenance(bench: Json) -> list[tuple[str, str]]:
    """Where the numbers come from: (what, value)."""
    rows = [("model digest", str(bench["digest"])), *flat(bench["environment"]).items()]
    rows += [(f"settings of {label}", _joined(values)) for label, values in bench["settings"].items() if values]
    return [(plain(name), plain(value)) for name, value in rows]


def _joined(values: Json) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())
