"""The training loop against a slow one written from formulas, and what every method shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from evaluation import training as loop
from evaluation.clock import Clock
from evaluation.data import Batch, axis_seed, training_batches
from evaluation.spec import Training
from evaluation.training import Classifier, Diverged, Trainer, logits, rate, seeded
from tests.evaluation import toy
from variants.core import Variant, attach, create, detach
from variants.core.host import hosts
from variants.core.linalg import orthogonality_defect
from variants.lora import LoRA

CPU = torch.device("cpu")
LAYERWISE = sorted(set(toy.METHODS) - {"full", "probe"})


def batches(n: int, seed: int = 0, size: int = 8) -> list[Batch]:
    split = toy.data().train
    return [split.batch(rows) for rows in islice(training_batches(split, size, seed), n)]


def trainer(
    variant: Variant | str, lr: float = 1e-2, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any
) -> Trainer:
    """A method on a fresh made-up model, ready to train."""
    settings = Training(**{"steps": 6, "batch_size": 8, **settings})
    if isinstance(variant, str):
        variant = create(variant, toy.METHODS[variant])
    encoder = toy.bert().to(dtype)
    attach(encoder, variant, toy.WHERE, axis_seed("adapter", seed), dropout=settings.adapter_dropout)
    model = Classifier(encoder, toy.HIDDEN, toy.CLASSES, axis_seed("head", seed)).to(dtype)
    return Trainer(model, variant, settings, lr, Clock())


def trained(t: Trainer) -> dict[str, Tensor]:
    return {path: p.detach().clone() for path, p in t.model.named_parameters() if p.requires_grad}


# ---- the slow loop --------------------------------------------------------------------------------------------------


@dataclass
class Slow:
    """AdamW by its formulas, on the stock encoder with dense weights, one row at a time."""

    encoder: nn.Module
    training: Training
    values: dict[str, Tensor]  # the trained tensors, under the names which the model has for them
    rates: dict[str, float]
    scale: float
    penalty: Callable[[dict[str, Tensor]], Tensor] = lambda _: torch.zeros(())
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    done: int = 0

    def weights(self) -> dict[str, Tensor]:
        found = {name.removeprefix("encoder."): v for name, v in self.values.items() if name.startswith("encoder.")}
        plain = {name: v for name, v in found.items() if ".adapter." not in name}
        for name, A in found.items():
            path, _, tensor = name.partition(".adapter.default.")
            if tensor == "A":
                W = self.encoder.get_parameter(f"{path}.weight").detach()
                plain[f"{path}.weight"] = W + self.scale * found[f"{path}.adapter.default.B"] @ A
        return plain

    def loss(self, batch: Batch) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for ids, mask, label in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            row = ids[: int(mask.sum())][None]
            hidden = functional_call(self.encoder, self.weights(), (row,)).last_hidden_state[0]
            out = self.values["head.weight"] @ (hidden.sum(0) / len(hidden)) + self.values["head.bias"]
            total = total - (out[label] - out.exp().sum().log())
        return total / len(batch.labels) + self.penalty(self.values)

    def step(self, batch: Batch) -> None:
        self.values = {name: v.detach().requires_grad_() for name, v in self.values.items()}
        gradients = torch.autograd.grad(self.loss(batch), list(self.values.values()))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        shrink = min(1.0, self.training.clip / (norm + 1e-6))
        factor, decay = self.factor(), self.training.weight_decay
        self.done += 1
        for (name, value), gradient in zip(list(self.values.items()), gradients, strict=True):
            g, lr = gradient * shrink, self.rates[name] * factor
            m, v = self.moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            self.moments[name] = m, v
            direction = (m / (1 - 0.9**self.done)) / ((v / (1 - 0.999**self.done)).sqrt() + 1e-8)
            self.values[name] = value.detach() * (1 - lr * decay) - lr * direction

    def factor(self) -> float:
        """Up in equal steps during the warm-up, then down to zero."""
        up = round(self.training.warmup * self.training.steps)
        if self.done < up:
            return (self.done + 1) / up
        x = (self.done - up) / (self.training.steps - up)
        return 1 - x if self.training.schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * x)


def slow_copy(t: Trainer, lr: float, **changes: Any) -> Slow:
    """The slow loop from where a trainer starts."""
    values = trained(t)
    head_lr = lr if t.variant.trains == "head" else t.training.head_lr
    rates = {name: head_lr if name.startswith("head.") else lr for name in values}
    return Slow(toy.bert().double(), t.training, values, rates, getattr(t.variant, "scale", 1.0), **changes)


def disagreement(t: Trainer, slow: Slow, steps: int = 6) -> float:
    """The largest difference between a trained tensor and the slow loop's, after some steps."""
    for batch in batches(steps):
        t.step(batch)
        slow.step(batch)
    fast = trained(t)
    assert fast.keys() == slow.values.keys()
    return max(float((fast[name] - slow.values[name]).abs().max()) for name in fast)


def off(method: str, **settings: Any) -> float:
    t = trainer(method, 2e-2, torch.float64, **settings)
    return disagreement(t, slow_copy(t, 2e-2))


SETTINGS = {
    "plain": {"warmup": 0.0, "clip": 1e9},
    "linear": {"warmup": 0.4, "clip": 0.05, "weight_decay": 0.1},
    "cosine": {"warmup": 0.2, "schedule": "cosine", "head_lr": 0.1},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("method", ["lora", "full", "probe"])
def test_training_is_what_the_formulas_say(method, settings):
    assert off(method, **settings) < 1e-9


def test_a_penalty_enters_the_gradient_but_not_the_reported_loss():
    t = trainer(Pulled(rank=2, alpha=4), 2e-2, torch.float64, clip=1e9)
    pull = lambda values: 3 * sum((v**2).sum() for name, v in values.items() if ".adapter." in name)  # noqa: E731
    slow = slow_copy(t, 2e-2, penalty=pull)
    batch = batches(1)[0]
    loss, objective = t.losses(batch)
    assert (objective - loss).item() == pytest.approx(pull(slow.values).item(), rel=1e-12)
    assert (objective - loss).item() > 0.1
    assert loss.item() == trainer("lora", 2e-2, torch.float64).step(batch)
    assert disagreement(t, slow) < 1e-9


@dataclass(frozen=True, kw_only=True)
class Pulled(LoRA):
    """LoRA with a penalty on the size of its factors."""

    def penalty(self, states):
        return 3 * sum((t**2).sum() for state in states for t in state.t.values())


BROKEN: dict[str, tuple[str, Any]] = {
    "no schedule": ("rate", lambda *_: 1.0),
    "schedule a step late": ("rate", lambda step, *rest: rate(max(0, step - 1), *rest)),
    "padding in the mean": ("features", lambda self, batch: _states(self, batch).mean(1)),
    "first token instead of the mean": ("features", lambda self, batch: _states(self, batch)[:, 0]),
    "no clipping": ("clip", lambda *_, **__: torch.zeros(())),
    "head at the adapter's rate": ("head", None),
}


def _states(model: Classifier, batch: Batch) -> Tensor:
    return model.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_loop_is_caught(monkeypatch, case):
    place, broken = BROKEN[case]
    if place == "rate":
        monkeypatch.setattr(loop, "rate", broken)
    elif place == "features":
        monkeypatch.setattr(Classifier, "features", broken)
    elif place == "clip":
        monkeypatch.setattr(nn.utils, "clip_grad_norm_", broken)
    else:
        monkeypatch.setattr(LoRA, "trains", "head")
        t = trainer("lora", 2e-2, torch.float64)
        monkeypatch.setattr(LoRA, "trains", "layers")
        assert disagreement(t, slow_copy(t, 2e-2)) > 1e-4
        return
    assert off("lora", **SETTINGS["linear"]) > 1e-4


# ---- schedule and rates ---------------------------------------------------------------------------------------------


def test_schedule():
    assert [rate(i, 8, 0.25, "linear") for i in range(8)] == pytest.approx(
        [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    )
    assert [rate(i, 4, 0.0, "cosine") for i in range(5)] == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0], abs=1e-7)
    assert [rate(i, 2, 1.0, "linear") for i in range(2)] == [0.5, 1]
    assert rate(0, 1, 0.1, "linear") == 1
    for schedule in ("linear", "cosine"):
        assert 0 < rate(999, 1000, 0.1, schedule) < 2e-3
        assert rate(1000, 1000, 0.1, schedule) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", toy.METHODS)
def test_rates_in_the_optimiser(method):
    t = trainer(method, 3e-3, head_lr=0.5, warmup=0.5)
    head = {id(p) for p in t.model.head.parameters()}
    found = {id(p): group["lr"] for group in t.optimiser.param_groups for p in group["params"]}
    assert found.keys() == {id(p) for p in t.model.parameters() if p.requires_grad}
    first = 1 / 3  # of three steps of warm-up
    for parameter, lr in found.items():
        want = 0.5 if parameter in head and method != "probe" else 3e-3
        assert lr == pytest.approx(want * first)


def test_the_head_is_the_same_for_every_method_within_a_seed():
    heads = {m: trainer(m, seed=1).model.head.state_dict() for m in toy.METHODS}
    assert all(toy.same(head, heads["lora"]) for head in heads.values())
    assert not toy.same(trainer("lora", seed=2).model.head.state_dict(), heads["lora"])
    bound = toy.HIDDEN**-0.5
    weight = torch.cat([Classifier(nn.Identity(), toy.HIDDEN, 50, s).head.weight for s in range(20)])
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not heads["lora"]["bias"].any()


def test_training_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    for method in toy.METHODS:
        t = trainer(method)
        t.step(batches(1)[0])
        logits(t.model, toy.data().test, Clock(), CPU)
    assert torch.equal(before, torch.get_rng_state())


# ---- what training changes ------------------------------------------------------------------------------------------


def frozen_bits(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {path: t.detach().clone() for path, t in named if not t.requires_grad}


@pytest.mark.parametrize("method", LAYERWISE)
def test_training_changes_only_the_adapter_and_the_head(method):
    t = trainer(method, weight_decay=0.1)
    stock, frozen, before = toy.bits(toy.bert()), frozen_bits(t.model), trained(t)
    for batch in batches(4):
        t.step(batch)
    assert toy.same(frozen, frozen_bits(t.model))
    now = t.model.encoder.state_dict()
    assert toy.same(stock, {path: now[path] for path in stock})  # the residual of PiSSA is not what its keys mean
    assert all(not torch.equal(before[path], value) for path, value in trained(t).items())
    detach(t.model.encoder, merge=False)
    assert toy.same(stock, toy.bits(t.model.encoder))


def test_training_the_base_changes_all_of_it():
    t = trainer("full")
    before = trained(t)
    assert {f"encoder.{path}" for path, _ in toy.bert().named_parameters()} < before.keys()
    for batch in batches(2):
        t.step(batch)
    unmoved = [path for path, value in trained(t).items() if torch.equal(before[path], value)]
    assert unmoved == []


def test_orthonormal_factors_stay_so_under_weight_decay():
    t = trainer("stiefel", lr=0.1, weight_decay=0.5)
    start = {state.path: state.t["U"].detach().clone() for state in t.states}
    for batch in batches(6):
        t.step(batch)
    for state in t.states:
        assert not torch.allclose(state.t["U"], start[state.path], atol=1e-3)
        assert orthogonality_defect(state.t["U"]) < 1e-5
        assert orthogonality_defect(state.t["V"]) < 1e-5


# ---- hooks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Noted(LoRA):
    """LoRA which writes down what it is called with, and what it finds."""

    notes: list[Any] = field(default_factory=list)

    def penalty(self, states):
        self.notes.append("penalty")

    def before_step(self, states):
        states[0].scratch["B"] = states[0].t["B"].detach().clone()
        self.notes.append(("before", [p.grad is not None for p in states[0].t.values()]))

    def after_step(self, states, step, total):
        moved = not torch.equal(states[0].scratch["B"], states[0].t["B"])
        self.notes.append(("after", step, total, moved))


def test_hooks_are_called_in_their_order():
    variant = Noted(rank=2)
    t = trainer(variant, steps=3, clip=1e-4)
    norms: list[float] = []
    t.optimiser.register_step_pre_hook(lambda *_: norms.append(norm_of(t)) or variant.notes.append("optimiser"))
    for batch in batches(3):
        t.step(batch)
    assert variant.notes == [
        note for i in range(3) for note in ("penalty", ("before", [True, True]), "optimiser", ("after", i + 1, 3, True))
    ]
    assert norms == pytest.approx([1e-4] * 3, rel=1e-2)  # clipped before
    assert norm_of(t) == 0  # no gradient is left


def norm_of(t: Trainer) -> float:
    return math.sqrt(sum(float((p.grad**2).sum()) for p in t.model.parameters() if p.grad is not None))


def test_total_is_what_the_trainer_was_told():
    variant = Noted(rank=2)
    t = trainer(variant)
    longer = Trainer(t.model, variant, t.training, 1e-2, Clock(), total=100)
    longer.step(batches(1)[0])
    assert variant.notes[-1] == ("after", 1, 100, True)


@dataclass(frozen=True, kw_only=True)
class Forgetful(LoRA):
    """LoRA which forgets half of its tensors."""

    def param_groups(self, states, lr):
        return [{"params": [state.t["A"] for state in states], "lr": lr}]


def test_a_tensor_left_out_of_the_groups_is_refused():
    with pytest.raises(ValueError, match=r"lora\.param_groups leaves 4 trainable tensors out"):
        trainer(Forgetful(rank=2))


# ---- divergence -----------------------------------------------------------------------------------------------------


def infinite_loss(t: Trainer) -> None:
    with torch.no_grad():
        t.model.head.bias.copy_(torch.tensor([3e38, -3e38, 0]))


def no_gradient(t: Trainer) -> None:
    t.parameters[0].register_hook(lambda g: g * math.nan)


def infinite_penalty(t: Trainer) -> None:
    object.__setattr__(t, "variant", Endless(rank=2, alpha=4))


@dataclass(frozen=True, kw_only=True)
class Endless(LoRA):
    def penalty(self, states):
        return sum((state.t["A"] * math.inf).sum() for state in states)


@pytest.mark.parametrize("spoil", [infinite_loss, no_gradient, infinite_penalty])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_divergence_is_noticed_before_anything_changes(method, spoil):
    if method == "full" and spoil is infinite_penalty:
        return
    t = trainer(method)
    first, second = batches(2)
    t.step(first)
    spoil(t)
    before = trained(t)
    with pytest.raises(Diverged, match="at step 2"):
        t.step(second)
    assert toy.same(before, trained(t))
    assert all(p.grad is None for p in t.model.parameters())  # of a base that others use


# ---- precision and dropout ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exact(LoRA):
    """LoRA whose penalty sees the precision that it is computed in."""

    def penalty(self, states):
        product = states[0].t["A"] @ states[0].t["A"].T
        assert product.dtype == torch.float32, product.dtype
        return product.square().sum() * 0


@pytest.mark.parametrize("method", toy.METHODS)
def test_bfloat16_is_close_to_float32(method):
    wide, narrow = trainer(method), trainer(method, precision="bfloat16")
    for batch in batches(4):
        a, b = wide.step(batch), narrow.step(batch)
        assert a != b
        assert a == pytest.approx(b, rel=0.05)
    assert {p.dtype for p in narrow.parameters} == {torch.float32}
    out = logits(narrow.model, toy.data().test, Clock(), CPU, "bfloat16")
    assert out.dtype == torch.float32
    assert not torch.equal(out, logits(narrow.model, toy.data().test, Clock(), CPU))


def test_penalties_are_computed_in_full_precision():
    with mock.patch.object(Exact, "penalty", autospec=True, side_effect=Exact.penalty) as penalty:  # holds the check
        trainer(Exact(rank=2), precision="bfloat16").step(batches(1)[0])
    penalty.assert_called_once()


def moved(t: Trainer) -> Trainer:
    with torch.no_grad():
        for state in t.states:
            state.t["B"].add_(0.5)
    return t


def test_adapter_dropout_acts_in_training_only_and_by_its_seed():
    t, without = moved(trainer("lora", adapter_dropout=0.5)), moved(trainer("lora"))
    batch = batches(1)[0]

    def loss(model: Trainer, seed: int) -> float:
        with seeded(seed, CPU):
            return model.losses(batch)[0].item()

    assert loss(t, 1) == loss(t, 1)
    assert len({loss(t, 1), loss(t, 2), loss(without, 1)}) == 3
    assert loss(without, 1) == loss(without, 2)
    test = toy.data().test
    after = logits(t.model, test, Clock(), CPU)
    assert torch.equal(after, logits(t.model, test, Clock(), CPU))
    assert torch.equal(after, logits(without.model, test, Clock(), CPU))


@pytest.mark.parametrize("on", [False, True])
def test_base_dropout_is_on_if_asked_for(on):
    t = trainer("lora", base_dropout=on)
    t.model.train(not on)  # as another trainer may have left it
    t = Trainer(t.model, t.variant, t.training, 1e-2, Clock())
    dropouts = [m for m in t.model.encoder.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) > 4
    assert {m.training for m in dropouts} == {on}
    assert all(host.training for host in hosts(t.model.encoder).values())
    losses = []
    for seed in (1, 2):
        with seeded(seed, CPU):
            losses.append(t.losses(batches(1)[0])[0].item())
    assert (losses[0] != losses[1]) is on
    logits(t.model, toy.data().test, Clock(), CPU)
    assert not any(m.training for m in t.model.modules())


def test_seeded_puts_the_global_generator_back():
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    with seeded(1, CPU):
        first = torch.rand(3)
    again = []
    with pytest.raises(ZeroDivisionError), seeded(1, CPU):
        again.append(torch.rand(3)) or 1 / 0
    assert torch.equal(again[0], first)
    assert torch.equal(torch.rand(3), want)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_logits_are_in_the_order_of_the_split():
    t = trainer("lora", dtype=torch.float64)
    split = toy.split(70, 5)  # two batches
    out = logits(t.model, split, Clock(), CPU)
    one = torch.cat([t.model(split.batch([i])).detach() for i in range(len(split))])
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), one, atol=1e-6)


def test_interleaved_trainers_do_not_disturb_each_other():
    alone = trainer("lora")
    for batch in batches(3):
        alone.step(batch)
    a, b = trainer("lora"), trainer("pissa")
    for batch in batches(3):
        a.step(batch)
        b.step(batch)
    assert toy.same(trained(a), trained(alone))


def test_the_clock_has_a_lap_for_every_phase():
    t = trainer("lora")
    for batch in batches(3):
        t.step(batch)
    laps = t.clock.laps()
    assert {phase: len(found) for phase, found in laps.items()} == {
        "forward": 3,
        "backward": 3,
        "optimiser": 9,
        "hooks": 6,
    }
    assert t.clock.seconds() == {phase: sum(found) for phase, found in laps.items()}
