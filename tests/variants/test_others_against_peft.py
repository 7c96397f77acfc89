"""VeRA, DeLoRA and (IA)^3 against PEFT 0.21.2 on equal tensors: outputs, every gradient, merged weights, starts."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from peft import (
    DeloraConfig,
    IA3Config,
    PeftConfig,
    VeraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn

from variants.core import Variant, adapter_state, attach, detach, load_adapter_state
from variants.core.cases import Case, close, conv1d, gap, input_of, linear, move, same_bits
from variants.core.host import hosts
from variants.delora import DeLoRA
from variants.ia3 import IA3
from variants.vera import VeRA

Tensors = dict[str, Tensor]


class Pair(nn.Module):
    """Two layers of different shapes, so that a method may share or divide itself between them."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.first = case.layer(case.out, case.in_, case.bias)
        self.second = case.layer(max(4, case.out - 10), case.out, case.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


CASES = [Case(7, 5), Case(4, 9, bias=False, lead=(2, 3)), Case(6, 6, lead=(0,)), Case(7, 5, lead=(2, 3), layer=conv1d)]
LINEAR = [case for case in CASES if case.layer is linear]
LAYERS = ["first", "second"]


def pair(case: Case) -> Pair:
    torch.manual_seed(case.out)
    return Pair(case).double()


def theirs_for(config: PeftConfig, case: Case) -> tuple[nn.Module, dict[str, Any]]:
    """PEFT's model in float64 and its adapted layers."""
    model = get_peft_model(pair(case), config).double()
    return model, {name: getattr(model.base_model.model, name) for name in LAYERS}


def config_of(variant: Variant, case: Case) -> PeftConfig:
    if isinstance(variant, VeRA):
        return VeraConfig(r=variant.rank, target_modules=LAYERS, fan_in_fan_out=case.layer is conv1d)
    if isinstance(variant, DeLoRA):
        return DeloraConfig(r=variant.rank, delora_lambda=variant.alpha, target_modules=LAYERS)
    assert isinstance(variant, IA3)
    inner = [variant.feedforward] if variant.feedforward else []
    return IA3Config(target_modules=LAYERS, feedforward_modules=inner, fan_in_fan_out=case.layer is conv1d)


def trained_of(layer: Any) -> Tensors:
    """A layer's trained tensors in PEFT, under our names."""
    names = {
        "b": "vera_lambda_b",
        "d": "vera_lambda_d",
        "A": "delora_A",
        "B": "delora_B",
        "strength": "delora_lambda",
        "l": "ia3_l",
    }
    return {mine: getattr(layer, theirs)["default"] for mine, theirs in names.items() if hasattr(layer, theirs)}


def equal_models(variant: Variant, case: Case) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """Both models with the same tensors, moved off their start."""
    mine = pair(case)
    attach(mine, variant)
    move(mine)
    theirs, layers = theirs_for(config_of(variant, case), case)
    with torch.no_grad():
        for path, host in hosts(mine).items():
            t = host.carried("default").tensors()
            for name, parameter in trained_of(layers[path]).items():
                parameter.copy_(t[name].reshape(parameter.shape))
            if isinstance(variant, VeRA):
                layers[path].vera_A["default"].copy_(t["A"])
                layers[path].vera_B["default"].copy_(t["B"])
            if isinstance(variant, DeLoRA):
                close(layers[path].delora_w_norm["default"], t["n"], 1e-12, "lengths of the columns")
    return mine, theirs, layers


def results(model: nn.Module, x: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of x and of the tensors."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    return [y, *torch.autograd.grad(y, [x, *tensors], cotangent)]


TRIED = [
    *((variant, case) for variant in (VeRA(rank=3), IA3(), IA3(feedforward="second")) for case in CASES),
    *((variant, case) for variant in (DeLoRA(rank=3), DeLoRA(rank=2, alpha=1.5)) for case in LINEAR),
]


@pytest.mark.parametrize(("variant", "case"), TRIED, ids=str)
def test_equal_tensors_give_equal_results(variant: Variant, case: Case) -> None:
    assert peft.__version__ == "0.21.2"
    mine, theirs, layers = equal_models(variant, case)
    x = input_of(case)
    parameters = {
        f"{path}.{name}": (p, trained_of(layers[path])[name])
        for path, host in hosts(mine).items()
        for name, p in host.carried("default").named_parameters()
    }
    assert len(parameters) == sum(len(trained_of(layer)) for layer in layers.values())
    got = results(mine, x, [p for p, _ in parameters.values()])
    want = results(theirs, x, [q for _, q in parameters.values()])
    for what, a, b in zip(["output", "x", *parameters], got, want, strict=True):
        close(a, b.reshape(a.shape), 1e-8, what)
    merged = theirs.merge_and_unload()
    detach(mine, merge=True)
    for key, tensor in mine.state_dict().items():
        close(tensor, merged.state_dict()[key], 1e-8, f"merged {key}")


def test_starts_are_drawn_alike() -> None:
    """The draws differ, their law does not; what is not random is equal."""
    case = Case(60, 50)
    for variant, random in ((VeRA(rank=40), ("A", "B")), (DeLoRA(rank=40), ("A",)), (IA3(), ())):
        mine = pair(case)
        attach(mine, variant)
        _, layers = theirs_for(config_of(variant, case), case)
        for path, host in hosts(mine).items():
            t = host.carried("default").tensors()
            for name, parameter in trained_of(layers[path]).items():
                if name not in random:
                    close(t[name], parameter.reshape(t[name].shape), 1e-7, name)  # PEFT starts in float32
            theirs = trained_of(layers[path])
            if isinstance(variant, VeRA):
                theirs = {"A": layers[path].vera_A["default"], "B": layers[path].vera_B["default"]}
            for name in random:
                a, b = t[name].detach(), theirs[name].detach()
                assert a.shape == b.shape
                assert abs(float(a.std() / b.std()) - 1) < 0.05
                assert abs(float(a.abs().max() / b.abs().max()) - 1) < 0.01


def test_taking_off_a_merged_scaling_of_zero_loses_the_weight_in_peft() -> None:
    """It divides by the scaling again; here nothing is ever divided, the old weight is put back."""
    case = Case(7, 5)
    mine, theirs, layers = equal_models(IA3(), case)
    stock = pair(case).state_dict()
    with torch.no_grad():
        hosts(mine)["first"].carried("default").get_parameter("l")[2] = 0
        trained_of(layers["first"])["l"][2] = 0
    theirs.merge_adapter()
    with pytest.warns(UserWarning, match="can be inaccurate"):
        theirs.unmerge_adapter()
    left = layers["first"].base_layer
    assert not left.weight[2].any()
    assert not same_bits(left.weight.detach(), stock["first.weight"])
    detach(mine, merge=False)
    assert all(same_bits(tensor, stock[key]) for key, tensor in mine.state_dict().items())


def test_a_file_of_pefts_vera_may_lack_what_it_needs() -> None:
    """With ``save_projection=False`` the random factors must be drawn again: under another key, and but for a warning
    about it, the same file means another function. Here they always travel with the vectors."""
    case = Case(7, 5)
    x = input_of(case)
    models = []
    for key in (0, 1):
        with pytest.warns(UserWarning, match="not be saved|save_projection"):
            config = VeraConfig(r=3, target_modules=LAYERS, save_projection=False, projection_prng_key=key)
        models.append(get_peft_model(pair(case), config).double())
    with torch.no_grad():
        for name, parameter in models[0].named_parameters():
            if name.endswith("vera_lambda_b.default"):
                parameter.fill_(1.0)
    state = get_peft_model_state_dict(models[0])
    assert not [key for key in state if "vera_A" in key or "vera_B" in key]
    with pytest.warns(UserWarning, match="relying on PRNG initialisation"):
        set_peft_model_state_dict(models[1], state)
    assert gap(models[1](x), models[0](x)) > 1e-2

    first, second = pair(case), pair(case)
    for seed, model in enumerate((first, second)):
        attach(model, VeRA(rank=3), seed=seed)
    move(first)
    load_adapter_state(second, adapter_state(first))
    close(second(x), first(x), 1e-12, "restored")
