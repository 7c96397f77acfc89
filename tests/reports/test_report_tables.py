"""The tables: golden files, gaps in the records, rounding, and labels which attack every format."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from report_samples import METHODS, all_records, diverged, failed, relabelled, suite, write_folder
from rich.console import Console

from reports import load, rounding
from reports.claims import missing, opening
from reports.latex import escape_latex, to_latex
from reports.render import escape_markdown, to_csv, to_markdown, to_rich
from reports.table import Cell, Column, Table, text
from reports.tables import main_table, methods_table
from reports.verdicts import verdicts
from reports.write import all_tables

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = [
    "<script>alert(1)</script>",
    "a & b",
    "under_score",
    "100 %",
    "pipe | pipe",
    "$x^2$",
    "back\\slash",
    "#{~}",
    "*`_",
]


def results_of(folder, records, described=None):
    return load(write_folder(folder, records, described))


def cells(table, label):
    """key -> cell of one row."""
    row = next(row for row in table.rows if row[0].value == label)
    return dict(zip((column.key for column in table.columns), row, strict=True))


@pytest.mark.parametrize(
    ("name", "render"), [("table.md", to_markdown), ("table.tex", to_latex), ("table.csv", to_csv)]
)
def test_golden(tmp_path, name, render):
    tables = all_tables(results_of(tmp_path, all_records()))
    written = "\n".join(render(table) for table in tables.values())
    if os.environ.get("SVDBENCH_UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(written, encoding="utf-8")
    assert written == (GOLDEN / name).read_text(encoding="utf-8")


def test_only_a_method_better_than_all_is_bold(tmp_path):
    records = all_records()
    assert [row[0].value for row in main_table(results_of(tmp_path, records)).rows if any(c.best for c in row)] == [
        "full"
    ]
    for record in records:  # pissa now wins one seed against full
        if record["key"].startswith("pissa-final") and record["run"]["seed"] == 1:
            record["measures"]["score"]["accuracy"] = 0.84
    table = main_table(results_of(tmp_path, records))
    assert not any(cell.best for row in table.rows for cell in row)
    assert "**" not in to_markdown(table)


def test_edges_of_the_grid_are_marked(tmp_path):
    table = main_table(results_of(tmp_path, all_records()))
    marked = [row[0].value for row in table.rows if any(cell.mark == "†" for cell in row)]
    assert marked == ["stiefel"]
    assert [mark for mark, _ in table.used_notes] == ["†"]


def test_a_method_that_does_not_beat_the_probe_says_so(tmp_path):
    results = results_of(tmp_path, all_records())
    assert cells(main_table(results), "stiefel")["remark"].value == "does not beat the probe"
    assert cells(main_table(results), "full")["remark"].value == ""
    assert any("stiefel does not beat the probe" in sentence for sentence in opening(results, verdicts(results)))


def test_csv_holds_the_raw_numbers(tmp_path):
    results = results_of(tmp_path, all_records())
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(to_csv(main_table(results))))}
    outcomes = results.outcomes("dora")
    assert float(rows["dora"]["accuracy"]) == pytest.approx(sum(outcomes.values()) / 3, rel=1e-15)
    assert float(rows["stiefel"]["learning_rate"]) == 2.5e-2 * 10**0.5
    assert rows["full"]["accuracy_low"] < rows["full"]["accuracy"] < rows["full"]["accuracy_high"]
    assert "†" not in to_csv(main_table(results))


@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_labels(tmp_path, label):
    records, described = relabelled(all_records(), "dora", label), relabelled(suite(), "dora", label)
    tables = all_tables(results_of(tmp_path, records, described))
    for table in tables.values():
        markdown = to_markdown(table)
        lines = [line for line in markdown.splitlines() if line.startswith("|")]
        assert {line.replace("\\|", "").count("|") for line in lines} == {len(table.at("document")[0]) + 1}
        assert "<" not in markdown
        latex = to_latex(table)
        body = latex[latex.rindex(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
        body = [row for row in body if row != r"\endhead"]
        assert {row.replace(r"\&", "").count("&") for row in body} == {len(lines[0].split(" | ")) - 1}
        assert not any(line.replace(r"\%", "").count("%") for line in latex.splitlines())
        names = [row[0] for row in csv.reader(io.StringIO(to_csv(table)))]
        assert label in names or table.key in ("unscored", "factors", "quantised")


def test_labels_cannot_command_the_terminal(tmp_path):
    label = "\x1b[31mred[/bold]\nnext"
    records, described = relabelled(all_records(), "dora", label), relabelled(suite(), "dora", label)
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(to_rich(main_table(results_of(tmp_path, records, described))))
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert "[/bold]" in shown.replace("\n", "")


def test_the_terminal_fits_80_columns(tmp_path):
    console = Console(file=io.StringIO(), width=80)
    console.print(to_rich(main_table(results_of(tmp_path, all_records()))))
    rows = [line for line in console.file.getvalue().splitlines() if line.split(" ")[0] in METHODS]
    assert len(rows) == len(METHODS)


def test_one_seed_claims_nothing(tmp_path):
    described = suite(seeds=1)
    results = results_of(tmp_path, all_records(seeds=1), described)
    row = cells(main_table(results), "full")
    assert (row["accuracy"].low, row["difference"].value, row["verdict"].value) == (None, None, None)
    assert row["difference"].mark == "‡"
    said = opening(results, verdicts(results))
    assert any("one seed gives no interval" in sentence for sentence in said)
    assert not any("is better than" in sentence or "Against" in sentence for sentence in said)


def test_diverged_seeds_stay_visible(tmp_path):
    records = [diverged(r) if r["key"].startswith("dora-final") and r["run"]["seed"] == 2 else r for r in all_records()]
    results = results_of(tmp_path, records)
    row = cells(main_table(results), "dora")
    assert (row["seeds"].value, row["remark"].value) == (2, "1 of 3 seeds diverged")
    assert len(all_tables(results)["unscored"].rows) == 1
    assert missing(results) == []


def test_a_method_that_always_diverges_loses(tmp_path):
    records = [diverged(r) if r["key"].startswith("dora-final") else r for r in all_records()]
    results = results_of(tmp_path, records)
    table = main_table(results)
    assert cells(table, "dora")["accuracy"].value is None
    assert cells(table, "full")["accuracy"].best
    assert cells(all_tables(results)["merging"], "dora")["remark"].value == "diverged"


def test_failed_runs_are_listed_and_missing(tmp_path):
    records = [failed(r) if r["key"].startswith("full-final") else r for r in all_records()]
    results = results_of(tmp_path, records)
    assert "full lacks final seeds 1, 2 and 3" in missing(results)
    reasons = [row[-1].value for row in all_tables(results)["unscored"].rows]
    assert reasons == ["OSError: no space left on device"] * 3
    assert not any(cell.best for row in main_table(results).rows for cell in row)


@pytest.mark.parametrize("kept", [0, 1, 2, 7, 25, 48])
def test_a_half_done_suite_is_reported(tmp_path, kept):
    results = results_of(tmp_path, all_records()[:kept])
    assert len(main_table(results).rows) == len(METHODS)
    assert "speed is not measured" in missing(results)
    assert any("not complete" in sentence for sentence in opening(results, verdicts(results)))
    for table in all_tables(results).values():
        assert all(render(table) for render in (to_markdown, to_latex, to_csv))


def test_without_a_probe_and_without_measurements(tmp_path):
    labels = [label for label in METHODS if label != "probe"]
    described = suite(labels) | {"speed": None, "merging": None}
    records = [r for r in all_records() if r["run"]["kind"] == "score"]
    for record in records:
        record["measures"].pop("merging", None)
    results = results_of(tmp_path, records, described)
    assert missing(results) == []
    assert all(row[-1].value == "" for row in main_table(results).rows)


def test_unmergeable_methods_say_so(tmp_path):
    records = all_records()
    for record in records:
        if record["key"].startswith("dora") and "merging" in record["measures"]:
            record["measures"]["merging"] = {"items": 200, "mergeable": False, "formats": {}}
    row = cells(all_tables(results_of(tmp_path, records))["merging"], "dora")
    assert row["remark"].value == "cannot be merged"
    assert row["error_float32"].value is None


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (84.312, 1.23, "84.3 ± 1.2"),
        (84.312, 0.47, "84.3 ± 0.5"),
        (84.312, 0.013, "84.312 ± 0.013"),
        (84.312, 12.0, "84 ± 12"),
        (84.312, None, "84.3"),
        (-3.456, 0.8, "−3.5 ± 0.8"),
        (-0.01, 0.8, "0.0 ± 0.8"),
        (84.0, 0.96, "84.0 ± 1.0"),
    ],
)
def test_digits_follow_the_interval(value, half, expected):
    assert rounding.plus_minus(value, half) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.00023, "0.00023"), (3.14e-7, "3.1e-7"), (0.05, "0.050"), (0, "0"), (123456, "1.2e5"), (-3.1e-7, "−3.1e-7")],
)
def test_significant_digits(value, expected):
    assert rounding.significant(value) == expected


def test_learning_rates_are_short():
    assert [rounding.rate(v) for v in (5e-3, 1.58113883e-3, 5e-5, 0.1, 1.0)] == ["0.005", "0.0016", "5e-5", "0.1", "1"]


def test_escapes_are_complete():
    assert escape_markdown("a|b_c*d`<e>&[f]\\") == r"a\|b\_c\*d\`&lt;e&gt;&amp;\[f\]\\"
    assert escape_latex(r"\%&_#{}~^$") == (r"\textbackslash{}\%\&\_\#\{\}\textasciitilde{}\textasciicircum{}\$")


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        Table("t", "T", "", (Column("a", "a", text),), ((Cell(1), Cell(2)),))


@pytest.mark.parametrize(
    ("budget", "said", "shown"),
    [
        ("300 KiB", "matched by bytes of the tensors in the adapter file: ", "288.0"),
        ("0.3%", "matched by trainable parameters: ", None),
    ],
)
def test_the_methods_say_by_what_their_sizes_were_matched(tmp_path, budget, said, shown):
    records = all_records()
    for record in records:
        if "parameters" in record["measures"]:
            record["measures"]["parameters"]["tensor_bytes"] = 4 * record["measures"]["parameters"]["trainable"]
    table = methods_table(results_of(tmp_path, records, suite() | {"budget": budget}))
    assert said in table.caption
    assert f"the largest within {budget}" in table.caption
    columns, rows = table.at("terminal")
    texts = {column.key: column.show(cell) for column, cell in zip(columns, rows[0], strict=True)}
    assert texts.get("tensor_bytes") == shown


def test_without_a_budget_nothing_is_said_of_one(tmp_path):
    assert "matched" not in methods_table(results_of(tmp_path, all_records())).caption


@pytest.mark.parametrize(
    ("peer", "library", "said"), [(True, "onednn", True), (True, "torch", False), (False, "onednn", False)]
)
def test_the_speed_table_says_where_a_peer_multiplies_otherwise(tmp_path, peer, library, said):
    records, described = all_records(), suite()
    for record in records:
        record["environment"] = {**record["environment"], "products": library}
    for holder in (*described["methods"], *(record["run"] for record in records)):
        if peer and holder.get("method", {}).get("name") == "dora":
            holder["method"] = {**holder["method"], "name": "peft:lora"}
    caption = all_tables(results_of(tmp_path, records, described))["speed"].caption
    assert ("stand on torch's own layers" in caption) == said
