"""Every registered method against the conformance suite and against its formula written densely."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings as budget, strategies as st
from torch import Tensor

import variants  # noqa: F401  registers the methods
from tests.variants.models import Mirrored, host_of
from tests.variants.oracles import ORACLES
from variants.core import Init, LowRank, Refused, Tensors, Variant, attach, create, method, names, project
from variants.core.cases import CASES, Case, close, conv1d, input_of, linear, model_of, move, stats_of
from variants.core.checks import CHECKS, Check
from variants.core.conformance import fitted, identifier, matrix, settings

LAYERWISE = [name for name in names() if method(name).trains == "layers"]
WITH_WEIGHT = [name for name in LAYERWISE if method(name).mergeable]


@pytest.mark.parametrize(("check", "variant", "case"), matrix(*map(method, names())), ids=identifier)
def test_conforms(check: Check, variant: Variant, case: Case) -> None:
    check(variant, case)


def test_every_method_has_an_oracle() -> None:
    assert set(ORACLES) == set(WITH_WEIGHT)


@st.composite
def drawn(draw: st.DrawFn, name: str) -> tuple[Variant, Case]:
    """A setting of the method and a case: wide, tall, square, rank 1 to full, batches of nothing."""
    out, in_ = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    lead = draw(st.sampled_from([(3,), (), (2, 3), (0,), (2, 0), (1, 2, 2)]))
    case = Case(out, in_, bias=draw(st.booleans()), lead=lead, layer=draw(st.sampled_from([linear, conv1d])))
    variant = draw(st.sampled_from(settings(method(name))))
    known = {field.name for field in dataclasses.fields(variant)}
    if variant.size:
        size = draw(st.one_of(st.just(1), st.just(min(out, in_)), st.integers(1, min(out, in_))))
        variant = dataclasses.replace(variant, **{variant.size: size})
    if "alpha" in known:
        variant = dataclasses.replace(variant, alpha=draw(st.sampled_from([None, 1.0, 16.0])))
    suitable = fitted(variant, case)
    assume(suitable is not None)
    assert suitable is not None
    return suitable, case


@pytest.mark.parametrize("name", WITH_WEIGHT)
@budget(max_examples=15)
@given(data=st.data())
def test_adapted_layer_is_its_formula(name: str, data: st.DataObject) -> None:
    """Value and every gradient against the dense oracle on the original weight, through the host."""
    variant, case = data.draw(drawn(name))
    model = model_of(case)
    layer = model.layer
    W = layer.weight.detach().clone()
    W, bias = (W.T if case.layer is conv1d else W), (None if layer.bias is None else layer.bias.detach().clone())
    attach(model, variant, "layer", stats=stats_of(variant, case))
    move(model)
    carried = host_of(model).carried("default")
    variant = carried.variant
    train = dict(carried.named_parameters())
    x = input_of(case).requires_grad_()
    y = model(x)
    cotangent = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *train.values()], cotangent, allow_unused=True)

    t = {key: tensor.detach().clone() for key, tensor in carried.tensors().items()}
    free = [t[key].requires_grad_() for key in train]
    z = x.detach().clone().requires_grad_()
    dense = F.linear(z, ORACLES[name](W, t, variant), None if bias is None else variant.bias(bias, t))
    want = torch.autograd.grad(dense, [z, *free], cotangent, allow_unused=True)
    close(y, dense, 1e-9, "value")
    for key, tensor, mine, theirs in zip(["x", *train], [x, *train.values()], got, want, strict=True):
        zero = torch.zeros_like(tensor)
        close(zero if mine is None else mine, zero if theirs is None else theirs, 1e-9, f"gradient of {key}")


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
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("variant", [Shift(), Mirrored()], ids=lambda v: type(v).__name__)
def test_three_methods_make_a_method(check: Check, case: Case, variant: Variant) -> None:
    check(variant, case)


def test_defaults_of_a_method() -> None:
    shift = Shift()
    assert shift.trains == "layers"
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


@pytest.mark.parametrize("name", names())
def test_hyperparameters_cannot_be_changed(name: str) -> None:
    made = create(name)
    assert made == create(name)
    assert hash(made) == hash(create(name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rank = 3


def test_a_rank_that_does_not_fit() -> None:
    LowRank(rank=4).check(7, 4)
    with pytest.raises(Refused, match=r"rank 5 does not fit a 7 x 4 layer: write a rank from 1 to 4"):
        LowRank(rank=5).check(7, 4)


def test_project_keeps_the_dtype_of_x() -> None:
    x, M = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(2, 4)
    assert project(x, M).dtype == torch.bfloat16
    close(project(x, M), x.float() @ M.T, 5e-2, "project")
