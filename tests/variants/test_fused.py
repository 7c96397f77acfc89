"""The fused product with ``W + scale B C A``: against the dense weight, in value and gradients, once and twice."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad

from tests.variants.models import batch, by_name, host_of
from variants.core import Variant, attach
from variants.core.cases import close, generator, move
from variants.core.fused import fused
from variants.core.host import HOSTS, HostLinear
from variants.core.products import reverse_mode_only
from variants.core.thin import Thin
from variants.dora import DoRA
from variants.hra import HRA
from variants.lora import LoRA
from variants.lora_xs import LoRAXS
from variants.oft import OFT

NAMES = ("x", "W", "bias", "A", "B", "core", "gain")
Parts = dict[str, Tensor | None]


def parts(
    lead: tuple[int, ...], out: int, in_: int, k: int, core: int | None, bias: bool, gain: bool, seed: int = 0
) -> Parts:
    """Random tensors of all parts; ``core``: its number of dimensions, None for none."""
    shapes: dict[str, tuple[int, ...] | None] = {
        "x": (*lead, in_),
        "W": (out, in_),
        "bias": (out,) if bias else None,
        "A": (k, in_),
        "B": (out, k),
        "core": None if core is None else (k,) * core,
        "gain": (out,) if gain else None,
    }
    rng = generator(seed)
    return {n: None if s is None else torch.randn(s, generator=rng, dtype=torch.float64) for n, s in shapes.items()}


def by_fused(p: Parts, scale: float = 1.5) -> Tensor:
    return fused(p["x"], p["W"], p["bias"], Thin(p["A"], p["B"], p["core"], scale, p["gain"]))


def dense(p: Parts, scale: float = 1.5) -> Tensor:
    """From the definition: the weight written out."""
    C = p["core"]
    C = torch.eye(len(p["A"]), dtype=p["A"].dtype) if C is None else torch.diag(C) if C.ndim == 1 else C
    M = p["W"] + scale * p["B"] @ C @ p["A"]
    return F.linear(p["x"], M if p["gain"] is None else p["gain"][:, None] * M, p["bias"])


def leaves(p: Parts, trained: tuple[str, ...]) -> tuple[Parts, list[Tensor]]:
    """A copy in which the named parts that are there require a gradient."""
    copy = {n: None if v is None else v.clone().requires_grad_(n in trained) for n, v in p.items()}
    return copy, [v for n in trained if (v := copy[n]) is not None]


@given(
    lead=st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 7)),
    core=st.sampled_from([None, 1, 2]),
    bias=st.booleans(),
    gain=st.booleans(),
    trained=st.sets(st.sampled_from(NAMES), min_size=1).map(lambda names: tuple(sorted(names))),
)
@settings(max_examples=150)
def test_it_is_the_dense_product(
    lead: tuple[int, ...], shape: tuple[int, int, int], core: int | None, bias: bool, gain: bool, trained: Any
) -> None:
    """Value, and the gradients of whatever trains, beside parts that do not."""
    p = parts(lead, *shape, core, bias, gain)
    (mine, m), (theirs, d) = leaves(p, trained), leaves(p, trained)
    got, want = by_fused(mine), dense(theirs)
    close(got, want, 1e-12, "value")
    if not m:
        return
    cotangent = torch.randn(got.shape, generator=generator(1), dtype=got.dtype)
    first = torch.autograd.grad(got, m, cotangent)
    for name, a, b in zip(
        [n for n in trained if p[n] is not None], first, torch.autograd.grad(want, d, cotangent), strict=True
    ):
        close(a, b, 1e-12, f"gradient of {name}")


@pytest.mark.parametrize(("core", "gain"), list(product([None, 1, 2], [False, True])))
@pytest.mark.parametrize("trained", [NAMES, ("x", "B"), ("A",), ("x", "core", "gain")], ids="-".join)
def test_it_can_be_differentiated_twice(core: int | None, gain: bool, trained: tuple[str, ...]) -> None:
    """Products with the Hessian, also by parts which the first backward has not kept (x, where A is frozen)."""
    p = parts((3, 2), 4, 5, 2, core, True, gain)

    def hessian_products(f: Any) -> list[Tensor]:
        q, free = leaves(p, trained)
        gradients = torch.autograd.grad(torch.sin(f(q)).sum(), free, create_graph=True)
        along = [torch.randn(v.shape, generator=generator(i), dtype=v.dtype) for i, v in enumerate(free)]
        return list(torch.autograd.grad(gradients, free, along, materialize_grads=True))

    for got, want in zip(hessian_products(by_fused), hessian_products(dense), strict=True):
        close(got, want, 1e-11, "product with the Hessian")


def test_it_can_be_differentiated_three_times() -> None:
    q, free = leaves(parts((3,), 4, 5, 2, None, False, False), ("x", "A", "B"))

    def gradients(x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, ...]:
        y = by_fused({**q, "x": x, "A": A, "B": B})
        return torch.autograd.grad(torch.sin(y).sum(), [x, A], create_graph=True)

    assert torch.autograd.gradgradcheck(gradients, free)


def test_the_input_is_kept_only_where_its_factor_trains() -> None:
    kept: list[Tensor] = []
    for variant, keeps in ((LoRA(rank=2), True), (LoRAXS(rank=2), False)):
        model = nn.ModuleDict({"layer": nn.Linear(64, 48)})
        attach(model, variant, "layer")
        x = torch.randn(7, 64, requires_grad=True)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            model["layer"](x)
        assert (x.data_ptr() in [t.data_ptr() for t in kept]) == keeps


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, in its forward mode
def test_transforms_take_the_single_operations() -> None:
    """vmap, jvp and dual numbers go through an adapted layer, and find the derivative."""
    model = nn.ModuleDict({"layer": nn.Linear(6, 5).double()})
    attach(model, DoRA(rank=2), "layer")
    move(model)
    host, x, v = host_of(model), batch(3), batch(3).flip(0)
    W = host.effective_weight()
    assert reverse_mode_only()
    close(torch.vmap(host)(x), host(x), 1e-12, "vmap")
    close(torch.func.jvp(host, (x,), (v,))[1], v @ W.T, 1e-12, "jvp")
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(host(forward_ad.make_dual(x, v))).tangent
    close(tangent, v @ W.T, 1e-12, "dual numbers")
    with torch.no_grad():
        close(host(x), F.linear(x, W, host.bias), 1e-12, "without autograd")


@pytest.mark.parametrize("variant", [LoRA(rank=2), OFT(block=2), HRA(rank=2)], ids=by_name)
def test_a_layer_with_a_product_of_its_own_is_asked_for_it(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host which inherits and changes ``frozen`` must not be passed over."""

    class Own(nn.Linear):
        pass

    class HostOwn(HostLinear):
        plain = Own

        def frozen(self, x: Tensor) -> Tensor:
            return 2 * super().frozen(x)

    monkeypatch.setitem(HOSTS, Own, HostOwn)
    model = nn.ModuleDict({"layer": Own(6, 5).double()})
    attach(model, variant, "layer")
    x, layer = batch(3), host_of(model)
    close(layer(x), 2 * x @ layer.weight.T + layer.bias, 1e-12, "twice the product")
    assert HostLinear.transparent
    assert not HostOwn.transparent


@pytest.mark.parametrize("shape", [(5, 24), (2, 5, 24), (0, 24)])
@pytest.mark.parametrize("variant", [LoRA(), DoRA()], ids=["lora", "dora"])
def test_what_follows_may_work_in_place(variant: Variant, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(24, 20), nn.ReLU(inplace=True), nn.Linear(20, 4))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    attach(model, variant, "0")
    want = model[2](model[0](x).relu())
    got = model(x)
    assert torch.equal(got, want)
    trained = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(got.sum(), trained), torch.autograd.grad(want.sum(), trained), strict=True):
        torch.testing.assert_close(a, b)


def test_dora_may_be_cast_after_attaching() -> None:
    model = nn.Sequential(nn.Linear(24, 20))
    attach(model, DoRA(), "0")
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    want = model(x)
    got = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, atol=0.05, rtol=0.05)
