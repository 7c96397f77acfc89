"""How a method gets onto a model: the class swap, seeds, statistics, dropout, compilation, other layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.variants.models import (
    KINDS,
    LAYERS,
    LAYERWISE,
    Gated,
    Informed,
    Scribbler,
    batch,
    by_name,
    fingerprint,
    gpt2,
    net,
    train,
)
from variants.core import (
    Refused,
    Variant,
    activate,
    adapter_state,
    attach,
    create,
    detach,
    merged,
    method,
    names,
    rows,
    trainable_parameters,
)
from variants.core.attach import layer_rng
from variants.core.cases import Layer, close, conv1d, gap, linear, move, same_bits
from variants.core.host import HOSTS, HostLinear, hosts
from variants.lora import LoRA
from variants.pissa import PiSSA


def test_patterns_choose_layers() -> None:
    def chosen(where: str | list[str]) -> list[str]:
        return attach(net(), LoRA(rank=1), where)

    both = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]
    assert chosen("up") == ["blocks.0.up", "blocks.1.up"]
    assert chosen("1.up") == ["blocks.1.up"]
    assert chosen(["down", "up", "blocks.0.up"]) == both
    assert chosen("blocks.*.*") == both
    assert chosen("all") == [*both, "head"]
    assert chosen(("head",)) == ["head"]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_class_is_swapped_and_swapped_back(layer: Layer) -> None:
    model = net(layer)
    plain = {path: type(module) for path, module in model.named_modules()}
    modules = {path: id(module) for path, module in model.named_modules()}
    keys = list(model.state_dict())
    assert attach(model, LoRA(rank=1), "up") == ["blocks.0.up", "blocks.1.up"]
    for path, host in hosts(model).items():
        assert isinstance(host, plain[path])
        assert id(host) == modules[path]
    assert type(model.blocks[0].down) is plain["blocks.0.down"]
    assert [key for key in model.state_dict() if ".adapter." not in key] == keys
    detach(model, merge=False)
    assert {path: type(module) for path, module in model.named_modules()} == plain
    assert list(model.state_dict()) == keys


def test_a_method_owns_the_weight_it_is_given() -> None:
    """What init does to its W does not reach the base, in any dtype."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model, x = net(dtype=dtype), batch(3, dtype=dtype)
        base = model(x)
        attach(model, Scribbler(rank=1))
        activate(model, None)
        assert same_bits(model(x), base)


def test_only_the_adapter_trains() -> None:
    model = net()
    attach(model, LoRA(rank=1), "up")
    assert list(trainable_parameters(model)) == [
        f"blocks.{i}.up.adapter.default.{tensor}" for i in range(2) for tensor in "AB"
    ]


def test_adapters_live_in_the_mode_of_their_layer() -> None:
    model = net().eval()
    attach(model, LoRA(rank=1), "up", dropout=0.5)
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("variant", LAYERWISE, ids=by_name)
def test_gpt2(variant: Variant) -> None:
    """transformers' own model: c_attn and c_fc are Conv1D, 8 x 24 and 8 x 32 as stored."""
    model = gpt2()
    tokens = torch.arange(10).reshape(2, 5)
    base = model(tokens).last_hidden_state
    before = fingerprint(model)
    paths = attach(model, variant, ["c_attn", "c_fc"])
    assert paths == ["h.0.attn.c_attn", "h.0.mlp.c_fc", "h.1.attn.c_attn", "h.1.mlp.c_fc"]
    assert isinstance(model.h[0].attn.c_attn, Conv1D)
    count = sum(p.numel() for p in trainable_parameters(model).values())
    assert count == 2 * (variant.parameter_count(24, 8) + variant.parameter_count(32, 8))
    close(model(tokens).last_hidden_state, base, 1e-3 if variant.name == "lora_xs" else 1e-12, "start")
    move(model)
    adapted = model(tokens).last_hidden_state
    assert gap(adapted, base) > 1e-2
    with merged(model):
        close(model(tokens).last_hidden_state, adapted, 1e-10, "merged")
    detach(model, merge=False)
    assert fingerprint(model) == before
    assert same_bits(model(tokens).last_hidden_state, base)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_one_model_start_independently(layer: Layer) -> None:
    """A layer's start depends on the seed and its path; not on what else is adapted, nor on the order."""
    alone, together, other = net(layer), net(layer), net(layer)
    attach(alone, LoRA(rank=2), "1.down", seed=1)
    attach(together, LoRA(rank=2), ["down", "up"], seed=1)
    attach(other, LoRA(rank=2), "1.down", seed=2)
    key = "blocks.1.down.adapter.A"
    assert same_bits(adapter_state(alone)[key], adapter_state(together)[key])
    assert not torch.equal(adapter_state(alone)[key], adapter_state(other)[key])
    assert not torch.equal(adapter_state(together)[key], adapter_state(together)["blocks.0.down.adapter.A"])


def test_layer_rng_is_pinned() -> None:
    """The stream for a seed and a path is part of what makes results repeatable: it may not change silently."""
    query, value = (torch.randint(1000, (3,), generator=layer_rng(0, f"layer.0.{end}")) for end in ("query", "value"))
    assert query.tolist() == [444, 490, 467]
    assert value.tolist() != query.tolist()


def test_statistics_reach_the_method() -> None:
    model = net()
    gradient = torch.arange(60.0).reshape(10, 6)
    stats = {f"blocks.{i}.up": {"gradient": gradient + i} for i in range(2)}
    attach(model, Informed(rank=2), "up", stats=stats)
    for i in range(2):
        close(adapter_state(model)[f"blocks.{i}.up.adapter.A"], (gradient + i)[:2].double(), 0, "A")


def test_a_new_kind_of_layer_needs_only_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts and methods add up: a layer class of somebody else's, with its own product, takes every method."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * F.linear(x, self.weight) + self.bias

    class HostDoubled(HostLinear, Doubled):
        plain = Doubled

        def frozen(self, x: Tensor) -> Tensor:
            return 2 * F.linear(x, self.weight)

        def base(self, x: Tensor, stored: Tensor) -> Tensor:
            return 2 * F.linear(x, stored) + self.bias

        @staticmethod
        def oriented(stored: Tensor) -> Tensor:
            return 2 * stored

    monkeypatch.setitem(HOSTS, Doubled, HostDoubled)
    x = batch(3)
    for variant in (LoRA(rank=2), create("dora", {"rank": 2})):
        model = nn.ModuleDict({"layer": Doubled(6, 4).double()})
        base = model["layer"](x)
        attach(model, variant, "layer")
        close(model["layer"](x), base, 1e-12, "start")
        move(model)
        effective = hosts(model)["layer"].effective_weight()
        close(model["layer"](x), F.linear(x, effective, model["layer"].bias), 1e-10, "moved")


# ---- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("variant", LAYERWISE, ids=by_name)
def test_dropout_is_on_the_adapter_branch_only(variant: Variant, layer: Layer) -> None:
    """``x W^T + drop(x) (W' - W)^T + b`` with the same mask: the base product sees the whole input."""
    model = nn.ModuleDict({"layer": layer(4, 6, True).double()})
    W = (model["layer"].weight.T if layer is conv1d else model["layer"].weight).detach().clone()
    attach(model, variant, "layer", dropout=0.5)
    move(model)
    x = batch(3, 4)
    effective = hosts(model)["layer"].effective_weight()
    torch.manual_seed(7)
    got = model["layer"](x)
    torch.manual_seed(7)
    seen = F.dropout(x, 0.5)
    assert not torch.equal(seen, x)
    close(got, x @ W.T + seen @ (effective - W).T + hosts(model)["layer"].effective_bias(), 1e-10, "training")
    state = torch.get_rng_state()
    close(model.eval()["layer"](x), F.linear(x, effective, hosts(model)["layer"].effective_bias()), 1e-10, "evaluation")
    assert torch.equal(torch.get_rng_state(), state), "evaluation draws nothing"


@pytest.mark.parametrize("variant", [v for v in LAYERWISE if v.exact_init], ids=by_name)
def test_dropout_keeps_an_exact_start(variant: Variant) -> None:
    """Dropout on a principal path would drop part of the pretrained function."""
    model = net()
    base = model(batch(5))
    attach(model, variant, dropout=0.5)
    close(model(batch(5)), base, 1e-12, "start in training")


# ---- methods that only a model can show -----------------------------------------------------------------------------


def test_a_method_that_depends_on_the_input_trains_and_refuses_to_merge() -> None:
    model = net()
    x = batch(4)
    base = model(x)
    attach(model, Gated(rank=2))
    close(model(x), base, 1e-12, "start")
    train(model, x)
    trained = model(x)
    assert gap(trained, base) > 1e-3
    before = fingerprint(model)
    for merge in (lambda: detach(model, merge=True), lambda: merged(model).__enter__()):
        with pytest.raises(Refused, match="depends on the input and has no effective weight"):
            merge()
    assert fingerprint(model) == before
    assert same_bits(model(x), trained)
    activate(model, None)
    detach(model, merge=True)  # nothing active: nothing to merge
    assert same_bits(model(x), base)


# ---- compilation ----------------------------------------------------------------------------------------------------


def graphs_of(variant: Variant, blocks: int, layer: Layer = linear, dropout: float = 0.0) -> int:
    """How many graphs it takes to compile each block of a model by itself, forward in training mode."""
    graphs: list[object] = []

    def counting(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = net(layer, torch.float32, blocks)
    attach(model, variant, ["up", "down"], dropout=dropout)
    x = batch(4, dtype=torch.float32).requires_grad_()  # as it does from the second block on
    torch.manual_seed(0)
    want = model(x)
    for block in model.blocks:
        block.compile(fullgraph=True, backend=counting)
    torch.manual_seed(0)
    close(model(x), want, 1e-6, "compiled")
    return len(graphs)


# Dynamo itself looks at .grad of a block's input, which is the output of the block before.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("variant", LAYERWISE, ids=by_name)
def test_equal_blocks_share_one_graph(variant: Variant) -> None:
    for layer in LAYERS:
        assert graphs_of(variant, blocks=4, layer=layer) == 1
    assert graphs_of(variant, blocks=4, dropout=0.5) == 1


OTHERS = [name for name in names() if name not in KINDS and not method(name).needs]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", [name for name in OTHERS if method(name).trains == "layers"])
def test_every_method_compiles_once_for_equal_blocks(name: str) -> None:
    assert graphs_of(create(name, {method(name).size: 2} if method(name).size else {}), blocks=2) == 1


def two_adapters() -> nn.Module:
    torch._dynamo.reset()
    model = net(dtype=torch.float32, blocks=1)
    attach(model, LoRA(rank=2))
    attach(model, PiSSA(rank=2), name="b")
    move(model)
    return model


def test_a_compiled_model_follows_the_switch() -> None:
    model = two_adapters()
    x = batch(4, dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for choice in ("b", ["default", "b"], {"default": 0.5}, None):
        activate(model, choice)
        close(compiled(x), model(x), 1e-6, f"activate({choice!r})")
    with rows(model, ["b", None, "default", "b"]):
        close(compiled(x), model(x), 1e-6, "rows")


def test_a_compiled_training_step() -> None:
    """One graph also through autograd's own compiler."""
    model = two_adapters()
    x = batch(4, dtype=torch.float32)
    trained = hosts(model)["head"].carried("b").get_parameter("B")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(x).square().sum(), trained)
    (want,) = torch.autograd.grad(model(x).square().sum(), trained)
    close(got, want, 1e-5, "gradient")


def test_exact_types_only() -> None:
    assert set(HOSTS) >= {nn.Linear, Conv1D}
    assert all(host.plain is plain for plain, host in HOSTS.items())
