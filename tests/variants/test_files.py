"""What an adapter file holds, and that it is enough; state_dict, copies and casts of an adapted model."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from tests.variants.models import (
    EVERY,
    LAYERS,
    LAYERWISE,
    BiasToo,
    RandomStart,
    batch,
    by_name,
    fingerprint,
    net,
    train,
)
from variants.core import (
    Refused,
    Variant,
    activate,
    adapter_state,
    attach,
    detach,
    load_adapter_state,
    trainable_parameters,
)
from variants.core.cases import Layer, close, move, same_bits
from variants.lora import LoRA
from variants.pissa import PiSSA


def test_keys_of_an_adapter_file() -> None:
    model = net()
    attach(model, PiSSA(rank=1), ["0.up", "head"], name="mine")
    assert sorted(adapter_state(model, "mine")) == [
        f"{path}.adapter.{tensor}" for path in ("blocks.0.up", "head") for tensor in ("A", "A0", "B", "B0")
    ]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("variant", [*EVERY, BiasToo(rank=2), RandomStart(rank=2)], ids=lambda v: type(v).__name__)
def test_round_trip_of_a_whole_model(variant: Variant, layer: Layer) -> None:
    """Trained, saved, loaded over a start from another seed: the same function, in float32."""
    first, x = net(layer, torch.float32), batch(4, dtype=torch.float32)
    attach(first, variant, seed=1)
    if trainable_parameters(first):
        train(first, x)
    state = {key: tensor.clone() for key, tensor in adapter_state(first).items()}
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert len({tensor.data_ptr() for tensor in adapter_state(first).values()}) == len(state), "tensors share memory"
    second = net(layer, torch.float32)
    attach(second, variant, seed=2)
    load_adapter_state(second, state)
    close(second(x), first(x), 3e-6, "after loading")  # a pair may take the place of a residual: other roundings
    train(second, x) if trainable_parameters(second) else None
    detach(second, merge=False)
    assert same_bits(second(x), net(layer, torch.float32)(x))


@pytest.mark.parametrize("variant", [LoRA(rank=2), PiSSA(rank=2)], ids=by_name)
def test_a_file_that_does_not_fit_changes_nothing(variant: Variant) -> None:
    model = net()
    attach(model, variant)
    move(model)
    state = {key: tensor.clone() + 1 for key, tensor in adapter_state(model).items()}
    before = fingerprint(model)
    last = list(state)[-1]
    for wrong, message in (
        ({**state, "elsewhere.adapter.A": state[last]}, "1 keys differ, first 'elsewhere.adapter.A'"),
        ({key: tensor for key, tensor in state.items() if key != last}, "1 keys differ"),
        ({**state, last: state[last][:1]}, f"{last} has shape .*, expected"),
    ):
        with pytest.raises(Refused, match=message):
            load_adapter_state(model, wrong)
        assert fingerprint(model) == before


@pytest.mark.parametrize("variant", LAYERWISE, ids=by_name)
def test_state_dict_restores_an_adapted_model(variant: Variant) -> None:
    """torch's own state_dict of an adapted model, loaded into another one with another seed."""
    first, second = net(), net()
    attach(first, variant, seed=1)
    move(first)
    attach(second, variant, seed=2)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))  # noqa: S301  our own bytes
    close(second(batch(4)), first(batch(4)), 1e-10, "after loading")


@pytest.mark.parametrize("variant", LAYERWISE, ids=by_name)
def test_copies_are_independent(variant: Variant) -> None:
    model = net()
    attach(model, variant)
    move(model)
    x = batch(4)
    want = model(x)
    copied = copy.deepcopy(model)
    assert same_bits(copied(x), want)
    activate(copied, None)
    assert same_bits(model(x), want), "the copy's switch is the original's"
    detach(copied, merge=False)
    assert same_bits(model(x), want)
    assert same_bits(copied(x), net()(x))
    activate(model, None)
    assert same_bits(model(x), net()(x))


def test_the_base_moves_with_the_model() -> None:
    """The original weight follows when a model is cast while a residual stands in its place."""
    model = net(dtype=torch.float64)
    attach(model, PiSSA(rank=2))
    model.float()
    detach(model, merge=False)
    for key, tensor in net(dtype=torch.float32).state_dict().items():
        close(model.state_dict()[key], tensor, 1e-6, key)
        assert model.state_dict()[key].dtype == torch.float32
