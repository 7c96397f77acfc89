"""Products by oneDNN: against torch's own in double precision, in value and gradients; where they step aside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from variants.core import accelerate, attach, create, decelerate, detach, method, products
from variants.core.cases import close, generator
from variants.core.products import FastLinear, linear, with_product
from variants.lora import LoRA

CHOOSE = products.library.__wrapped__  # not remembered
ROUNDING = 2e-5  # of sums of some hundred float32 products, relative to the largest

pytestmark = pytest.mark.skipif(not products._has_onednn(), reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "library", lambda: "onednn")
    monkeypatch.setattr(products, "SMALLEST", 0)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs which oneDNN is given from now on."""
    seen: list[tuple[int, ...]] = []
    ours = products._onednn

    def noted(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(tuple(x.shape))
        return ours(x, W, bias)

    monkeypatch.setattr(products, "_onednn", noted)
    return seen


@given(
    lead=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    out=st.integers(1, 40),
    in_=st.integers(1, 40),
    bias=st.booleans(),
    turned=st.booleans(),
    trained=st.sets(st.sampled_from(["x", "W", "bias"]), min_size=1),
)
@settings(max_examples=150)
def test_it_is_the_product_of_torch(
    lead: tuple[int, ...], out: int, in_: int, bias: bool, turned: bool, trained: set[str]
) -> None:
    """Value, gradients, and the gradient of these. ``turned``: the weight lies in memory as (in, out)."""
    exact = {"x": normal(*lead, in_, seed=0), "W": normal(out, in_, seed=1)} | (
        {"bias": normal(out, seed=2)} if bias else {}
    )

    def results(product: Any, dtype: torch.dtype) -> list[Tensor]:
        t = {name: value.to(dtype) for name, value in exact.items()}
        if turned:
            t["W"] = t["W"].t().contiguous().t()
        free = [t[name].requires_grad_() for name in sorted(trained) if name in t]
        y = product(t["x"], t["W"], t.get("bias"))
        if not free:
            return [y]
        cotangent = normal(*y.shape, seed=3).to(dtype).requires_grad_()
        first = torch.autograd.grad(y, free, cotangent, create_graph=True)
        loss = sum((g * normal(*g.shape, seed=4 + i).to(dtype)).sum() for i, g in enumerate(first))
        assert isinstance(loss, Tensor)
        second = torch.autograd.grad(loss, [cotangent, *free], materialize_grads=True, allow_unused=True)
        return [y, *first, *second]

    for got, want in zip(results(linear, torch.float32), results(F.linear, torch.float64), strict=True):
        close(got.double(), want, ROUNDING, "product by oneDNN")


@pytest.mark.parametrize("scale", [1.0, -1.5])
def test_a_weight_with_a_product_added(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = used(monkeypatch)
    W, B, A = normal(30, 20, seed=0), normal(30, 3, seed=1), normal(3, 20, seed=2)
    close(with_product(W.float(), B.float(), A.float(), scale).double(), W + scale * B @ A, ROUNDING, "sum")
    assert seen == [(30, 3)]


def test_it_steps_aside_where_oneDNN_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = used(monkeypatch)
    x, W = normal(6, 5, seed=0), normal(4, 5, seed=1)
    linear(x, W)  # double precision
    linear(x.float(), normal(8, 5, seed=1).float()[::2])  # neither rows nor columns lie side by side
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x.float(), W.float()).dtype == torch.bfloat16
    with forward_ad.dual_level():
        linear(x.float(), W.float())
    torch.func.vmap(lambda row: linear(row, W.float()))(x.float())
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        linear(x.float(), W.float())
    monkeypatch.setattr(products, "SMALLEST", 6 * 5 * 4 + 1)
    linear(x.float(), W.float())
    monkeypatch.setattr(products, "library", lambda: "torch")
    monkeypatch.setattr(products, "SMALLEST", 0)
    linear(x.float(), W.float())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # torch's error is the clearer one
        linear(x.float(), W.float().t())
    assert not seen
    monkeypatch.setattr(products, "library", lambda: "onednn")
    linear(x.float(), W.float())
    assert seen == [(6, 5)], "the control: here it does"


def test_only_plain_layers_are_accelerated_and_they_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), Own(6, 4))
    x, state = normal(7, 5, seed=0).float(), model.state_dict()
    before = model(x)
    seen = used(monkeypatch)
    assert accelerate(model) is model
    assert [type(module) for module in model] == [FastLinear, nn.ReLU, Own]
    close(model(x), before, 1e-5, "output")
    assert len(seen) == 1
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert isinstance(copy.deepcopy(model)[0], FastLinear)
    decelerate(model)
    assert torch.equal(model(x), before)
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, Own]


def test_an_adapter_sits_on_an_accelerated_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = accelerate(nn.Sequential(nn.Linear(24, 20)))
    x = normal(7, 24, seed=0).float()
    before = model(x)
    attach(model, LoRA(rank=2), seed=0)
    seen = used(monkeypatch)
    close(model(x), before, 1e-5, "output at the start")
    assert seen, "the layer must go on using oneDNN"
    detach(model, merge=False)
    assert type(model[0]) is FastLinear
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("chosen", "has", "message"),
    [("mkl", True, "expected torch or onednn"), ("onednn", False, "has no oneDNN; write torch")],
)
def test_a_choice_that_cannot_be_is_refused(
    chosen: str, has: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(products.CHOICE, chosen)
    monkeypatch.setattr(products, "_has_onednn", lambda: has)
    with pytest.raises(ValueError, match=message):
        CHOOSE()


@pytest.mark.parametrize(
    ("processor", "capability", "has", "expected"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True, "onednn"),
        ("vendor_id : GenuineIntel", "AVX512", True, "torch"),
        ("vendor_id : AuthenticAMD", "AVX2", True, "torch"),
        ("vendor_id : AuthenticAMD", "AVX512", False, "torch"),
    ],
)
def test_the_library_follows_from_the_processor(
    processor: str, capability: str, has: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(products.CHOICE, raising=False)
    monkeypatch.setattr(products, "_processor", lambda: processor)
    monkeypatch.setattr(products, "_has_onednn", lambda: has)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert CHOOSE() == expected
    monkeypatch.setenv(products.CHOICE, "torch")
    assert CHOOSE() == "torch"


@pytest.mark.parametrize(
    "bias",
    [
        torch.arange(8.0)[::2],
        torch.tensor([2.0]).expand(4),
        torch.tensor(2.0),
        torch.tensor([2.0]),
    ],
    ids=["strided", "expanded", "no dimension", "one number"],
)
def test_a_bias_is_added_whatever_its_layout(bias: Tensor) -> None:
    x, W = normal(6, 5, seed=0).float(), normal(4, 5, seed=1).float()
    close(linear(x, W, bias), F.linear(x, W) + bias, ROUNDING, "product with a bias")


@pytest.mark.parametrize("name", ["", "lora", "dora", "oft", "svf", "svft", "hra", "vera"])
def test_what_follows_a_layer_may_work_in_place(name: str) -> None:
    model = accelerate(nn.Sequential(nn.Linear(24, 20), nn.ReLU(inplace=True), nn.Linear(20, 4)))
    if name:
        attach(model, create(name, {"oft": {"block": 4}, "svf": {}}.get(name, {method(name).size: 2})))
    x = normal(3, 7, 24, seed=0).float().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any())


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_tracers_and_counters_see_operations_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = accelerate(nn.Sequential(nn.Linear(5, 6)))
    x = normal(7, 5, seed=0).float()
    seen = used(monkeypatch)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * 7 * 5 * 6
    close(torch.jit.trace(model, x)(x), F.linear(x, model[0].weight, model[0].bias), ROUNDING, "traced")
    assert all(shape == (7, 5) for shape in seen), "only outside"


def test_adapted_layers_are_exchanged_too() -> None:
    model = nn.Sequential(nn.Linear(24, 20))
    attach(model, LoRA(rank=2))
    accelerate(model)
    x = normal(7, 24, seed=0).float()
    before = model(x)
    decelerate(model)
    close(model(x), before, 1e-5, "output")
    accelerate(model)
    detach(model, merge=True)
    assert type(model[0]) is FastLinear
