"""Putting tensors that are there already onto a model: what fits is used as it is, and nothing else gets there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.variants.adapter_files import state_of
from tests.variants.models import Rebased, batch, net
from variants.core import Init, LoRAPair, Refused, Tensors, Variant, attach, create, detach, trainable_parameters
from variants.core.cases import close, generator, same_bits
from variants.core.host import hosts
from variants.core.restoring import restore
from variants.ia3 import IA3
from variants.lora import LoRA
from variants.pissa import PiSSA
from variants.vera import VeRA

UP = "blocks.0.up"  # 10 x 6
RANK = 2


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def pair(out: int = 10, in_: int = 6, seed: int = 0) -> dict[str, Tensor]:
    return {"A": noise(RANK, in_, seed=seed), "B": noise(out, RANK, seed=seed + 1)}


def onto(train: Tensors, frozen: Tensors | None = None, variant: Variant | None = None) -> dict[str, Any]:
    """Arguments of ``restore`` for one layer."""
    variant = variant or LoRA(rank=RANK)
    return {"variant": variant, "layers": {UP: (variant, Init(dict(train), dict(frozen or {})))}}


def test_the_tensors_are_the_adapter() -> None:
    """In value, whatever their precision and layout; as copies; and the model goes back to what it was."""
    model, t = net(dtype=torch.float32), pair()
    before = state_of(model)
    layer = model.get_submodule(UP)
    W, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    given = {"A": t["A"].T.contiguous().T, "B": t["B"]}
    assert restore(model, **onto(given)) == [UP]
    x = batch(4, dtype=torch.float32)
    want = F.linear(x.double(), W.double() + t["B"] @ t["A"], b.double())
    close(model.get_submodule(UP)(x), want, 1e-5, "the layer")
    carried = hosts(model)[UP].carried("default")
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in carried.parameters())
    assert list(trainable_parameters(model)) == [f"{UP}.adapter.default.A", f"{UP}.adapter.default.B"]
    y = model(x)
    given["A"].zero_()
    assert same_bits(model(x), y), "the adapter uses the caller's memory"
    detach(model, merge=False)
    assert state_of(model) == before


def test_paths_come_in_model_order_each_with_its_own_method() -> None:
    model = net()
    one = LoRA(rank=1)
    layers = {
        "head": (one, Init({"A": noise(1, 6), "B": noise(3, 1)})),
        UP: (LoRA(rank=RANK), Init(pair())),
    }
    assert restore(model, LoRA(rank=RANK), layers, name="mine") == [UP, "head"]
    assert hosts(model)["head"].carried("mine").variant == one


def test_a_method_that_replaced_the_base_is_used_in_its_exact_form() -> None:
    model, t, start = net(), pair(), pair(seed=7)
    W = model.get_submodule(UP).weight.detach().clone()
    frozen = {"A0": start["A"], "B0": start["B"]}
    restore(model, **onto(t, frozen, PiSSA(rank=RANK)), replaces_base=True)
    host = hosts(model)[UP]
    assert not host.is_rebased
    close(host.effective_weight(), W + t["B"] @ t["A"] - start["B"] @ start["A"], 1e-12, "exact form")
    assert same_bits(host.weight.detach(), W)


def test_newcomers_and_methods_that_replaced_the_base() -> None:
    """One with an exact form goes on in it; one without keeps the layer for itself."""
    model, x = net(), batch(4)
    attach(model, PiSSA(rank=RANK), UP, name="p")
    restore(model, **onto(pair()), name="l")
    assert not hosts(model)[UP].is_rebased
    alone = net()
    restore(alone, **onto(pair()))
    close(model(x), alone(x), 1e-12, "beside it")
    model = net()
    attach(model, Rebased(rank=RANK), UP, name="r")
    before = state_of(model)
    with pytest.raises(Refused, match=f"{UP} carries 'r'"):
        restore(model, **onto(pair()), name="l")
    assert state_of(model) == before
    assert restore(model, LoRA(rank=RANK), {"head": (LoRA(rank=RANK), Init(pair(3)))}, name="l") == ["head"]


def test_shared_tensors_are_one_module() -> None:
    model, vera = net(), VeRA(rank=3)
    shared = {"A": noise(3, 10), "B": noise(10, 3)}
    layers = {path: (vera, Init({"b": noise(10), "d": noise(3)})) for path in (UP, "blocks.1.up")}
    restore(model, vera, layers, shared)
    one, other = (host.carried("default").shared for host in hosts(model).values())
    assert one is other
    assert not list(one.parameters())
    with pytest.raises(Refused, match=r"vera on blocks.0.up: the tensors do not fit it .KeyError"):
        restore(net(), vera, layers, {"A": shared["A"]})
    with pytest.raises(Refused, match=r"vera on its layers together: B is torch.int64, expected torch.float64"):
        restore(net(), vera, layers, {**shared, "B": torch.ones(10, 3, dtype=torch.int64)})
    with pytest.raises(Refused, match=r"vera on its layers together: the tensors do not fit it .KeyError"):
        restore(net(), vera, layers, {**shared, "forward": noise(1)})


@dataclass(frozen=True, kw_only=True)
class BiasOfItsOwn(LoRA):
    """Replaces the bias by a trained one."""

    def bias(self, b: Tensor, t: Tensors) -> Tensor:
        return t["b"]

    def parameter_count(self, out: int, in_: int) -> int:
        return super().parameter_count(out, in_) + 10


NAN, INF = float("nan"), float("inf")
TWO = {"A": noise(2, 6), "B": noise(10, 2)}
SQUARE = {"A": noise(2, 8), "B": noise(8, 2)}  # as many numbers, for an 8 x 8 layer
STARTS = {"A0": noise(2, 8), "B0": noise(8, 2)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (onto({**TWO, "A": noise(2, 7)}), "trains 32 numbers on a 10 x 6 layer, the tensors hold 34"),
        (onto({"A": TWO["A"]}), "trains 32 numbers on a 10 x 6 layer, the tensors hold 12"),
        (onto({**TWO, "C": noise(3)}), "the tensors hold 35"),
        (onto({"A": noise(10, 2), "B": noise(2, 6)}), "the tensors do not fit it .RuntimeError"),
        (onto({"A": noise(2, 6), "C": noise(10, 2)}), "the tensors do not fit it .KeyError: 'B'"),
        (onto({"A": noise(2, 6).flatten(), "B": noise(10, 2)}), "the tensors do not fit it"),
        (onto({**TWO, "B": torch.full((10, 2), NAN)}), "a number is not finite"),
        (onto({**TWO, "B": -torch.full((10, 2), INF)}), "a number is not finite"),
        (onto({"A": TWO["A"] * 1e200, "B": TWO["B"] * 1e200}), "a result that is not finite"),
        (onto({**TWO, "B": torch.ones(10, 2, dtype=torch.int64)}), "B is torch.int64, expected torch.float64"),
        (onto({**TWO, "B": torch.ones(10, 2, dtype=torch.bool)}), "B is torch.bool, expected torch.float64"),
        (onto({**TWO, "B": torch.ones(10, 2, dtype=torch.cdouble)}), "B is torch.complex128"),
        (onto({**TWO, "B": torch.ones(10, 2).to(torch.float8_e5m2)}), "B is torch.float8_e5m2"),
        (onto(TWO, {"forward": noise(1)}), "the tensors do not fit it .KeyError"),
        (onto(TWO, {"A": noise(2, 6)}), "the tensors do not fit it .KeyError"),
        (onto(TWO, variant=LoRA(rank=7)), "rank 7 does not fit a 10 x 6 layer"),
        (onto(SQUARE, STARTS, PiSSA(rank=2)) | {"replaces_base": True}, r"a result of shape \(8, 8\), not \(10, 6\)"),
        (onto(TWO, variant=PiSSA(rank=2)) | {"replaces_base": True}, "the tensors do not fit it .KeyError: 'A0'"),
        (onto(TWO, variant=Rebased(rank=2)) | {"replaces_base": True}, "replaces the base and has no exact low-rank"),
        (onto({**TWO, "b": noise(1, 10)}, variant=BiasOfItsOwn(rank=2)), r"a bias of shape \(1, 10\), not \(10,\)"),
        (onto({"l": noise(2, 5)}, variant=IA3()), "ia3 on blocks.0.up"),
        (onto({}, variant=create("probe")), "probe has no tensors on layers"),
        (onto({}, variant=create("full")), "full has no tensors on layers"),
        ({"variant": LoRA(), "layers": {}}, "no layer to put the adapter on"),
        ({"variant": LoRA(), "layers": {"nowhere": (LoRA(), Init(TWO))}}, "the model has no layer 'nowhere'"),
        ({"variant": LoRA(), "layers": {"blocks.*.up": (LoRA(), Init(TWO))}}, "the model has no layer"),
        ({"variant": LoRA(), "layers": {"blocks.0": (LoRA(), Init(TWO))}}, "blocks.0 is a Block, which has no host"),
        ({"variant": LoRA(), "layers": {"": (LoRA(), Init(TWO))}}, "the model has no layer ''"),
        (onto(TWO) | {"name": "a.b"}, "'a.b' cannot name an adapter"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: Mapping[str, Any], message: str) -> None:
    """Also where the layer before it was fine; nothing is left of that one either."""
    for first in ({}, {"blocks.0.down": (LoRA(rank=RANK), Init(pair(6, 10)))}):
        if first and not arguments["layers"]:
            continue
        model = net()
        before = state_of(model)
        with pytest.raises(Refused, match=message):
            restore(model, **{**arguments, "layers": {**arguments["layers"], **first}})
        assert state_of(model) == before


@dataclass(frozen=True, kw_only=True)
class Fragile(LoRA):
    """A method whose code does something odd with odd tensors."""

    does: Callable[[], object] = int

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        self.does()
        return super().as_lora(W, t)


@pytest.mark.parametrize("error", [IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError, AssertionError])
def test_whatever_a_methods_code_says_is_a_refusal(error: type[Exception]) -> None:
    def fails() -> None:
        raise error("first line\nsecond line")

    model = net()
    before = state_of(model)
    with pytest.raises(Refused, match=f"{error.__name__}: .*first line.*second line") as caught:
        restore(model, **onto(pair(), variant=Fragile(rank=RANK, does=fails)), replaces_base=True)
    assert "\n" not in str(caught.value)
    assert state_of(model) == before
