"""Methods that change the bias, follow the layer, share tensors or divide themselves: alone, together, row by row."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.variants.models import LAYERS, assert_rows_go_alone, batch, dense_weights, fingerprint, net, train
from variants.adapter import BottleneckAdapter
from variants.core import (
    Init,
    LowRank,
    Refused,
    Tensors,
    Variant,
    activate,
    adapter_state,
    attach,
    detach,
    layer_states,
    load_adapter_state,
    merged,
    rows,
    trainable_parameters,
)
from variants.core.cases import Layer, close, conv1d, linear, move, same_bits
from variants.core.host import Host, hosts
from variants.core.rounding import Rounding
from variants.ia3 import IA3
from variants.lora import LoRA
from variants.pissa import PiSSA
from variants.vera import VeRA

FIVE: dict[str, Variant] = {
    "lora": LoRA(rank=2, alpha=3.0),
    "ia3": IA3(),
    "vera": VeRA(rank=3),
    "pissa": PiSSA(rank=2),
    "neck": BottleneckAdapter(bottleneck=3),
}
LINEAR = [name for name in FIVE if name != "neck"]


def single(layer: Layer = linear, dtype: torch.dtype = torch.float64) -> nn.ModuleDict:
    """A model of one 5 x 6 layer with a bias."""
    torch.manual_seed(1)
    model = nn.ModuleDict({"layer": layer(5, 6, True).to(dtype)})
    nn.init.normal_(model["layer"].bias)
    return model


def the_host(model: nn.Module) -> Host:
    return hosts(model)["layer"]


def moved(layer: Layer = linear, dropout: float = 0.0) -> nn.ModuleDict:
    """The five methods on one layer, off their starts."""
    model = single(layer)
    for seed, (name, variant) in enumerate(FIVE.items()):
        attach(model, variant, "layer", seed, name=name, dropout=dropout)
    move(model)
    return model


def written_out(model: nn.Module, weights: Mapping[str, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W and b of the base, and what the linear methods add to them, from their tensors and formulas."""
    host = the_host(model)
    W, b = host.original_dense().detach().clone(), host.bias.detach().clone()
    t = {name: {k: v.detach() for k, v in host.carried(name).tensors().items()} for name in host.adapter}
    deltas = {
        "lora": 1.5 * t["lora"]["B"] @ t["lora"]["A"],
        "ia3": torch.diag(t["ia3"]["l"] - 1) @ W,
        "vera": torch.diag(t["vera"]["b"]) @ t["vera"]["B"] @ torch.diag(t["vera"]["d"]) @ t["vera"]["A"],
        "pissa": t["pissa"]["B"] @ t["pissa"]["A"] - t["pissa"]["B0"] @ t["pissa"]["A0"],
    }
    dW = sum((weights[name] * deltas[name] for name in weights if name in deltas), torch.zeros_like(W))
    return W, b, dW, weights.get("ia3", 0.0) * (t["ia3"]["l"] - 1) * b


def bottleneck_change(model: nn.Module, y: Tensor) -> Tensor:
    t = the_host(model).carried("neck").tensors()
    return F.relu(y @ t["down"].T + t["c"]) @ t["up"].T + t["e"]


# ---- bias and output, together --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "weights",
    [
        {"ia3": 1.0},
        {"ia3": 0.4},
        {"ia3": 1.0, "lora": 1.0},
        dict.fromkeys(LINEAR, 1.0),
        {"lora": 0.3, "ia3": -2.0, "vera": 1.0, "pissa": 0.5},
        {},
    ],
    ids=str,
)
def test_changes_of_weight_and_bias_add_up(layer: Layer, weights: dict[str, float]) -> None:
    model, x = moved(layer), batch(2, 3)
    W, b, dW, db = written_out(model, weights)
    activate(model, weights)
    host = the_host(model)
    want = F.linear(x, W + dW, b + db)
    close(model["layer"](x), want, 1e-10, "adapted")
    close(host.effective_weight(), W + dW, 1e-10, "effective weight")
    effective = host.effective_bias()
    assert effective is not None
    close(effective, b + db, 1e-12, "effective bias")
    bits = (host.weight, host.bias, host.bias.detach().clone())
    with merged(model):
        close(model["layer"](x), want, 1e-10, "merged")
        close(model["layer"].bias, b + db, 1e-12, "bias inside")
    assert host.weight is bits[0]
    assert host.bias is bits[1]
    assert same_bits(host.bias.detach(), bits[2])
    detach(model, merge=True)
    assert model["layer"].bias is bits[1], "the parameter stays, its values change"
    close(model["layer"](x), want, 1e-10, "detached")
    close(model["layer"].bias, b + db, 1e-12, "the merged bias is written")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_bottleneck_together_adds_what_it_does_to_the_bases_output(layer: Layer, weight: float) -> None:
    """Each contributes its own change of the base; the bottleneck does not see the others, nor they it."""
    model, x = moved(layer), batch(2, 3)
    weights = {"neck": weight, "lora": 1.0, "ia3": 1.0}
    W, b, dW, db = written_out(model, weights)
    activate(model, weights)
    want = F.linear(x, W + dW, b + db) + weight * bottleneck_change(model, F.linear(x, W, b))
    close(model["layer"](x), want, 1e-10, "together")
    activate(model, {"neck": weight})
    close(model["layer"](x), F.linear(x, W, b) + weight * bottleneck_change(model, F.linear(x, W, b)), 1e-10, "alone")
    activate(model, weights)
    with pytest.raises(Refused, match="adapter depends on the input"):
        detach(model, merge=True)
    with pytest.raises(Refused, match="adapter depends on the input"), merged(model):
        pass
    close(model["layer"](x), want, 1e-10, "a refusal changes nothing")


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_of_every_kind(layer: Layer) -> None:
    model = moved(layer).eval()
    names = ["neck", None, "ia3", "vera", "neck", "pissa", "lora", None, "ia3"]
    assert_rows_go_alone(model, names, 1e-10)


def test_gradients_of_a_scaled_bias_together_and_row_by_row() -> None:
    """The scaling's gradient holds the bias's part, the same as alone on the layer."""
    model, x = moved(), batch(4)
    scaling = the_host(model).carried("ia3").get_parameter("l")
    activate(model, {"ia3": 1.0, "lora": 0.0})
    found = [torch.autograd.grad(model["layer"](x).square().sum(), scaling)[0]]
    activate(model, "ia3")
    found.append(torch.autograd.grad(model["layer"](x).square().sum(), scaling)[0])
    with rows(model, ["ia3"] * 4):
        found.append(torch.autograd.grad(model["layer"](x).square().sum(), scaling)[0])
    y = F.linear(x, the_host(model).weight, the_host(model).bias)
    for grad in found:
        close(grad, (2 * scaling * y * y).sum(0), 1e-10, "gradient")


def test_dropout_leaves_the_bias_alone_and_the_bottleneck_sees_it() -> None:
    model, x = moved(dropout=0.5), batch(3)
    W, b, dW, db = written_out(model, {"ia3": 1.0})
    for name in ("ia3", "neck"):
        activate(model, name)
        torch.manual_seed(7)
        got = model["layer"](x)
        torch.manual_seed(7)
        seen = F.dropout(x, 0.5)
        change = seen @ dW.T + db if name == "ia3" else bottleneck_change(model, F.linear(seen, W, b))
        close(got, F.linear(x, W, b) + change, 1e-10, name)


def test_a_layer_without_a_bias_gets_none() -> None:
    model = nn.ModuleDict({"layer": linear(5, 6, False).double()})
    for name in ("ia3", "neck", "lora"):
        attach(model, FIVE[name], "layer", name=name)
    move(model)
    activate(model, ["ia3", "neck"])
    x, host = batch(3), the_host(model)
    scaling = host.carried("ia3").get_parameter("l")
    y = x @ host.weight.T
    close(model["layer"](x), scaling * y + bottleneck_change(model, y), 1e-10, "together")
    assert host.effective_bias() is None
    activate(model, "ia3")
    detach(model, merge=True)
    assert model["layer"].bias is None


def test_the_merged_bias_is_rounded_once() -> None:
    """A tiny scaling of a large bias: through the difference to the old bias nothing would be left of it."""
    for dtype in (torch.float32, torch.bfloat16):
        model = single(dtype=dtype)
        b = model["layer"].bias.detach().clone()
        attach(model, IA3(), "layer")
        with torch.no_grad():
            the_host(model).carried("default").get_parameter("l").fill_(1e-8 / 3)
        scaled = (b.float() * torch.tensor(1e-8 / 3)).to(dtype)
        with merged(model):
            assert same_bits(model["layer"].bias.detach(), scaled)
        with merged(model, Rounding("bfloat16")):
            assert same_bits(model["layer"].bias.detach(), scaled.bfloat16().to(dtype))
            assert model["layer"].bias.dtype == dtype
        detach(model, merge=True)
        assert same_bits(model["layer"].bias.detach(), scaled)
        through_the_difference = b.float() + (b.float() * torch.tensor(1e-8 / 3) - b.float())
        assert not same_bits(through_the_difference.to(dtype), scaled), "the control"


@dataclass(frozen=True, kw_only=True)
class Shifted(PiSSA):
    """Replaces the base and shifts the bias."""

    def bias(self, b: Tensor, t: Tensors) -> Tensor:
        return b + t["B"].sum(dim=1) - t["B0"].sum(dim=1)


def test_a_method_that_replaces_the_base_keeps_its_bias_in_company() -> None:
    model, x = single(), batch(4)
    attach(model, Shifted(rank=2), "layer", name="shifted")
    train(model["layer"], x)
    alone = model["layer"](x)
    attach(model, LoRA(rank=2), "layer", name="lora")
    assert not the_host(model).is_rebased
    activate(model, "shifted")
    close(model["layer"](x), alone, 1e-10, "on its own")
    activate(model, {"shifted": 1.0, "lora": 1.0})  # LoRA at its start adds nothing
    close(model["layer"](x), alone, 1e-10, "together")
    with rows(model, ["shifted", None, "lora", "shifted"]):
        close(model["layer"](x)[[0, 3]], alone[[0, 3]], 1e-10, "row by row")
    activate(model, "shifted")
    with merged(model):
        close(model["layer"](x), alone, 1e-10, "merged")


# ---- shared tensors -------------------------------------------------------------------------------------------------


def shared_storages(model: nn.Module, name: str = "default") -> set[tuple[int, ...]]:
    """Where the layers' shared tensors lie: one entry if all layers have the same."""
    return {
        tuple(t.data_ptr() for t in host.carried(name).shared.buffers())
        for host in hosts(model).values()
        if name in host.adapter
    }


def shared_entries(model: nn.Module) -> int:
    return sum(buffer.numel() for buffer in model.buffers())


ENTRIES = 3 * 10 + 10 * 3  # of A and B for the layers of ``net``


@pytest.mark.parametrize("how", ["as it is", "deepcopy", "pickle", "float", "after a round trip of dtypes"])
def test_shared_tensors_stay_one_whatever_happens_to_the_model(how: str) -> None:
    model, x = net(), batch(4)
    attach(model, VeRA(rank=3))
    move(model)
    want, original = model(x), shared_storages(model)
    changed = {
        "as it is": lambda: model,
        "deepcopy": lambda: copy.deepcopy(model),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),  # noqa: S301  our own bytes
        "float": lambda: copy.deepcopy(model).float(),
        "after a round trip of dtypes": lambda: copy.deepcopy(model).float().double(),
    }[how]()
    assert len(shared_storages(changed)) == 1
    assert shared_entries(changed) == ENTRIES
    assert (shared_storages(changed) == original) is (changed is model)
    x = x.to(next(changed.parameters()).dtype)
    close(changed(x), want, 1e-12 if "dtypes" not in how and how != "float" else 1e-5, "function")
    with torch.no_grad():
        for host in hosts(changed).values():
            host.carried("default").shared.get_buffer("A").zero_()
    assert same_bits(model(batch(4)), want) is (changed is not model), "a copy has its own"
    assert not any("shared" in path for path in trainable_parameters(changed))


def test_a_file_holds_shared_tensors_once() -> None:
    model, x = net(), batch(4)
    attach(model, VeRA(rank=3), ["up", "down"], seed=1)
    move(model)
    state = adapter_state(model)
    per_layer = {f"blocks.{i}.{layer}.adapter.{key}" for i in range(2) for layer in ("up", "down") for key in "bd"}
    assert set(state) == per_layer | {"adapter.shared.A", "adapter.shared.B"}
    assert state["adapter.shared.A"].data_ptr() == next(iter(shared_storages(model)))[0], "not a copy"
    other = net()
    attach(other, VeRA(rank=3), ["up", "down"], seed=2, name="other")
    untouched = {key: tensor.clone() for key, tensor in adapter_state(other, "other").items()}
    assert not torch.equal(untouched["adapter.shared.A"], state["adapter.shared.A"]), "another seed, other factors"
    for wrong in (
        {key: tensor for key, tensor in state.items() if "shared" not in key},
        state | {"adapter.shared.A": torch.zeros(3, 11)},
    ):
        with pytest.raises(Refused, match=r"adapter\.shared\."):
            load_adapter_state(other, wrong, "other")
        assert all(same_bits(t, untouched[key]) for key, t in adapter_state(other, "other").items())
    load_adapter_state(other, state, "other")
    close(other(x), model(x), 1e-12, "restored")
    assert len(shared_storages(other, "other")) == 1


def test_torchs_own_state_dict_holds_shared_tensors() -> None:
    first, second = net(), net()
    for seed, model in enumerate((first, second)):
        attach(model, VeRA(rank=3), seed=seed)
    move(first)
    assert second.load_state_dict(first.state_dict()).missing_keys == []
    close(second(batch(4)), first(batch(4)), 1e-12, "function")
    assert len(shared_storages(second)) == 1


def test_two_adapters_share_within_themselves_only() -> None:
    model, x = net(), batch(4)
    attach(model, VeRA(rank=3), "up", seed=0, name="a")
    attach(model, VeRA(rank=2), ["up", "down"], seed=0, name="b")
    move(model)
    assert len(shared_storages(model, "a")) == len(shared_storages(model, "b")) == 1
    assert not shared_storages(model, "a") & shared_storages(model, "b")
    activate(model, "b")
    want = model(x)
    detach(model, merge=False, name="a")
    assert same_bits(model(x), want)
    before = fingerprint(net())
    detach(model, merge=False)
    assert list(model.state_dict()) == before[2], "nothing shared is left behind"
    assert same_bits(model(x), net()(x))


def test_shared_tensors_depend_on_the_seed_and_on_no_global_generator() -> None:
    drawn = []
    for seed, noise in ((4, 0), (4, 1), (5, 0)):
        model = net()
        torch.manual_seed(noise)
        attach(model, VeRA(rank=3), seed=seed)
        drawn.append(adapter_state(model)["adapter.shared.A"])
    assert same_bits(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# ---- what is divided among the layers, and what is refused ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ByNeed(LoRA):
    """A rank for each layer, by name; no adapter where that is 0."""

    ranks: tuple[tuple[str, int], ...] = ()

    def allocate(self, shapes: Mapping[str, tuple[int, int]], stats: Mapping[str, Tensors]) -> Mapping[str, Variant]:
        table = {path: dict(self.ranks)[path.rpartition(".")[2]] for path in shapes}
        return {path: replace(self, rank=rank) for path, rank in table.items() if rank}


def test_a_method_divides_itself_among_the_layers() -> None:
    model, x = net(), batch(4)
    weights, base = dense_weights(model), model(x)
    variant = ByNeed(rank=9, ranks=(("up", 3), ("down", 0), ("head", 1)))
    paths = ["blocks.0.up", "blocks.1.up", "head"]
    assert attach(model, variant) == paths
    assert list(hosts(model)) == paths, "layers left out stay plain"
    close(model(x), base, 1e-12, "start")
    move(model)
    for path, host in hosts(model).items():
        rank = 1 if path == "head" else 3
        carried = host.carried("default")
        assert carried.variant == replace(variant, rank=rank)
        assert carried.get_parameter("A").shape[0] == rank
        W = weights[path]
        delta = carried.get_parameter("B") @ carried.get_parameter("A")
        close(host.effective_weight(), W + delta, 1e-12, f"scale of its own rank on {path}")
    assert [len(state.t["A"]) for state in layer_states(model)] == [3, 3, 1]
    state = {key: tensor.clone() for key, tensor in adapter_state(model).items()}
    again = net()
    attach(again, variant, seed=7)
    load_adapter_state(again, state)
    close(again(x), model(x), 1e-12, "restored")


def test_the_methods_seed_of_a_layer_does_not_depend_on_the_division() -> None:
    first, second = net(), net()
    attach(first, LoRA(rank=3), "up", seed=5)
    attach(second, ByNeed(ranks=(("up", 3), ("down", 0), ("head", 1))), seed=5)
    for path, host in hosts(first).items():
        other = hosts(second)[path].carried("default")
        assert same_bits(host.carried("default").get_parameter("A").detach(), other.get_parameter("A").detach())


def test_leaving_out_every_layer_is_refused() -> None:
    model = net()
    before = fingerprint(model)
    with pytest.raises(Refused, match="leaves out every layer that was chosen"):
        attach(model, ByNeed(ranks=(("up", 0), ("down", 0), ("head", 0))))
    assert fingerprint(model) == before


@dataclass(frozen=True, kw_only=True)
class Recorder(LowRank):
    """Writes down what it is asked."""

    def check(self, out: int, in_: int) -> None:
        ASKED.append(("check", out, in_))
        super().check(out, in_)

    def allocate(self, shapes: Mapping[str, tuple[int, int]], stats: Mapping[str, Tensors]) -> Mapping[str, Variant]:
        ASKED.append(("allocate", *shapes.values(), *stats))
        return super().allocate(shapes, stats)

    def shared(self, shapes: Sequence[tuple[int, int]], rng: torch.Generator) -> dict[str, Tensor]:
        ASKED.append(("shared", *shapes))
        return super().shared(shapes, rng)

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        ASKED.append(("init", *W.shape))
        return Init(train={"v": torch.zeros(1, dtype=W.dtype)})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + t["v"]

    def parameter_count(self, out: int, in_: int) -> int:
        return 1


ASKED: list[tuple[object, ...]] = []


@pytest.mark.parametrize("layer", LAYERS)
def test_every_shape_is_asked_about_before_anything_is_computed(layer: Layer) -> None:
    """In (out, in), whatever the layer stores; a refusal names the layer and leaves the model alone."""
    ASKED.clear()
    model = net(layer, blocks=1)
    attach(model, Recorder(rank=3), stats={"head": {}})
    shapes = [(10, 6), (6, 10), (3, 6)]
    want = [("allocate", *shapes, "head"), *(("check", *shape) for shape in shapes)]
    want += [*(("init", *shape) for shape in shapes), ("shared", *shapes)]
    assert want == ASKED
    ASKED.clear()
    model = net(layer, blocks=1)
    before = fingerprint(model)
    with pytest.raises(Refused, match=r" on head: rank 4 does not fit a 3 x 6 layer: write a rank from 1 to 3"):
        attach(model, Recorder(rank=4))
    assert not [call for call in ASKED if call[0] == "init"]
    assert fingerprint(model) == before


def test_on_conv1d_shared_tensors_are_sliced_by_out_and_in() -> None:
    model, x = net(conv1d), batch(4)
    attach(model, VeRA(rank=2), ["up", "down"])
    move(model)
    plain = net()
    weights = dense_weights(net(conv1d))
    for path, host in hosts(model).items():
        t = host.carried("default").tensors()
        out, in_ = weights[path].shape
        delta = (t["b"][:, None] * t["B"][:out]) @ (t["d"][:, None] * t["A"][:, :in_])
        plain.get_submodule(path).weight.data.copy_(weights[path] + delta)
        plain.get_submodule(path).bias.data.copy_(host.bias)
    plain.head.weight.data.copy_(model.head.weight)
    close(model(x), plain(x), 1e-10, "whole model")
