"""The checklist and the log of runs: golden, and honest about what is absent."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
import report_samples as samples

from reports import load
from reports.checklist import checklist, checklist_markdown, search_space_table
from reports.render import to_csv
from reports.runlog import last_loss, runs_table, training_seconds
from reports.write import write_report

GOLDEN = Path(__file__).parent / "golden" / "checklist.md"


def results_of(folder, records, described=None, **more):
    return load(samples.write_folder(folder, records, described, **more))


def broken():
    """One search run that diverged, one final run that failed."""
    made = {"dora-search-0.0158-0": samples.diverged, "full-final-0.0005-2": samples.failed}
    return [made.get(r["key"], lambda same: same)(r) for r in samples.all_records()]


def test_golden(tmp_path):
    written = checklist_markdown(results_of(tmp_path, broken()))
    if os.environ.get("SVDBENCH_UPDATE_GOLDEN"):
        GOLDEN.write_text(written, encoding="utf-8")
    assert written == GOLDEN.read_text(encoding="utf-8")


def test_it_stands_in_the_page_and_in_the_document(tmp_path):
    write_report(samples.write_folder(tmp_path, samples.all_records()))
    assert "## Reproducibility checklist" in (tmp_path / "table.md").read_text(encoding="utf-8")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<section id="checklist">' in page
    assert "Command to run it again" in page


def test_without_records_it_says_so(tmp_path):
    answers = dict(checklist(results_of(tmp_path, [], wall=False)))
    assert answers["Number of runs"] == "0: 0 of the search, 0 final; none failed or diverged"
    for question in ("Runtime", "Infrastructure", "Digests", "Parameters", "Data scored"):
        assert answers[question] == "not in the records"
        assert f"{question.lower()}: not in the records" in answers["What is missing"]


def test_seeds_that_search_and_final_runs_share_are_named(tmp_path):
    records = samples.all_records()
    for record in records:
        if record["run"].get("stage") == "search":
            record["run"]["seed"] = 2
    assert (
        "careful: search and final runs share seeds 2"
        in dict(checklist(results_of(tmp_path, records)))["Selection criterion"]
    )


@pytest.mark.parametrize(
    ("dropout", "expected"), [(0.0, "no dropout is used"), (0.1, "adapter initialisation and dropout")]
)
def test_dropout_is_an_axis_only_where_it_is_used(tmp_path, dropout, expected):
    described = samples.suite()
    described["training"]["adapter_dropout"] = dropout
    assert expected in dict(checklist(results_of(tmp_path, samples.all_records(), described)))["What a seed changes"]


def test_the_search_space(tmp_path):
    rows = {
        row[0].value: [cell.value for cell in row] for row in search_space_table(results_of(tmp_path, broken())).rows
    }
    assert rows["dora"][1:3] == [3, 3]  # the diverged one was a trial
    assert rows["full"][3:6] == pytest.approx([0.0005 * 10**-0.5, 0.0005 * 10**0.5, 0.0005])


def test_the_log_has_every_run(tmp_path):
    results = results_of(tmp_path, broken())
    rows = list(csv.DictReader(io.StringIO(to_csv(runs_table(results)))))
    assert len(rows) == len(results.runs) == len(samples.METHODS) * 6
    (diverged,) = (row for row in rows if row["status"] == "diverged")
    assert (diverged["method"], diverged["accuracy"], diverged["last_training_loss"]) == ("dora", "", "1.1")
    (failed,) = (row for row in rows if row["status"] == "failed")
    assert failed["reason"] == "OSError: no space left on device"
    assert failed["last_training_loss"] == ""


def test_times_and_losses_of_a_run(tmp_path):
    record = samples.all_records()[0]
    record["seconds"] = {"attach": 0.5, "forward": 2.0, "backward": 1.0, "evaluation": 9.0, "total": 13.0}
    record["measures"]["training"]["loss"] = [2.0, float("nan")]
    (run,) = results_of(tmp_path, [record]).runs
    assert training_seconds(run) == 3.5
    assert last_loss(run) is None
