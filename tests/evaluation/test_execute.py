"""One run, one record: nothing of a run reaches the next one on the same workbench."""

from __future__ import annotations

import json
import random
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from evaluation import execute as module, mounting
from evaluation.benchmarks import load_benchmark
from evaluation.data import Split, axis_seed, training_batches
from evaluation.execute import Workbench, execute
from evaluation.machine import resolve_device
from evaluation.models import load_base
from evaluation.spec import AXES, Identity, Record, ScoreRun, SpeedRun, Suite, Unusable, key
from evaluation.training import Diverged, Trainer
from tests.evaluation import toy
from variants.core import attach
from variants.core.host import hosts

DROPOUT = {"adapter_dropout": 0.3, "base_dropout": True}


def content(record: Record) -> dict[str, Any]:
    """All of a record but the times, as JSON."""
    found = json.loads(json.dumps(record.model_dump(mode="json"), allow_nan=False))
    del found["seconds"]
    found["measures"].get("merging", {}).pop("cost", None)
    return found


def untouched(bench: Workbench) -> bool:
    """Whether a workbench's model is exactly as it was made."""
    encoder = bench.base.encoder
    return (
        toy.same(toy.bits(encoder), toy.bits(toy.bert()))
        and all(p.requires_grad and p.grad is None for p in encoder.parameters())
        and not any(m.training for m in encoder.modules())
        and not hosts(encoder)
        and {type(m) for m in encoder.modules()} == {type(m) for m in toy.bert().modules()}
    )


def alone(monkeypatch: pytest.MonkeyPatch, run: ScoreRun) -> dict[str, Any]:
    return content(execute(run, toy.bench(monkeypatch)))


# ---- one run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", toy.METHODS)
def test_a_run_of_every_method(monkeypatch, name):
    bench, run = toy.bench(monkeypatch), toy.run(name)
    record = execute(run, bench)
    assert (record.status, record.error, record.key, record.run) == ("done", None, key(run), run)
    assert record.measures.keys() == {"parameters", "start", "training", "score", "merging"}
    assert len(record.measures["training"]["loss"]) == 3
    assert record.measures["score"]["items"]["id"] == list(toy.data().test.ids)
    assert record.measures["merging"]["restored"] is True
    assert record.measures["merging"]["items"] == 10
    phases = {"attach", "forward", "backward", "optimiser", "hooks", "evaluation", "total"}
    assert record.seconds.keys() == phases
    assert sum(record.seconds.values()) <= 2 * record.seconds["total"]
    assert Record.model_validate(json.loads(json.dumps(record.model_dump(mode="json"), allow_nan=False))) == record
    assert untouched(bench)


def test_the_split_and_the_limit_are_those_of_the_run(monkeypatch):
    bench = toy.bench(monkeypatch)
    found = execute(toy.run("lora", split="validation", limit=7, merging=None), bench).measures
    assert found["score"]["items"]["id"] == list(toy.data().validation.ids[:7])
    assert "merging" not in found


def test_training_learns(monkeypatch):
    run = toy.run("lora", lr=5e-2, training={"steps": 60, "head_lr": 5e-2})
    found = execute(run, toy.bench(monkeypatch)).measures
    assert sum(found["training"]["loss"][-10:]) < 0.6 * sum(found["training"]["loss"][:10])
    assert found["score"]["accuracy"] > 0.4


@pytest.mark.parametrize("training", [{}, DROPOUT, {"precision": "bfloat16"}], ids=["plain", "dropout", "bfloat16"])
@pytest.mark.parametrize("name", ["lora", "pissa", "full"])
def test_the_same_run_twice_is_the_same_record(monkeypatch, name, training):
    run = toy.run(name, training=training)
    assert alone(monkeypatch, run) == alone(monkeypatch, run)


def test_every_seed_is_another_run(monkeypatch):
    losses = {seed: alone(monkeypatch, toy.run("lora", seed=seed))["measures"]["training"]["loss"] for seed in range(4)}
    assert len({tuple(found) for found in losses.values()}) == 4


# ---- pairing --------------------------------------------------------------------------------------------------------


def axes(monkeypatch: pytest.MonkeyPatch, name: str, seed: int, **more: Any) -> dict[str, Any]:
    """What a run draws from each source of randomness."""
    found: dict[str, Any] = {"batches": []}
    step = Trainer.step

    def noted(self: Trainer, batch: Any) -> float:
        if not found["batches"]:
            found["head"] = self.model.head.weight.tolist()
            found["adapter"] = [tensor.tolist() for state in self.states for tensor in state.t.values()]
            found["dropout"] = torch.initial_seed()
        found["batches"].append((batch.input_ids.tolist(), batch.labels.tolist()))
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", noted)
        execute(toy.run(name, seed=seed, merging=None, training={"steps": 7}, **more), toy.bench(patch))
    return found


def paired(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether one seed gives all methods the same batches and head, and another seed gives others of everything."""
    first = {name: axes(monkeypatch, name, 1) for name in toy.METHODS}
    shared = ("batches", "head", "dropout")
    same = all(found[axis] == first["lora"][axis] for found in first.values() for axis in shared)
    others = [axes(monkeypatch, "lora", seed) for seed in (2, 3)]
    return same and all(found[axis] != first["lora"][axis] for found in others for axis in (*shared, "adapter"))


def test_methods_are_paired_within_a_seed(monkeypatch):
    assert paired(monkeypatch)


@pytest.mark.parametrize("axis", ["data order", "head", "adapter", "dropout"])
def test_an_axis_which_the_seed_does_not_decide_is_caught(monkeypatch, axis):
    monkeypatch.setattr(module, "axis_seed", lambda name, seed: axis_seed(name, 0 if name == axis else seed))
    assert not paired(monkeypatch)


@pytest.mark.parametrize("axis", ["batches", "head"])
def test_an_axis_on_which_methods_differ_is_caught(monkeypatch, axis):
    if axis == "batches":
        monkeypatch.setattr(
            module, "training_batches", lambda *given: training_batches(*given[:2], random.getrandbits(40))
        )
    else:
        monkeypatch.setattr(module, "axis_seed", lambda name, seed: axis_seed(name, seed) + random.getrandbits(40))
    assert not paired(monkeypatch)


def test_axes_that_are_held_fixed_are_those_of_seed_0(monkeypatch):
    free, held = (axes(monkeypatch, "lora", 2, vary=vary) for vary in (AXES, ("data order",)))
    zero = axes(monkeypatch, "lora", 0)
    assert held["batches"] == free["batches"] != zero["batches"]
    for axis in ("head", "adapter", "dropout"):
        assert held[axis] == zero[axis] != free[axis]


def test_a_subset_is_drawn_by_the_seed_and_shared_by_the_methods(monkeypatch):
    def rows(name: str, seed: int, **more: Any) -> set[str]:
        seen: set[str] = set()
        drawn = Split.drawn

        def noted(split: Split, n: int | None, drawn_with: int) -> Split:
            found = drawn(split, n, drawn_with)
            seen.update(found.ids)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Split, "drawn", noted)
            execute(toy.run(name, seed=seed, training={"subset": 5}, merging=None, **more), toy.bench(patch))
        return seen

    assert len(rows("lora", 1)) == 5
    assert rows("lora", 1) == rows("pissa", 1) != rows("lora", 2)
    assert rows("lora", 1, vary=("head",)) == rows("lora", 2, vary=("head",))


# ---- from run to run ------------------------------------------------------------------------------------------------

SHARED = ("lora", "pissa", "dora", "full", "stiefel")


def unaffected(monkeypatch: pytest.MonkeyPatch, first: ScoreRun | SpeedRun, second: ScoreRun) -> bool:
    """Whether ``second`` gives the same record after ``first`` as it gives on a new workbench."""
    bench = toy.bench(monkeypatch)
    execute(first, bench)
    return untouched(bench) and content(execute(second, bench)) == alone(monkeypatch, second)


@pytest.mark.parametrize(("first", "second"), list(product(SHARED, SHARED)))
def test_a_run_does_not_reach_the_next(monkeypatch, first, second):
    assert unaffected(monkeypatch, toy.run(first), toy.run(second))


@pytest.mark.parametrize("name", ["probe", "lora_xs", "milora"])
def test_other_methods_do_not_reach_the_next_either(monkeypatch, name):
    assert unaffected(monkeypatch, toy.run(name), toy.run("lora"))
    assert unaffected(monkeypatch, toy.run("full"), toy.run(name))


@pytest.mark.parametrize("name", ["lora", "pissa", "full"])
def test_dropout_does_not_reach_the_next_run(monkeypatch, name):
    assert unaffected(monkeypatch, toy.run(name, training=DROPOUT), toy.run(name))
    assert unaffected(monkeypatch, toy.run(name), toy.run(name, training=DROPOUT))


def test_a_speed_run_does_not_reach_the_next_run(monkeypatch):
    assert unaffected(monkeypatch, toy.speed_run(), toy.run("full"))


def test_a_run_leaves_the_global_generator_alone(monkeypatch):
    bench = toy.bench(monkeypatch)
    before = torch.get_rng_state()
    for run in (toy.run("lora", training=DROPOUT), toy.run("full", lr=1e30), toy.speed_run()):
        execute(run, bench)
    assert torch.equal(before, torch.get_rng_state())


def forget_to_detach(encoder: nn.Module, *, merge: bool) -> None:
    """A broken variant: the weights come back, the trained base does not."""
    del merge
    for host in hosts(encoder).values():
        host.unrebase()
        host.__class__ = host.plain
        del host.adapter
        del host.switch
    encoder.__dict__.pop("_svdbench")


def test_a_base_that_stays_trained_is_caught(monkeypatch):
    monkeypatch.setattr(mounting, "detach", forget_to_detach)
    assert not unaffected(monkeypatch, toy.run("full", merging=None), toy.run("lora", merging=None))
    record = execute(toy.run("full"), toy.bench(monkeypatch))
    assert record.measures["merging"]["restored"] is False


# ---- divergence and failure -----------------------------------------------------------------------------------------

TOO_FAST = ("lora", "pissa", "milora", "lora_xs", "stiefel", "full")


@pytest.mark.parametrize("training", [{}, DROPOUT], ids=["plain", "dropout"])
@pytest.mark.parametrize("name", TOO_FAST)
def test_divergence_is_a_result_and_reaches_nobody(monkeypatch, name, training):
    bench = toy.bench(monkeypatch)
    record = execute(toy.run(name, lr=1e30, training=training), bench)
    assert record.status == "diverged"
    assert "not" in record.error or "nan" in record.error
    assert record.measures.keys() >= {"parameters", "training"}
    assert "score" not in record.measures
    content(record)
    assert untouched(bench)
    for second in (toy.run("full"), toy.run(name)):
        assert content(execute(second, bench)) == alone(monkeypatch, second)


def test_a_gradient_left_on_the_base_does_not_reach_the_next_run(monkeypatch):
    step = Trainer.step

    def careless(self: Trainer, batch: Any) -> float:
        try:
            return step(self, batch)
        except Diverged:
            for parameter in self.parameters:
                parameter.grad = torch.full_like(parameter, torch.nan)
            raise

    monkeypatch.setattr(Trainer, "step", careless)
    assert unaffected(monkeypatch, toy.run("full", lr=1e30), toy.run("full"))


def test_outputs_that_are_not_finite_are_a_divergence(monkeypatch):
    logits = module.logits
    monkeypatch.setattr(module, "logits", lambda *arguments: logits(*arguments) / 0)
    bench = toy.bench(monkeypatch)
    record = execute(toy.run("lora"), bench)
    assert (record.status, record.error) == ("diverged", "the outputs after training are not finite")
    assert untouched(bench)


@pytest.mark.parametrize("place", ["score", "merging", "parameters", "logits", "Trainer"])
@pytest.mark.parametrize("name", ["pissa", "full"])
def test_what_goes_wrong_is_raised_and_leaves_the_model_as_it_was(monkeypatch, name, place):
    bench = toy.bench(monkeypatch)

    def fail(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(module, place, fail)
        with pytest.raises(MemoryError):
            execute(toy.run(name), bench)
    assert untouched(bench)
    assert content(execute(toy.run(name), bench)) == alone(monkeypatch, toy.run(name))


# ---- the workbench --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"benchmark": "other"},
        {"identity": Identity(model="newer", data="toy", methods={})},
        {"identity": Identity(model="toy", data="newer", methods={})},
    ],
)
def test_a_run_planned_for_something_else_is_refused(monkeypatch, changes):
    """Its record would stand in the store under digests that are not those of what was computed."""
    bench = toy.bench(monkeypatch)
    with pytest.raises(ValueError, match="is not, or no longer, what the run was planned for"):
        execute(toy.run("lora", **changes), bench)


def test_check_names_the_method_that_cannot_work_here(monkeypatch):
    bench = toy.bench(monkeypatch)

    def suite(where: tuple[str, ...], **methods: dict[str, Any]) -> Suite:
        entries = [{"label": label, "name": label.partition(" ")[0], **given} for label, given in methods.items()]
        return Suite(name="s", model="toy", benchmark="toy", where=where, methods=entries)

    bench.check(suite(toy.WHERE, **toy.METHODS))
    assert untouched(bench)
    with pytest.raises(Unusable, match=r"lora too big: lora on .*rank 17 does not fit a 16 x 16 layer"):
        bench.check(suite(toy.WHERE, **toy.METHODS, **{"lora too big": {"rank": 17}}))
    assert untouched(bench)
    with pytest.raises(Unusable, match="matches no layer"):
        bench.check(suite(("qurey",), **toy.METHODS))
    with pytest.raises(Unusable, match="pissa: 'nowhere' matches no layer"):
        bench.check(suite(toy.WHERE, **toy.METHODS | {"pissa": {"rank": 2, "where": ["nowhere"]}}))
    assert untouched(bench)
    attach(bench.base.encoder, module.create("lora"), toy.WHERE)


def test_data_is_tokenised_once_for_each_length(monkeypatch):
    bench, calls = toy.bench(monkeypatch), []
    tokenise = module.tokenise
    monkeypatch.setattr(module, "tokenise", lambda *arguments: calls.append(arguments[2]) or tokenise(*arguments))
    assert bench.data(5, None) == bench.data(5, 3) or len(bench.data(5, 3).train) == 3
    assert max(map(len, bench.data(5, None).train.tokens)) == 5
    assert max(map(len, bench.data(128, None).train.tokens)) == 12
    assert calls == [5, 128]


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == resolve_device("cpu").type == "cpu"
    for name in ("cuda", "cuda:1", "tpu", ""):
        with pytest.raises(Unusable, match="use auto, cpu or cuda") as refused:
            resolve_device(name)
        assert "\n" not in str(refused.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == resolve_device("cuda").type == "cuda"


# ---- the real model -------------------------------------------------------------------------------------------------


@pytest.mark.assets
def test_real_runs_do_not_reach_each_other():
    bench = Workbench("minilm", "trec50", torch.device("cpu"))
    identity = Identity(model=load_base("minilm").digest, data=load_benchmark("trec50").digest, methods={})
    real = {"model": "minilm", "benchmark": "trec50", "identity": identity, "limit": 16, "training": {"steps": 2}}
    first = content(execute(toy.run("pissa", **real), bench))
    assert first["status"] == "done"
    assert first["measures"]["merging"]["restored"] is True
    assert execute(toy.run("full", lr=1e30, **real), bench).status == "diverged"
    assert execute(toy.run("full", lr=1e-4, **real), bench).status == "done"
    assert content(execute(toy.run("pissa", **real), bench)) == first


def test_a_retraction_that_fails_is_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed run would keep the method from its final runs; a diverged one is the grid point's result."""
    record = execute(toy.run("stiefel", lr=1e38), toy.bench(monkeypatch))
    assert record.status == "diverged"
    assert record.error
