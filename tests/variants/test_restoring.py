"""Off again: merged, or bit for bit what was there before; and switched off, the base bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.variants.models import (
    DTYPES,
    EVERY,
    LAYERS,
    LAYERWISE,
    BiasToo,
    RandomStart,
    batch,
    by_name,
    dense_weights,
    fingerprint,
    net,
    train,
)
from variants.core import (
    Variant,
    activate,
    adapter_state,
    attach,
    create,
    detach,
    merged,
    trainable_parameters,
)
from variants.core.cases import Layer, close, move, same_bits
from variants.core.host import HostLinear, hosts
from variants.lora import LoRA
from variants.pissa import PiSSA


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("variant", [*EVERY, BiasToo(rank=2), RandomStart(rank=2)], ids=lambda v: type(v).__name__)
def test_detach_restores_everything(variant: Variant, layer: Layer, dtype: torch.dtype) -> None:
    """Bits, keys, types, flags and the parameter objects, over cycles of training; the head may train on the side."""
    model = net(layer, dtype)
    before = fingerprint(model)
    x = batch(4, dtype=dtype)
    for cycle in range(3):
        attach(model, variant, seed=cycle)
        if trainable_parameters(model):
            train(model, x)
        detach(model, merge=False)
        assert fingerprint(model) == before


@pytest.mark.parametrize("variant", EVERY, ids=by_name)
def test_merged_restores_everything_even_after_an_error(variant: Variant) -> None:
    model = net(dtype=torch.bfloat16)
    attach(model, variant)
    if trainable_parameters(model):
        train(model, batch(4, dtype=torch.bfloat16))
    before = fingerprint(model)
    want = model(batch(4, dtype=torch.bfloat16))
    with pytest.raises(ZeroDivisionError), merged(model):
        raise ZeroDivisionError
    assert fingerprint(model) == before
    assert same_bits(model(batch(4, dtype=torch.bfloat16)), want)


def test_merged_restores_everything_if_merging_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    attach(model, LoRA(rank=1))
    move(model)
    before = fingerprint(model)
    replace_weight = HostLinear.replace_weight
    calls: list[int] = []

    def out_of_memory(self: HostLinear, W: Tensor) -> nn.Parameter:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return replace_weight(self, W)

    monkeypatch.setattr(HostLinear, "replace_weight", out_of_memory)
    with pytest.raises(MemoryError), merged(model):
        pass
    assert fingerprint(model) == before


def test_merged_state_is_the_merged_model() -> None:
    """What is saved inside merged() is a plain model that computes the same."""
    for variant in (LoRA(rank=1), PiSSA(rank=1)):
        model = net()
        attach(model, variant)
        move(model)
        with merged(model):
            state = {key: tensor.clone() for key, tensor in model.state_dict().items() if ".adapter." not in key}
        plain = net()
        plain.load_state_dict(state)
        close(plain(batch(3)), model(batch(3)), 1e-10, "plain model")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("variant", LAYERWISE, ids=by_name)
def test_merged_is_what_detach_leaves(variant: Variant, layer: Layer, dtype: torch.dtype) -> None:
    """Inside merged() the layers compute, bit for bit, what the plain layers do after detach(merge=True)."""
    model, x = net(layer, dtype), batch(5, dtype=dtype)
    attach(model, variant)
    move(model)
    with merged(model):
        inside = model(x)
    detach(model, merge=True)
    assert same_bits(model(x), inside)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_rounds_once(dtype: torch.dtype) -> None:
    """The merged weight is the exact one, rounded to the base's dtype; the parameter stays the same object."""
    model = net(dtype=dtype)
    weights = dense_weights(model)
    attach(model, LoRA(rank=2), "up")
    move(model)
    objects = {path: host.weight for path, host in hosts(model).items()}
    state = {key: tensor.clone() for key, tensor in adapter_state(model).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must not narrow the arithmetic of merging
        detach(model, merge=True)
    for path, parameter in objects.items():
        assert model.get_parameter(f"{path}.weight") is parameter
        want = weights[path].float() + state[f"{path}.adapter.B"] @ state[f"{path}.adapter.A"]
        assert same_bits(parameter.detach(), want.to(dtype))
    assert same_bits(model.head.weight.detach(), weights["head"])


def test_detach_after_a_head_was_added() -> None:
    model = net()
    attach(model, LoRA(rank=1), "up")
    model.extra = nn.Linear(3, 2)
    detach(model, merge=False)
    assert all(p.requires_grad for p in model.extra.parameters())


def test_full_fine_tuning_trains_and_stays_if_merged() -> None:
    model = net()
    attach(model, create("full"))
    assert len(trainable_parameters(model)) == len(list(model.parameters()))
    train(model, batch(4))
    y = model(batch(4))
    flags = [p.requires_grad for p in net().parameters()]
    detach(model, merge=True)
    assert same_bits(model(batch(4)), y)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_probe_trains_nothing() -> None:
    model = net()
    assert attach(model, create("probe"), "nowhere") == []
    assert not trainable_parameters(model)


# ---- the base, bit for bit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("variant", LAYERWISE, ids=by_name)
def test_switched_off_is_the_base(variant: Variant, layer: Layer, dtype: torch.dtype) -> None:
    """Also while a residual stands in the place of the base, in every dtype, where a bias added late rounds twice."""
    torch.manual_seed(0)
    model = net(layer, dtype)
    for x in (batch(5, dtype=dtype), batch(2, 3, dtype=dtype)):
        base = model(x)
        attach(model, variant)
        move(model)
        assert not torch.equal(model(x), base)
        activate(model, None)
        assert same_bits(model(x), base)
        detach(model, merge=False)


def test_base_and_merged_product_under_autocast() -> None:
    model = net(dtype=torch.float32)
    x = batch(5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        base = model(x)
        attach(model, PiSSA(rank=2))
        assert model(x).dtype == base.dtype == torch.bfloat16
        with merged(model):
            assert model(x).dtype == torch.bfloat16
        activate(model, None)
        assert same_bits(model(x), base)


def test_attach_under_autocast_decomposes_in_full_precision() -> None:
    for variant in LAYERWISE:
        inside, outside = net(dtype=torch.float32), net(dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            attach(inside, variant)
        attach(outside, variant)
        for key, tensor in adapter_state(outside).items():
            assert same_bits(adapter_state(inside)[key], tensor)
        for path, host in hosts(outside).items():
            assert same_bits(hosts(inside)[path].weight, host.weight)
