"""Training time matched instead of steps: from made-up speed records to the steps in the runs, and their keys."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from evaluation.engines.local import seconds_left
from evaluation.listing import plan_table
from evaluation.pace import FEWEST, matched_steps
from evaluation.protocol import Plan
from evaluation.spec import (
    Entry,
    Method,
    Protocol,
    Quantised,
    Record,
    ScoreRun,
    Speed,
    SpeedRun,
    Training,
    Unusable,
    key,
    load_suite,
)
from tests.evaluation.test_protocol import by_key, left, plan, record

RATIOS = {"lora": 1.0, "dora": 1.31, "full": 0.8, "probe": 0.4}
STEPS = {"lora": 60, "dora": 45, "full": 75, "probe": 150}


def timed(match: str = "seconds", **changes: Any) -> Plan:
    return plan(tuple(RATIOS), **({"match": match, "training": Training(steps=60)} | changes))


def speed_record(p: Plan, ratios: dict[str, Any] = RATIOS, **changes: Any) -> Record:
    run = p.speed_run()
    measured = {label: {"ratio_baseline": {"median": ratio}} for label, ratio in ratios.items()}
    fields: dict[str, Any] = {
        "key": key(run),
        "run": run,
        "status": "done",
        "measures": {"speed": {"methods": measured}},
    }
    return Record(**(fields | changes))


def completed(p: Plan, known: dict[str, Record]) -> dict[str, Record]:
    """All records of a plan, round by round."""
    known = dict(known)
    while missing := [run for run in p.runs(known) if key(run) not in known]:
        known |= by_key(*(record(run) for run in missing))
    return known


def steps_in(p: Plan, known: dict[str, Record]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for run in p.runs(known):
        if isinstance(run, ScoreRun):
            found.setdefault(run.method.name, set()).add(run.training.steps)
    return found


# ---- from times to steps --------------------------------------------------------------------------------------------


def test_slower_steps_are_fewer() -> None:
    assert matched_steps(speed_record(timed())) == STEPS


def test_everyone_takes_a_few() -> None:
    assert matched_steps(speed_record(timed(), RATIOS | {"dora": 1000.0}))["dora"] == FEWEST


@given(st.floats(0.05, 20), st.integers(FEWEST * 20, 5000))
def test_the_steps_are_the_most_that_fit(ratio: float, steps: int) -> None:
    p = timed(training=Training(steps=steps))
    taken = matched_steps(speed_record(p, RATIOS | {"dora": ratio}))
    assert taken["dora"] - 1e-9 <= steps / ratio < taken["dora"] + 1
    assert taken["lora"] == steps


@pytest.mark.parametrize("steps", [29, 58, 113, 116, 197])
def test_no_step_is_lost_where_the_steps_fit_exactly(steps: int) -> None:
    assert 60 / (60 / steps) < steps, "as floats divide"
    assert matched_steps(speed_record(timed(), RATIOS | {"dora": 60 / steps}))["dora"] == steps


@pytest.mark.parametrize("ratio", [None, 0.0, -1.0, math.inf, math.nan])
def test_a_method_without_a_step_time_is_refused(ratio: float | None) -> None:
    with pytest.raises(Unusable, match=r"'seconds' .* the speed run has no step time of dora: write match = 'steps'"):
        matched_steps(speed_record(timed(), RATIOS | {"dora": ratio}))
    p, ratios = timed(), {label: r for label, r in RATIOS.items() if label != "dora"}
    with pytest.raises(Unusable, match="no step time of dora"):
        matched_steps(speed_record(p, ratios))


def test_a_failed_speed_run_says_why() -> None:
    p = timed()
    failed = speed_record(p, status="failed", measures={}, error="RuntimeError: deliberate\n  File ...")
    with pytest.raises(Unusable, match=r"the speed run failed \(RuntimeError: deliberate\): write") as refused:
        p.runs(by_key(failed))
    assert "\n" not in str(refused.value)


# ---- the plan -------------------------------------------------------------------------------------------------------


def test_the_speed_run_comes_first_and_alone() -> None:
    p = timed(quantised=Quantised(ranks=(2,)))
    assert p.runs({}) == [p.speed_run()]
    known = by_key(speed_record(p))
    runs = p.runs(known)
    assert sum(isinstance(run, SpeedRun) for run in runs) == 1
    assert [run.kind for run in runs].count("score") == 3 * len(RATIOS)
    assert steps_in(p, known) == {name: {steps} for name, steps in STEPS.items()}


def test_every_run_of_a_method_has_its_steps_and_all_is_counted() -> None:
    p = timed()
    known = completed(p, by_key(speed_record(p)))
    assert steps_in(p, known) == {name: {steps} for name, steps in STEPS.items()}
    assert len(known) == len(p.runs(known)) == p.total(known) == p.total() == 5 * len(RATIOS) + 1
    assert all(tally.left == 0 for tally in p.tallies(known))
    assert sum(tally.done for tally in p.tallies(known)) == len(known)


def test_what_is_left_is_right_before_and_after_the_speed_run() -> None:
    p = timed()
    expected = {(label, stage): (0, n) for label in RATIOS for stage, n in (("search", 3), ("final", 2))}
    assert left(p, {}) == expected | {("all", "speed"): (0, 1)}
    assert left(p, by_key(speed_record(p))) == expected | {("all", "speed"): (1, 0)}


def test_runs_of_equal_steps_do_not_count_before_the_steps_are_known() -> None:
    p, equal = timed(), timed("steps")
    known = completed(equal, {})
    without = {k: r for k, r in known.items() if not isinstance(r.run, SpeedRun)}
    assert all(done == 0 for done, _ in left(p, without).values())
    assert p.runs(without) == [p.speed_run()]


def test_a_stored_speed_run_is_used_again_and_so_are_the_baselines_runs() -> None:
    equal, p = timed("steps"), timed()
    known = completed(equal, by_key(speed_record(equal)))
    assert key(equal.speed_run()) == key(p.speed_run())
    there = {run.method.name for run in p.runs(known) if isinstance(run, ScoreRun) and key(run) in known}
    assert there == {"lora"}


def test_the_same_records_give_the_same_runs_whenever_it_is_resumed() -> None:
    p = timed()
    known = completed(p, by_key(speed_record(p)))
    again = Plan(p.suite, p.identity, p.device, p.threads)
    assert again.runs(known) == p.runs(known)
    assert [run for run in again.runs(known) if key(run) not in known] == []


def test_another_number_of_threads_or_device_times_anew() -> None:
    p = timed()
    known = completed(p, by_key(speed_record(p)))
    for other in (replace(p, threads=p.threads + 1), replace(p, device="cuda")):
        assert other.runs(known) == [other.speed_run()]


def test_other_times_are_other_runs() -> None:
    p = timed()
    one, two = (p.runs(by_key(speed_record(p, RATIOS | {"dora": ratio}))) for ratio in (1.31, 1.5))
    kept = {key(run) for run in one} & {key(run) for run in two}
    moved = {run.method.name for run in one if isinstance(run, ScoreRun) and key(run) not in kept}
    assert moved == {"dora"}


@pytest.mark.parametrize(
    ("tokens", "said"), [(16, ""), (12, ""), (60, "the median text has 60: write speed.tokens = 60")]
)
def test_a_plan_says_if_steps_are_timed_on_rows_of_another_length(tokens: int, said: str) -> None:
    """The speed run's have 16."""
    row = {"method": "all", "stage": "speed", "runs": 1, "done": 0, "seconds": 1.0, "tokens": tokens}
    (shown,) = plan_table(timed(), [row]).columns[2].cells
    assert said in str(shown)
    assert ("timed on rows of 16 tokens" in str(shown)) == bool(said)
    (equal,) = plan_table(timed("steps"), [row]).columns[2].cells
    assert str(equal).endswith("interleaved rounds")


def test_equal_steps_are_what_they_were() -> None:
    p = timed("steps")
    assert steps_in(p, {}) == {name: {60} for name in RATIOS}
    assert not any(isinstance(run, SpeedRun) for run in p.runs({}))
    assert p.paced({}) == (p, {})


def test_seeds_are_added_at_a_methods_own_steps() -> None:
    p = timed(protocol=Protocol(points=1, seeds=2, max_seeds=4))
    known = by_key(speed_record(p))
    for run in p.runs(known):
        if isinstance(run, ScoreRun):  # methods change places with the seed: nothing is decided
            known |= by_key(record(run, 0.5 + 0.1 * ((run.training.steps + run.seed) % 2)))
    dora = [run for run in p.runs(known) if isinstance(run, ScoreRun) and run.method.name == "dora"]
    assert [(run.seed, run.training.steps) for run in dora] == [(seed, 45) for seed in (1, 2, 3, 4)]


def test_the_time_left_is_known_once_a_run_is() -> None:
    p = timed()
    known = by_key(speed_record(p, seconds={"total": 5.0}))
    assert seconds_left(p, known, workers=2) is None
    search = p.runs(known)[0]
    assert isinstance(search, ScoreRun)
    known |= by_key(record(search).model_copy(update={"seconds": {"total": 4.0, "forward": 1.0}}))
    assert seconds_left(p, known, workers=2) == pytest.approx(4.0 * (p.total() - 2) / 2)


def test_an_impossible_grid_is_refused_before_anything_is_timed() -> None:
    with pytest.raises(Unusable, match="6 points"):
        timed(protocol=Protocol(points=6, per_decade=100_000)).tallies({})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speed": "false"}, "match = 'seconds' takes its step times from the speed run"),
        (
            {"speed.batch_size": "3"},
            "match = 'seconds' needs steps timed as they are trained: write speed.batch_size = 8",
        ),
        ({"protocol.racing": "3"}, "match = 'seconds' goes with a grid of learning rates: leave protocol.racing out"),
        ({"match": "minutes"}, "match: Input should be 'steps' or 'seconds'"),
    ],
)
def test_suites_that_cannot_match_seconds_are_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(Unusable, match=said):
        load_suite("quick", {"match": "seconds", "speed.batch_size": "8"} | changes)
    assert load_suite("quick", {"match": "seconds", "speed.batch_size": "8"}).match == "seconds"


def test_the_same_method_in_two_sizes_has_two_numbers_of_steps() -> None:
    sizes = {"lora": 2, "wide": 8}
    methods = tuple(Entry(label=n, method=Method(name="lora", hyperparameters={"rank": r})) for n, r in sizes.items())
    p = timed(methods=methods)
    runs = p.runs(by_key(speed_record(p, {"lora": 1.0, "wide": 1.5})))
    found = {(run.method.hyperparameters["rank"], run.training.steps) for run in runs if isinstance(run, ScoreRun)}
    assert found == {(2, 60), (8, 40)}


def test_a_suite_need_not_say_how_many_rows_are_timed() -> None:
    assert Speed().batch_size == Training().batch_size
