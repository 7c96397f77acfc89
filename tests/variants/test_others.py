"""What the papers of VeRA, DeLoRA, (IA)^3, BitFit and the bottleneck adapters promise beyond the formula, and that a
dense update is full fine-tuning of its layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from tests.variants.models import batch, dense_weights, fingerprint, host_of, net, train
from variants.adapter import BottleneckAdapter
from variants.bitfit import BitFit
from variants.core import (
    Init,
    LoRAPair,
    Refused,
    Tensors,
    Variant,
    adapter_state,
    attach,
    detach,
    load_adapter_state,
    trainable_parameters,
)
from variants.core.cases import Case, adapted, close, input_of, move, same_bits
from variants.core.host import hosts
from variants.delora import DeLoRA
from variants.dense import Dense
from variants.ia3 import IA3
from variants.lora import LoRA
from variants.vera import VeRA


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(variant: Variant, W: Tensor, seed: int = 0) -> Init:
    return variant.init(W, torch.Generator().manual_seed(seed))


def bert() -> BertModel:
    torch.manual_seed(3)
    config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    return BertModel(config).eval().double()


# Layers (out, in) and how many of each are adapted.
ROBERTA_BASE, ROBERTA_LARGE = {(768, 768): 24}, {(1024, 1024): 48}
GPT2_L, GPT3 = {(1280, 1280): 72}, {(12288, 12288): 192}
LLAMA_7B = {(4096, 4096): 128, (11008, 4096): 64, (4096, 11008): 32}
LLAMA_13B = {(5120, 5120): 160, (13824, 5120): 80, (5120, 13824): 40}
LLAMA32_3B = {(3072, 3072): 28, (1024, 3072): 28}


@pytest.mark.parametrize(
    ("variant", "layers", "count"),
    [
        (VeRA(rank=1), ROBERTA_BASE, 18_456),
        (VeRA(rank=16), ROBERTA_BASE, 18_816),
        (VeRA(rank=1024), ROBERTA_BASE, 43_008),
        (VeRA(rank=256), ROBERTA_LARGE, 61_440),
        (VeRA(rank=1024), GPT2_L, 165_888),
        (VeRA(rank=1), GPT3, 2_359_488),
        (VeRA(rank=1024), LLAMA_7B, 1_589_248),
        (VeRA(rank=1024), LLAMA_13B, 2_416_640),
        (VeRA(rank=256), LLAMA32_3B, 129_024),
        (DeLoRA(rank=32), LLAMA32_3B, 9_175_040 + 56),  # LoRA's and one strength for each layer
        (BottleneckAdapter(), {(768, 3072): 12}, 894_528),  # AdapterHub's "pfeiffer" and "houlsby" on BERT-base
        (BottleneckAdapter(kind="houlsby"), {(768, 3072): 12, (768, 768): 12}, 1_789_056),
    ],
    ids=lambda part: str(part) if isinstance(part, int | Variant) else "",
)
def test_published_counts(variant: Variant, layers: dict[tuple[int, int], int], count: int) -> None:
    assert sum(number * variant.parameter_count(*shape) for shape, number in layers.items()) == count


def test_frozen_random_factors_are_what_gpt3s_published_vera_counts_include() -> None:
    """2.8M and 8.7M for ranks 16 and 256; the vectors alone are 2.4M for both, as all other rows count."""
    for rank, vectors, published in ((16, 2_362_368, 2_755_584), (256, 2_408_448, 8_699_904)):
        count = 192 * VeRA(rank=rank).parameter_count(12288, 12288)
        assert count == vectors
        assert count + 2 * 12288 * rank == published


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VeRA(rank=0), "rank is a whole number from 1, not 0"),
        (lambda: VeRA(d_init=0.0), "d_init is a number other than 0, not 0.0"),
        (lambda: DeLoRA(alpha=0.0), "alpha is a positive number"),
        (lambda: BottleneckAdapter(bottleneck=0), "bottleneck is a whole number from 1, not 0"),
    ],
)
def test_wrong_hyperparameters(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


# ---- VeRA -----------------------------------------------------------------------------------------------------------


def test_vera_factors_are_drawn_within_kaimings_bound() -> None:
    drawn = VeRA(rank=40).shared([(30, 300), (500, 20)], torch.Generator().manual_seed(0))
    assert {name: tuple(tensor.shape) for name, tensor in drawn.items()} == {"A": (40, 300), "B": (500, 40)}
    for name, fan_in in (("A", 300), ("B", 40)):
        bound, entries = (6 / fan_in) ** 0.5, drawn[name]
        assert 0.999 * bound < float(entries.abs().max()) <= bound
        assert 0.98 < float(entries.std()) * 3**0.5 / bound < 1.02
        assert abs(float(entries.mean())) < 0.02 * bound


def test_vera_layers_share_their_factors_and_use_the_corner_that_fits() -> None:
    model, weights = net(), dense_weights(net())
    attach(model, VeRA(rank=3), ["up", "down"])  # 10 x 6 and 6 x 10
    layers = hosts(model)
    t = {path: host.carried("default").tensors() for path, host in layers.items()}
    first = t["blocks.0.up"]
    assert (first["A"].shape, first["B"].shape) == ((3, 10), (10, 3))
    assert all(own[key] is first[key] and not own[key].requires_grad for own in t.values() for key in "AB")
    assert not any(own["b"].any() for own in t.values())
    assert all(bool((own["d"] == 0.1).all()) for own in t.values())
    move(model)
    for path, host in layers.items():
        out, in_ = weights[path].shape
        own = t[path]
        delta = torch.diag(own["b"]) @ first["B"][:out] @ torch.diag(own["d"]) @ first["A"][:, :in_]
        close(host.effective_weight(), weights[path] + delta, 1e-12, path)


def test_vera_of_a_rank_beyond_the_layers() -> None:
    """Published ranks exceed the width (1024 on 768); the update's rank is then the layer's."""
    model = adapted(VeRA(rank=20), Case(5, 4))
    W = host_of(model).dense().detach().clone()
    move(model)
    assert int(torch.linalg.matrix_rank(host_of(model).effective_weight() - W)) == 4


def test_vera_factors_depend_on_which_layers_are_adapted_so_the_file_holds_them() -> None:
    alone, both = net(), net()
    attach(alone, VeRA(rank=3), "head")  # 3 x 6
    attach(both, VeRA(rank=3), ["head", "down"])  # 6 x 10
    A = [hosts(m)["head"].carried("default").tensors()["A"] for m in (alone, both)]
    assert not torch.equal(A[0], A[1][:, :6])
    with pytest.raises(Refused, match=r"keys differ|shape"):
        load_adapter_state(alone, adapter_state(both))
    assert {"adapter.shared.A", "adapter.shared.B"} <= set(adapter_state(both))


def test_vera_would_not_train_if_both_vectors_started_at_zero() -> None:
    W, vera = draw(5, 4), VeRA(rank=2)
    drawn = vera.shared([(5, 4)], torch.Generator().manual_seed(0))
    for d_init, trains in ((0.1, True), (0.0, False)):
        t = {"b": torch.zeros(5).double(), "d": torch.full((2,), d_init).double()}
        free = [tensor.requires_grad_() for tensor in t.values()]
        grads = torch.autograd.grad((vera.weight(W, t | drawn) * draw(5, 4, seed=1)).sum(), free)
        assert any(bool(grad.any()) for grad in grads) is trains


# ---- DeLoRA ---------------------------------------------------------------------------------------------------------


class Unbounded(DeLoRA):
    """Forgets to divide by the lengths."""

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        return LoRAPair(t["A"] * t["n"], t["strength"] / self.rank * t["B"])


def delora_tensors(variant: DeLoRA, W: Tensor, size: float) -> dict[str, Tensor]:
    init = start(variant, W)
    return {**init.frozen, **{key: size * draw(*p.shape, seed=i) for i, (key, p) in enumerate(init.train.items())}}


@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_delora_bounds_the_update_by_its_strength(shape: tuple[int, int], size: float) -> None:
    W, delora = draw(*shape), DeLoRA(rank=3)
    t = delora_tensors(delora, W, size) | {"strength": torch.tensor([-2.5]).double()}
    relative = (delora.weight(W, t) - W) / W.norm(dim=0)
    assert float(relative.norm()) <= 2.5 + 1e-9
    (defect,) = delora.defects(W, t).values()
    assert float(defect) == 0
    one = {**t, "A": t["A"].clone(), "B": t["B"].clone()}
    one["A"][1:], one["B"][:, 1:] = one["A"][:1], one["B"][:, :1]  # equal terms: the bound is reached
    (defect,) = delora.defects(W, one).values()
    assert float(defect) < 1e-12
    if size >= 1e-2:
        close((delora.weight(W, one) - W).div(W.norm(dim=0)).norm(), torch.tensor(2.5).double(), 1e-9, "reached")


def test_an_update_without_normalisation_breaks_the_bound() -> None:
    W, broken = draw(9, 6), Unbounded(rank=3)
    (defect,) = broken.defects(W, delora_tensors(broken, W, 5.0)).values()
    assert float(defect) > 1


def test_delora_takes_only_directions_from_its_factors() -> None:
    W, delora = draw(7, 5), DeLoRA(rank=2)
    t = delora_tensors(delora, W, 1.0)
    want = delora.weight(W, t)
    scales = torch.tensor([7.0, 0.3]).double()
    close(delora.weight(W, {**t, "A": scales[:, None] * t["A"], "B": t["B"] / scales}), want, 1e-12, "lengths")
    close(delora.weight(W, {**t, "strength": 3 * t["strength"]}) - W, 3 * (want - W), 1e-12, "linear in the strength")


def test_delora_starts_at_the_base_with_a_gradient() -> None:
    """In the factor of 1e-4 which stands for the length of B's columns while they are shorter."""
    W = draw(7, 5)
    W[:, 2] = 0
    for alpha, strength in ((15.0, 15.0), (None, 2.0), (3.0, 3.0)):
        delora = DeLoRA(rank=2, alpha=alpha)
        init = start(delora, W)
        close(init.frozen["n"], W.norm(dim=0), 1e-12, "lengths of the columns")
        assert init.train["strength"].tolist() == pytest.approx([strength])
        t = {key: tensor.requires_grad_() for key, tensor in init.train.items()} | init.frozen
        G = draw(7, 5, seed=3)
        weight = delora.weight(W, t)
        assert same_bits(weight.detach(), W)
        (grad,) = torch.autograd.grad((weight * G).sum(), t["B"])
        unit = t["A"].detach() / t["A"].detach().norm(dim=1, keepdim=True)
        close(grad, strength / 2 / 1e-4 * (G * W.norm(dim=0)) @ unit.T, 1e-10, "gradient of B")
        move_B = {**t, "B": draw(7, 2, seed=4)}
        assert not (delora.weight(W, move_B) - W)[:, 2].any(), "a column of zeros stays one"


# ---- (IA)^3 ---------------------------------------------------------------------------------------------------------


def test_ia3_counts_as_published() -> None:
    """Llama-3.2-3B: keys, values and the input of the last feed-forward layer, 28 times."""
    shapes = {"k_proj": (1024, 3072), "v_proj": (1024, 3072), "down_proj": (3072, 8192)}
    allotted = IA3(feedforward="down_proj").allocate(shapes, {})
    assert 28 * sum(allotted[path].parameter_count(*shape) for path, shape in shapes.items()) == 286_720


def test_ia3_scales_inputs_of_the_feed_forward_layers_it_is_told() -> None:
    model, x = net(blocks=1), batch(4)
    attach(model, IA3(feedforward="down, head"))
    sides = {path: host.carried("default").variant.side for path, host in hosts(model).items()}
    assert sides == {"blocks.0.up": "output", "blocks.0.down": "input", "head": "input"}
    move(model)
    plain = net(blocks=1)
    scale = {path: host.carried("default").get_parameter("l") for path, host in hosts(model).items()}
    block = plain.blocks[0]
    hidden = torch.tanh(scale["blocks.0.up"] * block.up(x)) * scale["blocks.0.down"]
    want = plain.head((x + block.down(hidden)) * scale["head"])
    close(model(x), want, 1e-12, "keys and values after, hidden activations before")


@pytest.mark.parametrize("lost", ["nothing", "down,nothing", "blocks.7.*"])
def test_ia3_refuses_a_pattern_that_matches_nothing(lost: str) -> None:
    model = net()
    before = fingerprint(model)
    with pytest.raises(Refused, match=r"matches none of the adapted layers: blocks.0.up, blocks.0.down"):
        attach(model, IA3(feedforward=lost), ["up", "down"])
    assert fingerprint(model) == before


@pytest.mark.parametrize("side", ["output", "input"])
def test_ia3_scales_the_bias_with_the_output_only(side: str) -> None:
    ia3 = IA3(side=side)  # type: ignore[arg-type]
    b, t = draw(4), {"l": draw(4, seed=1)}
    close(ia3.bias(b, t), t["l"] * b if side == "output" else b, 1e-12, "bias")
    pair = ia3.as_lora(draw(4, 4), t)
    assert (pair is None) is (side == "output"), "a pair cannot say what happens to a bias"


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_ia3_pair_on_the_input_side_has_the_rank_of_the_layer(shape: tuple[int, int]) -> None:
    W, t = draw(*shape), {"l": draw(shape[1], seed=1)}
    pair = IA3(side="input").as_lora(W, t)
    assert pair is not None
    assert len(pair.A) == 5
    close(W + pair.delta(), W @ torch.diag(t["l"]), 1e-12, "pair")


# ---- BitFit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "trained"),
    [
        ("encoder.layer.0.attention.self.query.bias", True),
        ("encoder.layer.0.output.LayerNorm.bias", True),
        ("attention.in_proj_bias", True),
        ("encoder.layer.0.output.dense.weight", False),
        ("block.0.relative_attention_bias.weight", False),  # T5's table of position biases is an embedding
    ],
)
def test_bitfit_trains_biases(path: str, trained: bool) -> None:
    assert BitFit().trains_base(path) is trained


def test_bitfit_trains_every_bias_of_bert_and_nothing_else() -> None:
    model, tokens = bert(), torch.arange(10).reshape(2, 5)
    before = {path: p.detach().clone() for path, p in model.named_parameters()}
    assert attach(model, BitFit()) == []
    trained = trainable_parameters(model)
    # q, k, v and the two outputs with their norms are of the width, the intermediate layer has its own.
    assert sum(p.numel() for p in trained.values()) == 2 * (7 * 8 + 12) + 8 + 8
    optimiser = torch.optim.SGD(list(trained.values()), lr=0.1)
    for _ in range(2):
        model(tokens).pooler_output.square().sum().backward()
        optimiser.step()
    moved = {path for path, p in model.named_parameters() if not same_bits(p.detach(), before[path])}
    assert moved <= set(trained)
    # Softmax does not see a key's bias, which moves by rounding alone, if at all.
    assert {path for path in trained if "key" not in path} <= moved
    detach(model, merge=False)
    assert all(same_bits(p.detach(), before[path]) for path, p in model.named_parameters())


def test_bitfit_refuses_a_model_without_biases() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.RMSNorm(4))
    before = fingerprint(model)
    with pytest.raises(Refused, match="bitfit finds nothing in this model which it could train"):
        attach(model, BitFit())
    assert fingerprint(model) == before


def test_bitfit_stands_alone() -> None:
    model = net()
    attach(model, LoRA(rank=1), "up")
    with pytest.raises(Refused, match="bitfit trains the model itself"):
        attach(model, BitFit(), name="second")
    detach(model, merge=False)
    attach(model, BitFit())
    train(model, batch(4))
    want = model(batch(4))
    detach(model, merge=True)
    assert same_bits(model(batch(4)), want), "merging keeps the trained biases"


# ---- bottleneck adapters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("case", [Case(7, 5), Case(4, 6, bias=False, lead=(2, 3))], ids=str)
def test_bottleneck_is_its_formula(kind: str, case: Case) -> None:
    """Value and every gradient, with each activation written out; with the other activation they differ."""
    variant = BottleneckAdapter(bottleneck=3, kind=kind)  # type: ignore[arg-type]
    model = adapted(variant, case)
    move(model, scale=1.0)
    host = host_of(model)
    trained = dict(host.carried("default").named_parameters())
    x = input_of(case).requires_grad_()
    y = model(x)
    cotangent = draw(*y.shape)
    got = torch.autograd.grad(y, [x, *trained.values()], cotangent)

    t = {name: p.detach().clone().requires_grad_() for name, p in trained.items()}
    z = x.detach().clone().requires_grad_()
    whole = F.linear(z, host.weight, host.bias)
    inner = whole @ t["down"].T + t["c"]
    gate = {"houlsby": inner * (1 / (1 + torch.exp(-inner))), "pfeiffer": inner * (inner > 0)}
    dense = {k: whole + g @ t["up"].T + t["e"] for k, g in gate.items()}
    close(y, dense[kind], 1e-12, "value")
    assert float((dense["houlsby"] - dense["pfeiffer"]).detach().abs().max()) > 1e-3
    want = torch.autograd.grad(dense[kind], [z, *t.values()], cotangent)
    for name, mine, theirs in zip(["x", *t], got, want, strict=True):
        close(mine, theirs, 1e-10, name)


def test_bottleneck_starts_at_or_near_the_base() -> None:
    W = draw(200, 30)
    for kind in ("houlsby", "pfeiffer"):
        exact = BottleneckAdapter(bottleneck=50, kind=kind)  # type: ignore[arg-type]
        near = replace(exact, start="bert")
        assert exact.exact_init
        assert not near.exact_init
        y = draw(3, 200)
        assert same_bits(exact.output(y, start(exact, W).train), y)
        t = start(near, W).train
        assert all(0.98 < float(t[name].std()) / 0.02 < 1.02 for name in ("down", "up"))
        assert not t["c"].any()
        assert not t["e"].any()
        assert 0 < float((near.output(y, t) - y).norm()) < 0.1 * float(y.norm())


def test_bottleneck_places_in_bert() -> None:
    """As the class says: both dense layers that end a block, or the feed-forward one alone."""
    places = {"houlsby": "output.dense", "pfeiffer": "layer.?.output.dense"}
    attention, feedforward = (f"encoder.layer.{{}}.{p}output.dense" for p in ("attention.", ""))
    want = {
        "houlsby": [place.format(i) for i in range(2) for place in (attention, feedforward)],
        "pfeiffer": [feedforward.format(i) for i in range(2)],
    }
    for kind, where in places.items():
        assert f"``{where}``" in (BottleneckAdapter.__doc__ or "")
        assert attach(bert(), BottleneckAdapter(bottleneck=2, kind=kind), where) == want[kind]  # type: ignore[arg-type]


def test_bottleneck_has_no_weight_to_merge() -> None:
    model = net()
    attach(model, BottleneckAdapter(bottleneck=2), "down")
    move(model)
    with pytest.raises(Refused, match="adapter depends on the input and has no effective weight"):
        detach(model, merge=True)


# ---- a dense update -------------------------------------------------------------------------------------------------


def test_a_dense_update_trains_as_the_weight_itself_does() -> None:
    """Step by step what full fine-tuning makes of the adapted layers when nothing else trains."""
    beside, plain, x = net(), net().requires_grad_(False), batch(5)
    paths = attach(beside, Dense(), "up")
    for path in paths:
        plain.get_submodule(path).weight.requires_grad_(True)
    for model in (beside, plain):
        optim = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            optim.zero_grad()
            model(x).square().mean().backward()
            optim.step()
    for path in paths:
        close(hosts(beside)[path].effective_weight(), plain.get_submodule(path).weight, 1e-12, path)


def test_a_small_dense_update_survives_beside_a_half_precision_base() -> None:
    model = adapted(Dense(), Case(2, 4, bias=False), torch.bfloat16)
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.bfloat16)
    with torch.no_grad():
        host_of(model).weight.fill_(1.0)  # takes nothing below 2^-8
        host_of(model).carried("default").tensors()["D"].copy_(2**-10 * x.float())
    assert model(x).tolist() == [[2**-8, 2**-8]]
