"""Reading a results folder: what is found, and what is said of a folder that cannot be used."""

from __future__ import annotations

import copy
import json
import re

import pytest
from report_samples import all_records, diverged, failed, relabelled, suite, write_folder

from reports import UnusableResults, load


def test_everything_is_found(tmp_path):
    results = load(write_folder(tmp_path, all_records()))
    assert results.labels[:2] == ("lora", "dora")
    assert (results.baseline, results.probe, results.left_out) == ("lora", "probe", 0)
    assert results.outcomes("lora").keys() == {1, 2, 3}
    assert len(results.of("lora", "search")) == 3
    assert results.chosen_lr("lora") == 5e-3
    assert results.parameters("lora")["trainable"] == 73728
    assert results.merging("lora")["items"] == 200
    assert results.resolution == 1 / 500
    assert results.speed["rounds"] == 15
    assert results.quantised["nf4"]["8"].keys() == {"qlora", "loftq", "qpissa"}
    assert [start["relative_change"] for start in results.starts("lora")] == [0.0] * 3
    assert results.wall["workers"] == 2


def test_labels_come_from_method_and_hyperparameters(tmp_path):
    described = suite()
    again = copy.deepcopy(described["methods"][0])
    again["label"], again["method"]["hyperparameters"]["rank"] = "lora r16", 16
    described["methods"].append(again)
    records = all_records()
    for record in copy.deepcopy([r for r in records if r["run"].get("method", {}).get("name") == "lora"]):
        record["run"]["method"]["hyperparameters"]["rank"] = 16.0  # JSON writers differ: 16 and 16.0 are one number
        records.append(record | {"key": record["key"] + "-r16"})
    results = load(write_folder(tmp_path, records, described))
    assert len(results.of("lora", "final")) == len(results.of("lora r16", "final")) == 3


def test_methods_that_left_the_suite_are_counted(tmp_path):
    results = load(write_folder(tmp_path, all_records(), suite(["lora", "full"])))
    assert results.left_out == 6 * 6


def test_a_run_computed_again_counts_once(tmp_path):
    records = all_records()
    results = load(write_folder(tmp_path, [failed(records[3]), *records]))
    assert {run.status for run in results.runs} == {"done"}
    assert len(results.records) == len(records)


def test_diverged_runs_have_no_score(tmp_path):
    records = [diverged(r) if r["key"].startswith("dora-final") else r for r in all_records()]
    results = load(write_folder(tmp_path, records))
    assert results.outcomes("dora") == {}
    assert results.parameters("dora")["trainable"] == 78336


def test_wall_time_may_be_missing(tmp_path):
    assert load(write_folder(tmp_path, all_records(), wall=False)).wall is None


def test_a_label_is_only_a_label(tmp_path):
    hostile = "<script>alert(1)</script>"
    records = relabelled(all_records(), "dora", hostile)
    results = load(write_folder(tmp_path, records, relabelled(suite(), "dora", hostile)))
    assert hostile in results.labels
    assert len(results.outcomes(hostile)) == 3


def test_no_folder(tmp_path):
    with pytest.raises(UnusableResults, match=r"suite\.json is missing"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("suite.json", "{", r"suite\.json is damaged"),
        ("suite.json", "[]", "expected a JSON object, got list"),
        ("suite.json", "{}", "does not describe a suite"),
        ("suite.json", json.dumps({"suite": {**suite(), "baseline": "nobody"}}), "does not describe a suite"),
        ("records.jsonl", '{"key": "a"', r"records\.jsonl, line 1, is damaged"),
        ("records.jsonl", "\n[1]", "line 2, is damaged: not a record"),
        ("records.jsonl", '{"key": "a", "run": {"kind": "score"}, "status": "done", "measures": {}}', "not a record"),
        ("wall.json", "nonsense", r"wall\.json is damaged"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, name, text, message):
    write_folder(tmp_path, all_records())
    (tmp_path / name).write_text(text)
    with pytest.raises(UnusableResults, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("protocol.racing", "x", "protocol.racing is 'x', expected a whole number from 2 to 99"),
        ("protocol.racing", 0, "protocol.racing is 0, expected a whole number from 2 to 99"),
        ("protocol.rungs", 500, "protocol.rungs is 500"),
        ("protocol.trials", "x", "protocol.trials is 'x'"),
        ("protocol.seeds", True, "protocol.seeds is True"),
        ("protocol.margin", "0.5", "protocol.margin is no number"),
        ("protocol.space", {"lr": 3}, "protocol.space has more than lists"),
        ("protocol.space", [1], "protocol.space has more than lists"),
        ("protocol.space", {"lr": [1e-3, 1e-1, "log"]}, "protocol.space has no trials"),
        ("protocol", None, "protocol is no object"),
        ("training", 5, "training is no object"),
        ("training.steps", "x", "training.steps is 'x'"),
        ("methods", [{"label": "lora", "method": None}], "methods is no list of methods"),
        ("methods", [{"label": {}, "method": {"name": "lora"}}], "methods is no list of methods"),
        ("baseline", [], "baseline is none of the methods"),
        ("benchmark", None, "benchmark is no text"),
    ],
)
def test_a_suite_of_another_shape_is_refused_in_one_line(tmp_path, place, value, message):
    described = suite()
    *above, last = place.split(".")
    inner = described
    for name in above:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(UnusableResults, match=re.escape(f"does not describe a suite ({message}")) as caught:
        load(write_folder(tmp_path, all_records(), described))
    assert "\n" not in str(caught.value)


POINT = {"step": 1, "seconds": 0.1, "score": 0.5, "loss": 1.0}


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        *(("curve", value) for value in (None, 5, {}, {"points": [{}]}, {"items": 9, "points": None})),
        ("curve", {"items": 0, "points": []}),
        ("curve", {"items": 9, "points": [POINT | {"score": None}]}),
        ("curve", {"items": 9, "points": [POINT | {"step": 0}]}),
        *(("score", value) for value in (None, 5, {"items": None}, {"items": {"gold": [1], "predicted": []}})),
    ],
)
def test_a_record_of_another_shape_is_refused_in_one_line(tmp_path, measure, value):
    records = all_records()
    records[3]["measures"][measure] = value
    with pytest.raises(UnusableResults, match=rf"line 4, is damaged: not a record \(a {measure} of another shape\)"):
        load(write_folder(tmp_path, records))


@pytest.mark.parametrize(("name", "value"), [("lr", "x"), ("seed", 1.5), ("method", 5), ("training", [1])])
def test_a_run_of_another_shape_is_refused(tmp_path, name, value):
    records = all_records()
    records[3]["run"][name] = value
    with pytest.raises(UnusableResults, match="line 4, is damaged: not a record"):
        load(write_folder(tmp_path, records))


def test_sound_shapes_pass(tmp_path):
    records = all_records()
    records[3]["measures"]["curve"] = {"items": 9, "points": [POINT]}
    described = suite()
    described["protocol"] |= {"racing": None, "rungs": 2, "space": None, "trials": None}
    assert load(write_folder(tmp_path, records, described)).left_out == 0


def test_missing_records(tmp_path):
    write_folder(tmp_path, all_records())
    (tmp_path / "records.jsonl").unlink()
    with pytest.raises(UnusableResults, match=r"records\.jsonl is missing"):
        load(tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    write_folder(tmp_path, all_records())
    (tmp_path / "records.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UnusableResults, match="cannot be read"):
        load(tmp_path)


def test_two_final_runs_of_one_seed_are_refused(tmp_path):
    records = all_records()
    twice = next(record for record in records if record["key"].startswith("lora-final"))
    with pytest.raises(UnusableResults, match="'lora' has 2 final runs with seed 1; keep one"):
        load(write_folder(tmp_path, [*records, twice | {"key": "another"}]))


def test_final_runs_at_two_rates_are_refused(tmp_path):
    records = all_records()
    records[-3]["run"]["lr"] *= 2
    with pytest.raises(UnusableResults, match="'probe' has final runs at two learning rates"):
        load(write_folder(tmp_path, records))
