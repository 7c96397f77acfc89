"""LoRA, DoRA and PiSSA against PEFT 0.21.2 on equal tensors: outputs, every gradient, and PiSSA's start."""

from __future__ import annotations

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.variants.models import host_of
from variants.core import Variant, attach
from variants.core.cases import Case, adapted, close, conv1d, input_of, model_of, move
from variants.dora import DoRA
from variants.lora import LoRA
from variants.pissa import PiSSA

CASES = [
    Case(7, 5),
    Case(4, 9, bias=False, lead=(2, 3)),
    Case(6, 6, lead=(2, 3)),
    Case(7, 5, lead=(2, 3), layer=conv1d),
]


def peft_layer(variant: LoRA, case: Case, **options: object) -> tuple[nn.Module, nn.Module]:
    """PEFT's model in float64 and its adapted layer. PEFT starts PiSSA in float32 at most."""
    config = LoraConfig(
        r=variant.rank,
        lora_alpha=variant.rank if variant.alpha is None else variant.alpha,
        target_modules=["layer"],
        fan_in_fan_out=case.layer is conv1d,
        **options,
    )
    model = get_peft_model(model_of(case, torch.float32), config).double()
    return model, model.base_model.model.layer


def factors(layer: nn.Module) -> dict[str, nn.Parameter]:
    found = {"A": layer.lora_A["default"].weight, "B": layer.lora_B["default"].weight}
    if "default" in layer.lora_magnitude_vector:
        found["m"] = layer.lora_magnitude_vector["default"].weight
    return found


def results(model: nn.Module, x: Tensor, tensors: list[nn.Parameter]) -> list[Tensor]:
    """The output, and the gradients of x and of the tensors."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    return [y, *torch.autograd.grad(y, [x, *tensors], cotangent)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("variant", "options"),
    [
        (LoRA(rank=3), {}),
        (LoRA(rank=2, alpha=16), {}),
        (DoRA(rank=2, alpha=3), {"use_dora": True}),
        (PiSSA(rank=3, alpha=6), {"init_lora_weights": "pissa"}),
    ],
    ids=["lora", "lora-alpha", "dora", "pissa"],
)
def test_equal_tensors_give_equal_results(variant: LoRA, options: dict[str, object], case: Case) -> None:
    assert peft.__version__ == "0.21.2"
    mine = adapted(variant, case)
    move(mine)
    carried = host_of(mine).carried("default")
    theirs, layer = peft_layer(variant, case, **options)
    with torch.no_grad():
        layer.base_layer.weight.copy_(host_of(mine).weight)  # for PiSSA the residual
        for name, parameter in factors(layer).items():
            parameter.copy_(carried.get_parameter(name))
    names = list(factors(layer))
    assert sorted(names) == sorted(dict(carried.named_parameters()))
    x = input_of(case)
    got = results(mine, x, [carried.get_parameter(name) for name in names])
    want = results(theirs, x, [factors(layer)[name] for name in names])
    for what, a, b in zip(["output", "x", *names], got, want, strict=True):
        close(a, b, 1e-10, what)


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=str)
@pytest.mark.parametrize("variant", [LoRA(rank=2, alpha=3), DoRA(rank=2, alpha=3)], ids=["lora", "dora"])
def test_dropout_drops_the_same(variant: LoRA, case: Case) -> None:
    """Under one mask, drawn once for a layer: for DoRA the norm's gain also multiplies the dropped base product."""
    mine = model_of(case)
    attach(mine, variant, "layer", dropout=0.4)
    move(mine)
    carried = host_of(mine).carried("default")
    theirs, layer = peft_layer(variant, case, use_dora=isinstance(variant, DoRA), lora_dropout=0.4)
    with torch.no_grad():
        for name, parameter in factors(layer).items():
            parameter.copy_(carried.get_parameter(name))
    names, x = list(factors(layer)), input_of(case)
    torch.manual_seed(8)
    got = results(mine.train(), x, [carried.get_parameter(name) for name in names])
    torch.manual_seed(8)
    want = results(theirs.train(), x, [factors(layer)[name] for name in names])
    for what, a, b in zip(["output", "x", *names], got, want, strict=True):
        close(a, b, 1e-10, what)


@pytest.mark.parametrize("variant", [LoRA(rank=2, alpha=3), DoRA(rank=2, alpha=3)], ids=["lora", "dora"])
def test_merged_weights_agree(variant: Variant) -> None:
    case = Case(7, 5)
    mine = adapted(variant, case)
    move(mine)
    carried = host_of(mine).carried("default")
    theirs, layer = peft_layer(variant, case, use_dora=isinstance(variant, DoRA))
    with torch.no_grad():
        for name, parameter in factors(layer).items():
            parameter.copy_(carried.get_parameter(name))
    merged = theirs.merge_and_unload()
    close(merged.layer.weight, host_of(mine).effective_weight(), 1e-10, "merged weight")


@pytest.mark.parametrize("alpha", [3, 12])
@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_pissa_starts_as_pefts_up_to_signs(case: Case, alpha: int) -> None:
    """PEFT decomposes in float32, hence the tolerance; a singular pair may have both signs flipped."""
    variant = PiSSA(rank=3, alpha=alpha)
    mine = adapted(variant, case)
    carried = host_of(mine).carried("default")
    _, layer = peft_layer(variant, case, init_lora_weights="pissa")
    A, B = (factors(layer)[name].detach() for name in ("A", "B"))
    sign = torch.sign((A * carried.get_parameter("A").detach()).sum(dim=1))
    close(carried.get_parameter("A"), sign[:, None] * A, 1e-5, "A")
    close(carried.get_parameter("B"), sign * B, 1e-5, "B")
    close(host_of(mine).dense(), layer.base_layer.weight, 1e-5, "residual")


@pytest.mark.parametrize("variant", [LoRA(rank=32), DoRA(rank=32)], ids=["lora", "dora"])
def test_starts_are_drawn_alike(variant: LoRA) -> None:
    """The draws differ, their law does not: same bounds and spread of A, B zero, same magnitudes."""
    case = Case(40, 200)
    mine = host_of(adapted(variant, case)).carried("default")
    _, layer = peft_layer(variant, case, use_dora=isinstance(variant, DoRA))
    theirs = factors(layer)
    A, A_peft = mine.get_parameter("A").detach(), theirs["A"].detach()
    assert abs(float(A.std() / A_peft.std()) - 1) < 0.03
    assert abs(float(A.abs().max() / A_peft.abs().max()) - 1) < 0.01
    assert not mine.get_parameter("B").any()
    assert not theirs["B"].any()
    if "m" in theirs:
        close(mine.get_parameter("m"), theirs["m"], 1e-6, "magnitudes")
