"""What cannot work is refused by name, and the model is then as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn
from torch.nn.utils import prune
from transformers import GPT2LMHeadModel

from tests.variants.models import (
    WIDTH,
    BiasToo,
    Informed,
    Rebased,
    batch,
    by_name,
    fingerprint,
    gpt2,
    net,
)
from variants.core import (
    Refused,
    Variant,
    activate,
    adapter_state,
    attach,
    create,
    detach,
    load_adapter_state,
    merged,
    rows,
)
from variants.core.cases import move, same_bits
from variants.lora import LoRA
from variants.pissa import PiSSA


class Tied(nn.Module):
    """An output layer that shares its weight with the embedding, under the name "weight" or another."""

    def __init__(self, other_name: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, WIDTH)
        self.head = nn.Linear(WIDTH, 5, bias=False)
        self.head.weight = self.embed.weight
        if other_name:
            self.embed.table = self.embed.weight
            del self.embed._parameters["weight"]


class OwnLinear(nn.Linear):
    pass


def nested() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2))), nn.Sequential(nn.Sequential(nn.Linear(2, 2))))


def instance_forward() -> nn.Module:
    model = net()
    model.head.forward = model.head.forward
    return model


def pruned() -> nn.Module:
    model = net()
    prune.l1_unstructured(model.head, "weight", amount=0.5)
    return model


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, dim_feedforward=8)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (net, {"where": "query"}, r"'query' matches no layer; layers of this model: blocks\.\*\.up, .*, head"),
        (net, {"where": ["up", "query"]}, "'query' matches no layer"),
        (net, {"where": []}, "no pattern says where"),
        (nested, {"where": "x"}, r"layers of this model: \*\.\*\.0$"),
        (nn.Sequential, {}, "'all' matches no layer; layers of this model: none"),
        (gpt2, {"where": "wte"}, "wte is a Embedding, which has no host .exact types: Linear"),
        (gpt2, {"where": "h.0"}, "h.0 is a GPT2Block, which has no host"),
        (lambda: nn.Sequential(OwnLinear(6, 6)), {}, "0 is a OwnLinear, which has no host"),
        (lambda: nn.MultiheadAttention(6, 2), {"where": "out_proj"}, "MultiheadAttention reads its weight itself"),
        (encoder_layer, {"where": "self_attn.out_proj"}, "MultiheadAttention reads its weight itself"),
        (encoder_layer, {"where": "linear1"}, "linear1 .*TransformerEncoderLayer reads its weight itself"),
        (encoder_layer, {"where": "linear2"}, "linear2 .*TransformerEncoderLayer reads its weight itself"),
        (lambda: Tied(False), {"where": "head"}, "head shares its weight with embed"),
        (lambda: Tied(True), {"where": "head"}, "head shares its weight with embed"),
        (
            lambda: GPT2LMHeadModel(gpt2().config),
            {"where": "lm_head"},
            "lm_head shares its weight with .*wte",
        ),
        (instance_forward, {"where": "head"}, "head has a forward of its own on the instance"),
        (pruned, {"where": "head"}, "head has a weight that something else computes"),
        (net, {"variant": LoRA(rank=4)}, r"lora on head: rank 4 does not fit a 3 x 6 layer: write a rank from 1 to 3"),
        (net, {"variant": PiSSA(rank=4)}, "pissa on head: rank 4 does not fit"),
        (net, {"variant": create("lora_xs", {"rank": 4})}, "lora_xs on head: rank 4 does not fit"),
        (net, {"variant": create("stiefel", {"rank": 4})}, "stiefel on head: rank 4 does not fit"),
        (net, {"name": ""}, "'' cannot name an adapter"),
        (net, {"name": "a.b"}, "'a.b' cannot name an adapter"),
        (net, {"name": "keys"}, "'keys' cannot name an adapter"),
        (net, {"name": "training"}, "'training' cannot name an adapter"),
        (net, {"dropout": 1.0}, "dropout is a probability"),
        (net, {"dropout": -0.1}, "dropout is a probability"),
        (net, {"dropout": float("nan")}, "dropout is a probability"),
        (net, {"variant": Informed(rank=1)}, "needs statistics that were not given: gradient of blocks.0.up"),
        (net, {"variant": Informed(rank=1), "stats": {"head": {"activation": 1}}, "where": "head"}, "gradient of head"),
        (net, {"variant": Rebased(rank=1), "dropout": 0.1}, "replaces the base and has no exact low-rank form"),
    ],
)
def test_attach_refuses(make: Callable[[], nn.Module], options: dict[str, object], message: str) -> None:
    model = make()
    before = fingerprint(model)
    with pytest.raises(Refused, match=message):
        attach(model, **{"variant": LoRA(rank=1), **options})
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("first", "options", "message"),
    [
        (LoRA(rank=1), {}, "an adapter called 'default' is attached already"),
        (LoRA(rank=1), {"variant": create("full"), "name": "b"}, "full trains the model itself"),
        (LoRA(rank=1), {"variant": create("probe"), "name": "b"}, "probe trains .* nothing of it"),
        (LoRA(rank=1), {"variant": BiasToo(rank=1), "name": "b"}, "cannot live beside an adapter"),
        (create("full"), {"name": "b"}, "full trains the model itself"),
        (BiasToo(rank=1), {"name": "b"}, "cannot live beside an adapter"),
        (LoRA(rank=1), {"variant": Rebased(rank=1), "name": "b"}, "no exact low-rank form: attach it alone"),
        (Rebased(rank=1), {"name": "b"}, r"no exact low-rank form: .*\(blocks.0.up carries 'default'\)"),
        (LoRA(rank=1), {"variant": LoRA(rank=4), "name": "b"}, "lora on head: rank 4 does not fit"),
        (LoRA(rank=1), {"where": "default", "name": "b"}, "'default' matches no layer"),
    ],
)
def test_attach_refuses_company(first: Variant, options: dict[str, object], message: str) -> None:
    model = net()
    attach(model, first)
    before = fingerprint(model)
    with pytest.raises(Refused, match=message):
        attach(model, **{"variant": LoRA(rank=1), **options})
    assert fingerprint(model) == before


@pytest.mark.parametrize("inner_first", [True, False])
@pytest.mark.parametrize("where", ["up", "all"])
def test_one_module_owns_the_adapters(inner_first: bool, where: str) -> None:
    """Two owners would each keep a switch, and one of them would switch nothing."""
    model = net()
    owner, intruder = (model.blocks[0], model) if inner_first else (model, model.blocks[0])
    attach(owner, LoRA(rank=1), where)
    before = fingerprint(model)
    with pytest.raises(Refused, match="attached to another module above or below"):
        attach(intruder, LoRA(rank=1), where, name="b")
    assert fingerprint(model) == before
    detach(owner, merge=False)
    attach(intruder, LoRA(rank=1), where, name="b")


def test_one_module_owns_a_base_that_trains() -> None:
    model = net()
    attach(model.blocks[0], create("full"))
    with pytest.raises(Refused, match="attached to another module above or below"):
        attach(model, LoRA(rank=1))


def test_verbs_need_an_adapter() -> None:
    model = net()
    for verb in (
        lambda: detach(model, merge=False),
        lambda: activate(model, None),
        lambda: adapter_state(model),
        lambda: load_adapter_state(model, {}),
        lambda: merged(model).__enter__(),
        lambda: rows(model, []).__enter__(),
    ):
        with pytest.raises(Refused, match="no adapter is attached to this module"):
            verb()


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (lambda m: detach(m, merge=False, name="b"), "no adapter called 'b' is attached; there are: default"),
        (lambda m: detach(m, merge=True, name="default"), "merging removes all adapters"),
        (lambda m: activate(m, "b"), "no adapter called 'b'"),
        (lambda m: activate(m, {"default": 1.0, "b": 0.5}), "no adapter called 'b'"),
        (lambda m: rows(m, ["default", "b"]).__enter__(), "no adapter called 'b'"),
        (lambda m: adapter_state(m, "b"), "no adapter called 'b'"),
        (lambda m: load_adapter_state(m, {}), "does not fit the method here: .* keys differ"),
    ],
)
def test_verbs_refuse_what_they_do_not_know(verb: Callable[[nn.Module], object], message: str) -> None:
    model = net()
    attach(model, PiSSA(rank=1))
    before = fingerprint(model)
    with pytest.raises(Refused, match=message):
        verb(model)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "verb",
    [
        lambda m: merged(m).__enter__(),
        lambda m: rows(m, ["default"]).__enter__(),
        lambda m: activate(m, None),
        lambda m: attach(m, LoRA(rank=1), name="b"),
        lambda m: detach(m, merge=False),
        lambda m: detach(m, merge=True),
        lambda m: load_adapter_state(m, adapter_state(m)),
        lambda m: m.load_state_dict(m.state_dict()),
    ],
)
@pytest.mark.parametrize("variant", [LoRA(rank=1), PiSSA(rank=1)], ids=by_name)
def test_merged_weights_are_left_alone(verb: Callable[[nn.Module], object], variant: Variant) -> None:
    model = net()
    attach(model, variant)
    move(model)
    before = fingerprint(model)
    y = model(batch(3))
    with merged(model):
        inside = fingerprint(model)
        with pytest.raises(Refused, match=r"inside merged\(\)"):
            verb(model)
        assert fingerprint(model) == inside
    assert fingerprint(model) == before
    assert same_bits(model(batch(3)), y)


def test_a_method_that_trains_the_base_cannot_be_switched_off() -> None:
    model = net()
    attach(model, create("full"))
    for verb in (
        lambda: activate(model, None),
        lambda: activate(model, {"default": 0.5}),
        lambda: rows(model, ["default", None]).__enter__(),
    ):
        with pytest.raises(Refused, match="trains the base itself"):
            verb()
    activate(model, "default")
