"""Seeds are added while a pair of methods is undecided, up to the cap, and never because of half a look."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from evaluation import seeds
from evaluation.listing import plan_table
from evaluation.protocol import Plan
from evaluation.spec import Protocol, Record, ScoreRun, key
from reports.statistics import planned_looks
from tests.evaluation.test_protocol import by_key, entry, plan, record

Score = Callable[[ScoreRun], float | None]  # None: the run diverges
LABELS = ("lora", "pissa", "stiefel")


def capped(**protocol: int) -> Plan:
    return plan(LABELS, protocol=Protocol(points=1, seeds=2, max_seeds=8, **protocol), speed=None)


def far_apart(run: ScoreRun) -> float:
    return 0.2 * (1 + LABELS.index(run.method.name)) + 0.001 * Random(f"{run.method.name} {run.seed}").random()


def two_alike(run: ScoreRun) -> float:
    level = 0.9 if run.method.name == "stiefel" else 0.5
    return level + 0.1 * Random(f"{run.method.name} {run.seed}").random()


def carried_out(p: Plan, score: Score, known: dict[str, Record] | None = None) -> dict[str, int]:
    """How many final runs of each method a whole plan has."""
    known = dict(known or {})
    while missing := [run for run in p.runs(known) if key(run) not in known]:
        for run in missing:
            assert isinstance(run, ScoreRun)
            value = score(run)
            known |= by_key(record(run, value or 0.0, status="diverged" if value is None else "done"))
    runs = [run for run in p.runs(known) if isinstance(run, ScoreRun)]
    assert len(runs) == sum(tally.done for tally in p.tallies(known))
    assert p.total(known) == len(runs) or len({run.method.name for run in runs if run.stage == "final"}) < len(LABELS)
    assert not any(tally.left for tally in p.tallies(known))
    return {label: sum(run.method.name == label for run in runs) for label in LABELS}


def test_looks_double_up_to_the_cap() -> None:
    assert planned_looks(3, 20) == (3, 6, 12, 20)
    assert planned_looks(5, None) == (5,)


def test_pairs_that_are_decided_need_no_more_seeds() -> None:
    counts = carried_out(capped(), far_apart)
    assert max(counts.values()) < 8
    assert set(counts.values()) <= {2, 4}


def test_only_methods_of_undecided_pairs_go_on() -> None:
    counts = carried_out(capped(), two_alike)
    assert counts["lora"] == counts["pissa"] == 8
    assert counts["stiefel"] < 8


def test_a_method_that_loses_a_seed_is_not_waited_for() -> None:
    counts = carried_out(capped(), lambda run: None if run.method.name == "pissa" and run.seed == 1 else far_apart(run))
    assert counts["pissa"] == 2


def test_a_look_waits_for_all_of_its_runs() -> None:
    p = capped()
    runs = [run for run in p.runs({}) if isinstance(run, ScoreRun)]
    assert len(runs) == 6
    known = by_key(*(record(run, two_alike(run)) for run in runs[:-1]))
    assert len(p.runs(known)) == 6
    known |= by_key(record(runs[-1], status="failed"))
    assert len(p.runs(known)) == 6


def test_no_seed_is_added_without_a_cap_or_while_a_search_is_open() -> None:
    fixed = plan(LABELS, protocol=Protocol(points=1, seeds=2), speed=None)
    assert set(carried_out(fixed, two_alike).values()) == {2}
    p = plan(LABELS, protocol=Protocol(points=3, seeds=2, max_seeds=8), speed=None)
    assert p.seeds({}) == dict.fromkeys(LABELS, 2)


def test_a_method_whose_search_diverged_does_not_hold_up_the_others() -> None:
    p = plan(LABELS, protocol=Protocol(points=2, seeds=2, max_seeds=4), speed=None)
    counts = carried_out(p, lambda run: None if run.method.name == "stiefel" else two_alike(run))
    assert counts == {"lora": 2 + 4, "pissa": 2 + 4, "stiefel": 2}


def test_a_rule_that_never_stops_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = seeds.sequential_decision

    def never(*given: object, **options: object) -> object:
        decide(*given, **options)  # type: ignore[arg-type]
        return seeds.Looks({}, {}, 2, 8, frozenset(LABELS))

    monkeypatch.setattr(seeds, "sequential_decision", never)
    with pytest.raises(AssertionError):
        test_pairs_that_are_decided_need_no_more_seeds()


def test_a_plan_shows_the_budget_and_the_cap() -> None:
    protocol = Protocol(points=3, trials=5, search_seeds=2, seeds=2, max_seeds=8)
    p = plan(("lora",), protocol=protocol, speed=None)
    rows = [{"method": "lora", "stage": stage, "runs": 1, "done": 0, "seconds": 1.0} for stage in ("search", "final")]
    shown = list(plan_table(p, rows).columns[2].cells)
    assert shown == ["0.00158, 0.005, 0.0158 and 2 more, with 2 seeds", "seeds 1 to 2 at the best rate (up to 8)"]


def test_seeds_of_a_method_of_its_own_and_a_cap_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="'lora' has `seeds` of its own"):
        plan(methods=(entry("lora", seeds=3),), protocol=Protocol(seeds=2, max_seeds=8))
    with pytest.raises(ValueError, match="begin with at least 2, end with more"):
        Protocol(seeds=4, max_seeds=4)
