"""The tables and figures of merging, with parts absent, and entries with rates and seeds of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from merging_samples import FORMATS, GRID
from report_samples import METHODS, all_records, family_records, family_suite, suite, write_folder

from reports import load
from reports.claims import missing, opening
from reports.figures import figures
from reports.latex import to_latex
from reports.page import page
from reports.provenance import protocol
from reports.records import Results
from reports.render import to_csv, to_markdown
from reports.table import Cell, Table
from reports.tables import main_table
from reports.verdicts import verdicts
from reports.write import all_tables

PARTS = ("survival", "drift", "factors", "cost", "relative_size")


def family(folder: Path) -> Results:
    return load(write_folder(folder, family_records(), family_suite()))


def row(table: Table, *names: str) -> dict[str, Cell]:
    found = next(row for row in table.rows if tuple(str(cell.value) for cell in row[: len(names)]) == names)
    return dict(zip((column.key for column in table.columns), found, strict=True))


def without(records: list[dict[str, Any]], *parts: str) -> list[dict[str, Any]]:
    records = copy.deepcopy(records)
    for record in records:
        for part in parts:
            record["measures"].get("merging", {}).pop(part, None)
    return records


def test_a_row_for_each_format_and_rounding(tmp_path):
    tables = all_tables(load(write_folder(tmp_path, all_records())))
    stored = [tuple(str(cell.value) for cell in found[:3]) for found in tables["merging_full"].rows]
    assert (
        len(stored) == len(set(stored)) == 7 * (1 + 2 * (len(FORMATS) - 1)) + len(FORMATS)
    )  # the probe is not rounded
    assert ("lora", "float32", "none") in stored
    nearest = row(tables["merging_full"], "lora", "nf4", "nearest")
    assert nearest["difference"].value == pytest.approx(
        nearest["accuracy_merged"].value - nearest["accuracy_adapted"].value
    )
    assert nearest["difference"].low < nearest["difference"].value < nearest["difference"].high < 0
    assert row(tables["merging_full"], "lora", "nf4", "stochastic")["kept"].value > 0.99 > nearest["kept"].value
    assert row(tables["merging"], "lora")["kept_nf4"].value == nearest["kept"].value


def test_the_other_tables_follow_the_records(tmp_path):
    tables = all_tables(load(write_folder(tmp_path, all_records())))
    assert row(tables["drift"], "lora")["restoring"].value == 0
    assert row(tables["drift"], "lora")["subtraction_bfloat16_100"].value == pytest.approx(2e-3 * 1.021)
    assert [found[0].value for found in tables["factors"].rows] == ["lora", "pissa", "milora", "lora_xs", "stiefel"]
    assert row(tables["factors"], "stiefel")["defect_after"].value == 1.4e-6
    assert row(tables["deployments"], "pissa", "nf4")["requantised_error"].value > 0.9
    assert row(tables["quantised"], "nf4", "16")["qpissa_weight_error"].value < 0.091
    assert (
        row(tables["latency"], "lora")["token_folded_ratio"].value
        < row(tables["latency"], "lora")["token_adapted_ratio"].value
    )
    assert row(tables["latency"], "full")["token_folded_ratio"].value is None
    assert row(tables["merge_cost"], "lora")["seconds"].value == 0.004
    assert "latency" not in " ".join(column.key for column in tables["speed"].columns)


def test_captions_say_on_how_many_layers(tmp_path):
    records = all_records()
    results = load(write_folder(tmp_path / "a", records))
    drawn = figures(results)
    first_and_last = "Measured on 2 layers of each method, the first and the last."
    assert first_and_last in all_tables(results)["drift"].caption
    assert first_and_last in drawn["drift"].caption
    for key in ("survival", "survival_error"):
        assert "Measured on 12 layers of each method, spread over the model." in drawn[key].caption
    for record in records:
        if record["key"].startswith("pissa") and "merging" in record["measures"]:
            record["measures"]["merging"] |= {"survival_layers": 1, "drift_layers": 1}
    drawn = figures(load(write_folder(tmp_path / "b", records)))
    assert "Measured on 1 to 12 layers of each method" in drawn["survival"].caption
    assert "Measured on 1 to 2 layers of each method, spread over the model." in drawn["drift"].caption
    bare = load(write_folder(tmp_path / "c", without(records, "survival_layers", "drift_layers")))
    assert "Measured on" not in figures(bare)["drift"].caption + all_tables(bare)["drift"].caption


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("deployments", "trained on the float32 base, so that keeping the pair"),
        ("deployments", "the rest of the model is quantised"),
        ("latency", "absent where the pair would be as wide as the layer"),
        ("merge_cost", "an order of magnitude"),
    ],
)
def test_captions_say_what_a_number_is_worth(tmp_path, key, words):
    assert words in all_tables(load(write_folder(tmp_path, all_records())))[key].caption


@pytest.mark.parametrize("parts", [*((part,) for part in PARTS), PARTS])
def test_any_part_may_be_absent(tmp_path, parts):
    results = load(write_folder(tmp_path, without(all_records(), *parts)))
    tables = all_tables(results)
    assert {"merging", "merging_full"} <= tables.keys()
    assert not {"drift", "factors"} & set(parts) & tables.keys()
    assert all(render(table) for table in tables.values() for render in (to_markdown, to_latex, to_csv))
    assert opening(results, verdicts(results))


def test_without_curves_there_are_no_figures_of_merging(tmp_path):
    results = load(write_folder(tmp_path, without(all_records(), *PARTS)))
    drawn = figures(results)
    assert not {"survival", "survival_error", "drift"} & drawn.keys()
    written = page(results, [], [], all_tables(results), drawn, dict.fromkeys(drawn, "<svg></svg>"))
    assert "What survives rounding" not in written
    assert "Merging in every format" in written


def test_peers_and_overflow_are_said(tmp_path):
    records = copy.deepcopy(all_records())
    for record in records:
        if "merging" in record["measures"] and record["key"].startswith("dora"):
            record["measures"]["merging"] = {"items": 200, "mergeable": None, "formats": {}}
        if "merging" in record["measures"] and record["key"].startswith("full"):
            record["measures"]["merging"]["formats"]["float16"] = {"overflow": True, "error": None}
    tables = all_tables(load(write_folder(tmp_path, records)))
    assert row(tables["merging"], "dora")["remark"].value == "not measured"
    assert row(tables["merging"], "full")["remark"].value == "float16 cannot hold the weights"
    assert not [
        found for found in tables["merging_full"].rows if found[0].value == "full" and found[1].value == "float16"
    ]


def test_nothing_about_merging_nothing_shown(tmp_path):
    records = copy.deepcopy(all_records())
    for record in records:
        record["measures"].pop("merging", None)
    results = load(write_folder(tmp_path, records, suite() | {"merging": None}))
    assert not {"merging", "merging_full", "drift", "factors", "deployments", "merge_cost"} & all_tables(results).keys()
    assert not {"survival", "survival_error", "drift"} & figures(results).keys()


def test_the_survival_curve_has_every_line_and_every_method(tmp_path):
    figure = figures(load(write_folder(tmp_path, all_records())))["survival"]
    alt.LayerChart.from_dict(figure.spec)
    data = [figure.spec["datasets"][layer["data"]["name"]] for layer in figure.spec["layer"]]
    lines = {(point["format"], point["rounding"]) for point in data[1]}
    assert lines == {(name, way) for name in list(FORMATS)[1:] for way in ("nearest", "stochastic")}
    assert len(data[1]) == len(lines) * len(GRID)
    assert all(point["low"] <= point["value"] <= point["high"] for point in data[1])
    assert {point["method"] for point in data[2]} == METHODS.keys() - {"probe"}
    named = [point["method"] for point in data[4]]
    assert set(named) < {point["method"] for point in data[3]}, "names that would collide are left out"


def test_restoring_has_no_place_on_a_logarithmic_axis(tmp_path):
    records = all_records()
    figure = figures(load(write_folder(tmp_path / "a", records)))["drift"]
    assert "exactly 0 for every method" in figure.caption
    for record in records:
        if "merging" in record["measures"] and record["measures"]["merging"]["drift"]:
            record["measures"]["merging"]["drift"]["float16"]["restoring"]["100"] = 2e-8
    figure = figures(load(write_folder(tmp_path / "b", records)))["drift"]
    assert "Restoring leaves 2e-8 at most" in figure.caption


def test_one_rate_needs_no_search(tmp_path):
    results = family(tmp_path)
    assert missing(results) == []
    assert (results.points("lora"), results.seeds("lora"), results.points("probe"), results.seeds("probe")) == (
        6,
        5,
        1,
        2,
    )
    assert not results.of("probe", "search")
    assert {found[0].value for found in all_tables(results)["learning_rates"].rows}.isdisjoint({"adapter", "probe"})
    assert "rates" in figures(results)


def test_what_is_missing_follows_the_entry(tmp_path):
    records = [r for r in family_records() if not r["key"].startswith(("probe", "polar-final", "polar-search-0.01"))]
    records = [r for r in records if not (r["key"].startswith("lora-final") and r["run"]["seed"] > 3)]
    gaps = missing(load(write_folder(tmp_path, records, family_suite())))
    assert gaps == [
        "lora lacks final seeds 4 and 5",
        "polar has 5 of 6 learning rates and no final runs",
        "probe lacks final seeds 1 and 2",
    ]


def test_own_rates_and_seeds_are_said(tmp_path):
    results = family(tmp_path)
    assert opening(results, verdicts(results))[0] == (
        "8 methods were compared on trec50 with minilm: the learning rate of 6 was chosen among 6 on validation data "
        "(2 ran at the one which the suite gives), and only runs with fresh seeds (2 to 5 a method) on test data are "
        "reported."
    )
    assert "mean over 2 to 5 seeds" in main_table(results).caption
    facts = dict(protocol(results))
    assert facts["Learning-rate grid"] == (
        "one given rate, 6 points for lora, usv free, usv penalty, stiefel, stella and polar; 2 per decade; LoRA's "
        "centre 0.005"
    )


def test_one_rate_for_all_has_no_search(tmp_path):
    described = suite()
    described["protocol"]["points"] = 1
    finals = [r for r in all_records() if r["run"].get("stage") != "search"]
    results = load(write_folder(tmp_path, finals, described))
    assert missing(results) == []
    assert dict(protocol(results))["Search"] == "none"
    assert dict(protocol(results))["Learning-rate grid"] == "one given rate; LoRA's centre 0.005"
    assert not any("edge of the searched grid" in sentence for sentence in opening(results, verdicts(results)))
