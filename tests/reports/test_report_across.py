"""The report over several benchmarks: known numbers, what is refused, what is left out, and the page."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import altair as alt
import pytest
import report_samples as samples
from test_report_page import Elements

import tasks
from commands import shared
from reports import UnusableResults, write_across
from reports.across import Across, across
from reports.across.aggregates import aggregates, ranking
from reports.across.claims import opening
from reports.across.figures import figures
from reports.across.normalised import normalised, scale
from reports.across.tables import all_tables
from reports.render import to_csv
from reports.statistics import CriticalDifference, Refusal

Scores = Mapping[str, list[float]]
# Normalised: lora 0.40 0.44 and 0.5 0.6, pissa 0.60 0.64 and 0.5 0.4.
FIRST: Scores = {"lora": [0.70, 0.72], "pissa": [0.80, 0.82], "probe": [0.50, 0.50]}
SECOND: Scores = {"lora": [0.80, 0.84], "pissa": [0.80, 0.76], "probe": [0.60, 0.60]}
Change = Callable[[dict[str, Any], list[samples.Record]], None]


def write_task(folder: Path, name: str, scores: Scores, change: Change | None = None) -> Path:
    """A results folder of one benchmark in which every method's final runs have these scores, at one given rate."""
    described = samples.suite(scores, seeds=max(map(len, scores.values())))
    described |= {"name": f"quick-{name}", "benchmark": name, "speed": None, "merging": None}
    described["protocol"]["points"] = 1
    runs = ((label, seed, score) for label, found in scores.items() for seed, score in enumerate(found, start=1))
    records = [samples.score_record(label, "final", 1e-3, seed, score) for label, seed, score in runs]
    if change:
        change(described, records)
    return samples.write_folder(folder / name.replace("/", "-"), records, described)


def two(folder: Path, change: Change | None = None) -> list[Path]:
    """Two folders of known numbers, the second one changed."""
    return [write_task(folder, "first", FIRST), write_task(folder, "second", SECOND, change)]


@pytest.fixture
def known(tmp_path: Path) -> Across:
    return across(two(tmp_path))


def test_numbers_by_hand(known: Across) -> None:
    found = aggregates(known)
    assert scale(known).zeros == pytest.approx({"first": 0.5, "second": 0.6})
    assert normalised(known)["pissa"]["second"] == pytest.approx([0.5, 0.4])
    assert {label: one.mean_rank for label, one in found.items()} == {"lora": 1.5, "pissa": 1.5, "probe": 3.0}
    assert found["lora"].iqm.value == pytest.approx(0.47)
    assert found["pissa"].iqm.value == pytest.approx(0.55)
    assert found["pissa"].mean.value == pytest.approx(0.535)
    assert found["pissa"].improvement.value == pytest.approx((1 + 0.125) / 2)
    assert found["pissa"].mean.half is not None
    assert found["pissa"].iqm.half is None, "two seeds are too few for a bootstrap"


def test_verdicts_are_those_of_each_benchmark(known: Across) -> None:
    """first: the paired differences to lora are 0.1 and 0.1; second: 0 and -0.08."""
    assert aggregates(known)["pissa"].verdicts == {"better": 1, "undecided": 1}
    assert aggregates(known)["lora"].verdicts == {}
    said = opening(known)
    assert "with minilm: the learning rate is that which the suite gives, and only final runs" in said[0]
    assert "pissa is better than lora on 1 of 2 benchmarks and undecided on 1." in said
    assert any(
        sentence.startswith("No ranking over benchmarks may be claimed: 2 tasks are too few") for sentence in said
    )
    assert any("have no interval, and no claim rests on them: that takes 10 seeds" in sentence for sentence in said)


def test_no_method_moves_another_ones_numbers(tmp_path: Path, known: Across) -> None:
    """As the best, or the worst, one of the pool would if it set an end of the scale."""
    more = {"full": [0.98, 0.99], "dora": [0.1, 0.2]}
    wider = [write_task(tmp_path / "wider", name, {**s, **more}) for name, s in (("first", FIRST), ("second", SECOND))]
    here, there = aggregates(known), aggregates(across(wider))
    for label in FIRST:
        assert (here[label].mean, here[label].iqm) == (there[label].mean, there[label].iqm)
        assert here[label].improvement == there[label].improvement


def test_without_a_probe_scores_stay_as_they_are(tmp_path: Path) -> None:
    second = {label: found for label, found in SECOND.items() if label != "probe"}
    found = across([write_task(tmp_path, "first", FIRST), write_task(tmp_path, "second", second)])
    assert found.left_out == {"probe": ("second",)}
    assert normalised(found) == {label: found.scores(label) for label in ("lora", "pissa")}
    assert (
        "Careful: scores are not normalised by the probe, because there is no score of a probe on second."
        in opening(found)
    )


def test_a_probe_that_leaves_nothing_to_win_is_no_zero(tmp_path: Path) -> None:
    easy = {"lora": [0.97, 0.98], "pissa": [0.99, 0.97], "probe": [0.96, 0.96]}
    found = across([write_task(tmp_path, "first", FIRST), write_task(tmp_path, "easy", easy)])
    assert set(scale(found).zeros.values()) == {0.0}
    assert "the probe leaves less than 5.0 points to be won on easy" in all_tables(found)["main"].caption


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    def lose(_described: Any, records: list[samples.Record]) -> None:
        records[:] = [
            samples.diverged(r) if r["key"].startswith("pissa-final") and r["run"]["seed"] == 2 else r for r in records
        ]

    found = across(two(tmp_path, lose))
    assert found.scores("pissa")["second"] == [0.80, None]
    assert normalised(found)["pissa"]["second"] == pytest.approx([0.5, 0.0])
    assert aggregates(found)["pissa"].ranks == {"first": 1.0, "second": 2.0}
    row = next(row for row in all_tables(found)["scores"].rows if row[0].value == "pissa")
    assert (row[3].value, row[3].mark) == (pytest.approx(0.80), "§")
    note = dict(all_tables(found)["scores"].used_notes)["§"]
    assert "a diverged run counts as one of the probe, normalised 0." in note


def test_a_diverged_run_weighs_no_more_where_little_is_to_be_won(tmp_path: Path) -> None:
    """As a score of 0 beside a probe at 0.94 it would count as nearly minus sixteen perfect runs."""

    def lose(_described: Any, records: list[samples.Record]) -> None:
        records[:] = [samples.diverged(r) if r["key"].startswith("pissa-final-0.001-1") else r for r in records]

    easy = {"lora": [0.95, 0.95], "pissa": [0.96, 0.96], "probe": [0.94, 0.94]}
    found = across([write_task(tmp_path, "first", FIRST), write_task(tmp_path, "easy", easy, lose)])
    assert normalised(found)["pissa"]["easy"] == pytest.approx([0.0, 1 / 3])
    assert aggregates(found)["pissa"].mean.value == pytest.approx((0.62 + 1 / 6) / 2)


def test_without_a_probe_a_diverged_run_scores_nothing(tmp_path: Path) -> None:
    def lose(_described: Any, records: list[samples.Record]) -> None:
        records[:] = [samples.diverged(r) if r["key"].startswith("pissa-final-0.001-1") else r for r in records]

    second = {label: found for label, found in SECOND.items() if label != "probe"}
    found = across([write_task(tmp_path, "first", FIRST), write_task(tmp_path, "second", second, lose)])
    assert normalised(found)["pissa"]["second"] == [0.0, 0.76]
    assert "a diverged run scores 0 points." in dict(all_tables(found)["scores"].used_notes)["§"]


def test_a_method_that_lacks_a_benchmark_is_left_out_by_name(tmp_path: Path) -> None:
    more = {**FIRST, "dora": [0.7, 0.7], "milora": [0.7, 0.7]}

    def fail(_described: Any, records: list[samples.Record]) -> None:
        records[:] = [samples.failed(r) if r["key"].startswith("dora") else r for r in records]

    here = write_task(tmp_path, "first", more)
    there = write_task(tmp_path, "second", {**SECOND, "dora": [0.7, 0.7], "full": [0.9, 0.9]}, fail)
    found = across([here, there])
    assert found.labels == ("lora", "pissa", "probe")
    assert found.left_out == {"dora": ("second",), "milora": ("second",), "full": ("first",)}
    told = "dora (no final runs on second), milora (no final runs on second) and full (no final runs on first)"
    assert f"Left out: {told}." in opening(found)
    assert [row[0].value for row in all_tables(found)["left_out"].rows] == ["dora", "milora", "full"]


def test_benchmarks_that_were_not_run_alike_are_named(tmp_path: Path, known: Across) -> None:
    def timed(described: Any, records: list[samples.Record]) -> None:
        described["match"] = "seconds"
        for record in records:
            record["run"]["training"] = {
                "steps": {"lora": 60, "pissa": 40, "probe": 90}[record["run"]["method"]["name"]]
            }

    found = across(two(tmp_path / "timed", timed))
    assert "Careful: the benchmarks were not run alike: what is matched, steps or seconds differs." in opening(found)
    table = all_tables(found)["tasks"]
    place = [column.key for column in table.columns].index("matched")
    assert [[cell.value for cell in row[place : place + 2]] for row in table.rows] == [
        ["steps", "60"],
        ["seconds", "40 to 90"],
    ]
    assert "but steps where seconds were matched" in table.caption
    assert all_tables(known)["tasks"].caption.endswith("within one they are the same for all methods.")
    assert not any("not run alike" in sentence for sentence in opening(known))

    def searched(described: Any, _records: Any) -> None:
        described["protocol"] |= {"trials": 3, "space": {"lr": [1e-3, 1e-1, "log"], "rank": [4, 8]}}

    def raced(described: Any, _records: Any) -> None:
        described["protocol"] |= {"points": 4, "racing": 2}

    for name, change, what in (("space", searched, "what is searched"), ("race", raced, "whether and how learning")):
        said = [s for s in opening(across(two(tmp_path / name, change))) if "not run alike" in s]
        assert len(said) == 1
        assert what in said[0]


def test_methods_are_shown_as_each_benchmark_chose_them(tmp_path: Path, known: Across) -> None:
    def chose(rank: int) -> Change:
        def change(described: Any, records: list[samples.Record]) -> None:
            described["protocol"] |= {"trials": 3, "space": {"lr": [1e-3, 1e-1, "log"], "rank": [4, 8, 16]}}
            for record in records:
                if record["run"]["method"]["name"] == "pissa":
                    record["run"]["method"] = {"name": "pissa", "hyperparameters": {"rank": rank}}

        return change

    found = across([write_task(tmp_path, "first", FIRST, chose(4)), write_task(tmp_path, "second", SECOND, chose(16))])
    table = all_tables(found)["methods"]
    rows = [[cell.value for cell in row[:4]] for row in table.rows]
    assert [row for row in rows if row[1] == "pissa"] == [
        ["first", "pissa", "pissa", "rank = 4"],
        ["second", "pissa", "pissa", "rank = 16"],
    ]
    assert table.caption.startswith("What a search chose of the hyperparameters may differ between benchmarks.")
    assert [row[0].value for row in all_tables(known)["methods"].rows] == ["lora", "pissa", "probe"]


# ---- what is refused ------------------------------------------------------------------------------------------------


def _model(described: Any, _records: Any) -> None:
    described["model"] = "bert"


def _digest(_described: Any, records: Any) -> None:
    for record in records:
        record["run"]["identity"] = samples.IDENTITY | {"model": "other"}


def _baseline(described: Any, _records: Any) -> None:
    described["baseline"] = "pissa"


def _rank(described: Any, records: Any) -> None:
    for method in [e["method"] for e in described["methods"]] + [r["run"]["method"] for r in records]:
        if method["name"] == "pissa":
            method["hyperparameters"] = {"rank": 4}


def _where(described: Any, records: Any) -> None:
    described["where"] = ["key"]
    for record in records:
        record["run"]["where"] = ["key"]


def _name(described: Any, _records: Any) -> None:
    described["benchmark"] = "first"


def _no_baseline(_described: Any, records: Any) -> None:
    records[:] = [record for record in records if not record["key"].startswith("lora")]


def _only_baseline(_described: Any, records: Any) -> None:
    records[:] = [record for record in records if record["key"].startswith("lora")]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_model, r"the model is 'minilm' in .*first and 'bert' in .*second"),
        (_digest, r"the model's digest is 9f2c1b in .*first and other in .*second"),
        (_baseline, r"the baseline is 'lora' in .*first and 'pissa' in .*second"),
        (_rank, r"the method 'pissa' is name = pissa, .*rank = 8 in .*first and name = pissa, .*rank = 4 in .*second"),
        (_where, r"the method 'lora' is .*'query', 'value'.* in .*first and .*'key'.* in .*second"),
        (_name, r"first and .*second are both on first; give each benchmark once"),
        (_no_baseline, r"the baseline 'lora' has no final runs on second: run that to its end"),
        (_only_baseline, "no method but the baseline has final runs on every benchmark"),
    ],
)
def test_folders_that_cannot_be_compared_are_refused_in_one_line(tmp_path: Path, change: Change, why: str) -> None:
    folders = two(tmp_path, change)
    with pytest.raises(UnusableResults, match=why) as refused:
        write_across(folders, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_equal_numbers_of_another_kind_are_no_difference(tmp_path: Path) -> None:
    def whole(described: Any, _records: Any) -> None:
        described["methods"][0]["method"] = {"name": "lora", "hyperparameters": {"rank": 8, "alpha": 16}}

    assert across(two(tmp_path, whole)).labels == ("lora", "pissa", "probe")


def test_results_are_never_written_over(tmp_path: Path) -> None:
    folders = two(tmp_path)
    with pytest.raises(UnusableResults, match=r"first holds the runs of a comparison \(suite.json\): give another"):
        write_across(folders, folders[0])
    with pytest.raises(UnusableResults, match="takes two results folders or more, got 1"):
        across(folders[:1])


# ---- many seeds, many benchmarks ------------------------------------------------------------------------------------


def test_ten_seeds_bring_intervals_that_hold_the_number(tmp_path: Path) -> None:
    scores = {label: [s[0] + 0.01 * samples.wobble(i, len(label)) for i in range(10)] for label, s in FIRST.items()}
    found = across([write_task(tmp_path, name, scores) for name in ("first", "second")])
    pissa = aggregates(found)["pissa"]
    for cell in (pissa.mean, pissa.iqm):
        assert cell.low is not None
        assert cell.low < cell.value < cell.high
        assert cell.high - cell.low < 0.05
    assert (pissa.improvement.value, pissa.improvement.low) == (1.0, 1.0)
    assert aggregates(found) == aggregates(found), "the draws are fixed"
    assert "by a bootstrap that draws seeds anew" in all_tables(found)["main"].caption
    assert not any("no claim rests on them" in sentence for sentence in opening(found))


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Across:
    """As many benchmarks as three methods can be ranked on; pissa wins all."""
    folder = tmp_path_factory.mktemp("seven")
    moved = [{label: [score + 0.02 * i for score in found] for label, found in FIRST.items()} for i in range(7)]
    return across([write_task(folder, f"task{i}", scores) for i, scores in enumerate(moved)])


def test_enough_benchmarks_are_ranked(seven: Across) -> None:
    assert isinstance(ranking(seven), CriticalDifference)
    made = figures(seven)
    assert list(made) == ["scores", "differences", "profile", "ranking"]
    assert "mean ranks: pissa 1.00; lora 2.00; probe 3.00. 0 groups are not told apart." in made["ranking"].alt
    how = "(Wilcoxon's signed-rank test over benchmarks, Holm-corrected at 5 %)"
    assert (
        f"Over the benchmarks the ranking places pissa above lora, pissa above probe and lora above probe {how}."
        in (opening(seven))
    )


def test_methods_that_are_not_told_apart_share_a_bar(tmp_path: Path) -> None:
    ties = [{**FIRST, "pissa": [s + 0.002 * (-1) ** i for s in FIRST["lora"]]} for i in range(7)]
    found = across([write_task(tmp_path, f"task{i}", scores) for i, scores in enumerate(ties)])
    assert figures(found)["ranking"].alt.endswith("1 groups are not told apart.")


def test_the_profile_is_the_share_of_runs(known: Across) -> None:
    (values,) = figures(known)["profile"].spec["datasets"].values()
    pissa = [row for row in values if row["method"] == "pissa"]
    assert [row["score"] for row in pissa[1:-1]] == pytest.approx([0.4, 0.5, 0.6, 0.64])
    assert [row["share"] for row in pissa] == pytest.approx([100, 75, 50, 25, 0, 0])


def test_an_interval_of_any_width_leaves_the_means_apart(tmp_path: Path) -> None:
    wild = {"lora": [0.1, 0.9], "pissa": [0.8, 0.2], "probe": [0.4, 0.4]}  # half-widths of hundreds of points
    found = figures(across([write_task(tmp_path, "first", FIRST), write_task(tmp_path, "wild", wild)]))["scores"]
    low, high = found.spec["layer"][1]["encoding"]["x"]["scale"]["domain"]
    assert -10 < low < 40
    assert 81 < high < 130
    assert "Intervals that leave the frame are cut off" in found.caption


def test_figures_are_valid_vega_lite(seven: Across) -> None:
    for figure in figures(seven).values():
        alt.LayerChart.from_dict(figure.spec)  # checks against the schema
        assert len(figure.alt) > 60


# ---- the page -------------------------------------------------------------------------------------------------------

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a hostile label and a hostile benchmark, beside its two folders."""
    folder = tmp_path_factory.mktemp("across")

    def hostile(described: Any, _records: list[samples.Record]) -> None:
        described["methods"] = samples.relabelled(described["methods"], "pissa", HOSTILE)

    folders = [write_task(folder, "first", FIRST, hostile), write_task(folder, "a|<b>&_$#", SECOND, hostile)]
    write_across(folders, folder / "out")
    return folder


def test_every_file_is_there_and_the_page_holds_them(folder: Path) -> None:
    keys = ("scores", "differences", "profile")
    wanted = {"report.html", "table.md", "table.tex", "table.csv", "table_scores.csv", "table_verdicts.csv"}
    wanted |= {f"figure_{key}.{end}" for key in keys for end in ("svg", "pdf")}
    assert {path.name for path in (folder / "out").iterdir()} >= wanted
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    tags = Elements(page).tags
    links = {attrs["download"]: attrs["href"] for tag, attrs in tags if tag == "a" and "download" in attrs}
    assert {f"{key}.{end}" for key in ("main", "scores", "verdicts", "tasks") for end in ("csv", "tex", "md")} <= set(
        links
    )
    assert {f"{key}.{end}" for key in keys for end in ("svg", "pdf")} <= set(links)
    assert base64.b64decode(links["main.csv"].split(",")[1]) == (folder / "out" / "table.csv").read_bytes()
    addresses = [attrs[name] for _, attrs in tags for name in ("src", "href") if name in attrs]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "No diagram: 2 tasks are too few to rank 3 methods" in page


def test_names_cannot_leave_their_place(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert [tag for tag, _ in Elements(page).tags].count("script") == 3
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    written = (folder / "out" / "table.md").read_text(encoding="utf-8")
    assert "<script>" not in written
    assert r"a\|&lt;b&gt;&amp;\_\$\#" in written
    assert r"a\textbar{}\textless{}b\textgreater{}\&\_\$\#" in (folder / "out" / "table.tex").read_text(
        encoding="utf-8"
    )


def test_the_same_records_give_the_same_bytes_anywhere(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*/suite.json"):
        (tmp_path / path.parent.name).mkdir()
        for name in ("suite.json", "records.jsonl", "wall.json"):
            (tmp_path / path.parent.name / name).write_bytes((path.parent / name).read_bytes())
    again = write_across([tmp_path / "first", tmp_path / "a|<b>&_$#"], tmp_path / "elsewhere")
    assert len(again.files) > 10
    assert [f.name for f in again.files if f.read_bytes() != (folder / "out" / f.name).read_bytes()] == []


def test_tables_in_full_precision(known: Across) -> None:
    lines = to_csv(all_tables(known)["scores"]).splitlines()
    assert lines[0].startswith(
        "method,first_accuracy,first_accuracy_low,first_accuracy_high,first_rank,second_accuracy"
    )
    assert lines[2].split(",")[:2] == ["pissa", repr((0.80 + 0.82) / 2)]
    main = to_csv(all_tables(known)["main"]).splitlines()
    assert main[0].endswith("improvement,improvement_low,improvement_high,better,worse,practically_equal,undecided")
    assert re.fullmatch(r"pissa,1\.5,.*,0\.5625,,,1,0,0,1", main[2])


def test_the_command_line_writes_it_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(path) for path in two(tmp_path)]
    monkeypatch.setattr(shared.console, "width", 120)
    monkeypatch.chdir(tmp_path)

    def report(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["svdbench", "report", *arguments])
        with pytest.raises(SystemExit) as stopped:
            tasks.main()
        return int(stopped.value.code or 0)

    assert report(*folders) == 0
    assert (tmp_path / "results" / "across" / "report.html").is_file()
    assert "pissa is better than lora on 1 of 2 benchmarks" in " ".join(capsys.readouterr().out.split())
    assert report(*folders, "--out", "out") == 0
    assert (tmp_path / "out" / "table.csv").is_file()
    assert report(*folders, "--out", folders[1]) == 2
    assert "holds the runs of a comparison" in capsys.readouterr().err
    assert report(folders[0], "--out", "out") == 2
    assert report(folders[0], folders[0]) == 2
    assert "give each benchmark once" in capsys.readouterr().err
    assert isinstance(ranking(across([Path(f) for f in folders])), Refusal)
