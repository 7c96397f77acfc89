"""The order of products: chosen by cost, the same numbers whichever is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.variants.models import by_name, host_of
from variants.core import Variant, attach, create, layer_states
from variants.core.cases import CASES, close, generator, move
from variants.core.checks import forward_is_weight
from variants.core.conformance import fitted
from variants.core.contraction import costs, order
from variants.core.rotation import side
from variants.core.thin import Thin

THIN = [create(name, {}) for name in ("lora", "dora", "pissa", "adalora", "lora_xs", "stiefel", "svf", "svft", "vera")]


def thin(k: int, out: int = 384, in_: int = 384, trains: str = "AB", core: int | None = None) -> Thin:
    """Zeros of these shapes; the named parts (C for the core) train."""
    C = None if core is None else torch.zeros((k,) * core, requires_grad="C" in trains)
    return Thin(
        torch.zeros(k, in_, requires_grad="A" in trains), torch.zeros(out, k, requires_grad="B" in trains), C, 1.0, None
    )


def chosen(tokens: int, factors: Thin, dtype: torch.dtype = torch.float32) -> str:
    return order(tokens, torch.zeros(len(factors.B), factors.A.shape[1], dtype=dtype), factors, dtype)


@pytest.mark.parametrize("choice", ["thin", "dense"])
@pytest.mark.parametrize("variant", THIN, ids=by_name)
def test_each_order_gives_the_product(variant: Variant, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("variants.core.host.order", "variants.vera.order"):
        monkeypatch.setattr(module, lambda *_: choice)
    for case in CASES:
        if (small := fitted(variant, case)) is not None:
            forward_is_weight(small, case)


@pytest.mark.parametrize("choice", ["input", "weight"])
@pytest.mark.parametrize("variant", [create(name, {}) for name in ("oft", "boft", "goft")], ids=by_name)
def test_either_side_can_be_rotated(variant: Variant, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("variants.core.rotation.side", lambda *_: choice)
    for case in CASES:
        if (small := fitted(variant, case)) is not None:
            forward_is_weight(small, case)


def test_which_side_is_rotated() -> None:
    W = torch.zeros(384, 384)
    apart = [(torch.arange(384).reshape(-1, 8), torch.zeros(48, 8, 8)) for _ in range(2)]
    assert side(64, W, apart) == "input"
    assert side(4096, W, apart) == "weight"
    assert side(4096, torch.zeros(4 * 384, 384), apart) == "input", "a tall weight has a dear gradient"
    assert side(1024, W, [(None, torch.zeros(12, 32, 32))]) == "input"


def test_what_is_chosen() -> None:
    for tokens in (1, 128, 4096):
        assert chosen(tokens, thin(8)) == "thin", "a narrow bottleneck"
        assert chosen(tokens, thin(8, 1536, core=2, trains="C")) == "thin"
    full = thin(384, core=1, trains="C")
    assert chosen(16, full) == "thin", "few tokens do not pay for a weight"
    assert chosen(2048, full) == "dense"
    assert chosen(2048, full, torch.bfloat16) == "thin", "a weight in bfloat16 rounds the change away"
    with torch.no_grad():
        assert chosen(16, full) == "thin"
        found = costs(1024, torch.zeros(384, 384), full)
        assert found["thin"] == found["dense"], "without autograd both form the weight"


def test_costs_count_what_trains() -> None:
    W = torch.zeros(6, 5)
    one, both = (costs(100, W, thin(2, 6, 5, trains)) for trains in ("B", "AB"))
    assert all(one[name] < both[name] for name in one)
    with torch.no_grad():
        assert costs(100, W, thin(2, 6, 5))["thin"] < one["thin"]


def test_explained() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(64, 48)})
    attach(model, create("svf", {}), "layer")
    (state,) = layer_states(model)
    host = host_of(model)
    variant = host.carried("default").variant
    assert variant.explain(state.W, state.t, 4).startswith("thin at 4 tokens, 48 x 64, bottleneck 48 ")
    assert variant.explain(state.W, state.t, 4096).startswith("dense at 4096 tokens")
    oft = create("oft", {"block": 8})
    t = oft.init(state.W, generator(0)).train
    assert oft.explain(state.W, t, 4) == "input rotated at 4 tokens, 48 x 64, 1 factors"


def _doubled(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def _written_past_autograd(layer: nn.Linear) -> None:
    layer.weight.data.mul_(2)


def _other_data(layer: nn.Linear) -> None:
    """As where a measure swaps rounded weights in, and later others which lie where the first ones lay."""
    own = layer.weight.data
    other = own * 2
    layer.weight.data = other
    layer(torch.ones(1, own.shape[1]))
    layer.weight.data = own
    layer.weight.data = other.mul_(2)


@pytest.mark.parametrize("change", [_doubled, _written_past_autograd, _other_data, lambda layer: layer.double()])
def test_norms_of_dora_follow_the_weight(change: Any) -> None:
    """However it is written: a remembered norm would not be told of all of these."""
    model = nn.ModuleDict({"layer": nn.Linear(6, 5)})
    attach(model, create("dora", {"rank": 2}), "layer")
    move(model)
    host = host_of(model)
    host(torch.ones(1, 6))
    change(host)
    x = torch.ones(2, 6, dtype=host.weight.dtype)
    close(host(x), nn.functional.linear(x, host.effective_weight(), host.bias), 1e-6, "after the change")


def test_norms_found_without_autograd_serve_training() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(6, 5)})
    attach(model, create("dora", {"rank": 2, "detach_norm": False}), "layer")
    move(model)
    x = torch.ones(2, 6)
    with torch.inference_mode():
        host_of(model)(x)
    host_of(model)(x).sum().backward()
