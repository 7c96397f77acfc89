"""OFT, BOFT and HRA against PEFT 0.21.2 on equal tensors, and what is wrong with its own."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from peft import BOFTConfig, HRAConfig, OFTConfig, get_peft_model
from peft.tuners.boft import layer as boft_layer
from torch import Tensor, nn

from tests.variants.models import host_of
from variants.boft import BOFT
from variants.core import Refused, Variant
from variants.core.cases import Case, adapted, close, gap, input_of, model_of, move
from variants.hra import HRA
from variants.oft import OFT

CASES = [Case(7, 8), Case(4, 12, bias=False, lead=(2, 3)), Case(8, 8, lead=(2, 3))]


def peft_layer(config: Any, case: Case, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """PEFT's model and its adapted layer."""
    assert peft.__version__ == "0.21.2"
    model = get_peft_model(model_of(case, torch.float32), config).to(dtype)
    return model, model.base_model.model.layer


def oft_config(variant: OFT, **options: Any) -> OFTConfig:
    options = {"use_cayley_neumann": variant.inverse == "neumann", "num_cayley_neumann_terms": variant.terms} | options
    return OFTConfig(r=0, oft_block_size=variant.block, target_modules=["layer"], **options)


def boft_config(variant: BOFT) -> BOFTConfig:
    b, m = variant.block, variant.butterflies
    return BOFTConfig(boft_block_size=b, boft_n_butterfly_factor=m, target_modules=["layer"])


def hra_config(rank: int, gram_schmidt: bool = False) -> HRAConfig:
    return HRAConfig(r=rank, apply_GS=gram_schmidt, target_modules=["layer"])


def results(model: nn.Module, case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of x and of the tensors."""
    x = input_of(case).requires_grad_()
    y = model(x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    return [y, *torch.autograd.grad(y, [x, *tensors], cotangent)]


def moved(variant: Variant, case: Case) -> tuple[nn.Module, dict[str, Tensor]]:
    model = adapted(variant, case)
    move(model)
    return model, dict(host_of(model).carried("default").named_parameters())


def put_base(layer: nn.Module, model: nn.Module) -> None:
    with torch.no_grad():
        layer.base_layer.weight.copy_(host_of(model).weight)
        if host_of(model).bias is not None:
            layer.base_layer.bias.copy_(host_of(model).bias)


# ---- OFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "variant", [OFT(block=4), *(OFT(block=4, inverse="neumann", terms=terms) for terms in (4, 5, 6))], ids=str
)
def test_oft_is_pefts_with_the_sign_of_its_exact_branch_turned(variant: OFT, case: Case) -> None:
    mine, t = moved(variant, case)
    theirs, layer = peft_layer(oft_config(variant), case)
    put_base(layer, mine)
    weight, sign = layer.oft_R["default"].weight, -1 if variant.inverse == "exact" else 1
    with torch.no_grad():
        weight.copy_(sign * t["K"])
    y, x_grad, K_grad = results(mine, case, [t["K"]])
    for what, got, want in zip(
        ["output", "x", "K"], [y, x_grad, sign * K_grad], results(theirs, case, [weight]), strict=True
    ):
        close(got, want, 1e-10, what)
    close(host_of(mine).effective_weight(), theirs.merge_and_unload().layer.weight, 1e-10, "merged")
    with torch.no_grad():
        t["K"].neg_()
    assert gap(mine(input_of(case)), y) > 1e-2, "the control: the sign can be seen"


def test_pefts_two_branches_of_oft_turn_in_opposite_directions() -> None:
    """One stored tensor, the flag flipped: the rotation is inverted. Ours goes on in the same direction."""
    case, Q = Case(8, 8), 0.1 * torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs, ours = {}, {}
    for inverse in ("exact", "neumann"):
        variant = OFT(block=4, inverse=inverse)
        _, layer = peft_layer(oft_config(variant), case)
        with torch.no_grad():
            layer.oft_R["default"].weight.copy_(Q)
        theirs[inverse] = layer.oft_R["default"].get_weight().detach()
        ours[inverse] = torch.block_diag(*variant.rotations({"K": Q}))
    assert gap(theirs["exact"], theirs["neumann"]) > 0.1
    close(theirs["exact"], theirs["neumann"].T, 1e-2, "the inverse")
    close(ours["exact"], ours["neumann"], 1e-2, "the same direction")
    close(ours["neumann"], theirs["neumann"], 1e-12, "PEFT's default branch")


def test_pefts_three_terms_are_four() -> None:
    """So that 3 is no number of terms here."""
    turned = []
    for terms in (3, 4):
        _, layer = peft_layer(oft_config(OFT(block=4, inverse="neumann"), num_cayley_neumann_terms=terms), Case(8, 8))
        with torch.no_grad():
            layer.oft_R["default"].weight.copy_(torch.linspace(-0.3, 0.3, 12, dtype=torch.float64).view(2, 6))
        turned.append(layer.oft_R["default"].get_weight().detach())
    close(turned[0], turned[1], 1e-12, "terms")


# ---- BOFT -----------------------------------------------------------------------------------------------------------


class BlockDiagonal:
    """What PEFT's CUDA extension computes."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:  # shapes: (m, k, b, b) -> (m, k b, k b)
        return torch.stack([torch.block_diag(*factor) for factor in blocks])


@pytest.mark.parametrize("case", [Case(7, 8), Case(4, 24, bias=False, lead=(2, 3))], ids=str)
@pytest.mark.parametrize(("block", "butterflies"), [(4, 1), (4, 2), (2, 3)])
def test_boft_is_pefts(block: int, butterflies: int, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its extension stood in for where there are several factors: without it PEFT has one."""
    variant = BOFT(block=block, butterflies=butterflies)
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: object() if butterflies > 1 else None)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", BlockDiagonal)
    mine, t = moved(variant, case)
    theirs, layer = peft_layer(boft_config(variant), case)
    put_base(layer, mine)
    R, s = layer.boft_R["default"], layer.boft_s["default"]
    upper = tuple(torch.triu_indices(block, block, 1))
    order = []  # the block of PEFT's which each of ours is: blocks are known by the places which they turn
    ours = [torch.arange(case.in_).view(-1, block), *variant.places(case.in_)]
    for P, places in zip(layer.boft_P, ours, strict=True):
        theirs_at = P.argmax(0).view(-1, block).tolist()
        order.append(torch.tensor([theirs_at.index(place) for place in places.tolist()]))
    with torch.no_grad():
        s.copy_(t["s"][:, None])
        for factor, at, K in zip(R, order, t["K"].split(case.in_ // block), strict=True):
            blocks = torch.zeros_like(factor)
            blocks[(slice(None), *upper)] = -2 * K  # PEFT takes half of X - X^T, and the other sign
            factor[at] = blocks
    y, x_grad, K_grad, s_grad = results(mine, case, [t["K"], t["s"]])
    want = results(theirs, case, [R, s])
    turned = torch.cat([factor[at][(slice(None), *upper)] for factor, at in zip(want[2], order, strict=True)])
    for what, got, other in zip(
        ["output", "x", "K", "s"], [y, x_grad, K_grad, s_grad], [*want[:2], -2 * turned, want[3][:, 0]], strict=True
    ):
        close(got, other, 1e-10, what)
    close(host_of(mine).effective_weight(), theirs.merge_and_unload().layer.weight, 1e-10, "merged")


def test_peft_without_its_extension_trains_one_factor_whatever_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration goes on saying three. Ours has three: other counts, and a rotation which is dense."""
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: None)
    variant = BOFT(block=2, butterflies=3)
    model, layer = peft_layer(boft_config(variant), Case(6, 8))
    assert model.peft_config["default"].boft_n_butterfly_factor == 3
    assert tuple(layer.boft_R["default"].shape) == (1, 4, 2, 2)
    assert variant.parameter_count(6, 8) == 3 * 4 + 6
    mine, _ = moved(variant, Case(6, 8))
    with torch.no_grad():
        layer.boft_R["default"].normal_(generator=torch.Generator().manual_seed(0))
    rotation, _ = layer.get_delta_weight("default")
    W = host_of(mine).original_dense().detach()
    turned = torch.linalg.pinv(W) @ host_of(mine).effective_weight()
    assert int((rotation.detach() != 0).sum()) == 16
    assert int((turned.abs() > 1e-9).sum()) > 16


# ---- HRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES[:2], ids=str)
@pytest.mark.parametrize("rank", [2, 4])
def test_hra_is_pefts(rank: int, case: Case) -> None:
    mine, t = moved(HRA(rank=rank), case)
    theirs, layer = peft_layer(hra_config(rank), case)
    put_base(layer, mine)
    with torch.no_grad():
        layer.hra_u["default"].copy_(t["u"])
    names = ["output", "x", "u"]
    want = results(theirs, case, [layer.hra_u["default"]])
    for what, got, other in zip(names, results(mine, case, [t["u"]]), want, strict=True):
        close(got, other, 1e-10, what)
    close(host_of(mine).effective_weight(), theirs.merge_and_unload().layer.weight, 1e-10, "merged")


def test_hra_starts_are_drawn_alike() -> None:
    """Pairs of columns, with the bound of PEFT's draw."""
    case = Case(4, 400)
    _, layer = peft_layer(hra_config(8), case)
    theirs = layer.hra_u["default"].detach()
    ours = host_of(adapted(HRA(rank=8), case)).carried("default").get_parameter("u").detach()
    for u in (theirs, ours):
        assert torch.equal(u[:, 0::2], u[:, 1::2])
    assert abs(float(ours.std() / theirs.std()) - 1) < 0.05
    assert abs(float(ours.abs().max() / theirs.abs().max()) - 1) < 0.01


def change_at_start(config: Any, case: Case) -> float:
    x, (model, _) = input_of(case), peft_layer(config, case)
    with model.disable_adapter():
        before = model(x)
    return float(((model(x) - before).norm() / before.norm()).detach())


def test_peft_starts_hra_of_odd_rank_off_the_base_model() -> None:
    case = Case(8, 8)
    with pytest.warns(UserWarning, match="symmetric initialization can NOT be performed"):
        assert change_at_start(hra_config(3), case) > 0.1
    assert change_at_start(hra_config(4), case) < 1e-6, "the control: an even rank"
    with pytest.raises(Refused, match="cannot start as the base model"):
        HRA(rank=3).check(8, 8)


@pytest.mark.parametrize("rank", [2, 4])
def test_peft_starts_hra_with_gram_schmidt_off_the_base_model(rank: int) -> None:
    """Equal columns leave nothing of the second but rounding, which is scaled up to length 1. Ours starts as the base
    and is PEFT's rotation followed by the reflections of its start."""
    case = Case(8, 8)
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        torch.manual_seed(0)
        assert not change_at_start(hra_config(rank, gram_schmidt=True), case) < 0.1, "far off, or not a number"
    mine, t = moved(HRA(rank=rank, gram_schmidt=True), case)
    theirs, layer = peft_layer(hra_config(rank, gram_schmidt=True), case)
    put_base(layer, mine)
    with torch.no_grad():
        layer.hra_u["default"].copy_(t["u"])
    U0 = host_of(mine).carried("default").get_buffer("U0")
    back = torch.eye(8, dtype=torch.float64) - 2 * U0 @ U0.T
    merged = theirs.merge_and_unload().layer.weight.detach()
    close(host_of(mine).effective_weight(), merged @ back, 1e-10, "the extra reflections")
    assert gap(merged, merged @ back) > 0.1
