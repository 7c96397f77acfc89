"""Several adapters under names on one base: switched, weighted, mixed per row, removed; the base is never touched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.variants.models import (
    LAYERS,
    LAYERWISE,
    Gated,
    Mirrored,
    assert_rows_go_alone,
    batch,
    by_name,
    dense_weights,
    fingerprint,
    net,
    train,
)
from tests.variants.oracles import ORACLES
from variants.core import (
    Refused,
    Variant,
    activate,
    adapter_state,
    attach,
    create,
    detach,
    layer_states,
    load_adapter_state,
    merged,
    rows,
)
from variants.core.cases import Layer, close, conv1d, linear, move, same_bits
from variants.core.host import hosts
from variants.lora import LoRA
from variants.pissa import PiSSA

FOUR = {name: create(name, {"rank": 2, "alpha": 3.0}) for name in ("lora", "dora", "pissa", "stiefel")}


def single(layer: Layer = linear, dtype: torch.dtype = torch.float64) -> tuple[nn.ModuleDict, Tensor]:
    """A model of one 5 x 6 layer, and a clone of its weight as (out, in)."""
    torch.manual_seed(1)
    model = nn.ModuleDict({"layer": layer(5, 6, True).to(dtype)})
    W = model["layer"].weight.detach().clone()
    return model, W.T if layer is conv1d else W


def four(layer: Layer = linear) -> tuple[nn.ModuleDict, Tensor, dict[str, Tensor]]:
    """Four moved adapters on one layer, its weight, and their deltas by the dense oracle."""
    model, W = single(layer)
    for seed, (name, variant) in enumerate(FOUR.items()):
        attach(model, variant, "layer", seed, name=name)
    move(model)
    host = hosts(model)["layer"]
    deltas = {name: ORACLES[name](W, host.carried(name).tensors(), FOUR[name]).detach() - W for name in FOUR}
    return model, W, deltas


@pytest.mark.parametrize("layer", LAYERS)
def test_together_they_add_up(layer: Layer) -> None:
    model, W, deltas = four(layer)
    x, bias = batch(2, 3), model["layer"].bias
    for weights in (
        dict.fromkeys(FOUR, 1.0),
        {"lora": 0.3, "dora": -1.0, "pissa": 2.0},
        {"pissa": 0.5},
        {"dora": 0.0, "stiefel": 1.0},
        *({name: 1.0} for name in FOUR),
        {},
    ):
        activate(model, weights)
        want = W + sum((w * deltas[name] for name, w in weights.items()), torch.zeros_like(W))
        close(model["layer"](x), F.linear(x, want, bias), 1e-10, f"{weights}")
        close(hosts(model)["layer"].effective_weight(), want, 1e-10, f"effective weight of {weights}")
        with merged(model):
            close(model["layer"](x), F.linear(x, want, bias), 1e-10, f"merged {weights}")


def test_the_ways_to_write_a_choice() -> None:
    model, *_ = four()
    x = batch(3)
    for one, other in (
        ("pissa", ["pissa"]),
        ("pissa", {"pissa": 1}),
        (["lora", "dora"], {"dora": 1.0, "lora": 1.0}),
        (None, []),
    ):
        activate(model, one)
        first = model["layer"](x)
        activate(model, other)
        close(model["layer"](x), first, 1e-12, f"{one} and {other}")


def test_the_newcomer_is_active() -> None:
    model, W, deltas = four()
    close(model["layer"](batch(3)), F.linear(batch(3), W + deltas["stiefel"], model["layer"].bias), 1e-10, "last one")


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_together(layer: Layer) -> None:
    """Active adapters get the gradient of the sum, scaled by their weight; the others get none."""
    model, W, _ = four(layer)
    weights = {"lora": 0.5, "pissa": 2.0, "dora": 1.0}
    activate(model, weights)
    x = batch(4).requires_grad_()
    model["layer"](x).square().sum().backward()
    host = hosts(model)["layer"]
    t = {
        name: {k: v.detach().clone().requires_grad_() for k, v in host.carried(name).tensors().items()}
        for name in weights
    }
    z = x.detach().clone().requires_grad_()
    dense = W + sum(
        (w * (ORACLES[name](W, t[name], FOUR[name]) - W) for name, w in weights.items()), torch.zeros_like(W)
    )
    F.linear(z, dense, model["layer"].bias.detach()).square().sum().backward()
    close(x.grad, z.grad, 1e-10, "x")
    for name in weights:
        for key, parameter in host.carried(name).named_parameters():
            close(parameter.grad, t[name][key].grad, 1e-10, f"{name}.{key}")
    assert all(p.grad is None for p in host.carried("stiefel").parameters())
    assert host.weight.grad is None


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_go_their_own_ways(layer: Layer) -> None:
    model, _, _ = four(layer)
    model.eval()
    names_of_rows = ["pissa", None, "lora", "stiefel", "pissa", "dora", None]
    assert_rows_go_alone(model, names_of_rows, 1e-12)


def test_rows_leave_the_choice_as_it_was_and_nest() -> None:
    model, *_ = four()
    x = batch(2)
    activate(model, "dora")
    want = model["layer"](x)
    with rows(model, ["lora", "lora"]):
        lora = model["layer"](x)
        with rows(model, [None, None]):
            assert not torch.equal(model["layer"](x), lora)
        assert same_bits(model["layer"](x), lora)
    assert same_bits(model["layer"](x), want)
    with pytest.raises(ZeroDivisionError), rows(model, ["lora", "lora"]):
        raise ZeroDivisionError
    assert same_bits(model["layer"](x), want)


def test_rows_must_match_the_batch() -> None:
    model, *_ = four()
    with rows(model, ["lora", None]), pytest.raises(ValueError, match="given 2 names, the batch has 3 rows"):
        model["layer"](batch(3))


def test_rows_on_one_adapter_that_has_replaced_the_base() -> None:
    """Alone and with a residual in the base's place, a row without an adapter still sees the base."""
    model, W = single()
    attach(model, PiSSA(rank=2), "layer")
    move(model)
    assert hosts(model)["layer"].is_rebased
    x = batch(2)
    whole = model["layer"](x)
    with rows(model, [None, "default"]):
        mixed = model["layer"](x)
    close(mixed[0], F.linear(x, W, model["layer"].bias)[0], 1e-12, "base")
    close(mixed[1], whole[1], 1e-12, "adapter")
    assert hosts(model)["layer"].is_rebased, "mixing rows leaves the residual where it is"


def test_rows_carry_gradients_and_mixed_precision() -> None:
    model, *_ = four()
    with rows(model, ["lora", "dora", None]):
        model["layer"](batch(3)).sum().backward()
    host = hosts(model)["layer"]
    assert host.carried("lora").get_parameter("B").grad is not None
    assert host.carried("pissa").get_parameter("B").grad is None
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16), rows(model, ["pissa", "stiefel", None]):
        assert model["layer"](batch(3, dtype=torch.float32)).dtype == torch.bfloat16


# ---- a method that replaces the base, in company --------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pissa_first", [True, False])
def test_beside_another_it_leaves_the_base_untouched(layer: Layer, pissa_first: bool) -> None:
    model, W = single(layer, torch.bfloat16)
    stored = model["layer"].weight
    bits = stored.detach().clone()
    pissa, lora = ("pissa", PiSSA(rank=2)), ("lora", LoRA(rank=2))
    for name, variant in (pissa, lora) if pissa_first else (lora, pissa):
        attach(model, variant, "layer", name=name)
    assert model["layer"].weight is stored
    assert same_bits(stored.detach(), bits)
    assert not hosts(model)["layer"].is_rebased
    activate(model, "pissa")
    host = hosts(model)["layer"]
    close(host.effective_weight(), W.float(), 1e-6, "starts at the base")
    optim = torch.optim.SGD(host.carried("pissa").parameters(), lr=0.1)
    model["layer"](batch(4, dtype=torch.bfloat16)).float().square().sum().backward()
    optim.step()
    t = host.carried("pissa").tensors()
    want = W.float() + t["B"] @ t["A"] - t["B0"] @ t["A0"]
    close(host.effective_weight(), want, 1e-6, "s (BA - B0 A0) on the untouched base")
    assert float((want - W.float()).detach().norm()) > 1e-2
    detach(model, merge=False)
    assert model["layer"].weight is stored
    assert same_bits(stored.detach(), bits)


@pytest.mark.parametrize("variant", LAYERWISE, ids=by_name)
def test_company_does_not_change_what_a_trained_adapter_computes(variant: Variant) -> None:
    """Trained alone, then beside another: the same function; and the other one starts from the original base."""
    model, x = net(), batch(4)
    base = model(x)
    attach(model, variant, name="first")
    train(model, x)
    alone = model(x)
    for name in ("dora", "pissa"):  # DoRA first: its start would show a residual mistaken for the base
        attach(model, FOUR[name], name=name)
        close(model(x), base, 1e-12, f"{name} starts at the base")
        activate(model, "first")
        close(model(x), alone, 1e-10, f"the first one beside {name}")


def test_adapters_on_different_layers_do_not_disturb_each_other() -> None:
    """A residual stays where its method has the layer for itself."""
    model, x = net(), batch(4)
    base = model(x)
    attach(model, PiSSA(rank=2), "up", name="p")
    move(model)
    alone = model(x)
    attach(model, LoRA(rank=2), "down", name="l")
    assert [path for path, host in hosts(model).items() if host.is_rebased] == ["blocks.0.up", "blocks.1.up"]
    close(model(x), base, 1e-12, "only the newcomer is active")
    activate(model, "p")
    assert same_bits(model(x), alone)
    activate(model, {"p": 0.5})
    weights, plain = dense_weights(net()), net()
    for path, host in hosts(model).items():
        want = weights[path]
        if "up" in path:
            want = want + 0.5 * (host.carried("p").effective(host) - want)
        plain.get_submodule(path).weight.data.copy_(want)
    close(model(x), plain(x), 1e-10, "half of it")


def test_rows_pass_layers_that_lack_their_adapter() -> None:
    model, x = net(), batch(3)
    attach(model, PiSSA(rank=2), "up", name="p")
    attach(model, LoRA(rank=2), "down", name="l")
    move(model)
    with rows(model, ["p", "l", None]):
        mixed = model(x)
    for i, name in enumerate(["p", "l", None]):
        activate(model, name)
        close(mixed[i], model(x)[i], 1e-12, f"{name}")


# ---- removing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", list(FOUR))
def test_removing_one_leaves_the_others(gone: str) -> None:
    model, W, deltas = four()
    rest = [name for name in FOUR if name != gone]
    activate(model, list(FOUR))
    detach(model, merge=False, name=gone)
    assert list(hosts(model)["layer"].switch.active) == rest
    x = batch(3)
    want = W + sum(deltas[name] for name in rest)
    close(model["layer"](x), F.linear(x, want, model["layer"].bias), 1e-10, "the rest stays active")
    with pytest.raises(Refused, match=f"no adapter called '{gone}'"):
        activate(model, gone)
    attach(model, FOUR[gone], "layer", name=gone)
    assert len(hosts(model)["layer"].adapter) == 4
    assert hosts(model)["layer"].switch.active == {gone: 1.0}


def test_removing_one_after_the_other_ends_at_the_plain_model() -> None:
    model = net(dtype=torch.bfloat16)
    before = fingerprint(model)
    attach(model, PiSSA(rank=2), "up", name="a")
    attach(model, LoRA(rank=2), ["up", "down"], name="b")
    attach(model, PiSSA(rank=1), "head", name="c")
    train(model, batch(4, dtype=torch.bfloat16))
    detach(model, merge=False, name="b")
    assert list(hosts(model)) == ["blocks.0.up", "blocks.1.up", "head"]
    detach(model, merge=False, name="c")
    assert same_bits(model(batch(4, dtype=torch.bfloat16)), net(dtype=torch.bfloat16)(batch(4, dtype=torch.bfloat16)))
    detach(model, merge=False, name="a")
    assert fingerprint(model) == before


def test_merging_a_combination() -> None:
    model, W, deltas = four()
    activate(model, {"lora": 0.5, "pissa": 1.0})
    detach(model, merge=True)
    assert type(model["layer"]) is nn.Linear
    close(model["layer"].weight, W + 0.5 * deltas["lora"] + deltas["pissa"], 1e-10, "merged")


# ---- files, states, dropout -----------------------------------------------------------------------------------------


def test_files_and_states_belong_to_one_name() -> None:
    model = net()
    attach(model, PiSSA(rank=2), "up", name="a")
    attach(model, PiSSA(rank=2), "down", name="b")
    assert {key.split(".")[2] for key in adapter_state(model, "a")} == {"up"}
    assert [state.path for state in layer_states(model, "b")] == ["blocks.0.down", "blocks.1.down"]
    assert set(layer_states(model, "b")[0].t) == {"A", "B", "A0", "B0"}
    move(model)
    activate(model, ["a", "b"])
    want = model(batch(3))
    other = net()
    attach(other, PiSSA(rank=2), "down", seed=5, name="y")
    attach(other, PiSSA(rank=2), "up", seed=6, name="x")
    load_adapter_state(other, adapter_state(model, "a"), "x")
    assert hosts(other)["blocks.0.down"].is_rebased, "loading one adapter leaves the residual of another"
    load_adapter_state(other, adapter_state(model, "b"), "y")
    activate(other, ["x", "y"])
    close(other(batch(3)), want, 1e-10, "loaded under other names")


def test_dropout_together_draws_a_mask_for_each() -> None:
    model, W = single()
    for name in ("a", "b"):
        attach(model, LoRA(rank=2), "layer", name=name, dropout=0.5)
    move(model)
    activate(model, ["a", "b"])
    x = batch(3)
    pairs = [LoRA(rank=2).as_lora(W, hosts(model)["layer"].carried(name).tensors()) for name in ("a", "b")]
    torch.manual_seed(2)
    got = model["layer"](x)
    torch.manual_seed(2)
    want = F.linear(x, W, model["layer"].bias) + sum(F.dropout(x, 0.5) @ pair.delta().T for pair in pairs)
    close(got, want, 1e-10, "two masks")
    whole = hosts(model)["layer"].effective_weight()
    close(model.eval()["layer"](x), F.linear(x, whole, model["layer"].bias), 1e-10, "no mask")
    with rows(model, ["a", "b", None]):
        assert same_bits(model["layer"](x), model["layer"](x)), "no mask in evaluation, row by row"


def test_a_method_that_turns_the_input_lives_beside_others() -> None:
    """The frozen product is asked for inputs other than x, in company, with dropout and row by row."""
    model, W = single()
    attach(model, Mirrored(), "layer", name="mirrored", dropout=0.5)
    attach(model, LoRA(rank=2), "layer", name="lora")
    move(model)
    host, x, bias = hosts(model)["layer"], batch(3), model["layer"].bias
    deltas = {name: host.carried(name).effective(host) - W for name in ("mirrored", "lora")}
    activate(model, ["mirrored", "lora"])
    torch.manual_seed(5)
    got = model["layer"](x)
    torch.manual_seed(5)
    close(got, F.linear(x, W + deltas["lora"], bias) + F.dropout(x, 0.5) @ deltas["mirrored"].T, 1e-10, "training")
    model.eval()
    close(model["layer"](x), F.linear(x, W + deltas["lora"] + deltas["mirrored"], bias), 1e-10, "evaluation")
    with rows(model, [None, "mirrored", "lora"]):
        mixed = model["layer"](x)
    close(mixed[1], F.linear(x, W + deltas["mirrored"], bias)[1], 1e-10, "its row")


def test_a_method_that_depends_on_the_input_lives_beside_others() -> None:
    model, _ = single()
    attach(model, Gated(rank=2), "layer", name="gated")
    attach(model, LoRA(rank=2), "layer", name="lora")
    move(model)
    x = batch(3)
    parts = {}
    for choice in (None, "gated", "lora"):
        activate(model, choice)
        parts[choice] = model["layer"](x)
    activate(model, ["gated", "lora"])
    close(model["layer"](x), parts["gated"] + parts["lora"] - parts[None], 1e-12, "sum")
    with pytest.raises(Refused, match="cannot be merged"):
        detach(model, merge=True)
    activate(model, "lora")
    detach(model, merge=True)  # the one that cannot be merged is not active
    close(model["layer"](x), parts["lora"], 1e-10, "merged")


def test_switching_costs_nothing_that_grows_with_the_model() -> None:
    """Switching changes one shared object, whatever the number of layers."""
    model = net(blocks=3)
    attach(model, LoRA(rank=1))
    assert len({id(host.switch) for host in hosts(model).values()}) == 1
