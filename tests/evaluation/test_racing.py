"""Racing: rungs of shortened runs, the same budget for all, and an audit that leaves the race as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from evaluation import racing
from evaluation.listing import plan_table
from evaluation.protocol import Plan
from evaluation.search import grid
from evaluation.spec import Protocol, Record, ScoreRun, Training, key
from evaluation.training import rate as scheduled
from reports.statistics import promoted, rung_sizes, rung_steps, share_of_steps
from tests.evaluation.test_protocol import by_key, entry, entry_of, plan, record

Score = Callable[[ScoreRun], float | None]  # None: the run diverges
RATES = grid(5e-3, 9, 4)
STEPS = 90


def race(names: tuple[str, ...] = ("lora",), steps: int = STEPS, **protocol: Any) -> Plan:
    fields = {"points": 9, "per_decade": 4, "racing": 3, "rungs": 3, "seeds": 1} | protocol
    return plan(names, protocol=Protocol(**fields), training=Training(steps=steps), speed=None)


def carried_out(p: Plan, score: Score) -> dict[str, Record]:
    """The records of a whole plan, whose counts hold at every moment."""
    known: dict[str, Record] = {}
    while missing := [run for run in p.runs(known) if key(run) not in known]:
        for run in missing:
            assert isinstance(run, ScoreRun)
            value = score(run)
            known |= by_key(record(run, value or 0.0, status="diverged" if value is None else "done"))
    assert not any(tally.left or tally.steps for tally in p.tallies(known))
    assert len(known) == len(p.runs(known))
    return known


def searched(known: Mapping[str, Record], name: str = "lora") -> dict[int, list[float]]:
    """Training steps -> the rates which the search ran with so many, ascending."""
    found: dict[int, list[float]] = {}
    for one in known.values():
        assert isinstance(one.run, ScoreRun)
        if one.run.stage == "search" and one.run.method.name == name:
            found.setdefault(one.run.training.steps, []).append(one.run.lr)
    return {steps: sorted(rates) for steps, rates in sorted(found.items())}


def by_place(run: ScoreRun) -> float:
    """The higher the rate, the better, whatever the length."""
    return 0.1 + 0.05 * RATES.index(run.lr)


def test_sizes_and_lengths_of_rungs() -> None:
    assert rung_steps(90, 3, 3) == [10, 30, 90]
    assert rung_steps(64, 3, 2) == [21, 64]
    assert rung_sizes(9, 3, 3) == [9, 3, 1]
    assert rung_sizes(5, 2, 3) == [5, 3, 2]
    assert share_of_steps(9, 90, 3, 3) == pytest.approx(1 / 3)


def test_who_is_promoted() -> None:
    found = {"a": (0.5, 1.0), "b": None, "c": (0.5, 0.9), "d": (0.7, 9.0), "e": None}
    assert promoted(found, 2) == ["d", "c"]
    assert promoted(found, 4) == ["d", "c", "a", "b"], "a rate that diverged makes up the number, in its order"


def test_the_best_rates_of_a_rung_run_longer() -> None:
    known = carried_out(race(), by_place)
    assert searched(known) == {10: RATES, 30: RATES[-3:], 90: RATES[-1:]}


def test_only_runs_of_full_length_decide() -> None:
    """What was best with a third of the steps is not with all of them."""
    p = race(racing=3, rungs=2)
    known = carried_out(p, lambda run: by_place(run) if run.training.steps < STEPS else 1 - by_place(run))
    assert searched(known) == {30: RATES, 90: RATES[-3:]}
    assert p.rate(entry_of(p, "lora"), known) == RATES[-3]


def test_a_rungs_run_ends_its_schedule() -> None:
    p = race()
    first = p.search(entry_of(p, "lora")).runs[0]
    shares = [scheduled(step, first.training.steps, first.training.warmup, "linear") for step in range(10)]
    assert first.training.warmup == 0.1
    assert (shares[0], shares[1]) == (1.0, 1.0), "one step of ten warms up"
    assert shares[-1] == pytest.approx(1 / 9)


def test_the_budget_beyond_the_grid_is_spent_on_the_first_rung() -> None:
    known = carried_out(race(points=3, trials=6, rungs=2), lambda run: 0.5 + run.lr)
    found = searched(known)
    assert [len(rates) for rates in found.values()] == [6, 2]
    assert max(found[30]) > max(grid(5e-3, 3, 4)), "the grid was extended"
    assert found[90] == found[30][-2:]


def test_search_seeds_run_on_every_rung_and_their_mean_decides() -> None:
    def score(run: ScoreRun) -> float:
        lucky = run.seed == 0 and run.lr == RATES[0]
        return 0.7 if lucky else 0.0 if run.lr == RATES[0] else by_place(run)

    p = race(search_seeds=2)
    known = carried_out(p, score)
    assert Counter(len(rates) for rates in searched(known).values()) == Counter([18, 6, 2])
    assert RATES[0] not in searched(known)[30]


def test_methods_that_diverge_have_the_same_budget_and_no_final_runs() -> None:
    p = race(("lora", "probe"))
    known = carried_out(p, lambda run: None if run.method.name == "lora" else 0.5)
    found = searched(known)
    assert found == {10: RATES, 30: RATES[:3], 90: RATES[:1]}
    assert {one.run.method.name for one in known.values() if one.run.stage == "final"} == {"probe"}  # type: ignore[union-attr]


def test_a_shortened_run_that_diverged_does_not_rule_its_rate_out_for_good() -> None:
    p = race(racing=3, rungs=2)
    high = RATES[2]
    known = carried_out(p, lambda run: None if run.training.steps < STEPS or run.lr < high else 0.5)
    assert p.rate(entry_of(p, "lora"), known) == high


def test_a_method_with_one_rate_does_not_race() -> None:
    methods = (entry("lora"), entry("probe", points=1))
    p = plan(methods=methods, protocol=Protocol(points=4, racing=2, seeds=2), training=Training(steps=8), speed=None)
    known = carried_out(p, lambda _: 0.5)
    assert not searched(known, "probe")
    assert [len(rates) for rates in searched(known).values()] == [4, 2]


@settings(max_examples=30, deadline=None)
@given(
    points=st.integers(2, 9),
    more=st.integers(0, 4),
    keep=st.integers(2, 4),
    rungs=st.integers(2, 3),
    audit=st.booleans(),
    seeds=st.integers(1, 2),
    draw=st.randoms(use_true_random=False),
)
def test_every_method_has_the_same_budget_whatever_comes_out(
    points: int, more: int, keep: int, rungs: int, audit: bool, seeds: int, draw: Any
) -> None:
    names = ("lora", "pissa", "probe")
    trials = None if audit else points + more
    fields = {"points": points, "trials": trials, "racing": keep, "rungs": rungs, "racing_audit": audit}
    p = race(names, search_seeds=seeds, **fields)
    planned = {name: p.search_runs_of(entry_of(p, name)) for name in names}
    known = carried_out(p, lambda _: draw.choice([None, 0.1, 0.2, 0.3]))
    counts = {name: Counter({steps: len(rates) for steps, rates in searched(known, name).items()}) for name in names}
    assert counts["lora"] == counts["pissa"] == counts["probe"]
    assert all(counts[name].total() == planned[name] for name in names)


@settings(max_examples=30, deadline=None)
@given(audit=st.booleans(), seed=st.integers(0, 99), draw=st.randoms(use_true_random=False))
def test_a_killed_race_goes_on_where_it_was(audit: bool, seed: int, draw: Any) -> None:
    """One record at a time, in any order: the same runs as if nothing had happened."""

    def score(run: ScoreRun) -> float:
        return hash((run.lr, run.training.steps, seed)) % 100 / 100

    p = race(points=5, rungs=2, racing_audit=audit)
    known: dict[str, Record] = {}
    while missing := [run for run in p.runs(known) if key(run) not in known]:
        run = draw.choice(missing)
        known |= by_key(record(run, score(run)))
    assert known == carried_out(p, score)


# ---- the audit ------------------------------------------------------------------------------------------------------


def short_misleads(run: ScoreRun) -> float:
    return by_place(run) if run.training.steps < STEPS else 1 - by_place(run)


def test_an_audit_adds_the_full_grid_and_changes_nothing_else() -> None:
    plain, audited = race(), race(racing_audit=True)
    alone, both = carried_out(plain, short_misleads), carried_out(audited, short_misleads)
    assert alone.keys() <= both.keys()
    assert searched(both) == {**searched(alone), STEPS: RATES}
    assert audited.rate(entry_of(audited, "lora"), both) == plain.rate(entry_of(plain, "lora"), alone) == RATES[-1]
    full = plan(("lora",), protocol=Protocol(points=9, per_decade=4, seeds=1), training=Training(steps=STEPS))
    assert {key(run) for run in full.search(entry_of(full, "lora")).runs} <= both.keys(), "a grid's records count"


def test_an_audit_that_decides_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing.Audited, "winner", lambda self, found: self.race.full.winner(found[9:18]))
    with pytest.raises(AssertionError):
        test_an_audit_adds_the_full_grid_and_changes_nothing_else()


def test_a_race_that_drops_what_diverged_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_finished(found: Mapping[float, Any], size: int) -> list[float]:
        return promoted({rate: result for rate, result in found.items() if result}, size)

    monkeypatch.setattr(racing, "promoted", only_finished)
    with pytest.raises((AssertionError, StopIteration)):
        test_methods_that_diverge_have_the_same_budget_and_no_final_runs()


def test_a_race_without_regard_to_scores_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "promoted", lambda found, size: list(found)[:size])
    with pytest.raises(AssertionError):
        test_the_best_rates_of_a_rung_run_longer()


# ---- what else must know of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("audit", [False, True])
def test_a_forecast_is_made_once_in_the_first_and_shortest_run(audit: bool) -> None:
    known = carried_out(race(forecast=True, racing_audit=audit), by_place)
    chosen = [one.run for one in known.values() if isinstance(one.run, ScoreRun) and one.run.forecast]
    assert [(run.lr, run.training.steps) for run in chosen] == [(RATES[0], 10)]


def test_a_plan_shows_the_rungs() -> None:
    p = race(search_seeds=2)
    rows = [{"method": "lora", "stage": "search", "runs": 1, "done": 0, "seconds": 1.0}]
    shown = str(next(iter(plan_table(p, rows).columns[2].cells)))
    assert shown.endswith(": 9 for 10 steps, 3 for 30 steps, 1 for 90 steps, with 2 seeds")


def test_steps_that_are_left_are_counted() -> None:
    p = race()
    search = next(tally for tally in p.tallies({}) if tally.stage == "search")
    assert (search.left, search.steps) == (13, 9 * 10 + 3 * 30 + 90)


@pytest.mark.parametrize(
    ("fields", "steps", "words"),
    [
        ({"racing_audit": True, "racing": None}, 90, "set `racing`"),
        ({"racing_audit": True, "trials": 12}, 90, "leave `trials` out"),
        ({}, 8, "8 steps are too few for 3 rungs of racing 3"),
        ({"racing": 1}, 90, "greater than or equal to 2"),
    ],
)
def test_races_that_cannot_be_run_are_refused(fields: dict[str, Any], steps: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        race(steps=steps, **fields)
