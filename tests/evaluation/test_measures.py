"""Each measurement against a slow way to the same number."""

from __future__ import annotations

import gc
import json
import math
import random
import weakref
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from evaluation.clock import Clock
from evaluation.data import Split
from evaluation.measures import interleaving, speed as speed_module
from evaluation.measures.contestants import Floor, contestant, random_batch
from evaluation.measures.intervals import interval
from evaluation.measures.memory import peak_bytes, saved_bytes
from evaluation.measures.parameters import parameters
from evaluation.measures.score import macro_f1, score
from evaluation.measures.speed import speed
from evaluation.spec import Method, Speed, Training
from evaluation.training import Classifier, Trainer
from tests.evaluation import toy
from tests.evaluation.merge_cases import MODELS, Gated, WithBiases
from variants.core import Variant, adapter_state, attach, create, detach, registry
from variants.core.host import hosts
from variants.lora import LoRA

CPU = torch.device("cpu")


def adapted(name: str | Variant, model: str = "bert") -> tuple[nn.Module, Variant]:
    build, where = MODELS[model]
    encoder, variant = build(), create(name, toy.METHODS[name]) if isinstance(name, str) else name
    attach(encoder, variant, where, seed=1)
    return encoder, variant


# ---- parameters -----------------------------------------------------------------------------------------------------

PER_LAYER = {  # trained numbers on an (out, in) layer: a share of out + in, a share of out, and a constant
    "lora": (2, 0, 0),
    "dora": (2, 1, 0),
    "pissa": (2, 0, 0),
    "milora": (2, 0, 0),
    "lora_xs": (0, 0, 9),
    "stiefel": (2, 0, 2),
    "probe": (0, 0, 0),
}
SHAPES = {"bert": [(16, 16)] * 4, "gpt2": [(48, 16), (16, 64)] * 2}


def by_hand(name: str, out: int, in_: int) -> int:
    both, rows, constant = PER_LAYER[name]
    return both * (out + in_) + rows * out + constant


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", toy.METHODS)
def test_parameters_are_those_in_the_tensors_and_in_the_file(name, model, tmp_path):
    stock = sum(p.numel() for p in MODELS[model][0]().parameters())
    encoder, variant = adapted(name, model)
    found = parameters(encoder, variant)
    want = stock if name == "full" else sum(by_hand(name, *shape) for shape in SHAPES[model])
    assert found["trainable"] == found["closed_form"] == want
    assert found["trainable"] == sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert (found["base"], found["share"]) == (stock, want / stock)
    assert found["left_after_merging"] == 0
    state = adapter_state(encoder)
    if name == "probe":
        assert (state, found["stored_bytes"]) == ({}, 0)
    else:
        save_file(state, tmp_path / "adapter.safetensors")
        assert found["stored_bytes"] == (tmp_path / "adapter.safetensors").stat().st_size
        assert found["stored_bytes"] > 4 * want
    json.dumps(found, allow_nan=False)


def test_parameters_of_mixed_and_unmergeable_methods():
    encoder, variant = adapted(WithBiases(rank=2))
    biases = sum(p.numel() for path, p in toy.bert().named_parameters() if path.endswith("bias"))
    found = parameters(encoder, variant)
    assert found["trainable"] == found["closed_form"] == 256 + biases
    encoder, variant = adapted(Gated(rank=2))
    assert parameters(encoder, variant)["left_after_merging"] is None


def test_a_closed_form_that_disagrees_is_refused(monkeypatch):
    encoder, variant = adapted("lora")
    monkeypatch.setattr(LoRA, "parameter_count", lambda self, out, _: self.rank * out)
    with pytest.raises(ValueError, match="parameter_count says 128, the tensors hold 256"):
        parameters(encoder, variant)


# ---- score ----------------------------------------------------------------------------------------------------------


def slow_f1(gold: list[int], predicted: list[int]) -> float:
    """By precision and recall, class by class."""
    found = []
    for c in sorted(set(gold)):
        true = sum(g == p == c for g, p in zip(gold, predicted, strict=True))
        precision = true / predicted.count(c) if c in predicted else 0.0
        recall = true / gold.count(c) if c in gold else 0.0
        found.append(2 * precision * recall / (precision + recall) if true else 0.0)
    return sum(found) / len(found)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_macro_f1(pairs):
    gold, predicted = map(list, zip(*pairs, strict=True))
    assert macro_f1(np.array(gold), np.array(predicted)) == pytest.approx(slow_f1(gold, predicted), abs=1e-12)


def test_macro_f1_by_hand():
    assert macro_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])) == 1
    assert macro_f1(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])) == pytest.approx((6 / 7 + 0) / 2)
    assert macro_f1(np.array([0, 1, 2]), np.array([1, 2, 0])) == 0


def test_score_by_hand():
    split = Split(("a", "b", "c"), ((1,), (2,), (3,)), (2, 0, 1), pad=0)
    out = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, 5.0, 0.0], [-1.0, 1.0, 0.5]])
    found = score(out, split)
    assert found["items"] == {"id": ["a", "b", "c"], "gold": [2, 0, 1], "predicted": [2, 1, 1]}
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    losses = [-math.log(2 / 4), math.log(2 + math.exp(5)), -1 + math.log(sum(map(math.exp, (-1, 1, 0.5))))]
    assert found["loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    json.dumps(found, allow_nan=False)


# ---- speed: fairness ------------------------------------------------------------------------------------------------


def contestants(names: tuple[str, ...], encoder: nn.Module) -> dict[str, Any]:
    floor = Floor(Classifier(encoder, toy.HIDDEN, toy.CLASSES, seed=0), "float32", Clock())
    variants, batch = [create(n, toy.METHODS[n]) for n in names], random_batch(2, 5, encoder, toy.CLASSES)
    return {v.name: contestant(v, toy.WHERE, Training(), floor, batch, total=10) for v in variants}


def storages(model: nn.Module, trained: bool) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in model.parameters() if p.requires_grad is trained}


def test_replicas_share_what_is_frozen_and_own_what_is_trained():
    encoder = toy.bert()
    base = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    found = contestants(("lora", "pissa", "full"), encoder)
    models = {name: c.trainer.model.encoder for name, c in found.items()}
    assert storages(models["lora"], trained=False) == base
    assert not storages(models["lora"], trained=True) & base
    residuals = storages(models["pissa"], trained=False) - base
    assert len(residuals) == 4  # and the four originals are kept as they are
    assert base == (storages(models["pissa"], trained=False) - residuals) | {
        host._original.untyped_storage().data_ptr() for host in hosts(models["pissa"]).values()
    }
    assert not storages(models["full"], trained=True) & base
    assert storages(models["full"], trained=False) == set()
    trained = [storages(c.trainer.model, trained=True) for c in found.values()]
    assert not trained[0] & trained[1]
    assert not trained[1] & trained[2]


def test_measuring_speed_leaves_everything_as_it_was():
    encoder = toy.bert()
    before, generator, threads = toy.bits(encoder), torch.get_rng_state(), torch.get_num_threads()
    run = toy.speed_run(tuple(toy.METHODS), training=Training(adapter_dropout=0.1, base_dropout=True))
    speed(run, encoder, toy.HIDDEN, toy.CLASSES, CPU)
    assert toy.same(before, toy.bits(encoder))
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    attach(encoder, create("full"), "all")
    detach(encoder, merge=False)
    assert toy.same(before, toy.bits(encoder))


def test_threads_are_those_of_the_run_and_put_back_after_a_failure(monkeypatch):
    seen = []

    def fail(*_: Any) -> None:
        seen.append(torch.get_num_threads())
        raise MemoryError

    monkeypatch.setattr(speed_module, "random_batch", fail)
    threads = torch.get_num_threads()
    with pytest.raises(MemoryError):
        speed(toy.speed_run(threads=threads + 1), toy.bert(), toy.HIDDEN, toy.CLASSES, CPU)
    assert seen == [threads + 1]
    assert torch.get_num_threads() == threads


def steps_taken(monkeypatch: pytest.MonkeyPatch, rounds: int = 12) -> list[list[str]]:
    """The order of the steps of each round."""
    order: list[str] = []
    train, floor = Trainer.step, Floor.step

    def noted(self: Trainer, batch: Any) -> float:
        order.append(self.variant.name)
        return train(self, batch)

    def floored(self: Floor, batch: Any) -> None:
        order.append("floor")
        floor(self, batch)

    monkeypatch.setattr(Trainer, "step", noted)
    monkeypatch.setattr(Floor, "step", floored)
    run = toy.speed_run(speed=Speed(batch_size=2, tokens=4, warmup=1, rounds=rounds))
    speed(run, toy.bert(), toy.HIDDEN, toy.CLASSES, CPU)
    return [order[i : i + 6] for i in range(0, 6 * (rounds + 1), 6)]


def neighbours_vary(rounds: list[list[str]]) -> bool:
    """Whether every method follows several others: each finds the caches as its predecessor left them."""
    before = Counter((a, b) for one in rounds for a, b in pairwise(one) if a != b)
    return all(len({a for a, b in before if b == method}) >= 3 for method in ("lora", "pissa", "full", "probe"))


def test_methods_are_interleaved_and_change_neighbours(monkeypatch):
    rounds = steps_taken(monkeypatch)
    assert all(sorted(one) == ["floor", "floor", "full", "lora", "pissa", "probe"] for one in rounds)
    assert neighbours_vary(rounds)


def test_an_order_that_only_rotates_is_caught(monkeypatch):
    class Rotating(random.Random):
        turn = 0

        def sample(self, population, k):
            self.turn += 1
            return population[self.turn % k :] + population[: self.turn % k]

    monkeypatch.setattr(interleaving.random, "Random", Rotating)
    assert not neighbours_vary(steps_taken(monkeypatch))


def test_the_result_is_plain_and_whole():
    run = toy.speed_run(speed=Speed(batch_size=2, tokens=5, warmup=1, rounds=7))
    found = speed(run, toy.bert(), toy.HIDDEN, toy.CLASSES, CPU)
    json.dumps(found, allow_nan=False)
    assert list(found["methods"]) == ["lora", "pissa", "full", "probe"]
    for name, values in found["methods"].items():
        phases = ["forward", "backward", "optimiser", "hooks"]
        assert all(0 < values[p]["low"] <= values[p]["median"] <= values[p]["high"] for p in phases), name
        assert values["total"]["median"] > values["forward"]["median"]
        assert values["total"]["high"] <= sum(values[p]["high"] for p in phases) + 1e-9
        assert values["latency"].keys() == {"token", "batch"}
        assert all(kinds.keys() == {"adapted", "folded", "merged"} for kinds in values["latency"].values())
        assert values["saved_bytes"] > 0
        assert values["peak_bytes"] > 0
    assert found["methods"]["lora"]["ratio_baseline"] == {"median": 1, "low": 1, "high": 1}
    assert found["noise"] >= 0
    assert found["seconds"].keys() == {"forward", "backward", "optimiser", "hooks", "evaluation"}
    assert found["methods"]["full"]["peak_bytes"] > found["methods"]["lora"]["peak_bytes"]
    assert found["floor"]["saved_bytes"] < found["methods"]["lora"]["saved_bytes"]


def test_ratios_are_formed_within_a_round(monkeypatch):
    """A machine that gets slower and slower, by a factor of 2 a round: the ratios do not notice."""
    rounds, weights = Counter(), {"lora": 1.0, "full": 3.0}

    class Fake(Clock):
        def laps(self):
            return {"forward": [self.cost], "backward": [0.0]}

        def seconds(self):
            return {"pass": 1.0}

    def step(self, _):
        rounds[self.variant.name] += 1
        self.clock.cost = weights[self.variant.name] * 2.0 ** rounds[self.variant.name]

    def floored(self, _):
        rounds["floor"] += 1
        self.clock.cost = 2.0 ** ((rounds["floor"] + 1) // 2)

    monkeypatch.setattr(interleaving, "Clock", Fake)
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(Floor, "step", floored)
    found = speed(toy.speed_run(("lora", "full")), toy.bert(), toy.HIDDEN, toy.CLASSES, CPU)
    assert found["methods"]["full"]["ratio_baseline"] == {"median": 3, "low": 3, "high": 3}
    assert found["methods"]["lora"]["ratio_floor"] == {"median": 1, "low": 1, "high": 1}
    assert found["noise"] == 0
    assert found["methods"]["full"]["total"]["high"] == 32 * found["methods"]["full"]["total"]["low"]


def test_an_unmergeable_method_has_no_merged_latency(monkeypatch):
    monkeypatch.setitem(registry._METHODS, "gated", Gated)
    run = toy.speed_run(("lora",))
    methods = {**run.methods, "gated": Method(name="gated", hyperparameters={"rank": 2})}
    found = speed(run.model_copy(update={"methods": methods}), toy.bert(), toy.HIDDEN, toy.CLASSES, CPU)
    for kinds in found["methods"]["gated"]["latency"].values():
        assert kinds["merged"] is None
        assert kinds["adapted"] is not None


def slow_numbers(names: tuple[str, ...]) -> bool:
    """Whether second moments come near 1e-38, below which a processor takes many times as long.

    The gradients of a real model are a thousand times and more below those of the made-up one, their squares a million.
    """
    encoder = toy.bert()
    batch = random_batch(4, 8, encoder, toy.CLASSES)
    found = []
    for c in contestants(names, encoder).values():
        for _ in range(8):
            c.trainer.step(batch)
        moments = (state["exp_avg_sq"] for state in c.trainer.optimiser.state.values())
        found += [float(v[v != 0].median()) for v in moments if bool(v.any())]
    return min(found) < 1e-30


def test_no_slow_numbers_enter_the_optimiser(monkeypatch):
    assert not slow_numbers(("lora", "dora", "stiefel"))
    at_rate = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, m, v, t, _, clock, total: at_rate(self, m, v, t, 1e-13, clock, total)
    )
    assert slow_numbers(("lora",))
    assert slow_numbers(("stiefel",))


# ---- speed: floor ---------------------------------------------------------------------------------------------------


def test_the_floor_has_the_gradient_of_its_input_and_of_nothing_else():
    model = Classifier(toy.bert(), toy.HIDDEN, toy.CLASSES, 0)
    floor = Floor(model, "float32", Clock())
    reached: list[Tensor] = []
    embed = floor.embed

    def watched(ids: Tensor) -> Tensor:
        out = embed(ids)
        out.requires_grad_().register_hook(reached.append)
        return out

    object.__setattr__(floor, "embed", watched)
    batch = random_batch(3, 6, model.encoder, toy.CLASSES)
    floor.step(batch)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert [g.shape for g in reached] == [(3, 6, toy.HIDDEN)]
    assert bool(reached[0].any())
    assert set(floor.clock.laps()) == {"forward", "backward"}


def test_the_floor_computes_what_the_model_computes():
    model = Classifier(toy.bert(), toy.HIDDEN, toy.CLASSES, 0)
    batch = random_batch(3, 6, model.encoder, toy.CLASSES)
    want = model(batch).logsumexp(1).mean()
    got = Floor(model, "float32", Clock()).forward(batch)
    assert torch.allclose(got, want, rtol=1e-6)


def test_random_batch_has_no_padding_and_is_always_the_same():
    a, b = (random_batch(5, 7, toy.bert(), toy.CLASSES) for _ in range(2))
    assert a.input_ids.shape == (5, 7)
    assert torch.equal(a.input_ids, b.input_ids)
    assert bool(a.attention_mask.all())
    assert int(a.input_ids.max()) < toy.VOCAB
    assert int(a.labels.max()) < toy.CLASSES


# ---- speed: memory --------------------------------------------------------------------------------------------------


class One(nn.Module):
    def __init__(self, in_: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def saved_by(model: nn.Module, rows: int, in_: int) -> int:
    x = torch.randn(rows, in_, requires_grad=True)
    return saved_bytes(model, lambda: model(x))


def test_saved_bytes_by_hand():
    rows, in_, out, rank = 10, 60, 40, 2
    frozen = One(in_, out).requires_grad_(False)
    assert saved_by(frozen, rows, in_) == 0  # the gradient of the input needs the weight alone
    assert saved_by(One(in_, out), rows, in_) == 4 * rows * in_  # that of the weight needs the input
    attach(frozen, LoRA(rank=rank, alpha=4), "layer")
    assert saved_by(frozen, rows, in_) == 4 * rows * (in_ + rank)  # that of A the input, that of B what A gave


def test_saved_bytes_leaves_out_what_was_kept_for_a_moment():
    """A norm that is detached has a graph of its own, which is gone when backward begins."""

    def forward():
        x = torch.ones(5, requires_grad=True)
        norm = (x.exp() * x.exp()).sum().detach()
        return (x.exp() * norm).sum()

    # The last exp keeps its result, and the product keeps the norm and, for a factor that needs no gradient, no more.
    assert saved_bytes(nn.Identity(), forward) == 5 * 4 + 4


def test_saved_bytes_lets_go_of_what_it_has_counted():
    """Without waiting for the garbage collector: a bench counts a gigabyte after another."""
    found = []

    def forward():
        y = torch.ones(5, requires_grad=True).tanh()  # which its own backward needs
        found.append(weakref.ref(y))
        return y.sum()

    gc.disable()
    try:
        saved_bytes(nn.Identity(), forward)
        assert found[0]() is None
    finally:
        gc.enable()


def test_saved_bytes_counts_a_storage_once():
    x = torch.randn(10, requires_grad=True)

    def twice() -> Tensor:
        y = x.exp()  # kept by exp itself, by both products, and by a view
        return y * y + (y.view(2, 5) ** 2).sum()

    assert saved_bytes(nn.Identity(), twice) == 40


def test_memory_is_measured_in_training_and_in_its_precision():
    def saved(**training: Any) -> int:
        run = toy.speed_run(("lora",), training=Training(**training))
        found = speed(run, toy.bert(), toy.HIDDEN, toy.CLASSES, CPU)
        return found["methods"]["lora"]["saved_bytes"]

    plain = saved()
    tokens = 2 * 5
    assert saved(adapter_dropout=0.5) >= plain + 4 * 4 * tokens * toy.HIDDEN  # another input on each of four layers
    assert saved(precision="bfloat16") != plain


def test_peak_bytes_by_hand():
    def step() -> None:
        a = torch.empty(1000)
        b = torch.empty(500)
        del a
        c = torch.empty(700)
        del b, c

    assert peak_bytes(step, CPU) == 4 * 1500
    assert peak_bytes(lambda: None, CPU) == 0
    kept: list[Tensor] = []
    assert peak_bytes(lambda: kept.append(torch.empty(300)), CPU) == 1200


# ---- speed: interval ------------------------------------------------------------------------------------------------


def coverage(n: int, of: Callable[[np.ndarray], dict[str, float]]) -> float:
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(2000, n))  # skewed, as times are
    found = [of(row) for row in draws]
    return float(np.mean([i["low"] <= math.log(2) <= i["high"] for i in found]))


@pytest.mark.parametrize("n", [6, 9, 15, 40])
def test_the_interval_covers_the_median(n):
    assert coverage(n, interval) >= 0.95


@pytest.mark.parametrize("n", [9, 15])
def test_an_interval_that_is_one_value_too_narrow_is_caught(n):
    def narrow(samples: np.ndarray) -> dict[str, float]:
        ordered, whole = np.sort(samples), interval(samples)
        i = int(np.searchsorted(ordered, whole["low"]))
        return {"low": ordered[i + 1], "high": ordered[n - 2 - i]}

    assert coverage(n, narrow) < 0.95


def test_interval_by_hand():
    assert interval(np.array([3.0, 1.0, 2.0])) == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert interval(np.arange(8.0)) == {"median": 3.5, "low": 0.0, "high": 7.0}
    assert interval(np.arange(9.0)[::-1]) == {"median": 4.0, "low": 1.0, "high": 7.0}
    assert interval(np.arange(15.0)) == {"median": 7.0, "low": 3.0, "high": 11.0}
    assert interval(np.array([5.0])) == {"median": 5.0, "low": 5.0, "high": 5.0}
