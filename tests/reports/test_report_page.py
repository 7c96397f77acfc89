"""The page and the files: offline, deterministic, safe, quick to import, and the same figures in both forms."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import pytest
from report_samples import METHODS, all_records, diverged, relabelled, suite, write_folder
from rich.console import Console

from reports import UnusableResults, load, write_report
from reports.figures import figures
from reports.files import inside_script, script_json, vega_libraries, write_atomically
from reports.latex import PACKAGES

ROOT = Path(__file__).parents[2]
FILES = {
    "report.html",
    "table.md",
    "table.tex",
    "table.csv",
    "table_merging_full.csv",
}
FIGURES = [
    "score",
    "seconds",
    "rates",
    "rate_windows",
    "expected_trials",
    "expected_seconds",
    "survival",
    "survival_error",
    "drift",
    "quantised",
    "speed",
]
FIGURES += ["latency_token", "latency_batch"]
FILES |= {f"figure_{key}.{end}" for key in FIGURES for end in ("svg", "pdf")}


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A complete report, hostile label included."""
    label = "</script><script>alert(1)</script>"
    folder = tmp_path_factory.mktemp("report")
    write_folder(folder, relabelled(all_records(), "dora", label), relabelled(suite(), "dora", label))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_file_is_there(folder):
    assert {path.name for path in folder.iterdir()} >= FILES
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_nothing_is_loaded_from_a_network(page):
    elements = Elements(page)
    addresses = [attrs[name] for _, attrs in elements.tags for name in ("src", "href", "srcset") if name in attrs]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    styles = re.findall(r"<style>(.*?)</style>", page, re.S)
    assert not any("url(" in style or "@import" in style for style in styles)
    assert '"url"' not in page.split("const options")[1]  # of data


def test_a_label_cannot_leave_its_place(page):
    elements = Elements(page)
    assert [tag for tag, _ in elements.tags].count("script") == 3
    assert len(elements.scripts) == 3
    assert "<script>alert" not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page


def test_every_figure_has_words_and_a_download(page):
    tags = Elements(page).tags
    charts = [attrs for tag, attrs in tags if tag == "div" and attrs.get("class") == "chart"]
    assert [chart["id"] for chart in charts] == [f"figure-{key}" for key in FIGURES]
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 60 for chart in charts)
    for end, begins in (("svg", b"<svg"), ("pdf", b"%PDF-1.7")):
        files = [attrs["href"] for tag, attrs in tags if tag == "a" and attrs.get("download", "").endswith(f".{end}")]
        assert len(files) == len(FIGURES)
        for file in files:
            assert base64.b64decode(file.split(",")[1]).startswith(begins)


def test_downloads_hold_the_tables(folder, page):
    links = {a["download"]: a["href"] for tag, a in Elements(page).tags if tag == "a" and "download" in a}
    assert base64.b64decode(links["main.csv"].split(",")[1]) == (folder / "table.csv").read_bytes()
    assert base64.b64decode(links["main.tex"].split(",")[1]).decode() in (folder / "table.tex").read_text()
    assert (folder / "table.tex").read_text().startswith(f"% {PACKAGES}\n")
    assert base64.b64decode(links["main.md"].split(",")[1]).decode() in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    "words", ["python3 tasks.py compare quick", "9f2c1b", "Example CPU", "241 s", "3.1 %", "seeds 1, 2, 3"]
)
def test_provenance(page, words):
    assert words in page


def test_the_same_records_give_the_same_bytes(tmp_path, folder):
    again = tmp_path / "elsewhere"
    again.mkdir()
    for name in ("suite.json", "records.jsonl", "wall.json"):
        (again / name).write_bytes((folder / name).read_bytes())
    report = write_report(again)
    assert [path.name for path in report.files if path.read_bytes() != (folder / path.name).read_bytes()] == []


def test_a_suite_just_begun_has_a_report(tmp_path):
    report = write_report(write_folder(tmp_path, all_records()[:1], wall=False))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Speed was not measured." in page
    assert "lora has 1 of 3 learning rates and no final runs" in page
    assert "figure_score.svg" not in {path.name for path in report.files}


def test_no_records_at_all(tmp_path):
    write_report(write_folder(tmp_path, [], wall=False))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Nothing may be claimed yet" in page
    assert len(Elements(page).scripts) == 1  # sorting; without figures no libraries
    assert "vegaEmbed" not in page


def test_damaged_results_leave_the_old_report(tmp_path):
    write_folder(tmp_path, [])
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "records.jsonl").write_text("{")
    with pytest.raises(UnusableResults):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_terminal(tmp_path):
    report = write_report(write_folder(tmp_path, all_records()))
    console = Console(file=io.StringIO(), width=100)
    console.print(report.terminal())
    shown = console.file.getvalue()
    assert all(label in shown for label in METHODS)
    assert "stiefel does not beat the probe" in shown
    console.print(report.terminal("speed"))
    assert "floor" in console.file.getvalue()


def test_figures_are_valid_vega_lite(tmp_path):
    records = [diverged(r) if r["key"].startswith("full-search") else r for r in all_records()]
    for figure in figures(load(write_folder(tmp_path, records))).values():
        alt.LayerChart.from_dict(figure.spec)  # checks against the schema


def test_a_method_has_one_colour(tmp_path):
    seen: dict[str, set[str]] = {}
    for figure in figures(load(write_folder(tmp_path, all_records()))).values():
        for layer in figure.spec["layer"]:
            colour = layer["encoding"].get("color", {})
            scale = colour.get("scale") if colour.get("field") == "method" else None
            for label, colour in zip(scale["domain"], scale["range"], strict=True) if scale else ():
                seen.setdefault(label, set()).add(colour)
    assert seen.keys() == METHODS.keys()
    assert all(len(colours) == 1 for colours in seen.values())
    assert len(set.union(*seen.values())) == len(METHODS)


def test_text_cannot_end_a_script():
    assert "</script" not in inside_script("a</script>b</SCRIPT>c<!--d").lower()
    written = script_json({"label": "</script>&<!--\u2028"})
    assert not re.search(r"[<>&\u2028]", written)
    assert json.loads(written) == {"label": "</script>&<!--\u2028"}


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"


def test_the_libraries_are_bundled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SVDBENCH_CACHE", str(tmp_path / "cache"))
    source = vega_libraries()
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_text(encoding="utf-8") == source
    kept.write_text("kept")
    assert vega_libraries() == "kept"


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SVDBENCH_CACHE", str(tmp_path / "file"))
    assert "vegaEmbed" in vega_libraries()


def test_reports_never_import_torch():
    code = (
        "import sys, reports, reports.page, reports.figures; "
        "print([name for name in ('torch', 'variants', 'evaluation', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_reports_leaves_altair_alone():
    code = "import sys, reports; print('altair' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
