"""The page in a real browser, at the width of a desk and of a phone: sorted, walked through and downloaded from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import report_samples as samples
from devtools import Browser, chromium
from test_report_across import FIRST, write_task

from reports import write_across, write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="there is no chromium on the path"),
]
WIDTHS = (1200, 390)
MAIN = "document.querySelector('#results table')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A report in which one method has no score."""
    folder = tmp_path_factory.mktemp("report")
    records = [samples.diverged(r) if r["key"].startswith("dora-final") else r for r in samples.all_records()]
    write_report(samples.write_folder(folder, records))
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(chromium() or "", tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.close()


def opened(browser: Browser, folder: Path, width: int, dark: bool = False) -> None:
    browser.open(folder / "report.html", width, dark=dark)
    browser.wait(lambda: browser.run("[...document.querySelectorAll('.chart')].every((c) => c.querySelector('svg'))"))


def column(browser: Browser, place: int) -> list[str]:
    """The texts of a column of the main table, from above."""
    return browser.run(f"[...{MAIN}.tBodies[0].rows].map((row) => row.cells[{place}].textContent)")


def head(browser: Browser, title: str) -> tuple[int, str]:
    """The place of a column, and the expression of its button."""
    titles = browser.run(f"[...{MAIN}.tHead.rows[0].cells].map((cell) => cell.textContent.trim())")
    place = next(i for i, text in enumerate(titles) if text.startswith(title))
    return place, f"{MAIN}.tHead.rows[0].cells[{place}].querySelector('button')"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_fails_or_asks_for_a_network(browser, folder, width, dark):
    opened(browser, folder, width, dark)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("innerWidth") == width  # a phone zooms out instead of scrolling
    assert browser.complaints() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_over_benchmarks_fits_too(browser, tmp_path, width):
    moved = [{label: [score + 0.02 * i for score in found] for label, found in FIRST.items()} for i in range(7)]
    write_across([write_task(tmp_path, f"task{i}", scores) for i, scores in enumerate(moved)], tmp_path / "out")
    opened(browser, tmp_path / "out", width)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("document.querySelectorAll('.chart svg').length") == 4
    edges = "[...document.querySelectorAll('.chart svg')].map((one) => one.getBoundingClientRect().right)"
    assert max(browser.run(edges)) <= width
    place, button = head(browser, "IQM")
    browser.click(button)
    assert column(browser, 0) == ["probe", "lora", "pissa"]
    assert column(browser, place) == sorted(column(browser, place))
    assert browser.complaints() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_drawn_within_the_page(browser, folder, width):
    opened(browser, folder, width)
    edges = "[...document.querySelectorAll('.chart svg')].map((one) => one.getBoundingClientRect().right)"
    assert max(browser.run(edges)) <= width
    assert browser.run("document.querySelectorAll('.chart svg .role-legend-label text').length") > 20
    # What an SVG draws outside its own box is cut off, and nobody sees that it was there.
    cut = """[...document.querySelectorAll('.chart svg .role-legend-label text')].filter(
      (one) => one.getBoundingClientRect().right > one.closest('svg').getBoundingClientRect().right + 1
    ).map((one) => one.textContent)"""
    assert browser.run(cut) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_click_on_a_header_sorts_by_the_number(browser, folder, width):
    opened(browser, folder, width)
    place, button = head(browser, "trainable")
    suite = column(browser, place)
    numbers = sorted(int(text.replace(",", "")) for text in suite)
    for way, expected in (("ascending", numbers), ("descending", numbers[::-1])):
        browser.click(button)
        assert [int(text.replace(",", "")) for text in column(browser, place)] == expected
        assert browser.run(f"{button}.parentElement.ariaSort") == way
    browser.click(button)
    assert column(browser, place) == suite
    assert browser.run(f"{button}.parentElement.ariaSort") == "none"


def test_negative_numbers_come_first(browser, folder):
    opened(browser, folder, 1200)
    place, button = head(browser, "against lora")
    browser.click(button)
    shown = [text.split(" ± ")[0].replace("−", "-") for text in column(browser, place) if " ± " in text]
    assert len(shown) == len(samples.METHODS) - 2  # not the baseline, not the one without a score
    assert [float(text) for text in shown] == sorted(map(float, shown))
    assert float(shown[0]) < 0 < float(shown[-1])


def test_empty_cells_stay_below_and_ties_in_the_order_of_the_suite(browser, folder):
    opened(browser, folder, 1200)
    place, button = head(browser, "accuracy")
    for _ in range(2):
        browser.click(button)
        assert column(browser, 0)[-1] == "dora"
        assert column(browser, place)[-1].startswith("—")
    size, button = head(browser, "trainable")
    browser.click(button)
    tied = [label for label, text in zip(column(browser, 0), column(browser, size), strict=True) if text == "73,728"]
    assert tied == ["lora", "pissa", "milora"]
    assert browser.run(f"[...{MAIN}.tHead.rows[0].cells].filter((one) => one.ariaSort !== 'none').length") == 1


def test_the_keyboard_sorts_too(browser, folder):
    opened(browser, folder, 1200)
    _, button = head(browser, "method")
    browser.run(f"{button}.focus()")
    browser.press("Enter", "\r")
    assert column(browser, 0) == sorted(samples.METHODS)
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent.trim()").startswith("learning rate")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_leads_to_every_section(browser, folder, width):
    opened(browser, folder, width)
    browser.run("document.documentElement.style.scrollBehavior = 'auto'")
    for name in browser.run("[...document.querySelectorAll('nav a')].map((link) => link.hash.slice(1))"):
        link = f"document.querySelector('nav a[href=\"#{name}\"]')"
        browser.run(f"{link}.scrollIntoView({{ inline: 'center', block: 'nearest', behavior: 'instant' }})")
        box = browser.run(f"(() => {{ const b = {link}.getBoundingClientRect(); return [b.left, b.right] }})()")
        assert 0 <= box[0] < box[1] <= width
        browser.click(link, scroll=False)
        current = f"{link}.ariaCurrent === 'true' && document.querySelectorAll('nav [aria-current]').length === 1"
        browser.wait(lambda found=current: browser.run(found))
        top = browser.run(f"document.getElementById('{name}').querySelector('h2').getBoundingClientRect().top")
        assert browser.run("document.querySelector('nav').getBoundingClientRect().bottom") <= top < 900


@pytest.mark.parametrize(
    ("link", "file"), [("main.csv", "table.csv"), ("runs.csv", "table_runs.csv"), ("rates.pdf", "figure_rates.pdf")]
)
def test_a_click_downloads_the_file(browser, folder, tmp_path, link, file):
    opened(browser, folder, 1200)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    saved = browser.downloaded(f"document.querySelector('a[download={json.dumps(link)}]')", tmp_path)
    assert saved.name == link
    assert saved.read_bytes() == (folder / file).read_bytes()


def test_without_scripts_the_page_says_the_same(browser, folder):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(folder / "report.html", 390)
        assert column(browser, 0) == list(samples.METHODS)
        assert browser.run("document.querySelectorAll('button').length") == 0
        drawn = "[...document.querySelectorAll('.chart img')].filter((one) => one.naturalWidth > 0).length"
        browser.wait(lambda: browser.run(drawn) == len(list(folder.glob("figure_*.svg"))))
        assert browser.run("document.documentElement.scrollWidth") == 390
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_the_checks_notice(browser, folder, tmp_path):
    page = (folder / "report.html").read_text(encoding="utf-8")
    wrong = '<script>console.error("one"); missing.two</script><img src="http://127.0.0.1:9/three">'
    wide = '<div style="width: 500px">wide</div>'
    (tmp_path / "report.html").write_text(page.replace("<header>", f"<header>{wrong}{wide}"), encoding="utf-8")
    browser.open(tmp_path / "report.html", 390)
    found = "\n".join(browser.complaints())
    assert all(word in found for word in ("one", "missing is not defined", "http://127.0.0.1:9/three"))
    assert browser.run("document.documentElement.scrollWidth") > 390


PAPER = 703  # CSS pixels between the margins of an A4 page


@pytest.fixture
def on_paper(browser, folder) -> Iterator[Browser]:
    """The page as it is printed by a reader who reads in the dark."""
    opened(browser, folder, PAPER, dark=True)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.send("Emulation.setEmulatedMedia", media="print", features=[dark])
    yield browser
    browser.send("Emulation.setEmulatedMedia", media="", features=[])


def test_paper_is_white_and_shows_everything(on_paper):
    colours = "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    assert on_paper.run(colours) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    hidden = "[...document.querySelectorAll('details:not([open]) table')].map((table) => table.checkVisibility())"
    found = on_paper.run(hidden)
    assert len(found) > 3
    assert all(found)
    assert not on_paper.run("document.querySelector('nav').checkVisibility()")


def test_tables_are_as_wide_as_the_paper_at_most(on_paper):
    wide = f"""[...document.querySelectorAll('table')].filter((table) => table.getBoundingClientRect().width > {PAPER})
        .map((table) => [table.closest('section').id, table.getBoundingClientRect().width])"""
    assert on_paper.run(wide) == []


def test_heads_of_tables_come_again_on_every_page(on_paper):
    """Chromium repeats a head only if it holds nothing that can be pressed."""
    buttons = "[...document.querySelectorAll('thead button')].map((button) => getComputedStyle(button).display)"
    assert set(on_paper.run(buttons)) == {"contents"}
