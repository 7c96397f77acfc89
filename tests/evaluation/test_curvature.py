"""Top curvature at the start, against the dense Hessian of a model small enough to have one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evaluation.clock import Clock
from evaluation.data import Batch
from evaluation.execute import execute
from evaluation.measures import curvature as module
from evaluation.measures.curvature import Extremes, curvature, hessian, lanczos
from evaluation.mounting import mounted
from evaluation.peers import states_of
from evaluation.training import Classifier
from tests.evaluation import toy
from variants.core import Variant, create, trainable_parameters
from variants.lora import LoRA

Measure = Callable[..., dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Drawn(LoRA):
    """LoRA with a penalty whose Hessian is known: 2 times the identity on B, zero on A."""

    def penalty(self, states):
        return sum(state.t["B"].square().sum() for state in states)


@dataclass(frozen=True, kw_only=True)
class Kinked(LoRA):
    """LoRA with a penalty that has no second derivative at the start."""

    def penalty(self, states):
        return sum(torch.linalg.matrix_norm(state.t["B"]) for state in states)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


@dataclass(frozen=True, kw_only=True)
class WithOnce(LoRA):
    """LoRA with a penalty whose author wrote its first derivative by hand, and no second."""

    def penalty(self, states):
        return sum(Once.apply(state.t["A"]).sum().square() for state in states)


def batch() -> Batch:
    return toy.data().train.batch(range(12))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def dense(model: Classifier, variant: Variant, parameters: list[Tensor]) -> Tensor:
    """Column by column, by central differences of gradients: shares no code with the measurement."""

    def gradient() -> Tensor:
        loss = F.cross_entropy(model(batch()), batch().labels)
        penalty = variant.penalty(states_of(model.encoder))
        found = torch.autograd.grad(loss if penalty is None else loss + penalty, parameters, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in found])

    columns, step = [], 1e-5
    for flat in (p.data.view(-1) for p in parameters):
        for i in range(len(flat)):
            was = flat[i].item()
            flat[i] = was + step
            up = gradient()
            flat[i] = was - step
            down = gradient()
            flat[i] = was
            columns.append((up - down) / (2 * step))
    H = torch.stack(columns)
    return (H + H.T) / 2  # differences are symmetric only up to their error


def check_against_dense(variant: Variant, measure: Measure = curvature) -> None:
    """In float64: every product, and what ``curvature`` says of the adapter's block."""
    with mounted(toy.bert().double(), variant, ("0.attention.self.query",), seed=3) as encoder:
        model = Classifier(encoder, toy.HIDDEN, toy.CLASSES, 5).double()
        parameters = [p for p in encoder.parameters() if p.requires_grad]
        H = dense(model, variant, parameters)
        v = torch.randn(len(H), generator=rng(), dtype=torch.float64)
        product = hessian(model, variant, batch(), parameters)
        torch.testing.assert_close(product(v), H @ v, rtol=1e-5, atol=1e-7)
        exact = lanczos(product, v, len(H), tolerance=0.0)
        found = measure(model, variant, batch(), rng(), Clock())
    values = torch.linalg.eigvalsh(H)
    assert exact[:2] == pytest.approx((values[-1].item(), values[0].item()), rel=1e-5)
    # A Ritz value lies below the eigenvalue, here after few products and so not far below.
    assert 0.9 * values[-1] < found["top"] <= values[-1] * (1 + 1e-6)
    assert found["magnitude"] == pytest.approx(max(values.tolist(), key=abs), rel=0.1)
    assert found["residual"] < 0.2


OTHERS = {"drawn": Drawn(rank=2), "whole dora": create("dora", {"rank": 2, "alpha": 4, "detach_norm": False})}


@pytest.mark.parametrize("name", ["lora", "pissa", "lora_xs", "stiefel", *OTHERS])
def test_against_the_dense_hessian(name):
    check_against_dense(OTHERS[name] if name in OTHERS else create(name, toy.METHODS[name]))


def with_the_head(model: Classifier, *rest: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "trainable_parameters", lambda _: trainable_parameters(model))
        return curvature(model, *rest)


def test_the_head_left_in_is_caught():
    with pytest.raises(AssertionError):
        check_against_dense(create("lora", toy.METHODS["lora"]), with_the_head)


def test_a_penalty_counts():
    found = {}
    for variant in (LoRA(rank=2), Drawn(rank=2)):
        with mounted(toy.bert(), variant, toy.WHERE, seed=3) as encoder:
            model = Classifier(encoder, toy.HIDDEN, toy.CLASSES, 5)
            found[type(variant)] = curvature(model, variant, batch(), rng(), Clock())["top"]
    assert found[Drawn] > found[LoRA] + 1


def test_nothing_to_measure_is_said():
    cases = {"nothing trains": create("probe"), "not finite": Kinked(rank=2), "differentiated twice": WithOnce(rank=2)}
    for reason, variant in cases.items():
        with mounted(toy.bert(), variant, toy.WHERE, seed=3) as encoder:
            model = Classifier(encoder, toy.HIDDEN, toy.CLASSES, 5)
            found = curvature(model, variant, batch(), rng(), Clock())
        assert found["top"] is None
        assert reason in found["reason"]


# ---- Lanczos --------------------------------------------------------------------------------------------------------


def matrix(values: list[float]) -> Tensor:
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng(), dtype=torch.float64))[0]
    return Q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ Q.T


def ends(values: list[float], **changes: float) -> Extremes:
    H = matrix(values)
    return lanczos(lambda v: H @ v, torch.randn(len(H), generator=rng(), dtype=torch.float64), **changes)


def test_lanczos_finds_both_ends():
    values = [*torch.linspace(-1, 1, 60).tolist(), 3.0, -5.0]
    found = ends(values, products=62, tolerance=0.0)
    assert found[:2] == pytest.approx((3.0, -5.0), rel=1e-8)
    found = ends(values)
    assert found[:2] == pytest.approx((3.0, -5.0), rel=1e-2)
    assert ends([5.0, *[0.1] * 40]).products == 2  # so many different eigenvalues exhaust the space


def test_lanczos_stops_at_the_cap_and_owns_up():
    found = ends(torch.linspace(0, 1, 200).tolist(), products=4, tolerance=0.0)
    assert found.products == 4
    assert found.residual > 0.05
    assert found.top < 0.99


def test_lanczos_on_little():
    assert ends([0.0, 0.0, 0.0]) == (0.0, 0.0, 1, 0.0)
    assert ends([-2.0])[:3] == (-2.0, -2.0, 1)
    assert ends([-2.0, -1.0])[:2] == pytest.approx((-1.0, -2.0))


# ---- what it leaves alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", toy.METHODS)
def test_it_leaves_everything_as_it_was(name):
    variant = create(name, toy.METHODS[name])
    with mounted(toy.bert(), variant, toy.WHERE, 3, 0.4) as encoder:
        model = Classifier(encoder, toy.HIDDEN, toy.CLASSES, 5)
        model.train()
        before, flags = toy.bits(model), [p.requires_grad for p in model.parameters()]
        draws, clock = torch.get_rng_state(), Clock()
        first = curvature(model, variant, batch(), rng(), clock)
        assert toy.same(before, toy.bits(model))
        assert all(p.grad is None for p in model.parameters())
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(m.training for m in model.modules())
        assert torch.equal(torch.get_rng_state(), draws)
        model.eval()
        assert curvature(model, variant, batch(), rng(), clock) == first  # nothing was dropped out
    assert set(clock.seconds()) == (set() if name == "probe" else {"curvature"})


def test_attention_without_a_second_derivative_is_not_used(monkeypatch):
    """The fast kernels have none: were they left on, this would raise."""
    seen = []
    attention = F.scaled_dot_product_attention

    def watched(*args: object, **kwargs: object) -> Tensor:
        seen.append((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()))
        return attention(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    variant = create("lora", toy.METHODS["lora"])
    with mounted(toy.bert(), variant, toy.WHERE, seed=3) as encoder:
        curvature(Classifier(encoder, toy.HIDDEN, toy.CLASSES, 5), variant, batch(), rng(), Clock())
    assert set(seen) == {(False, True)}
    assert torch.backends.cuda.flash_sdp_enabled()


# ---- in a run -------------------------------------------------------------------------------------------------------


def test_a_run_with_a_forecast_is_the_run_without_it_and_a_number(monkeypatch):
    bench = toy.bench(monkeypatch)
    training = {"adapter_dropout": 0.3, "base_dropout": True}
    plain, asked = (execute(toy.run("lora", training=training, forecast=f), bench) for f in (False, True))
    found = asked.measures.pop("curvature")
    json.dumps(found, allow_nan=False)
    assert found["top"] > 0
    assert found["rows"] == 16
    assert asked.seconds["curvature"] > 0
    for name in ("training", "score", "parameters"):
        assert asked.measures[name] == plain.measures[name]
    assert "curvature" not in plain.measures
    assert asked.key != plain.key


def test_peers_are_measured(monkeypatch):
    pytest.importorskip("peft")
    found = execute(toy.run("peft:lora", forecast=True, merging=None), toy.bench(monkeypatch)).measures
    assert found["curvature"]["top"] > 0


def test_numbers_instead_of_classes_have_a_curvature():
    variant = create("lora", toy.METHODS["lora"])
    numbers = replace(batch(), labels=torch.linspace(-1, 1, 12))
    with mounted(toy.bert(), variant, toy.WHERE, seed=3) as encoder:
        found = curvature(Classifier(encoder, toy.HIDDEN, 1, 5), variant, numbers, rng(), Clock())
    assert found["top"] > 0
