"""Reports of many methods at one rate each: nothing crowds out of its place, and sentences stay readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import pytest
import report_samples as samples

from reports.claims import opening
from reports.figures import figures
from reports.loading import load
from reports.page import page
from reports.records import Results
from reports.verdicts import verdicts
from reports.write import all_tables

COPIES = [f"lora of rank {rank}" for rank in range(16, 26)]


def many(folder: Path) -> Results:
    """The eight methods, and ten LoRAs, at one rate and two seeds; one of them on layers of its own."""
    described = samples.suite(seeds=2)
    described["protocol"]["points"] = 1
    records = [r for r in samples.all_records(seeds=2) if r["run"]["kind"] == "score"]
    records = [r for r in records if r["run"]["stage"] == "final"]  # nothing to choose, hence no search
    for i, label in enumerate(COPIES):
        method = {"name": "lora", "hyperparameters": {"rank": 16 + i, "alpha": 16.0}}
        described["methods"].append(
            {"label": label, "method": method, "lr": None, "where": ["key"] if i == 0 else None}
        )
        for record in [
            r for r in records if r["run"]["method"] == {"name": "lora", "hyperparameters": {"rank": 8, "alpha": 16.0}}
        ]:
            where = ["key"] if i == 0 else ["query", "value"]
            records.append(
                {**record, "key": f"{record['key']}-{i}", "run": {**record["run"], "method": method, "where": where}}
            )
    return load(samples.write_folder(folder, records, described))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return many(tmp_path)


def rows_of(spec: dict[str, Any], layer: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = spec["datasets"][spec["layer"][layer]["data"]["name"]]
    return rows


def test_a_row_a_method_best_mean_first(results: Results) -> None:
    made = figures(results)
    assert not {"rates", "speed"} & made.keys(), "with one rate there is no choice to draw; speed was not measured"
    alt.LayerChart.from_dict(made["score"].spec)
    spec = made["score"].spec
    points = rows_of(spec, -1)
    assert {row["method"] for row in points} == {*samples.METHODS, *COPIES}
    order = spec["layer"][-1]["encoding"]["y"]["sort"]
    means = {row["method"]: row["value"] for row in points}
    assert [means[name] for name in order] == sorted(means.values(), reverse=True)
    assert order[0] == "full"
    assert all(row["low"] <= row["value"] <= row["high"] for row in points)


def test_eight_methods_still_stand_at_their_parameter_counts(tmp_path: Path) -> None:
    made = figures(load(samples.write_folder(tmp_path, samples.all_records())))
    assert "trainable parameters" in made["score"].spec["layer"][-1]["encoding"]["x"]["title"]


def test_sentences_do_not_list_dozens(results: Results) -> None:
    said = opening(results, verdicts(results))
    assert said[0].startswith(
        "18 methods were compared on trec50 with minilm: each ran at one learning rate, which the"
    )
    assert any(s.startswith("Nothing is decided between lora and the other 17 methods") for s in said) == (
        not any(s.startswith("Against lora") for s in said)
    )


def test_a_method_on_layers_of_its_own_keeps_its_records(results: Results) -> None:
    assert len(results.of(COPIES[0], "final")) == 2


def test_the_page_names_what_it_draws(results: Results) -> None:
    made = figures(results)
    written = page(results, [], [], all_tables(results), made, dict.fromkeys(made, "<svg></svg>"))
    assert "<h2>Score</h2>" in written
    assert "it takes runs at more than one rate a method" in written
    assert "Score against parameters" not in written
