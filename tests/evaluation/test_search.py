"""Where the trials of a search go: the grid, beyond its edge, and between the best rates; the same budget for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest

from evaluation import search
from evaluation.estimate import not_counted
from evaluation.protocol import Plan
from evaluation.search import Search, Setting, Trial, grid, next_rate
from evaluation.spec import Entry, Protocol, Record, ScoreRun, Spectrum, key
from tests.evaluation.test_protocol import by_key, entry, plan, record

Score = Callable[[float], float | None]  # validation accuracy at a rate; None: it diverges


def peak(at: float) -> Score:
    return lambda rate: 1 - abs(math.log10(rate / at)) / 10


def searched(score: Score, budget: int, points: int = 3) -> list[float]:
    rates = grid(1e-2, points, 2)
    while len(rates) < budget:
        found = [
            Trial(Setting(rate), accuracy, None if accuracy is None else 1.0)
            for rate in rates
            for accuracy in [score(rate)]
        ]
        rates.append(next_rate(found, 2))
    return rates


@pytest.mark.parametrize("at", [1e-5, 1e-4, 1e-1, 10.0])
def test_the_grid_grows_a_step_at_a_time_until_the_best_rate_lies_within(at: float) -> None:
    rates = searched(peak(at), 12)
    assert min(rates) < at < max(rates)
    beyond = [rate for rate in rates[3:] if rate < 10**-2.6 or rate > 10**-1.4]
    steps = [abs(math.log10(b / a)) for a, b in zip([rates[0 if at < 1e-2 else 2], *beyond], beyond, strict=False)]
    assert all(step == pytest.approx(0.5, abs=0.01) for step in steps[: round(abs(math.log10(at / 1e-2)) / 0.5) - 1])


def test_a_best_rate_within_the_grid_is_narrowed_down() -> None:
    rates = searched(peak(1.3e-2), 9)
    assert all(min(rates[:3]) < rate < max(rates[:3]) for rate in rates[3:])
    assert min(abs(math.log10(rate / 1.3e-2)) for rate in rates) < 0.05
    assert len(set(rates)) == 9


def test_a_rate_that_diverges_is_never_the_edge_that_is_followed() -> None:
    rates = searched(lambda rate: None if rate > 2e-2 else peak(1.0)(rate), 6)
    assert max(rates) == grid(1e-2, 3, 2)[-1]
    assert all(rates[0] < rate < rates[2] for rate in rates[3:])
    assert rates[4] == pytest.approx(1.78e-2), "between what converged and what did not"


def test_where_all_diverge_the_search_goes_down() -> None:
    rates = searched(lambda rate: None if rate > 1e-4 else peak(1e-5)(rate), 10)
    assert min(rates) < 1e-4


def test_neighbours_without_a_number_between_them_send_the_trial_elsewhere() -> None:
    close = [
        Trial(Setting(rate), accuracy, 1.0)
        for rate, accuracy in ((1.00e-2, 0.5), (1.01e-2, 0.9), (1.02e-2, 0.6), (2e-2, 0.1))
    ]
    assert next_rate(close, 2) == pytest.approx(1.43e-2)


def test_every_method_gets_the_same_number_of_trials_with_every_search_seed() -> None:
    protocol = Protocol(points=3, per_decade=2, trials=5, search_seeds=2, seeds=1)
    p = plan(("lora", "pissa", "probe"), protocol=protocol, speed=None)
    ran = carried_out(p, {"lora": peak(1e-3), "pissa": peak(10.0), "probe": peak(1e-2)})
    for label in ("lora", "pissa", "probe"):
        own = [run for run in ran if run.method.name == label and run.stage == "search"]
        assert len({run.lr for run in own}) == 5
        assert {run.seed for run in own} == {0, -1}
        assert len(own) == p.search_runs_of(entry(label)) == 10
    assert p.total() == len(ran) == 33
    finals = {run.method.name: run.lr for run in ran if run.stage == "final"}
    assert finals["pissa"] == max(run.lr for run in ran if run.method.name == "pissa")


def test_the_seeds_of_a_trial_count_together_and_one_that_diverges_rules_it_out() -> None:
    p = plan(("lora",), protocol=Protocol(points=3, search_seeds=2, seeds=1), speed=None)
    runs = p.search(p.suite.methods[0]).runs
    lucky = [record(run, accuracy) for run, accuracy in zip(runs, (0.9, 0.1, 0.6, 0.6, 0.2, 0.2), strict=True)]
    assert p.rate(p.suite.methods[0], by_key(*lucky)) == runs[2].lr
    lost = [*lucky[:2], record(runs[2], 0.9, status="diverged"), *lucky[3:]]
    assert p.rate(p.suite.methods[0], by_key(*lost)) == runs[0].lr


def carried_out(p: Plan, scores: dict[str, Score]) -> list[ScoreRun]:
    """Every run of a plan, with records that follow from the rate."""
    known: dict[str, Record] = {}
    while missing := [run for run in p.runs(known) if key(run) not in known]:
        for run in missing:
            assert isinstance(run, ScoreRun)
            known |= by_key(record(run, scores[run.method.name](run.lr) or 0.0))
    return [run for run in p.runs(known) if isinstance(run, ScoreRun)]


def only_beyond(found: Sequence[Trial], per_decade: int) -> float:
    return float(f"{max(trial.rate for trial in found) * 10 ** (1 / per_decade):.3g}")


def test_a_search_that_only_goes_up_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "next_rate", only_beyond)
    monkeypatch.setitem(globals(), "next_rate", only_beyond)
    for check in (test_a_best_rate_within_the_grid_is_narrowed_down, test_where_all_diverge_the_search_goes_down):
        with pytest.raises(AssertionError):
            check()


def test_under_defaults_nothing_is_tuned_and_every_method_runs_at_its_prior() -> None:
    methods = (entry("lora", points=4), entry("pissa").model_copy(update={"lr": 0.7}))
    p = plan(methods=methods, protocol=Protocol(ruleset="defaults", lr=2e-3, trials=9, seeds=2), speed=None)
    runs = p.runs({})
    assert {run.stage for run in runs if isinstance(run, ScoreRun)} == {"final"}
    assert {run.method.name: run.lr for run in runs} == {"lora": 2e-3, "pissa": 2e-4}
    assert p.total() == len(runs) == 4


def test_more_points_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="5 points are more than 4 trials"):
        Protocol(points=5, trials=4)


def test_every_search_is_built_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many seeds and looks follow from it: a comparison asks for its runs after every one of them."""
    p = plan(("lora", "pissa", "probe"), protocol=Protocol(points=3, seeds=2, max_seeds=8), speed=None)
    known = by_key(*(record(run) for run in p.runs({}) if isinstance(run, ScoreRun)))
    built: list[str] = []
    search = Plan.search

    def counted(self: Plan, entry: Entry, records: Mapping[str, Record]) -> Search:
        built.append(entry.label)
        return search(self, entry, records)

    monkeypatch.setattr(Plan, "search", counted)
    for ask in (p.runs, p.tallies, p.seeds):
        built.clear()
        ask(known)
        assert sorted(built) == ["lora", "pissa", "probe"]


def test_an_estimate_says_what_it_leaves_out() -> None:
    assert not_counted(plan(("lora",))) == ["start-up and report"]
    protocol = Protocol(forecast=True, seeds=2, max_seeds=8)
    assert not_counted(plan(("lora",), protocol=protocol, spectrum=Spectrum())) == [
        "start-up and report",
        "spectra",
        "forecasts, at most 20 Hessian products a method",
        "seeds beyond the 2 of the first look (up to 8)",
    ]
    (anew,) = not_counted(plan(("lora", "dora"), match="seconds"))[1:]
    assert anew.startswith("timing again, and with it runs of all methods but lora, after a change of")
