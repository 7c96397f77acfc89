"""The search for learning rates: the same effort for every method, and nothing of the test split in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from evaluation.protocol import Plan, costly_first
from evaluation.resolving import resolve
from evaluation.search import Setting, grid
from evaluation.spec import (
    Curve,
    Entry,
    Identity,
    Method,
    Protocol,
    Quantised,
    QuantisedRun,
    Record,
    ScoreRun,
    Spectrum,
    SpeedRun,
    Suite,
    Training,
    Unusable,
    key,
    load_suite,
)
from evaluation.strategies import centre
from tests.evaluation import toy

METHODS = ("lora", "pissa", "stiefel", "full", "probe")


def plan(names: tuple[str, ...] = METHODS, **changes: Any) -> Plan:
    entries = tuple(Entry(label=n, method=Method(name=n, hyperparameters=toy.METHODS[n])) for n in names)
    fields: dict[str, Any] = {"name": "s", "model": "toy", "benchmark": "toy", "where": toy.WHERE, "methods": entries}
    suite = resolve(Suite(**(fields | {"protocol": Protocol(points=3, per_decade=2, seeds=2)} | changes)))
    digests = {entry.method.name: f"digest of {entry.method.name}" for entry in suite.methods}
    return Plan(suite, Identity(model="m", data="d", methods=digests, forgetting="f"), "cpu", 2)


def record(run: ScoreRun | SpeedRun, accuracy: float = 0.5, loss: float = 1.0, status: str = "done") -> Record:
    measures = {"score": {"accuracy": accuracy, "loss": loss}}  # also where the status says that it counts for nothing
    return Record(key=key(run), run=run, status=status, measures=measures)


def by_key(*records: Record) -> dict[str, Record]:
    return {r.key: r for r in records}


def entry_of(p: Plan, label: str) -> Entry:
    return next(entry for entry in p.suite.methods if entry.label == label)


# ---- rates ----------------------------------------------------------------------------------------------------------


def test_grid():
    assert grid(5e-3, 3, 2) == [1.58e-3, 5e-3, 1.58e-2]
    assert grid(1e-2, 5, 4) == [3.16e-3, 5.62e-3, 1e-2, 1.78e-2, 3.16e-2]
    assert grid(1e-2, 2, 1) == [3.16e-3, 3.16e-2]
    assert grid(2e-4, 1, 3) == [2e-4]


def test_every_method_has_the_same_number_of_rates_over_the_same_span():
    p = plan(tuple(toy.METHODS))
    rates = {entry.label: [run.lr for run in p.search(entry).runs] for entry in p.suite.methods}
    for found in rates.values():
        assert len(set(found)) == 3
        assert math.log10(found[-1] / found[0]) == pytest.approx(1.0, abs=0.01)
        assert found == sorted(found)
    assert rates["pissa"][1] == pytest.approx(rates["lora"][1] / 10)


def test_centres():
    p = plan(METHODS, protocol=Protocol(lr=2e-3))
    assert centre(p.suite, entry_of(p, "lora")) == 2e-3
    assert centre(p.suite, entry_of(p, "pissa")) == pytest.approx(2e-4)
    assert centre(p.suite, entry_of(p, "full")) == pytest.approx(2e-4)
    assert centre(p.suite, entry_of(p, "probe")) == p.suite.training.head_lr
    own = entry_of(p, "pissa").model_copy(update={"lr": 0.7})
    assert centre(p.suite, own) == 0.7
    assert p.search(own).runs[1].lr == 0.7


# ---- forecasts ------------------------------------------------------------------------------------------------------


def test_a_forecast_is_made_in_the_first_run_of_each_method_and_leaves_all_others_alone():
    plain, asked = plan(), plan(protocol=Protocol(points=3, per_decade=2, seeds=2, forecast=True))
    runs = [run for run in asked.runs({}) if isinstance(run, ScoreRun)]
    chosen = [run for run in runs if run.forecast]
    assert [run.method.name for run in chosen] == [entry.label for entry in costly_first(asked.suite.methods)]
    assert all(run.lr == min(r.lr for r in runs if r.method == run.method) for run in chosen)
    entry = entry_of(plain, "lora")
    assert not any(run.forecast for run in asked.final(entry, Setting(1e-3)))
    assert {key(run) for run in runs} - {key(run) for run in plain.runs({})} == {key(run) for run in chosen}
    assert asked.final(entry, Setting(1e-3)) == plain.final(entry, Setting(1e-3))


def test_without_a_search_the_first_final_run_makes_it():
    p = plan(("lora", "probe"), protocol=Protocol(points=1, seeds=2, forecast=True))
    assert [run.forecast for run in p.final(entry_of(p, "lora"), Setting(5e-3))] == [True, False]


# ---- what is run ----------------------------------------------------------------------------------------------------


def search_of(p: Plan, label: str) -> list[ScoreRun]:
    return p.search(entry_of(p, label)).runs


def test_at_first_only_the_search_is_known():
    p = plan()
    runs = p.runs({})
    assert len(runs) == len(METHODS) * 3
    assert {run.stage for run in runs} == {"search"}
    assert len({key(run) for run in runs}) == len(runs)


def test_search_sees_validation_and_final_sees_test_with_other_seeds():
    p = plan()
    records = by_key(*(record(run) for run in p.runs({})))
    runs = [run for run in p.runs(records) if isinstance(run, ScoreRun)]
    search, final = ([r for r in runs if r.stage == stage] for stage in ("search", "final"))
    assert {r.split for r in search} == {"validation"}
    assert {r.split for r in final} == {"test"}
    assert {r.seed for r in search} == {0}
    assert {(r.method.name, r.seed) for r in final} == {(name, seed) for name in METHODS for seed in (1, 2)}
    assert len(final) == len(METHODS) * 2
    assert [r.merging is not None for r in final if r.method.name == "lora"] == [True, False]
    assert not any(r.merging for r in search)


def test_the_first_final_run_has_its_spectra_in_full_and_the_others_their_directions():
    spec = Spectrum(items=7)
    p = plan(spectrum=spec)
    records = by_key(*(record(run) for run in p.runs({})))
    runs = [run for run in p.runs(records) if isinstance(run, ScoreRun) and run.method.name == "lora"]
    assert [r.spectrum for r in runs if r.stage == "search"] == [None] * 3
    others = spec.model_copy(update={"depth": "directions"})
    assert [r.spectrum for r in runs if r.stage == "final"] == [spec, others]
    assert [r.identity.forgetting for r in runs] == [None] * 3 + ["f", None]  # only where its texts are read
    assert not any(r.spectrum for r in plan().runs(records) if isinstance(r, ScoreRun))


def test_final_runs_alone_have_a_validation_curve():
    p = plan(curve=Curve(points=3))
    records = by_key(*(record(run) for run in p.runs({})))
    runs = [run for run in p.runs(records) if isinstance(run, ScoreRun)]
    assert {(run.stage, run.curve) for run in runs} == {("search", None), ("final", Curve(points=3))}
    # Without curves it is the same search, and other final runs.
    plain = [run for run in plan().runs(records) if isinstance(run, ScoreRun)]
    assert [key(a) == key(b) for a, b in zip(runs, plain, strict=True)] == [run.stage == "search" for run in runs]


def test_a_method_is_final_as_soon_as_its_own_search_is_complete():
    p = plan()
    *first, last = search_of(p, "lora")
    known = by_key(*map(record, first))
    assert not any(run.stage == "final" for run in p.runs(known))
    known |= by_key(record(last))
    assert {run.method.name for run in p.runs(known) if run.stage == "final"} == {"lora"}


def test_speed_comes_last_and_only_if_it_is_asked_for():
    p, known = plan(), {}
    for expected in (15, 25, 26, 26):
        runs = p.runs(known)
        assert len(runs) == expected
        assert isinstance(runs[-1], SpeedRun) is (expected == 26)
        known = by_key(*(record(run) for run in runs))
    assert p.total() == 26
    without = plan(speed=None)
    known = {}
    for _ in range(3):
        known = by_key(*(record(run) for run in without.runs(known)))
    assert len(known) == without.total() == 25


def test_long_runs_come_first():
    names = [
        entry.label for entry in costly_first(plan(("probe", "lora", "full", "dora"), baseline="lora").suite.methods)
    ]
    assert names == ["full", "lora", "dora", "probe"]


# ---- selection ------------------------------------------------------------------------------------------------------

Chooser = Callable[[list[ScoreRun], Mapping[str, Record]], float | None]


def chosen_rate(search: list[ScoreRun], records: Mapping[str, Record]) -> float | None:
    p = plan()
    assert search == search_of(p, "lora")
    return p.rate(entry_of(p, "lora"), records)


def choice(choose: Chooser, results: list[tuple[float, float, str] | None]) -> int | None:
    """The place, in the grid, of the chosen rate; a result is (accuracy, loss, status), None where it is missing."""
    search = search_of(plan(), "lora")
    records = by_key(*(record(run, *result) for run, result in zip(search, results, strict=True) if result))
    rate = choose(search, records)
    return None if rate is None else [run.lr for run in search].index(rate)


CHOICES = {
    "best": ([(0.1, 1, "done"), (0.3, 9, "done"), (0.2, 1, "done")], 1),
    "best is the first": ([(0.4, 9, "done"), (0.3, 1, "done"), (0.2, 1, "done")], 0),
    "tie by loss": ([(0.3, 2.0, "done"), (0.3, 1.0, "done"), (0.2, 0.1, "done")], 1),
    "diverged is never chosen": ([(0.1, 3.0, "done"), (0.9, 0.1, "diverged"), (0.05, 1.0, "done")], 0),
    "one left": ([(0.9, 0.1, "diverged"), (0.9, 0.1, "diverged"), (0.0, 99.0, "done")], 2),
    "all diverged": ([(0.9, 0.1, "diverged")] * 3, None),
    "one is missing": ([(0.1, 1, "done"), None, (0.2, 1, "done")], None),
    "one failed": ([(0.1, 1, "done"), (0.9, 0.1, "failed"), (0.2, 1, "done")], None),
}


@pytest.mark.parametrize("case", CHOICES)
def test_selection(case):
    results, want = CHOICES[case]
    assert choice(chosen_rate, results) == want


def wrong_choice(rank: Callable[[dict[str, float]], Any]) -> Chooser:
    def choose(search: list[ScoreRun], records: Mapping[str, Record]) -> float | None:
        scored = [(rank(r.measures["score"]), run.lr) for run in search if (r := records.get(key(run))) and r.measures]
        return max(scored)[1] if scored else None

    return choose


@pytest.mark.parametrize(
    "rank",
    [lambda s: s["loss"], lambda s: -s["loss"], lambda s: (s["accuracy"], s["loss"])],
    ids=["highest loss", "lowest loss", "ties by higher loss"],
)
def test_a_broken_selection_is_caught(rank):
    assert any(choice(wrong_choice(rank), results) != want for results, want in CHOICES.values())


def test_a_method_that_always_diverges_has_no_final_runs_and_does_not_hold_up_the_rest():
    p = plan(("lora", "probe"))
    known = by_key(*(record(run, status="diverged" if run.method.name == "lora" else "done") for run in p.runs({})))
    for _ in range(2):
        known |= by_key(*(record(run) for run in p.runs(known) if key(run) not in known))
    final = [run for run in p.runs(known) if isinstance(run, ScoreRun) and run.stage == "final"]
    assert {run.method.name for run in final} == {"probe"}
    assert isinstance(p.runs(known)[-1], SpeedRun)


def test_the_test_split_cannot_reach_the_search():
    """Whatever the final records say, the chosen rate stays."""
    p = plan()
    search = search_of(p, "lora")
    known = by_key(*(record(run, accuracy=run.lr) for run in search))
    before = chosen_rate(search, known)
    finals = p.final(entry_of(p, "lora"), Setting(search[0].lr))
    assert chosen_rate(search, known | by_key(*(record(run, accuracy=1.0) for run in finals))) == before


# ---- one rate, more seeds, adapters that are kept -------------------------------------------------------------------


def entry(name: str, **own: int) -> Entry:
    return Entry(label=name, method=Method(name=name, hyperparameters=toy.METHODS[name]), **own)


def test_one_rate_needs_no_search():
    p = plan(("lora", "probe"), protocol=Protocol(lr=2e-3, points=1, seeds=2), speed=None)
    runs = p.runs({})
    assert {(run.stage, run.seed, run.split) for run in runs} == {("final", 1, "test"), ("final", 2, "test")}
    assert {run.method.name: run.lr for run in runs} == {"lora": 2e-3, "probe": p.suite.training.head_lr}
    assert p.total() == len(runs) == sum(tally.left for tally in p.tallies({})) == 4
    assert {tally.stage for tally in p.tallies({})} == {"final"}


def test_a_method_may_have_a_search_and_seeds_of_its_own():
    methods = (entry("lora", points=4, seeds=3), entry("pissa", seeds=1), entry("full"))
    p = plan(methods=methods, protocol=Protocol(points=1, seeds=2), speed=None)
    known: dict[str, Record] = {}
    for _ in range(2):
        known |= by_key(*(record(run) for run in p.runs(known)))
    stages = [(run.method.name, run.stage) for run in p.runs(known)]
    assert [stages.count((name, "search")) for name in ("lora", "pissa", "full")] == [4, 0, 0]
    assert [stages.count((name, "final")) for name in ("lora", "pissa", "full")] == [3, 1, 2]
    assert p.total() == len(stages) == 10
    assert all(tally.left == 0 for tally in p.tallies(known))


@pytest.mark.parametrize(("keep", "kept"), [("first", {1}), ("all", {1, 2}), ("none", set())])
def test_which_final_runs_keep_their_adapter(keep, kept):
    p = plan(("lora",), keep=keep)
    assert {run.seed for run in p.final(p.suite.methods[0], Setting(0.1)) if run.keep} == kept
    assert not any(run.keep for run in p.search(p.suite.methods[0]).runs)


def test_a_peers_adapter_is_its_librarys_to_keep():
    p = plan(methods=(entry("lora"), Entry(label="peer", method=Method(name="peft:lora"))), keep="all")
    assert not any(run.keep for run in p.final(entry_of(p, "peer"), Setting(0.1)))


def test_the_starts_on_a_quantised_base_are_one_run_whatever_the_methods():
    few, more = plan(("lora",), quantised=Quantised(ranks=(2,))), plan(quantised=Quantised(ranks=(2,)))
    runs = [run for run in more.runs({}) if isinstance(run, QuantisedRun)]
    assert [key(run) for run in runs] == [key(few.quantised_run())]
    assert key(plan(quantised=Quantised(ranks=(3,))).quantised_run()) != key(runs[0])
    assert more.total() == plan().total() + 1


# ---- keys -----------------------------------------------------------------------------------------------------------


def score_keys(p: Plan) -> dict[str, set[str]]:
    return {e.label: {key(run) for run in [*p.search(e).runs, *p.final(e, Setting(0.1))]} for e in p.suite.methods}


def test_another_method_in_the_suite_leaves_the_keys_of_the_rest():
    few, more = score_keys(plan(("lora", "probe"))), score_keys(plan(("dora", "lora", "probe", "full")))
    assert few == {label: more[label] for label in few}
    assert key(plan(("lora", "probe")).speed_run()) != key(plan().speed_run())


def test_a_run_with_the_digests_of_all_methods_is_caught(monkeypatch):
    monkeypatch.setattr(Plan, "_common", lambda self, _, *more: common(self, self.suite.methods, *more))
    with pytest.raises(AssertionError):
        test_another_method_in_the_suite_leaves_the_keys_of_the_rest()


common = Plan._common


def test_another_source_changes_the_keys_of_its_method_alone():
    p = plan()
    digests = {**p.identity.methods, "pissa": "edited"}
    edited = Plan(p.suite, p.identity.model_copy(update={"methods": digests}), p.device, p.threads)
    before, after = score_keys(p), score_keys(edited)
    assert [label for label in before if before[label] != after[label]] == ["pissa"]
    assert not before["pissa"] & after["pissa"]


def test_defaults_are_spelt_out_in_the_runs():
    suite = load_suite("smoke")
    entries = (Entry(label="lora", method=Method(name="lora")),)
    resolved = resolve(suite.model_copy(update={"methods": entries}))
    assert resolved.methods[0].method.hyperparameters == {"rank": 8, "alpha": None}


def test_the_same_method_under_two_labels_is_refused():
    """Their runs would have the same keys, and whose they are could not be told."""
    one, two = (
        Entry(label=label, method=Method(name="lora", hyperparameters=h))
        for label, h in (("a", {}), ("b", {"rank": 8}))
    )
    suite = load_suite("smoke")
    with pytest.raises(Unusable, match="'a' and 'b' are the same method with the same hyperparameters"):
        resolve(suite.model_copy(update={"methods": (one, two)}))
    other = two.model_copy(update={"method": Method(name="lora", hyperparameters={"rank": 4})})
    assert len(resolve(suite.model_copy(update={"methods": (one, other)})).methods) == 2


# ---- what is left ---------------------------------------------------------------------------------------------------


def left(p: Plan, records: Mapping[str, Record]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(t.entry.label if t.entry else "all", t.stage): (t.done, t.left) for t in p.tallies(records)}


def test_tallies_count_what_is_done_and_what_is_left():
    p = plan(("lora", "probe"))
    records = by_key(*(record(run) for run in search_of(p, "lora")))
    records |= by_key(*(record(run) for run in p.final(entry_of(p, "lora"), Setting(5e-3))[:1]))
    assert left(p, records) == {
        ("lora", "search"): (3, 0),
        ("lora", "final"): (0, 2),  # 5e-3 is not the rate that was chosen
        ("probe", "search"): (0, 3),
        ("probe", "final"): (0, 2),
        ("all", "speed"): (0, 1),
    }


def test_runs_of_other_settings_do_not_count_as_done():
    p = plan(("lora",))
    records = by_key(*(record(run) for run in search_of(p, "lora")))
    other = Plan(p.suite.model_copy(update={"training": Training(steps=400)}), p.identity, "cpu", 2)
    assert left(other, records)["lora", "search"] == (0, 3)


def test_a_search_that_diverged_altogether_leaves_no_final_runs():
    p = plan(("lora",))
    records = by_key(*(record(run, status="diverged") for run in search_of(p, "lora")))
    assert ("lora", "final") not in left(p, records)


@pytest.mark.parametrize(("points", "per_decade"), [(6, 100_000), (700, 1)])
def test_a_grid_without_that_many_rates_is_refused(points, per_decade):
    with pytest.raises(Unusable, match=f"{points} points, {per_decade} per decade"):
        grid(5e-3, points, per_decade)


def test_other_code_changes_every_key():
    p = plan(("lora",))
    moved = Plan(p.suite, p.identity.model_copy(update={"code": "other"}), "cpu", 2)
    assert not {key(run) for run in search_of(p, "lora")} & {key(run) for run in search_of(moved, "lora")}
