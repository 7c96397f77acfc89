"""Reports of comparisons in which training time was matched: the steps of each method, and no claim of equal steps."""

from __future__ import annotations

import pytest
import report_samples as samples

from reports import load
from reports.checklist import checklist
from reports.claims import opening
from reports.matching import matched_table
from reports.provenance import protocol
from reports.tables import main_table
from reports.verdicts import verdicts
from reports.write import all_tables, write_report

STEPS = {label: int(60 / ratio) for label, (*_, ratio) in samples.METHODS.items()} | {"stiefel": 50}  # too many: 1.35


def described(match="seconds"):
    return samples.suite() | {"match": match}


def records():
    made = samples.all_records()
    for record in made:
        if record["run"]["kind"] == "score":
            record["run"]["training"] = {"steps": STEPS[record["run"]["method"]["name"]]}
            record["seconds"] = {"attach": 0.1, "forward": 1.0, "backward": 1.0}
    return made


@pytest.fixture
def results(tmp_path):
    return load(samples.write_folder(tmp_path, records(), described()))


def cells(table, label):
    row = next(row for row in table.rows if row[0].value == label)
    return dict(zip((column.key for column in table.columns), row, strict=True))


def test_the_table_has_the_steps_and_the_noise_of_the_match(results):
    dora = cells(matched_table(results), "dora")
    assert (dora["steps"].value, dora["items_seen"].value) == (45, 45 * 16)
    ratio, whole = dora["step_time_ratio"], dora["training_time_ratio"]
    for bound in ("value", "low", "high"):
        assert getattr(whole, bound) == pytest.approx(getattr(ratio, bound) * 45 / 60)
    assert whole.low < whole.value < whole.high < 1.05
    assert dora["training_seconds"].value == pytest.approx(2.1)


def test_a_method_over_the_time_is_marked(results):
    table = matched_table(results)
    marked = [row[0].value for row in table.rows if any(cell.mark for cell in row)]
    assert marked == ["stiefel"]
    assert "takes longer than the baseline's" in table.used_notes[0][1]


def test_the_caption_says_what_was_matched_on_what(results):
    caption = matched_table(results).caption
    assert caption.startswith("Training time, not the number of steps, was matched")
    for part in ("lora's 60.", "15 interleaved rounds on 1 thread of Example CPU, 16 full rows of 16 tokens", "±0.01"):
        assert part in caption


def test_nothing_claims_equal_steps(results):
    answer = dict(checklist(results))["Training data"]
    assert "as many steps of 16 items as fit into the same time (lora 60, dora 45, " in answer
    assert "60 steps of" not in answer
    assert "steps are lora's: the others' were chosen for the same training time" in dict(protocol(results))["Training"]
    assert "Numbers of steps differ: they were chosen for the same training time." in main_table(results).caption
    assert opening(results, verdicts(results))[0].endswith("Numbers of steps were chosen for the same training time.")


def test_a_loose_match_is_said_in_the_opening(tmp_path, results):
    assert not any("match of training times" in sentence for sentence in opening(results, verdicts(results)))
    made = records()
    speed = next(record for record in made if record["run"]["kind"] == "speed")["measures"]["speed"]
    speed["methods"]["dora"]["ratio_baseline"] = {"median": 1.31, "low": 1.1, "high": 1.5}
    loose = load(samples.write_folder(tmp_path, made, described()))
    said = next(s for s in opening(loose, verdicts(loose)) if "match of training times" in s)
    assert "the step time of dora against lora is known to no better than ±10 %" in said


def test_methods_that_did_not_train_for_the_same_time_are_named(tmp_path, results):
    over = "By the measured step times stiefel (× 1.35) trained longer than lora."
    assert over in opening(results, [])
    assert not any("As they ran" in sentence for sentence in opening(results, [])), "the samples all took 2.1 s"
    made = records()
    for record in made:
        if record["run"].get("method", {}).get("name") == "dora":
            record["seconds"] = {"attach": 0.1, "forward": 3.0, "backward": 3.0}
    said = [s for s in opening(load(samples.write_folder(tmp_path, made, described())), []) if "As they ran" in s]
    assert said == [
        "As they ran, dora (× 2.90) trained over 10 % longer or shorter than lora: steps were matched as they were "
        "timed before."
    ]


def test_runs_that_diverged_say_nothing_of_training_times(tmp_path):
    made = records()
    for i, record in enumerate(made):
        if record["key"].startswith("pissa-final") and record["run"]["seed"] != 3:
            made[i] = samples.diverged(record) | {"seconds": {"attach": 0.1, "forward": 0.05}}
    results = load(samples.write_folder(tmp_path, made, described()))
    assert cells(matched_table(results), "pissa")["training_seconds"].value == pytest.approx(2.1)
    assert not any("As they ran" in sentence for sentence in opening(results, []))


def test_it_stands_in_the_page(tmp_path):
    write_report(samples.write_folder(tmp_path, records(), described()))
    assert "<summary>Training time</summary>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "table_matched.csv").is_file()


def test_before_the_first_run_only_times_are_known(tmp_path):
    results = load(samples.write_folder(tmp_path, [samples.speed_record()], described()))
    dora = cells(matched_table(results), "dora")
    assert (dora["steps"].value, dora["step_time_ratio"].value) == (None, 1.31)
    assert "not known yet" in dict(checklist(results))["Training data"]
    assert matched_table(load(samples.write_folder(tmp_path, [], described()))) is None


@pytest.mark.parametrize("suite", [samples.suite(), described("steps")])
def test_equal_steps_have_no_such_table(tmp_path, suite):
    results = load(samples.write_folder(tmp_path, samples.all_records(), suite))
    assert "matched" not in all_tables(results)
    assert "60 steps of 16 items" in dict(checklist(results))["Training data"]
    assert "training time" not in opening(results, verdicts(results))[0]
