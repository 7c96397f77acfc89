"""The report of a bench, from made-up numbers: nothing is lost or comes from outside, and text stays text."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from reports.bench import figure, sentences, write_bench
from reports.bench_tables import labels, tables
from reports.drawing import COLOURS
from reports.render import to_csv, to_markdown


def interval(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 0.02, "high": median + 0.03}


def timing(step: float, **ratios: float) -> dict[str, Any]:
    phases = {"forward": 0.4, "backward": 0.5, "optimiser": 0.09, "hooks": 0.01, "total": 1.0}
    return {
        "phases": {phase: interval(share * step) for phase, share in phases.items()},
        "ratios": {reference: interval(ratio) for reference, ratio in ratios.items()},
        "saved_bytes": int(step * 2**22),
        "peak_bytes": int(step * 2**23),
    }


def once(init: float, attach: float | None = None) -> dict[str, float | None]:
    return {"init": init, "attach": attach, "merge": 0.01, "unmerge": 0.002, "save": 0.03, "load": 0.04}


def made_up() -> dict[str, Any]:
    methods = {
        "lora": timing(1.2, floor=1.2, lora=1.0, peft=0.9),
        "peft:lora": timing(1.3, floor=1.33, lora=1.1),
        "svf": timing(1.5, floor=1.5, lora=1.25),
    }
    shape = {"rows": 32, "tokens": 16, "rounds": 7, "noise": 0.012, "floor": timing(1.0), "methods": methods}
    return {
        "format": 1,
        "model": "<b>toy</b>",
        "digest": "abc",
        "where": ["all"],
        "rank": 8,
        "threads": 2,
        "environment": {"cpu": "a <processor>", "cores": 2, "torch": "2.13.0", "peft": "peft 0.21.2"},
        "settings": {"lora": {}, "peft:lora": {"r": 8}, "svf": {}},
        "shapes": [shape],
        "costs": {"lora": once(0.5, 0.1), "peft:lora": once(0.6), "svf": once(2.0)},
        "starts": {
            "peft exact": {"seconds": interval(8.0), "residual": 0.0},
            "ours": {"seconds": interval(1.0), "residual": 3e-6},
        },
        "left_out": {"kasa": "rank 8 leaves nothing"},
    }


def rows_of(table: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def test_a_row_holds_a_method_and_what_peft_has_of_it() -> None:
    floor, lora, svf = rows_of(tables(made_up())["step_32x16"])
    assert (floor["method"], floor["ratio_floor"], float(floor["total_seconds"])) == ("floor", "", 1.0)
    assert [float(lora[f"ratio_{r}"]) for r in ("floor", "lora", "peft")] == [1.2, 1.0, 0.9]
    assert (float(lora["peft_ratio_floor"]), float(lora["peft_ratio_floor_high"])) == (1.33, 1.36)
    assert int(lora["peft_saved_bytes"]) == int(1.3 * 2**22)
    assert (svf["ratio_peft"], svf["peft_saved_bytes"], float(svf["ratio_floor"])) == ("", "", 1.5)


def test_costs_and_starts() -> None:
    found = tables(made_up())
    costs = {row["method"]: row for row in rows_of(found["costs"])}
    assert list(costs) == ["lora", "peft:lora", "svf"]
    assert (costs["lora"]["attach_seconds"], costs["peft:lora"]["attach_seconds"]) == ("0.1", "")
    exact, ours = rows_of(found["starts"])
    assert (float(exact["ratio"]), float(ours["ratio"]), float(ours["residual"])) == (1.0, 0.125, 3e-6)
    assert "starts" not in tables({**made_up(), "starts": {}})


def test_the_noise_the_threads_and_what_is_missing_are_said() -> None:
    first, second, third = sentences(made_up())
    assert "rank 8 on all linear layers; 2 threads; a <processor>, 2 cores, torch 2.13.0, PEFT 0.21.2" in first
    assert second == "Noise, as the floor's ratio with itself: 32 x 16: ±1.2 %."
    assert third == "kasa was left out: rank 8 leaves nothing"
    assert "±0.01" in to_markdown(tables(made_up())["step_32x16"])


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"weights": "own"}, "Every model has frozen weights of its own."),
        ({}, "Models of ours share their frozen weights; PEFT's have their own."),
    ],
)
def test_whose_the_frozen_weights_were_is_said(weights: dict[str, str], said: str) -> None:
    assert said in tables({**made_up(), **weights})["step_32x16"].caption


def test_a_method_and_pefts_own_share_a_colour() -> None:
    bench = made_up()
    drawn = figure(bench, bench["shapes"][0])
    assert labels(bench) == ("lora", "svf")
    (points,) = [layer for layer in drawn.spec["layer"] if layer["mark"]["type"] == "point"]
    assert points["encoding"]["color"]["scale"] == {"domain": ["lora", "svf"], "range": list(COLOURS[:2])}
    values = [(v["method"], v["against"], v["value"]) for v in drawn.spec["datasets"][points["data"]["name"]]]
    assert values == [("lora", "ours", 1.2), ("lora", "PEFT's own", 1.33), ("svf", "ours", 1.5)]
    assert "lora PEFT's own 1.33 [1.31, 1.36]" in drawn.alt


def test_the_page_holds_itself_together(tmp_path: Path) -> None:
    written = {path.name for path in write_bench(made_up(), tmp_path)}
    assert written == {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "table.md", "table.tex", "table_costs.csv", "figure_step_32x16.svg"} <= written
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;toy&lt;/b&gt;" in page
    assert "<b>toy" not in page
    assert "a &lt;processor&gt;" in page
    for section in ("step_32x16", "costs", "provenance"):
        assert f'href="#{section}"' in page
        assert f'id="{section}"' in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    again = tmp_path / "again"
    write_bench(made_up(), again)
    assert all((again / name).read_bytes() == (tmp_path / name).read_bytes() for name in written)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_bench(made_up(), tmp_path / "file")


def test_it_is_said_whose_products_are_compared():
    found = made_up()
    assert not any("oneDNN" in sentence for sentence in sentences(found))
    found["environment"]["products"] = "onednn"
    assert any("PEFT stands on torch's own layers" in sentence for sentence in sentences(found))
