"""Quasi-random search over several hyperparameters: the same points for all, the same number, and what a method lacks
left out."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from evaluation import space as spaces
from evaluation.display import label_of
from evaluation.listing import plan_table
from evaluation.protocol import Plan
from evaluation.space import drawn
from evaluation.spec import Entry, Method, Protocol, Record, ScoreRun, SpeedRun, Suite, Training, Unusable, key
from evaluation.strategies import centre
from evaluation.trying import check_space, with_all_settings
from tests.evaluation import toy
from tests.evaluation.test_protocol import by_key, entry, entry_of, plan, record

SPACE: dict[str, Any] = {
    "lr": (1e-3, 1e-1, "log"),
    "rank": (2, 8, "int-log"),
    "head_lr": (1e-3, 1e-2, "log"),
    "weight_decay": (0.0, 0.1),
}
NAMES = ("lora", "pissa", "full", "probe")


@pytest.fixture(autouse=True)
def _optuna() -> None:
    pytest.importorskip("optuna")


def searching(names: tuple[str, ...] = NAMES, space: dict[str, Any] = SPACE, **protocol: Any) -> Plan:
    fields: dict[str, Any] = {"space": space, "trials": 5, "seeds": 2} | protocol
    return plan(names, protocol=Protocol(**fields))


def tried(p: Plan, name: str) -> list[ScoreRun]:
    return p.search(entry_of(p, name)).runs


def carried_out(p: Plan) -> dict[str, Record]:
    """Weight decay hurts, and so do high ranks."""
    known: dict[str, Record] = {}
    while missing := [run for run in p.runs(known) if key(run) not in known]:
        for run in missing:
            rank = run.method.hyperparameters.get("rank", 0) if isinstance(run, ScoreRun) else 0
            known |= by_key(record(run, 0.9 - run.training.weight_decay - 0.01 * rank))
    return known


def test_a_point_follows_from_the_space_the_seed_and_its_number() -> None:
    few, more = drawn(SPACE, 4, 0), drawn(SPACE, 16, 0)
    assert more[:4] == few
    assert drawn(dict(reversed(SPACE.items())), 4, 0) == few
    assert drawn(SPACE, 4, 1) != few
    assert all(1e-3 <= point["lr"] <= 1e-1 and 2 <= point["rank"] <= 8 for point in more)
    assert all(type(point["rank"]) is int and point["weight_decay"] in (0.0, 0.1) for point in more)


def test_points_fill_the_space_evenly() -> None:
    """Of 16 Sobol points, one lies in each sixteenth of every axis; random ones do so about never."""
    found = [point["lr"] for point in drawn({"lr": (1.0, 1e16, "log"), "weight_decay": (0.0, 1.0, "linear")}, 16, 3)]
    assert sorted(int(f"{rate:e}".split("e")[1]) for rate in found) == list(range(16))


def test_choices_that_python_calls_equal_are_not_each_others_points() -> None:
    for choices in ((True, False), (1, 0), (1.0, 0.0)):
        found = {type(point["x"]) for point in drawn({"lr": (1.0, 10.0, "log"), "x": choices}, 4, 0)}
        assert found == {type(choices[0])}


def test_methods_share_the_values_of_what_they_share() -> None:
    p = searching()
    lora, pissa, full, probe = (tried(p, name) for name in NAMES)
    assert [run.method.hyperparameters["rank"] for run in lora] == [r.method.hyperparameters["rank"] for r in pissa]
    assert len({run.method.hyperparameters["rank"] for run in lora}) > 1
    for a, b in zip(lora, full, strict=True):
        assert (a.training.head_lr, a.training.weight_decay) == (b.training.head_lr, b.training.weight_decay)
    for a, b in zip(lora, pissa, strict=True):
        assert b.lr == pytest.approx(a.lr / 10, rel=1e-2), "relative to the method's own prior"
    factor = centre(p.suite, entry_of(p, "probe")) / p.suite.protocol.lr
    assert probe[0].lr == pytest.approx(lora[0].lr * factor, rel=1e-2)


def test_what_a_method_does_not_have_is_left_out() -> None:
    p = searching()
    own = p.suite.training
    assert all("rank" not in run.method.hyperparameters for run in tried(p, "full"))
    assert all(run.training.head_lr == own.head_lr for run in tried(p, "probe")), "its own rate is the head's"
    assert all(run.training.steps == own.steps and run.training.warmup == own.warmup for run in tried(p, "lora"))


def test_the_best_setting_runs_again_with_fresh_seeds() -> None:
    p = searching()
    known = carried_out(p)
    runs = p.runs(known)
    finals = [run for run in runs if isinstance(run, ScoreRun) and run.stage == "final" and run.method.name == "lora"]
    best = max(tried(p, "lora"), key=lambda run: known[key(run)].measures["score"]["accuracy"])
    assert [run.seed for run in finals] == [1, 2]
    assert {run.split for run in finals} == {"test"}
    for run in finals:
        assert (run.lr, run.method, run.training) == (best.lr, best.method, best.training)
        assert label_of(p.suite, run) == "lora"
    speed = runs[-1]
    assert isinstance(speed, SpeedRun)
    assert speed.methods["lora"] == best.method, "speed is that of what is reported"
    assert speed == p.speed_run(known)


def test_a_winner_that_is_not_the_best_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "best_setting", lambda found: min(found, key=lambda trial: trial.rank).setting)
    with pytest.raises(AssertionError):
        test_the_best_setting_runs_again_with_fresh_seeds()


def test_points_of_each_methods_own_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "drawn", lambda *given: drawn(*given[:2], len(given[0]) + next(counter)))
    counter = iter(range(99))
    with pytest.raises(AssertionError):
        test_methods_share_the_values_of_what_they_share()


def test_a_search_that_diverged_altogether_leaves_no_final_runs() -> None:
    p = searching(("lora", "probe"))
    known = by_key(*(record(r, status="diverged" if r.method.name == "lora" else "done") for r in p.runs({})))  # type: ignore[arg-type, union-attr]
    assert {run.method.name for run in p.runs(known) if isinstance(run, ScoreRun) and run.stage == "final"} == {"probe"}


@settings(max_examples=15, deadline=None)
@given(trials=st.integers(2, 12), seeds=st.integers(1, 2), draw=st.integers(0, 5), choices=st.booleans())
def test_every_method_has_the_same_number_of_different_trials(
    trials: int, seeds: int, draw: int, choices: bool
) -> None:
    """Also where what is left of two points for one method is the same."""
    space = {"lr": tuple(1e-3 * 2**i for i in range(12)), "rank": (2, 4)} if choices else SPACE
    p = searching(space=space, trials=trials, search_seeds=seeds, space_seed=draw)
    for name in NAMES:
        runs = tried(p, name)
        assert len({key(run) for run in runs}) == len(runs) == trials * seeds == p.search_runs_of(entry_of(p, name))
    assert sum(tally.left for tally in p.tallies({})) == p.total()


def test_another_budget_keeps_the_trials_that_there_are() -> None:
    few, more = searching(trials=3), searching(trials=9)
    for name in NAMES:
        assert tried(more, name)[:3] == tried(few, name)


def test_another_method_leaves_the_settings_of_the_rest() -> None:
    assert tried(searching(("lora", "probe")), "lora") == tried(searching(), "lora")


def test_a_killed_search_goes_on_where_it_was() -> None:
    p, known = searching(("lora", "probe")), {}
    while missing := [run for run in p.runs(known) if key(run) not in known]:
        known |= by_key(record(missing[-1], 0.9 - missing[-1].training.weight_decay))  # type: ignore[arg-type]
    assert known.keys() == {key(run) for run in p.runs(known)}


def test_the_first_trial_of_each_method_makes_its_forecast() -> None:
    p = searching(forecast=True)
    chosen = [run for run in p.runs({}) if isinstance(run, ScoreRun) and run.forecast]
    assert sorted(run.method.name for run in chosen) == sorted(NAMES)
    assert [run for run in tried(p, "lora") if run.forecast] == tried(p, "lora")[:1]


def test_methods_are_tried_at_every_setting_that_is_drawn() -> None:
    p = searching(("lora", "probe"))
    asked = [run.method for run in tried(p, "lora")]
    shown = [e.method for e in with_all_settings(p.suite).methods]
    assert shown[:2] == [e.method for e in p.suite.methods]
    assert {str(method) for method in shown[2:]} == {str(method) for method in asked} - {str(shown[0])}
    assert len({str(method) for method in shown}) == len(shown), "nothing is tried twice"


def test_a_drawn_setting_that_does_not_fit_the_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotations in blocks of 2, 4, 8 and 16 fit 16 columns; others lie between them."""
    bench = toy.bench(monkeypatch)
    oft = Entry(label="oft", method=Method(name="oft", hyperparameters={"block": 2}))

    def searched(*blocks: Any) -> Suite:
        space = {"lr": SPACE["lr"], "block": blocks}
        return plan(methods=(entry("lora"), oft), protocol=Protocol(space=space, trials=8), speed=None).suite

    bench.check(with_all_settings(searched(2, 4, 8, 16)))
    bench.check(suite := searched(2, 16, "int-log"))
    with pytest.raises(Unusable, match=r"oft: .*rotations in blocks of .* do not fit an input of width"):
        bench.check(with_all_settings(suite))


def test_what_a_run_trains_with_is_what_its_record_gives_back() -> None:
    p = searching(space={"lr": SPACE["lr"], "weight_decay": (0, 0.1)})
    for run in tried(p, "lora"):
        assert type(run.training.weight_decay) is float
        assert key(type(run).model_validate_json(run.model_dump_json())) == key(run)


def test_a_plan_says_what_is_searched() -> None:
    rows = [{"method": name, "stage": "search", "runs": 1, "done": 0, "seconds": 1.0} for name in ("lora", "probe")]
    shown = list(plan_table(searching(), rows).columns[2].cells)
    assert shown == ["5 settings of head_lr, lr, rank, weight_decay", "5 settings of lr, weight_decay"]


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_without_optuna_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    spaces._drawn.cache_clear()
    with pytest.raises(Unusable, match=r"needs the package optuna: install it with .* -m pip install optuna"):
        searching().runs({})


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no rate": ({"rank": (2, 8, "int")}, {}, "no method does without"),
    "rate of zero": ({"lr": (0.0, 1.0, "linear")}, {}, "give rates above 0"),
    "whole rates": ({"lr": (1, 3, "int")}, {}, "give rates above 0"),
    "no budget": ({}, {"trials": None}, "with `trials` settings"),
    "defaults": ({}, {"ruleset": "defaults"}, "'defaults' searches nothing: leave `space` out"),
    "one draw": ({}, {"trials": 1}, "`trials` settings, 2 or more"),
    "a race": ({}, {"racing": 2}, "without `racing`"),
    "upside down": ({"rank": (8, 2, "int")}, {}, "is no range"),
    "log of zero": ({"weight_decay": (0.0, 1.0, "log")}, {}, "both above 0"),
    "half a rank": ({"rank": (2.0, 8, "int")}, {}, "no range of whole numbers"),
    "misspelt scale": ({"rank": (2, 8, "itn")}, {}, "no choices"),
    "twice the same": ({"rank": (2, 2)}, {}, "no choices"),
    "two kinds": ({"rank": (2, "many")}, {}, "no choices"),
    "lists": ({"rank": ([2], [3])}, {}, "no choices"),
    "one choice": ({"rank": (2,)}, {}, "nothing to search"),
    "no end": ({"weight_decay": (0.0, float("inf"), "linear")}, {}, "not finite"),
    "unknown name": ({"rnak": (2, 8, "int")}, {}, "no method here has 'rnak'.*rank"),
    "impossible value": ({"rank": (0, 8, "int")}, {}, "protocol.space: lora refuses rank = 0"),
    "impossible training": ({"warmup": (0.0, 2.0, "linear")}, {}, "warmup = 2.0 cannot be trained with"),
    "impossible when rounded": (
        {"adapter_dropout": (0.999, 0.99999, "linear")},
        {},
        r"adapter_dropout = 1.0 cannot be trained with: Input should be less than 1",
    ),
    "impossible between": ({"rank": (2, 8, "log")}, {}, r"lora refuses rank = .*whole number.*end .* in \"int\""),
    "too few": ({"lr": (1e-3, 1e-2), "rank": (2, 4)}, {"trials": 3}, "fewer than 3 different settings for 'full'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_spaces_that_cannot_be_searched_are_refused(case: str) -> None:
    space, protocol, words = REFUSED[case]
    whole = {"lr": SPACE["lr"]} | space if case not in ("no rate",) else space
    with pytest.raises(ValueError, match=words):
        searching(space=whole, **protocol).runs({})


def test_sizes_are_either_searched_or_within_a_budget() -> None:
    with pytest.raises(Unusable, match=r"the budget decides 'rank', and protocol\.space searches it"):
        check_space(searching().suite.model_copy(update={"budget": "1000"}))


def test_points_of_a_methods_own_are_refused() -> None:
    with pytest.raises(ValueError, match="'lora' has points of its own"):
        plan(methods=(entry("lora", points=2),), protocol=Protocol(space=SPACE, trials=3))


def test_two_methods_that_differ_in_what_is_searched_are_refused() -> None:
    other = entry("lora").model_copy(update={"label": "other"})
    changed = other.method.model_copy(update={"hyperparameters": {"rank": 4, "alpha": 4}})
    methods = (entry("lora"), other.model_copy(update={"method": changed}))
    with pytest.raises(Unusable, match="same hyperparameters apart from what is searched"):
        plan(methods=methods, protocol=Protocol(space=SPACE, trials=3))
    assert plan(methods=methods, protocol=Protocol(seeds=2), training=Training()).total()
