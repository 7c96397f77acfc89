"""Curves over learning rates and budgets, and figures as PDF."""

from __future__ import annotations

import random
import re

import altair as alt
import pytest
import report_samples as samples

from reports import load
from reports.budget_figures import expected_seconds_figure, expected_trials_figure, seconds_figure
from reports.drawing import pdf
from reports.figures import figures
from reports.rate_figures import rates_figure


def results_of(folder, records, described=None):
    return load(samples.write_folder(folder, records, described))


def layers_of(figure):
    """Each layer's mark and rows; data that all layers share stand above them."""
    spec = figure.spec
    return [
        (layer["mark"]["type"], spec["datasets"][layer.get("data", spec.get("data"))["name"]])
        for layer in spec["layer"]
    ]


def several_seeds(offsets=(-0.02, 0.0, 0.03)):
    """All records, and every search run with more seeds at fixed distances."""
    records = samples.all_records()
    for i, record in enumerate(list(records)):
        if record["run"].get("stage") == "search":
            accuracy = record["measures"]["score"]["accuracy"]
            for seed, offset in enumerate(offsets):
                run = record["run"] | {"seed": 100 + seed}
                measures = record["measures"] | {"score": samples.score(accuracy + offset)}
                records.append(record | {"key": f"{i}-{seed}", "run": run, "measures": measures})
    return records


def test_expected_curves_rise_to_the_best(tmp_path):
    figure = expected_trials_figure(results_of(tmp_path, samples.all_records()))
    rows = [row for row in layers_of(figure)[0][1] if row["method"] == "full"]
    assert [row["trials"] for row in rows] == [1, 2, 3]
    assert [row["seconds"] for row in rows] == [1.0, 2.0, 3.0]
    assert rows[0]["value"] < rows[1]["value"] < rows[2]["value"] == pytest.approx(82.4)


def test_a_diverged_rate_is_a_trial_that_scored_lowest(tmp_path):
    records = [samples.diverged(r) if r["key"] == "full-search-0.0005-0" else r for r in samples.all_records()]
    figure = expected_trials_figure(results_of(tmp_path, records))
    rows = [row for row in layers_of(figure)[0][1] if row["method"] == "full"]
    assert len(rows) == 3
    assert rows[0]["value"] == pytest.approx((61.2 + 79.0 + 78.8) / 3)


def test_trials_without_times_have_no_place_among_seconds(tmp_path):
    records = [r | {"seconds": {}} for r in samples.all_records()]
    results = results_of(tmp_path, records)
    assert expected_trials_figure(results) is not None
    assert expected_seconds_figure(results) is None
    assert seconds_figure(results) is None


def test_one_rate_a_method_has_no_curves(tmp_path):
    records = [r for r in samples.all_records() if r["run"].get("stage") != "search"]
    results = results_of(tmp_path, records)
    assert (rates_figure(results), expected_trials_figure(results)) == (None, None)


def test_several_seeds_a_rate_make_a_band(tmp_path):
    figure = rates_figure(results_of(tmp_path, several_seeds()))
    (band, means), (point, single) = layers_of(figure)[:2]
    assert (band, point) == ("area", "point")
    row = next(row for row in means if row["method"] == "full" and row["chosen"])
    assert [row[name] for name in ("low", "value", "high", "seeds")] == pytest.approx([80.4, 82.65, 85.4, 4])
    assert sum(point["method"] == "full" for point in single) == 12
    assert "no confidence interval" in figure.caption
    alt.LayerChart.from_dict(figure.spec)


def test_one_seed_a_rate_has_no_band(tmp_path):
    figure = rates_figure(results_of(tmp_path, samples.all_records()))
    assert [mark for mark, _ in layers_of(figure)] == ["line", "point", "point"]
    assert figure.caption.startswith("One validation run a rate.")


def test_crosses_reach_both_ways(tmp_path):
    records = samples.all_records()
    for record in records:
        record["seconds"] = {"forward": 2.0, "backward": 1.0 + record["run"].get("seed", 0), "evaluation": 50.0}
    figure = seconds_figure(results_of(tmp_path, records))
    row = next(row for row in layers_of(figure)[0][1] if row["method"] == "full")
    assert row["seconds"] == 5.0  # of seeds 1, 2 and 3, scoring left out
    assert row["slowest"] - row["seconds"] == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert row["low"] < row["value"] < row["high"]
    upright, level = figure.spec["layer"][:2]
    assert {"y2"} <= upright["encoding"].keys()
    assert {"x2"} <= level["encoding"].keys()


def test_a_pdf_has_the_same_bytes_every_time(tmp_path):
    figure = figures(results_of(tmp_path, samples.all_records()))["rates"]
    first = pdf(figure)
    assert first.startswith(b"%PDF-")
    assert all(pdf(figure) == first for _ in range(5))


def test_a_pdf_points_at_its_objects(tmp_path):
    document = pdf(figures(results_of(tmp_path, samples.all_records()))["quantised"])
    table = document[int(document.split(b"startxref")[1].split()[0]) :]
    places = [int(place) for place in re.findall(rb"(\d{10}) 00000 n", table)]
    assert len(places) > 5
    for number, place in enumerate(places, start=1):
        assert document[place:].startswith(b"%d 0 obj" % number)


def test_legends_fit_a_phone(tmp_path):
    labels = {"short": [f"m{i}" for i in range(8)], "long": [f"a very long method {i}" for i in range(8)]}
    columns = {}
    for kind, names in labels.items():
        described, records = samples.suite(), samples.all_records()
        for old, new in zip(samples.METHODS, names, strict=True):
            described = samples.relabelled(described, old, new)
        described["baseline"] = names[0]
        figure = rates_figure(results_of(tmp_path / kind, records, described))
        columns[kind] = figure.spec["layer"][0]["encoding"]["color"]["legend"]["columns"]
    assert columns == {"short": 4, "long": 2}


def test_the_order_of_records_changes_nothing(tmp_path):
    records = several_seeds()
    made = figures(results_of(tmp_path / "a", records))
    random.Random(0).shuffle(records)
    again = figures(results_of(tmp_path / "b", records))
    for key in ("rates", "expected_trials", "expected_seconds", "seconds"):
        assert again[key].spec == made[key].spec
