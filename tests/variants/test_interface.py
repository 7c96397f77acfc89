"""Every registered method against the laws of the interface and against its formula written densely."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

import variants  # noqa: F401  registers the methods
from tests.variants.laws import (
    CASES,
    LAWS,
    SLOW_LAWS,
    Case,
    Law,
    close,
    conv1d,
    host_of,
    input_of,
    linear,
    model_of,
    move,
)
from tests.variants.models import Mirrored
from tests.variants.oracles import ORACLES
from variants.core import Init, Refused, Tensors, Variant, attach, check_rank, create, method, names, project

LAYERWISE = [name for name in names() if method(name).layerwise()]


def small(name: str, rank: int = 2, alpha: float | None = 3.0) -> Variant:
    """A method with what it has of rank and scale set to small values; alpha != rank, so that the scale is not 1."""
    known = {field.name for field in dataclasses.fields(method(name))}
    return create(name, {key: v for key, v in {"rank": rank, "alpha": alpha}.items() if key in known})


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", LAYERWISE)
def test_law(law: Law, name: str, case: Case) -> None:
    law(small(name), case)


@pytest.mark.parametrize("layer", [linear, conv1d])
@pytest.mark.parametrize("law", SLOW_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", LAYERWISE)
def test_slow_law(law: Law, name: str, layer: object) -> None:
    law(small(name), Case(7, 5, layer=layer))


def test_every_method_has_an_oracle() -> None:
    assert set(ORACLES) == set(LAYERWISE)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Case, int, float | None]:
    """A case, a rank that fits it, and an alpha: wide, tall, square, rank 1 to full, batches of nothing."""
    out, in_ = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    lead = draw(st.sampled_from([(3,), (), (2, 3), (0,), (2, 0), (1, 2, 2)]))
    case = Case(out, in_, bias=draw(st.booleans()), lead=lead, layer=draw(st.sampled_from([linear, conv1d])))
    rank = draw(st.one_of(st.just(1), st.just(min(out, in_)), st.integers(1, min(out, in_))))
    return case, rank, draw(st.sampled_from([None, 1.0, 16.0]))


@pytest.mark.parametrize("name", LAYERWISE)
@settings(max_examples=30)
@given(drawn=drawn())
def test_adapted_layer_is_its_formula(name: str, drawn: tuple[Case, int, float | None]) -> None:
    """Value and every gradient against the dense oracle on the original weight, through the host."""
    case, rank, alpha = drawn
    model = model_of(case)
    layer = model.layer
    W = layer.weight.detach().clone()
    W, bias = (W.T if case.layer is conv1d else W), (None if layer.bias is None else layer.bias.detach().clone())
    attach(model, small(name, rank, alpha), "layer")
    move(model)
    carried = host_of(model).carried("default")
    train = dict(carried.named_parameters())
    x = input_of(case).requires_grad_()
    y = model(x)
    cotangent = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *train.values()], cotangent)

    t = {key: tensor.detach().clone() for key, tensor in carried.tensors().items()}
    free = [t[key].requires_grad_() for key in train]
    z = x.detach().clone().requires_grad_()
    dense = F.linear(z, ORACLES[name](W, t, 1.0 if alpha is None else alpha / rank), bias)
    want = torch.autograd.grad(dense, [z, *free], cotangent)
    close(y, dense, 1e-10, "value")
    for key, mine, theirs in zip(["x", *train], got, want, strict=True):
        close(mine, theirs, 1e-10, f"gradient of {key}")


# ---- what a method inherits -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift(Variant):
    """The least that makes a method: one offset added to the whole weight."""

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        return Init(train={"offset": torch.zeros(1, dtype=W.dtype)})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + t["offset"]

    def parameter_count(self, out: int, in_: int) -> int:
        return 1


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("variant", [Shift(), Mirrored()], ids=lambda v: type(v).__name__)
def test_three_methods_make_a_method(law: Law, case: Case, variant: Variant) -> None:
    law(variant, case)


def test_defaults_of_a_method() -> None:
    shift = Shift()
    assert shift.layerwise()
    assert shift.mergeable
    assert shift.exact_init
    assert not shift.needs
    assert shift.penalty([]) is None
    assert shift.as_lora(torch.zeros(2, 2), {}) is None
    assert not shift.trains_base("layer.weight")


def test_the_bare_interface_defines_nothing() -> None:
    bare = Variant()
    with pytest.raises(NotImplementedError):
        bare.init(torch.zeros(2, 2), torch.Generator())
    with pytest.raises(NotImplementedError):
        bare.weight(torch.zeros(2, 2), {})
    with pytest.raises(NotImplementedError):
        bare.parameter_count(2, 2)
    assert not bare.layerwise()


@pytest.mark.parametrize("name", names())
def test_hyperparameters_cannot_be_changed(name: str) -> None:
    made = create(name)
    assert made == create(name)
    assert hash(made) == hash(create(name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rank = 3


@pytest.mark.parametrize("rank", [0, 5, -1])
def test_a_rank_that_does_not_fit(rank: int) -> None:
    with pytest.raises(Refused, match=r"does not fit a 7 x 4 layer: write a rank from 1 to 4"):
        check_rank(rank, torch.zeros(7, 4))


def test_project_keeps_the_dtype_of_x() -> None:
    x, M = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(2, 4)
    assert project(x, M).dtype == torch.bfloat16
    close(project(x, M), x.float() @ M.T, 5e-2, "project")
