"""Reports of a search over several hyperparameters: runs are known by their label, ranges and choices are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_samples as samples

from reports import load, loading
from reports.budget_figures import expected_trials_figure
from reports.checklist import checklist, search_space_table
from reports.claims import opening
from reports.provenance import protocol
from reports.rate_figures import rates_figure
from reports.rates import rates_table
from reports.records import Results
from reports.shared_rates import shared_rates
from reports.tables import methods_table
from reports.write import write_report

SPACE = {"lr": [1e-3, 1e-1, "log"], "rank": [2, 64, "int-log"], "head_lr": [1e-3, 1e-2, "log"], "warmup": [0.0, 0.1]}
POINTS = [  # rate, rank, head_lr, warmup; the second and the third share a rate
    (2e-3, 4, 0.00123, 0.0),
    (5e-3, 32, 0.004, 0.1),
    (5e-3, 8, 0.009, 0.0),
]


def record(
    label: str, point: tuple[float, int, float, float], stage: str, seed: int, accuracy: float
) -> dict[str, Any]:
    lr, rank, head_lr, warmup = point
    made = samples.score_record(label, stage, lr, seed, accuracy)
    made["run"]["training"] = {"steps": 60, "head_lr": 0.01 if label == "probe" else head_lr, "warmup": warmup}
    if label != "probe":
        method = made["run"]["method"]
        made["run"]["method"] = method | {"hyperparameters": method["hyperparameters"] | {"rank": rank}}
    made["measures"]["parameters"] = samples.parameters(label) | {"trainable": 1000 * rank}
    return made | {"key": f"{label}-{stage}-{lr}-{rank}-{seed}"}


def searched(folder: Path) -> Results:
    """Three settings of three methods; the second is the best."""
    labels = ("lora", "pissa", "probe")
    described = samples.suite(labels, seeds=2)
    described["protocol"] |= {"trials": 3, "space": SPACE, "space_seed": 0}
    described["training"] = {"steps": 60, "head_lr": 0.01, "warmup": 0.06}
    described["speed"] = described["merging"] = None
    made = []
    for label in labels:
        made += [record(label, point, "search", 0, found) for point, found in zip(POINTS, (0.5, 0.7, 0.6), strict=True)]
        made += [record(label, POINTS[1], "final", seed, 0.65 + 0.01 * seed) for seed in (1, 2)]
    return load(samples.write_folder(folder, made, described))


def test_runs_are_known_by_their_label_whatever_was_searched(tmp_path: Path) -> None:
    results = searched(tmp_path)
    assert results.left_out == 0
    assert {label: len(results.of(label, "search")) for label in results.labels} == {"lora": 3, "pissa": 3, "probe": 3}


def test_runs_with_other_fixed_hyperparameters_are_not(tmp_path: Path) -> None:
    searched(tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().replace('"alpha": 16.0', '"alpha": 4.0')
    (tmp_path / "records.jsonl").write_text(lines)
    results = load(tmp_path)
    assert (len(results.of("lora", "search")), results.left_out) == (0, 5)


def test_a_suite_that_searches_nothing_tells_its_methods_apart_by_everything(tmp_path: Path) -> None:
    """Under "defaults" the ranges do not count: two LoRAs of which the rank differs are two methods."""
    described = samples.suite(("lora", "pissa"), seeds=2)
    described["protocol"] |= {"ruleset": "defaults", "trials": 4, "space": SPACE}
    wide = described["methods"][0] | {"label": "wide", "method": samples.method("lora")}
    wide["method"] = {"name": "lora", "hyperparameters": wide["method"]["hyperparameters"] | {"rank": 64}}
    described["methods"].append(wide)
    made = [samples.score_record(label, "final", 5e-3, seed, 0.5) for label in ("lora", "pissa") for seed in (1, 2)]
    for seed in (1, 2):
        one = samples.score_record("lora", "final", 5e-3, seed, 0.8) | {"key": f"wide-{seed}"}
        made.append(one | {"run": one["run"] | {"method": wide["method"]}})
    results = load(samples.write_folder(tmp_path, made, described))
    assert results.outcomes("lora") == {1: 0.5, 2: 0.5}
    assert results.outcomes("wide") == {1: 0.8, 2: 0.8}


def test_a_match_by_all_hyperparameters_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_without", lambda _, method: method)
    with pytest.raises(AssertionError):
        test_runs_are_known_by_their_label_whatever_was_searched(tmp_path)


def test_the_search_space_shows_ranges_choices_and_what_is_left_out(tmp_path: Path) -> None:
    table = search_space_table(searched(tmp_path))
    keys = [column.key for column in table.columns]
    rows = {str(row[0].value): dict(zip(keys, (cell.value for cell in row), strict=True)) for row in table.rows}
    assert rows["lora"]["searched"] == "rank 2 to 64 (int-log); head_lr 0.001 to 0.01 (log); warmup 0 or 0.1"
    assert rows["lora"]["chosen"] == "rank = 32, head_lr = 0.004, warmup = 0.1"
    assert rows["lora"]["left_out"] == ""
    assert rows["probe"]["chosen"] == "warmup = 0.1"
    assert rows["probe"]["left_out"] == "rank, head_lr"


def test_what_was_never_drawn_differently_is_still_of_the_method(tmp_path: Path) -> None:
    """Both trials have the same alpha and warm-up, by chance."""
    described = samples.suite(("lora", "pissa"), seeds=2)
    described["protocol"] |= {
        "trials": 2,
        "space": {"lr": [1e-3, 1e-1, "log"], "alpha": [8, 16], "warmup": [0.0, 0.1]},
    }
    described["training"] = {"steps": 60, "warmup": 0.06}
    made = []
    for label in ("lora", "pissa"):
        for lr in (1e-3, 5e-3):
            one = samples.score_record(label, "search", lr, 0, 0.5 + lr)
            one["run"]["training"] = {"steps": 60, "warmup": 0.1}
            if label == "lora":
                one["run"]["method"] = {"name": "lora", "hyperparameters": {"rank": 8, "alpha": 8}}
            made.append(one)
    results = load(samples.write_folder(tmp_path, made, described))
    rows = {row[0].value: [cell.value for cell in row[-3:]] for row in search_space_table(results).rows}
    assert rows["lora"] == ["alpha 8 or 16; warmup 0 or 0.1 (always drawn: alpha 8 and warmup 0.1)", "", ""]
    assert rows["pissa"] == ["warmup 0 or 0.1 (always drawn: warmup 0.1)", "", "alpha"]


def test_methods_are_shown_as_the_final_runs_had_them(tmp_path: Path) -> None:
    row = [cell.value for cell in methods_table(searched(tmp_path)).rows[0]]
    assert row[2:4] == ["rank = 32, alpha = 16.0", 32000]


def test_trials_that_share_a_rate_stay_apart(tmp_path: Path) -> None:
    results = searched(tmp_path)
    rows = [[cell.value for cell in row] for row in rates_table(results).rows if row[0].value == "lora"]
    assert [(row[2], row[-1]) for row in rows if row[1] == 5e-3] == [
        ("rank = 32, head_lr = 0.004, warmup = 0.1", "chosen"),
        ("rank = 8, head_lr = 0.009, warmup = 0", ""),
    ]
    figure = expected_trials_figure(results)
    assert figure is not None
    assert "lora 70.0 after 3" in figure.alt
    assert not shared_rates(results), "they differ in more than the rate"


def test_no_line_joins_trials_that_differ_in_more_than_the_rate(tmp_path: Path) -> None:
    figure = rates_figure(searched(tmp_path))
    assert figure is not None
    assert "'type': 'line'" not in str(figure.spec)
    assert "no line joins them" in figure.caption
    plain = rates_figure(load(samples.write_folder(tmp_path / "plain", samples.all_records())))
    assert plain is not None
    assert "'type': 'line'" in str(plain.spec)


def test_words(tmp_path: Path) -> None:
    results = searched(tmp_path)
    assert "the setting of each was chosen among 3 on validation data" in opening(results, [])[0]
    answers = dict(checklist(results))
    assert answers["Trials a method"] == "3 (the same for all)"
    assert answers["Other hyperparameters"].startswith("searched: rank 2 to 64 (int-log); head_lr")
    assert answers["Selection criterion"].startswith("the setting with the best validation")
    assert dict(protocol(results))["Learning-rate grid"].startswith(
        "3 quasi-random settings a method: lr 0.001 to 0.1 (log)"
    )
    assert not any(results.on_edge(label) for label in results.labels), "random rates have no edge"
    write_report(tmp_path)
