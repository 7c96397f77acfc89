"""What all figures share: their form, their colours, and how a definition becomes SVG.

Text and lines are drawn in ``currentColor``, so one definition follows the page into dark mode and into print.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import altair as alt
from altair.utils.schemapi import debug_mode

from reports.records import Json
from reports.table import plain

# Okabe and Ito's colours that read on white and on near-black (their yellow and black do not), then four of Tol's.
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#D55E00",
    "#56B4E9",
    "#8C8C8C",
    "#AA4499",
    "#999933",
    "#44AA99",
    "#CC6677",
)
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
LABEL, LEGEND = 90, 295  # pixels: of a legend's label, and what a phone leaves for a whole legend
WIDTH, HEIGHT = 680, 340  # of the static SVG, in pixels; the page's figures are as wide as it is

_RESOURCES = re.compile(rb"(/(?:ExtGState|Font|XObject|ColorSpace|Pattern|Shading) <<\n)((?: +/\S+ \d+ 0 R\n)+)")
_CLIP = re.compile(r'(?<=url\(#)clip\d+(?=\))|(?<=<clipPath id=")clip\d+(?=")')
_INK = "currentColor"
_TEXT = {"labelColor": _INK, "titleColor": _INK, "labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"}
_CONFIG: dict[str, Any] = {
    "font": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "autosize": {"type": "fit-x", "contains": "padding"},
    "axis": {
        **_TEXT,
        "gridColor": _INK,
        "gridOpacity": 0.12,
        "domainColor": _INK,
        "tickColor": _INK,
        "titlePadding": 10,
    },
    "legend": {**_TEXT, "padding": 8, "rowPadding": 4, "columnPadding": 14},
}


@dataclass(frozen=True)
class Figure:
    """A figure: its Vega-Lite specification, and what it shows in words for those who cannot see it."""

    key: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]


def compose(
    key: str, title: str, caption: str, words: str, layers: Sequence[alt.Chart], height: int = HEIGHT
) -> Figure:
    """The layers as one figure, described by ``words``."""
    chart = alt.layer(*layers).properties(width="container", height=height, description=words, background="transparent")
    with debug_mode(False):  # no check of every part against the schema, which takes longer than all the rest
        spec = chart.configure(**_CONFIG).to_dict(validate=False)
    del spec["$schema"]  # an address: the page names the language itself, and nothing may look like a network reference
    return Figure(key, title, caption, words, spec)


def drawn(figures: Mapping[str, Figure]) -> tuple[dict[str, str], dict[str, bytes]]:
    """The figures as SVG and as PDF documents, by key."""
    return {key: svg(one) for key, one in figures.items()}, {key: pdf(one) for key, one in figures.items()}


def svg(figure: Figure) -> str:
    """The figure as a static SVG document on white."""
    import vl_convert

    return _numbered(vl_convert.vegalite_to_svg({**figure.spec, "width": WIDTH, "background": "white"}))


def _numbered(document: str) -> str:
    """vl-convert counts clip paths over all figures of a process: here they are numbered within the document."""
    numbers = {name: f"clip{i}" for i, name in enumerate(dict.fromkeys(_CLIP.findall(document)))}
    return _CLIP.sub(lambda found: numbers[found[0]], document)


def pdf(figure: Figure) -> bytes:
    """The figure as a static PDF document on white, its fonts embedded."""
    import vl_convert

    document = vl_convert.vegalite_to_pdf({**figure.spec, "width": WIDTH, "background": "white"})
    return _RESOURCES.sub(_in_order, document)


def _in_order(found: re.Match[bytes]) -> bytes:
    """vl-convert names a page's resources in an order that changes from call to call. Same length: offsets hold."""
    return found[1] + b"".join(sorted(found[2].splitlines(keepends=True)))


class Labelled(Protocol):
    """What has methods, in display order."""

    @property
    def labels(self) -> tuple[str, ...]: ...


def looks(results: Labelled, rows: Sequence[Json], legend: bool = True) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of each method: by its place in the suite, so a method looks the same in every figure."""
    present = {row["method"] for row in rows}
    places = [(plain(label), place) for place, label in enumerate(results.labels) if plain(label) in present]
    domain = [label for label, _ in places]
    colours, shapes = ([look[place % len(look)] for _, place in places] for look in (COLOURS, SHAPES))
    key = alt.Legend(
        orient="bottom",
        columns=_columns(domain),
        title=None,
        labelLimit=LABEL,
        symbolLimit=0,
        symbolOpacity=1,
        symbolSize=80,
        symbolStrokeWidth=2,
    )
    return (
        alt.Color("method:N", scale=alt.Scale(domain=domain, range=colours), legend=key if legend else None),
        alt.Shape("method:N", scale=alt.Scale(domain=domain, range=shapes), legend=key if legend else None),
    )


def _columns(labels: Sequence[str]) -> int:
    """Up to four, as many as a phone shows side by side: a legend does not wrap, it is cut off."""
    widths = [34 + min(LABEL, 7 * len(label)) for label in labels]  # symbol, gaps, and a generous width of a letter
    fits = (n for n in (4, 3, 2) if sum(max(widths[k::n], default=0) for k in range(n)) <= LEGEND)
    return next(fits, 1 if max(widths, default=0) > LEGEND // 2 else 2)


def category(field: str, domain: Sequence[str], known: Sequence[str] = ()) -> alt.Color:
    """Colours of what is not a method, such as a format: by its place in ``known``, so it has one in every figure."""
    order = list(dict.fromkeys([*known, *domain]))
    colours = [COLOURS[order.index(name) % len(COLOURS)] for name in domain]
    key = alt.Legend(orient="bottom", title=None, columns=4, symbolOpacity=1, symbolStrokeWidth=2, labelLimit=110)
    return alt.Color(f"{field}:N", sort=domain, scale=alt.Scale(domain=domain, range=colours), legend=key)


def dashes(field: str, domain: Sequence[str]) -> alt.StrokeDash:
    """Solid, then dashed, then dotted lines; no legend where all are solid."""
    # Above the figure: beside the legend of the colours it would leave a narrow screen.
    key = alt.Legend(orient="top", title=None, symbolStrokeColor=_INK, symbolStrokeWidth=2, symbolSize=260)
    patterns = [[1, 0], [6, 4], [2, 3]]
    scale = alt.Scale(domain=list(domain), range=[patterns[place % len(patterns)] for place in range(len(domain))])
    return alt.StrokeDash(f"{field}:N", sort=list(domain), scale=scale, legend=key if len(domain) > 1 else None)


def score_axis(title: str) -> alt.Y:
    """The field ``value``, in points, from somewhat below the lowest to somewhat above the highest."""
    return alt.Y("value:Q", title=title, scale=alt.Scale(zero=False, padding=14))


def log_axis(field: str, title: str, values: Sequence[float], steps: Sequence[int]) -> alt.X:
    """A logarithmic axis with a label at each of ``steps`` in every decade: Vega's own labels collide when few fit."""
    form = "~s" if min(values) >= 1 else "~g"
    axis = alt.Axis(values=log_ticks(values, steps), format=form, labelOverlap=True)
    return alt.X(f"{field}:Q", title=title, axis=axis, scale=alt.Scale(type="log", nice=False, padding=20))


def log_ticks(values: Sequence[float], steps: Sequence[int]) -> list[float]:
    """``steps`` times every power of ten around the values."""
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    return [float(f"{step}e{decade}") for decade in decades for step in steps]


def tips(*fields: str) -> list[alt.Tooltip]:
    """What a tooltip shows. As objects: altair takes a hundredth of a second to understand each bare string."""
    return [alt.Tooltip(field) for field in fields]


def inline(rows: Sequence[Json]) -> alt.InlineData:
    return alt.InlineData(values=list(rows))
