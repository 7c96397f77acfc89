"""The forecast of learning rates: what it is made of, when it is silent, and how its agreement is told."""

from __future__ import annotations

import pytest
from report_samples import all_records, write_folder

from reports import load
from reports.forecast import forecast_rate, forecast_table, rank_correlation
from reports.render import to_csv, to_markdown
from reports.write import all_tables, write_report

# label -> top eigenvalue; LoRA's rate is 5e-3 in the samples
TOPS = {"lora": 0.8, "dora": 0.8, "pissa": 80.0, "milora": 3.2, "lora_xs": 0.008, "stiefel": 0.05, "full": 13.0}


def folder_with(tmp_path, tops):
    records = all_records()
    for record in records:
        label = record["key"].partition("-")[0]
        first = record["run"].get("stage") == "search" and label not in {r[0] for r in seen(records)}
        if first and label in tops:
            found = {"top": tops[label], "magnitude": tops[label], "products": 9, "residual": 0.03, "rows": 16}
            record["measures"]["curvature"] = found
    return write_folder(tmp_path, records, None)


def seen(records):
    return [(r["key"].partition("-")[0],) for r in records if "curvature" in r["measures"]]


def rows_of(table):
    keys = [column.key for column in table.columns]
    return {row[0].value: dict(zip(keys, row, strict=True)) for row in table.rows}


def test_the_forecast_goes_with_the_square_root_of_the_curvature(tmp_path):
    results = load(folder_with(tmp_path, TOPS))
    base = results.chosen_lr("lora")
    assert forecast_rate(results, "dora") == base
    assert forecast_rate(results, "pissa") == pytest.approx(base / 10)
    assert forecast_rate(results, "milora") == pytest.approx(base / 2)
    assert forecast_rate(results, "lora_xs") == pytest.approx(base * 10)
    rows = rows_of(forecast_table(results))
    assert list(rows) == list(TOPS)
    assert (rows["lora"]["forecast_rate"].value, rows["lora"]["ratio"].value) == (None, None)
    chosen = results.chosen_lr("pissa")
    assert rows["pissa"]["learning_rate"].value == chosen
    assert rows["pissa"]["ratio"].value == pytest.approx(base / 10 / chosen)
    assert rows["stiefel"]["learning_rate"].mark == "†"
    assert "Rank correlation of forecast and measured rate over 6 methods" in forecast_table(results).caption


def test_it_is_silent_where_nothing_was_measured(tmp_path):
    assert forecast_table(load(write_folder(tmp_path / "none", all_records(), None))) is None
    assert "forecast" not in all_tables(load(tmp_path / "none"))
    lone = load(folder_with(tmp_path / "without the baseline", {"pissa": 3.0}))
    assert rows_of(forecast_table(lone))["pissa"]["forecast_rate"].value is None
    few = load(folder_with(tmp_path / "few", {"lora": 1.0, "pissa": 3.0}))
    assert "agreement cannot be judged" in forecast_table(few).caption


@pytest.mark.parametrize("top", [None, -0.2, 0.0])
def test_no_curvature_no_forecast(tmp_path, top):
    table = forecast_table(load(folder_with(tmp_path, TOPS | {"pissa": top})))
    row = rows_of(table)["pissa"]
    assert (row["forecast_rate"].value, row["ratio"].value, row["top_curvature"].mark) == (None, None, "¶")
    assert "¶" in [mark for mark, _ in table.used_notes]
    assert "over 5 methods" in table.caption
    to_csv(table), to_markdown(table)


def test_it_is_in_the_report(tmp_path):
    folder = folder_with(tmp_path, TOPS)
    write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    rates, merging = page.index('<section id="rates">'), page.index('<section id="merging">')
    assert rates < page.index("Forecast of the learning rates") < merging
    assert (folder / "table_forecast.csv").read_text(encoding="utf-8").startswith("method,top_curvature")


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 25, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [9, 8, 7, -6]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2], [3, 3, 3]) is None
    # By hand, with a tie: ranks 1.5, 1.5, 3, 4 and 1, 2, 4, 3.
    assert rank_correlation([1, 1, 2, 3], [1, 2, 9, 8]) == pytest.approx(3.5 / (4.5 * 5) ** 0.5)
