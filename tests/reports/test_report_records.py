"""Reading a results folder: what is found, and what is said of a folder that cannot be used."""

from __future__ import annotations

import copy
import json

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


def test_final_runs_at_two_rates_are_refused(tmp_path):
    records = all_records()
    records[-3]["run"]["lr"] *= 2
    with pytest.raises(UnusableResults, match="'probe' has final runs at two learning rates"):
        load(write_folder(tmp_path, records))
