"""Adapters as low-rank pairs: exact where the method has one, truncated with the error stated, refused otherwise; and
LoRA out of full fine-tuning."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from tests.variants.models import Net, batch, dense_weights, fingerprint, gpt2, host_of, net, train
from variants.core import (
    LoRAPair,
    Refused,
    Variant,
    attach,
    create,
    detach,
    layer_states,
    merged,
    method,
    names,
)
from variants.core.cases import Case, adapted, close, conv1d, generator, move, same_bits
from variants.core.conversion import attach_pairs, extract, to_pairs
from variants.core.host import hosts
from variants.core.linalg import top
from variants.core.pairs import truncated, truncated_pair
from variants.dora import DoRA
from variants.hra import HRA
from variants.ia3 import IA3
from variants.lora import LoRA
from variants.oft import OFT
from variants.pissa import PiSSA

CASES = [Case(8, 6), Case(6, 10), Case(5, 8, layer=conv1d)]
WITHOUT_PAIR = {"adapter", "bitfit", "boft", "dense", "dora", "full", "goft", "ia3", "oft", "probe"}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def pair_of(out: int, rank: int, in_: int, seed: int = 0) -> LoRAPair:
    return LoRAPair(random(rank, in_, seed=seed), random(out, rank, seed=seed + 1))


def tail(dW: Tensor, rank: int) -> float:
    """What must be lost at this rank, relative to the whole, by numpy's singular values."""
    s = np.linalg.svd(dW.detach().numpy(), compute_uv=False)
    return float(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))


def moved(variant: Variant, case: Case = CASES[0]) -> nn.Module:
    model = adapted(variant, case)
    move(model)
    return model


def change_of(model: nn.Module) -> Tensor:
    """dW of the active adapters on the only layer."""
    return host_of(model).effective_weight() - host_of(model).original_dense()


def without_adapters(model: nn.Module) -> nn.Module:
    plain = deepcopy(model)
    detach(plain, merge=False)
    return plain


# ---- every method ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", names())
def test_every_method_converts_exactly_or_refuses(name: str, case: Case) -> None:
    """Its LoRA computes the same on the untouched base; what has none says so and names the method."""
    model = moved(create(name, {method(name).size: 2} if method(name).size else {}), case)
    before = fingerprint(model)
    if name in WITHOUT_PAIR:
        with pytest.raises(Refused, match=f"^{name} "):
            to_pairs(model)
        assert fingerprint(model) == before
        return
    found = to_pairs(model)
    assert fingerprint(model) == before
    assert found.exact
    assert found.errors == {"layer": 0.0}
    assert found.error == 0.0
    assert found.norms["layer"] == pytest.approx(float(change_of(model).norm()))
    plain, x = without_adapters(model), random(4, case.in_)
    assert attach_pairs(plain, found.pairs, "copy") == ["layer"]
    close(plain(x), model(x), 1e-10, name)


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
@pytest.mark.parametrize("variant", [OFT(block=2), DoRA(rank=2), create("dense")], ids=lambda v: v.name)
def test_a_rank_makes_a_pair_of_what_has_none(variant: Variant, rank: int) -> None:
    model = moved(variant)
    found = to_pairs(model, rank=rank)
    pair, dW = found.pairs["layer"], change_of(model)
    assert len(pair.A) == min(rank, 6)
    assert found.errors["layer"] == pytest.approx(tail(dW, rank), abs=1e-10)
    assert float((dW - pair.delta()).norm() / dW.norm()) == pytest.approx(tail(dW, rank), abs=1e-10)
    assert not found.exact
    close(pair.A @ pair.A.T, torch.eye(len(pair.A), dtype=torch.float64), 1e-10, "rows of A")


def test_a_rank_truncates_only_higher_ones() -> None:
    model = moved(PiSSA(rank=2))  # its pair has rank 4
    whole, cut = to_pairs(model, rank=4), to_pairs(model, rank=3)
    assert whole.exact
    assert len(whole.pairs["layer"].A) == 4
    assert not cut.exact
    assert len(cut.pairs["layer"].A) == 3
    assert cut.errors["layer"] == pytest.approx(tail(change_of(model), 3))
    assert cut.error == pytest.approx(cut.errors["layer"])


def test_the_error_of_several_layers_is_that_of_all_numbers_together() -> None:
    model = net()
    attach(model, OFT(block=2), ["up", "head"])
    move(model)
    found = to_pairs(model, rank=1)
    assert list(found.pairs) == ["blocks.0.up", "blocks.1.up", "head"]
    changes = {path: host.effective_weight() - host.original_dense() for path, host in hosts(model).items()}
    lost = sum(float((changes[path] - pair.delta()).square().sum()) for path, pair in found.pairs.items())
    assert found.error == pytest.approx(math.sqrt(lost / sum(float(d.square().sum()) for d in changes.values())))


def test_a_changed_bias_is_never_left_out_silently() -> None:
    model = moved(IA3())
    with pytest.raises(Refused, match=r"ia3 changes the bias of layer too.*give a rank"):
        to_pairs(model)
    found = to_pairs(model, rank=6)
    assert not found.exact
    assert list(found.left_out) == ["layer.bias"]
    b, scaled = host_of(model).bias, host_of(model).effective_bias()
    assert scaled is not None
    assert found.left_out["layer.bias"] == pytest.approx(float((scaled - b).norm() / b.norm()))
    assert not to_pairs(moved(IA3(), Case(8, 6, bias=False)), rank=6).left_out
    assert to_pairs(moved(IA3(side="input"))).exact


def test_one_of_several_and_its_residual_base() -> None:
    """The pair is the same alone, in company and while another one is active; the model keeps every bit."""
    model = moved(PiSSA(rank=2))
    alone, t = to_pairs(model).pairs["layer"], layer_states(model)[0].t
    close(alone.delta(), t["B"] @ t["A"] - t["B0"] @ t["A0"], 1e-12, "on the original weight")
    attach(model, LoRA(rank=1), "layer", name="other")
    before = fingerprint(model)
    again = to_pairs(model).pairs["layer"]
    assert fingerprint(model) == before
    assert same_bits(alone.A, again.A)
    assert same_bits(alone.B, again.B)
    assert len(to_pairs(model, "other").pairs["layer"].A) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_are_in_full_precision(dtype: torch.dtype) -> None:
    model = net(dtype=dtype)
    attach(model, OFT(block=2), "up")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = to_pairs(model, rank=2)
    assert {factor.dtype for pair in found.pairs.values() for factor in pair} == {torch.float32}


@pytest.mark.parametrize(
    ("variant", "arguments", "words"),
    [
        (LoRA(rank=1), {"name": "other"}, "no adapter called 'other'"),
        (LoRA(rank=1), {"rank": 0}, "a rank is a whole number from 1, not 0"),
        (OFT(block=2), {}, "oft has no exact low-rank form on layer: give a rank"),
        (create("full"), {"rank": 2}, "full has more than tensors on layers, or none: extract"),
        (create("probe"), {"rank": 2}, "probe has more than tensors on layers, or none"),
        (create("adapter"), {"rank": 2}, "adapter depends on the input"),
    ],
)
def test_what_cannot_be_converted(variant: Variant, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(Refused, match=words):
        to_pairs(adapted(variant, CASES[0]), **arguments)  # type: ignore[arg-type]


def test_not_inside_merged() -> None:
    model = moved(LoRA(rank=1))
    with merged(model), pytest.raises(Refused, match="leave it first"):
        to_pairs(model)


# ---- pairs ----------------------------------------------------------------------------------------------------------

SIZES = st.integers(1, 7)


@given(out=SIZES, in_=SIZES, of=st.integers(1, 9), rank=SIZES, seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_core_of_a_pair_gives_the_truncation_of_its_product(out: int, in_: int, of: int, rank: int, seed: int):
    pair = pair_of(out, of, in_, seed)
    short, long = truncated_pair(pair, rank), truncated(pair.delta(), rank)
    assert short.norm == pytest.approx(long.norm)
    assert short.error == pytest.approx(tail(pair.delta(), rank) if rank < of else 0.0, abs=1e-7)
    close(short.pair.delta(), long.pair.delta() if rank < of else pair.delta(), 1e-7, "pair")
    assert len(short.pair.A) <= max(rank, of if rank >= of else 0)


def test_nothing_larger_than_the_core_is_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def watched(W: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        shapes.append(tuple(W.shape))
        return top(W, rank)

    monkeypatch.setattr("variants.core.pairs.top", watched)
    truncated_pair(pair_of(40, 3, 30), 2)
    assert shapes == [(3, 3)]


def test_an_update_of_nothing_is_exact_and_can_be_trained() -> None:
    cut = truncated(torch.zeros(5, 4), 2)
    assert cut.error == cut.norm == 0.0
    assert all(float(row.norm()) == pytest.approx(1.0) for row in cut.pair.A)


@pytest.mark.parametrize("rank", [0, 1, 4, 9])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_pairs_of_any_rank_go_onto_a_layer(rank: int, shape: tuple[int, int]) -> None:
    model, x = nn.ModuleDict({"layer": nn.Linear(shape[1], shape[0])}).double(), random(3, shape[1])
    pair = pair_of(shape[0], rank, shape[1])
    want = model["layer"](x) + x @ pair.delta().T
    attach_pairs(model, {"layer": pair})
    close(model["layer"](x), want, 1e-12, "on the layer")
    assert layer_states(model)[0].t["A"].shape == (min(max(rank, 1), 4), shape[1])


def test_each_layer_has_its_own_rank() -> None:
    model = net()
    pairs = {"blocks.0.up": pair_of(10, 1, 6), "blocks.1.up": pair_of(10, 5, 6)}
    attach_pairs(model, pairs, "two")
    assert {path: host.carried("two").variant for path, host in hosts(model).items()} == {
        "blocks.0.up": LoRA(rank=1),
        "blocks.1.up": LoRA(rank=5),
    }
    for path, pair in to_pairs(model, "two").pairs.items():
        close(pair.delta(), pairs[path].delta(), 1e-12, path)


def test_a_pair_that_does_not_fit_leaves_the_model_alone() -> None:
    model = net()
    before = fingerprint(model)
    with pytest.raises(Refused, match=r"lora on blocks\.0\.up"):
        attach_pairs(model, {"blocks.0.up": pair_of(9, 1, 6)})
    with pytest.raises(Refused, match="no layer"):
        attach_pairs(model, {})
    assert fingerprint(model) == before


# ---- from full fine-tuning ------------------------------------------------------------------------------------------


def tuned_net() -> Net:
    model = net()
    attach(model, create("full"))
    train(model, batch(4))
    detach(model, merge=True)
    return model


@pytest.mark.parametrize("as_state", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 9])
def test_extraction_loses_the_tail_of_the_spectrum(rank: int, as_state: bool) -> None:
    base, tuned = net(), tuned_net()
    found = extract(base.state_dict() if as_state else base, tuned, ["up", "down"], rank)
    before, after = dense_weights(base), dense_weights(tuned)
    for path, error in found.errors.items():
        assert error == pytest.approx(tail(after[path] - before[path], rank), abs=1e-10)
    biases = {f"blocks.{i}.{end}.bias" for i in (0, 1) for end in ("up", "down")}
    assert set(found.left_out) == {"head.weight", *biases}
    assert not found.exact
    b, new = base.state_dict()["blocks.0.up.bias"], tuned.state_dict()["blocks.0.up.bias"]
    assert found.left_out["blocks.0.up.bias"] == pytest.approx(float((new - b).norm() / b.norm()))


def test_what_was_extracted_in_full_is_the_tuned_model() -> None:
    base, tuned = net(), tuned_net()
    pairs = extract(base, tuned, "all", 99).pairs
    attach_pairs(base, pairs)
    tuned.load_state_dict({k: v for k, v in net().state_dict().items() if k.endswith("bias")}, strict=False)
    close(base(batch(3)), tuned(batch(3)), 1e-10, "all layers at their whole rank")


def test_extraction_knows_how_layers_are_stored() -> None:
    """Also from a base that carries adapters by now: its keys mean the base weight."""
    base, tuned = gpt2(), gpt2()
    change = pair_of(24, 2, 8)
    with torch.no_grad():
        tuned.get_submodule("h.0.attn.c_attn").weight.add_(change.delta().T)
    attach(base, HRA(rank=2), "c_attn")
    attach(base, LoRA(rank=2), "c_fc", name="other")
    found = extract(base, tuned, "c_attn", 2)
    close(found.pairs["h.0.attn.c_attn"].delta(), change.delta(), 1e-10, "update")
    assert found.errors["h.1.attn.c_attn"] == found.norms["h.1.attn.c_attn"] == 0.0
    assert found.error < 1e-12
    assert not {key for key in found.left_out if ".adapter." not in key}


def test_extraction_needs_two_models_of_one_kind() -> None:
    base, tuned = net(), net()
    wide = {**base.state_dict(), "blocks.0.up.weight": torch.zeros(3, 3)}
    with pytest.raises(Refused, match=r"the base shape \(3, 3\): not the same model"):
        extract(wide, tuned, "up", 2)
    with pytest.raises(Refused, match="the base no such tensor"):
        extract({}, tuned, "up", 2)
    with pytest.raises(Refused, match="matches no layer"):
        extract(base, tuned, "sideways", 2)
    with pytest.raises(Refused, match="a rank is a whole number"):
        extract(base, tuned, "up", 0)
    attach(tuned, LoRA(rank=1))
    with pytest.raises(Refused, match=r"take them off by detach\(merge=True\)"):
        extract(base, tuned, "up", 2)


def test_tensors_that_only_one_model_has_are_named() -> None:
    base = {**net().state_dict(), "head.weight": torch.zeros(5, 6), "old": torch.ones(1)}
    found = extract(base, net(), "up", 1)
    assert found.left_out == {"head.weight": math.inf, "old": math.inf}
