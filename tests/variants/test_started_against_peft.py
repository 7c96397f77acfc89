"""Methods that start or step LoRA otherwise, against PEFT 0.21.2: results on equal tensors, starts, steps, and where
PEFT does something else than the paper."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.optimizers import create_loraplus_optimizer, create_riemannian_optimizer
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn

from tests.variants.models import host_of
from tests.variants.test_against_peft import CASES, factors, results
from variants.corda import CorDA
from variants.core import Tensors, attach, layer_states
from variants.core.cases import Case, adapted, close, conv1d, generator, input_of, model_of, move, stats_of
from variants.core.lowrank import Rebased
from variants.eva import EVA
from variants.lora import LoRA
from variants.lora_ga import LoRAGA
from variants.lora_null import LoRANull
from variants.lora_one import LoRAOne
from variants.lora_plus import LoRAPlus
from variants.milora import MiLoRA
from variants.olora import OLoRA
from variants.pissa import PiSSA
from variants.rslora import RSLoRA
from variants.scaled_lora import ScaledLoRA

SQUARE, TALL, WIDE, TURNED = Case(8, 8), Case(11, 8), Case(8, 10, bias=False), Case(11, 8, layer=conv1d)
STARTS = [SQUARE, TALL, WIDE, TURNED]


def config(variant: LoRA, case: Case, **options: object) -> LoraConfig:
    alpha = variant.rank if variant.alpha is None else variant.alpha
    turned = case.layer is conv1d
    return LoraConfig(r=variant.rank, lora_alpha=alpha, target_modules=["layer"], fan_in_fan_out=turned, **options)


def theirs(settings: LoraConfig, case: Case, prepare: Callable[[nn.Module], None] = lambda _: None) -> nn.Module:
    """PEFT's model, started in float32 as it demands, then in float64. ``prepare`` sees the plain model before."""
    model = model_of(case, torch.float32)
    prepare(model)
    return get_peft_model(model, settings).double()


def layer_of(model: nn.Module) -> nn.Module:
    return model.base_model.model.layer


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_the_version_that_was_read() -> None:
    assert peft.__version__ == "0.21.2"


# ---- equal tensors --------------------------------------------------------------------------------------------------

METHODS = [
    RSLoRA(rank=3, alpha=7.0),
    RSLoRA(rank=2),
    LoRAPlus(rank=2, alpha=3.0),
    ScaledLoRA(rank=2, alpha=3.0),
    PiSSA(rank=3, alpha=6.0, svd="randomised", oversampling=0),
    MiLoRA(rank=2, alpha=3.0),
    OLoRA(rank=2, alpha=3.0),
    LoRAGA(rank=2, alpha=3.0),
    LoRAOne(rank=2, alpha=3.0),
    CorDA(rank=2, alpha=3.0, mode="kpa"),
    LoRANull(rank=2, alpha=3.0),
    EVA(rank=2, alpha=3.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("variant", METHODS, ids=lambda v: v.name)
def test_equal_tensors_give_equal_results(variant: LoRA, case: Case) -> None:
    """Also for what PEFT does not have, as its LoRA with the factors and the residual copied into it."""
    mine = adapted(variant, case)
    move(mine)
    carried = host_of(mine).carried("default")
    other = theirs(config(variant, case, use_rslora=isinstance(variant, RSLoRA)), case)
    layer = layer_of(other)
    with torch.no_grad():
        layer.base_layer.weight.copy_(host_of(mine).weight)
        for name, parameter in factors(layer).items():
            parameter.copy_(carried.get_parameter(name))
    x = input_of(case)
    got = results(mine, x, [carried.get_parameter(name) for name in ("A", "B")])
    want = results(other, x, [factors(layer)[name] for name in ("A", "B")])
    for what, a, b in zip(["output", "x", "A", "B"], got, want, strict=True):
        close(a, b, 1e-10, what)


# ---- steps ----------------------------------------------------------------------------------------------------------


def descend(model: nn.Module, optimiser: torch.optim.Optimizer, case: Case, before: Callable[[], None]) -> Tensor:
    x, y = noise(16, case.in_, seed=3), noise(16, case.out, seed=4)
    for _ in range(5):
        optimiser.zero_grad()
        (model(x) - y).square().mean().backward()
        before()
        optimiser.step()
    return model(x).detach()


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(
    ("variant", "make"),
    [
        (LoRAPlus(rank=2, ratio=8.0), lambda *a, **k: create_loraplus_optimizer(*a, **k, loraplus_lr_ratio=8.0)),
        (ScaledLoRA(rank=2, damping=1e-2), create_riemannian_optimizer),
        (ScaledLoRA(rank=2, damping=1e-6), lambda *a, **k: create_riemannian_optimizer(*a, **k, reg=1e-6)),
    ],
    ids=["lora_plus", "scaled_lora", "scaled_lora-small"],
)
def test_steps_are_pefts_steps(variant: LoRA, make: Callable[..., Any], optimiser: type) -> None:
    """Five steps of training from the same factors; with plain LoRA's instead the results differ."""
    ends: dict[str, Tensor] = {}
    for chosen in (variant, LoRA(rank=2)):
        mine = adapted(chosen, SQUARE)
        move(mine, scale=0.1)
        start = {name: p.detach().clone() for name, p in host_of(mine).carried("default").named_parameters()}
        states = layer_states(mine)
        optim = optimiser(chosen.param_groups(states, lr=1e-2), weight_decay=0.0)
        ends[chosen.name] = descend(mine, optim, SQUARE, lambda v=chosen, s=states: v.before_step(s))
    other = theirs(config(variant, SQUARE), SQUARE)
    with torch.no_grad():
        layer_of(other).base_layer.weight.copy_(model_of(SQUARE).layer.weight)
        for name, parameter in factors(layer_of(other)).items():
            parameter.copy_(start[name])
        layer_of(other).base_layer.bias.copy_(model_of(SQUARE).layer.bias)
    optim = make(other, optimiser, lr=1e-2)
    for group in optim.param_groups:
        group["weight_decay"] = 0.0
    want = descend(other, optim, SQUARE, lambda: None)
    close(ends[variant.name], want, 1e-8, "after five steps")
    assert float((ends["lora"] - want).norm()) > 1e-4


def test_lora_plus_of_peft_drops_the_weight_decay_that_it_is_given() -> None:
    """Its groups carry a decay of their own, zero unless said otherwise; here the optimiser's stays."""
    other = theirs(config(LoRAPlus(rank=2), SQUARE), SQUARE)
    optim = create_loraplus_optimizer(other, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, weight_decay=0.1)
    assert {group["weight_decay"] for group in optim.param_groups} == {0.0}
    mine = adapted(LoRAPlus(rank=2), SQUARE)
    groups = LoRAPlus(rank=2).param_groups(layer_states(mine), 1e-3)
    assert {g["weight_decay"] for g in torch.optim.AdamW(groups, weight_decay=0.1).param_groups} == {0.1}


# ---- starts from the weight -----------------------------------------------------------------------------------------


def assert_same_start(variant: Rebased, case: Case, other: nn.Module, stats: Mapping[str, Tensors] | None) -> None:
    """Residual and product alike, factors up to the sign of each pair; PEFT decomposes in float32."""
    mine = model_of(case, torch.float32).double()
    attach(mine, variant, "layer", stats=stats)
    carried, layer = host_of(mine).carried("default"), layer_of(other)
    A, B = (factors(layer)[name].detach() for name in ("A", "B"))
    mine_A, mine_B = (carried.get_parameter(name).detach() for name in ("A", "B"))
    sign = torch.sign((A * mine_A).sum(dim=1))
    close(mine_A, sign[:, None] * A, 2e-4, "A")
    close(mine_B, sign * B, 2e-4, "B")
    close(host_of(mine).weight, layer.base_layer.weight, 2e-4, "residual")
    apart = float((host_of(mine).weight - model_of(case).layer.weight).detach().norm())
    assert apart > 0.05, "the control: the residual is not the base"


@pytest.mark.parametrize("alpha", [3.0, 12.0])
@pytest.mark.parametrize("case", [SQUARE, TALL, WIDE], ids=str)
def test_olora_starts_as_pefts(case: Case, alpha: float) -> None:
    olora = OLoRA(rank=3, alpha=alpha)
    assert_same_start(olora, case, theirs(config(olora, case, init_lora_weights="olora"), case), None)


def test_olora_of_peft_ignores_the_layout_of_conv1d() -> None:
    """It decomposes the stored (in, out) matrix as if it were (out, in): the first product fails unless the layer
    is square, and where it is the start is another one. Here the layout does not matter."""
    olora = OLoRA(rank=3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        theirs(config(olora, TURNED, init_lora_weights="olora"), TURNED)(input_of(TURNED))
    square = Case(8, 8, layer=conv1d)
    other = theirs(config(olora, square, init_lora_weights="olora"), square)
    with pytest.raises(AssertionError, match="off by"):
        assert_same_start(olora, square, other, None)
    mine = model_of(TURNED)
    attach(mine, olora, "layer")
    B = host_of(mine).carried("default").get_parameter("B").detach()
    W = host_of(mine).original_dense().detach()
    close(B @ B.T @ W[:, :3], W[:, :3], 1e-12, "first columns")


def test_pissa_of_peft_is_rebuilt_otherwise_under_another_random_state() -> None:
    """Its randomised start draws from the global generator, without oversampling: what a file holds then belongs to a
    residual which loading does not find again. Here the seed is an argument and the file holds the start."""
    case, pissa = Case(48, 40), PiSSA(rank=4, svd="randomised", oversampling=0, iterations=4)
    residuals = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            other = theirs(config(pissa, case, init_lora_weights="pissa_niter_4"), case)
        residuals.append(layer_of(other).base_layer.weight.detach())
    assert float((residuals[0] - residuals[1]).norm() / residuals[0].norm()) > 1e-2
    exact = PiSSA(rank=4).init(model_of(case).layer.weight.detach(), generator(0))
    assert exact.base is not None

    def error(residual: Tensor | None) -> float:
        assert residual is not None
        return float((residual - exact.base).norm() / exact.base.norm())

    better = PiSSA(rank=4, svd="randomised").init(model_of(case).layer.weight.detach(), generator(0))
    assert 3 * error(better.base) < error(residuals[0])


@pytest.mark.parametrize("iterations", [2, 4, 16])
@pytest.mark.parametrize("case", [SQUARE, Case(48, 40)], ids=str)
def test_pissa_without_oversampling_is_pefts_niter(
    case: Case, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same draw; of a layer wider than tall torch sketches the other side, so there no draw is the same."""
    pissa = PiSSA(rank=3, alpha=6.0, svd="randomised", oversampling=0, iterations=iterations)
    W = model_of(case, torch.float32).layer.weight.detach().double()
    mine = pissa.init(W, generator(1))
    assert mine.base is not None
    draw = torch.randn(case.in_, 3, generator=generator(1), dtype=torch.float64)
    settings = config(pissa, case, init_lora_weights=f"pissa_niter_{iterations}")
    with monkeypatch.context() as inside:
        inside.setattr(torch, "randn", lambda *_, dtype, **__: draw.to(dtype))
        layer = layer_of(theirs(settings, case))
    close(layer.base_layer.weight.detach(), mine.base, 1e-4, "residual")
    exact = PiSSA(rank=3, alpha=6.0).init(W, generator(1))
    if iterations == 2:
        with pytest.raises(AssertionError, match="off by"):
            close(layer.base_layer.weight.detach(), exact.base, 1e-4, "residual")


# ---- starts from the gradient ---------------------------------------------------------------------------------------


def gradient_of(model: nn.Module, case: Case, size: float = 1.0) -> Tensor:  # shape: (out, in)
    """Of a made-up loss, of the plain layer's stored weight, in the (out, in) orientation."""
    x, y = noise(20, case.in_, seed=3), noise(20, case.out, seed=4)
    dtype = next(model.parameters()).dtype
    loss = size * (model(x.to(dtype)) - y.to(dtype)).square().mean()
    (G,) = torch.autograd.grad(loss, model.layer.weight)
    return G.T if case.layer is conv1d else G


def peft_lora_ga(variant: LoRAGA, case: Case, size: float = 1.0, **options: object) -> nn.Module:
    """PEFT's LoRA-GA on the gradient of that loss."""
    settings = config(
        variant,
        case,
        use_rslora=True,
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(stable_gamma=variant.gamma, **options),
    )

    def prepare(model: nn.Module) -> None:
        def step() -> None:
            x, y = noise(20, case.in_, seed=3).float(), noise(20, case.out, seed=4).float()
            (size * (model(x.requires_grad_()) - y).square().mean()).backward()

        preprocess_loraga(model, settings, step)

    return theirs(settings, case, prepare)


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
@pytest.mark.parametrize("case", [SQUARE, TALL, WIDE], ids=str)
def test_lora_ga_of_peft_is_another_start(case: Case, direction: str) -> None:
    """PEFT multiplies B by the gradient's singular values and A by nothing; the directions are the paper's. So its B
    shrinks and grows with the loss, and the first step is no longer the best of its rank."""
    variant = LoRAGA(rank=2, alpha=3.0, gamma=16.0, direction=direction)
    plain = model_of(case, torch.float32).double()
    G = gradient_of(plain, case)
    S = torch.linalg.svdvals(G)
    attach(plain, variant, "layer", stats={"layer": {"gradient": G}})
    A, B = (host_of(plain).carried("default").get_parameter(name).detach() for name in ("A", "B"))
    c = case.out**0.25 / 4
    chosen = {"ArB2r": [2, 3], "A2rBr": [0, 1], "ArBr": [0, 2]}[direction]
    found = {}
    for size in (1.0, 10.0):
        layer = layer_of(peft_lora_ga(variant, case, size, direction=direction))
        found[size] = {name: p.detach() for name, p in factors(layer).items()}
        sign_A, sign_B = (torch.sign(p.sum(1)) for p in (found[size]["A"] * A, (found[size]["B"] * B).T))
        close(found[size]["A"], sign_A[:, None] * A / c, 1e-4, "A has rows of length one")
        close(found[size]["B"], sign_B * B * size * S[chosen], 1e-4, "B has columns of the size of the gradient")

    def misfit(A: Tensor, B: Tensor) -> float:
        """Of the first step to the best approximation of rank 2r, relative, up to a factor."""
        step, best = B @ B.T @ G + G @ A.T @ A, (lambda U, s, V: U[:, :4] * s[:4] @ V[:4])(*torch.linalg.svd(G, False))
        return float((step - (step * best).sum() / best.square().sum() * best).norm() / step.norm())

    assert misfit(A, B) < 1e-12
    assert misfit(**found[1.0]) > 0.05


def test_lora_ga_of_peft_takes_the_same_triplets_for_both_factors_at_random() -> None:
    variant = LoRAGA(rank=2, gamma=16.0)
    G = gradient_of(model_of(SQUARE, torch.float32).double(), SQUARE)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = layer_of(peft_lora_ga(variant, SQUARE, direction="random"))
    A, B = (factors(layer)[name].detach() for name in ("A", "B"))
    assert (A @ Vh.T).abs().argmax(1).tolist() == (B.T @ U).abs().argmax(1).tolist()
    t = replace(variant, direction="random").init(model_of(SQUARE).layer.weight, generator(0), {"gradient": G}).train
    both = (t["A"] @ Vh.T).abs().argmax(1).tolist() + (t["B"].T @ U).abs().argmax(1).tolist()
    assert sorted(both) == [0, 1, 2, 3]


def test_lora_ga_of_peft_without_a_gradient_is_lora_and_says_nothing() -> None:
    settings = config(LoRAGA(rank=2), SQUARE, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = layer_of(theirs(settings, SQUARE))
    assert not factors(layer)["B"].any()
    with pytest.raises(ValueError, match="lora_ga needs statistics that were not given: gradient of layer"):
        attach(model_of(SQUARE), LoRAGA(rank=2), "layer")


# ---- starts from the inputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [3.0, 12.0])
@pytest.mark.parametrize(("mode", "method"), [("ipa", "ipm"), ("kpa", "kpm")])
@pytest.mark.parametrize("case", STARTS, ids=str)
def test_corda_starts_as_pefts_on_its_covariance(case: Case, mode: str, method: str, alpha: float) -> None:
    """PEFT sums over a sample's vectors, divides by the number of samples, and measures in units of the largest
    entry; handed the same matrix, both start alike."""
    corda = CorDA(rank=3, alpha=alpha, mode=mode)
    settings = config(corda, case, init_lora_weights="corda", corda_config=CordaConfig(corda_method=method))
    X = noise(40, case.in_, seed=3) + 0.3

    def prepare(model: nn.Module) -> None:
        preprocess_corda(model, settings, run_model=lambda: model(X.float()[None]))

    stats = {"layer": {"covariance": X.T @ X / X.max() ** 2}}
    assert_same_start(corda, case, theirs(settings, case, prepare), stats)
    with pytest.raises(AssertionError, match="off by"):
        assert_same_start(corda, case, theirs(settings, case, prepare), {"layer": stats_of(corda, case)["layer"]})


class Two(nn.Module):
    """Two layers on the same data, of which one keeps only some of its directions."""

    def __init__(self, spread: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 7), nn.Linear(10, 7)
        self.register_buffer("spread", spread.float())

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x * self.spread)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("steepness", [0.3, 0.8])
def test_eva_starts_as_pefts(steepness: float, whiten: bool) -> None:
    """Directions, ranks and scales, on one batch, which PEFT takes again and again until its estimate rests."""
    spread = steepness ** torch.arange(10, dtype=torch.float64)
    X = noise(400, 10, seed=3) * 0.8 ** torch.arange(10) + 0.5
    eva = EVA(rank=2, alpha=6.0, whiten=whiten)
    inputs = {"first": X, "second": X * spread}
    stats = {path: {"covariance": Z.T @ Z / len(Z), "mean": Z.mean(0)} for path, Z in inputs.items()}
    mine = Two(spread).double()
    attach(mine, eva, ["first", "second"], stats=stats)

    settings = LoraConfig(
        r=2,
        lora_alpha=6.0,
        target_modules=["first", "second"],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=2.0, tau=0.999, whiten=whiten),
    )
    other = get_peft_model(Two(spread), settings, low_cpu_mem_usage=True)
    with torch.random.fork_rng(devices=[]):
        initialize_lora_eva_weights(
            other,
            [{"x": X.float()}],
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=None,
            show_progress_bar=False,
        )
    ranks = [len(state.t["A"]) for state in layer_states(mine)]
    assert sum(ranks) == 4
    assert (ranks == [2, 2]) is (steepness > 0.5), "the control: ranks are redistributed where the spectra differ"
    for state in layer_states(mine):
        layer = other.base_model.model.get_submodule(state.path)
        theirs_A, A = layer.lora_A["default"].weight.detach().double(), state.t["A"].detach()
        assert theirs_A.shape == A.shape, "ranks"
        local = mine.get_submodule(state.path).carried("default").variant
        assert layer.scaling["default"] == pytest.approx(local.scale)
        # the batch comes several times, and PEFT's singular values grow with the number of vectors seen
        length = theirs_A.norm(dim=1) / A.norm(dim=1)
        close(length, length[0].expand(len(length)), 1e-2, "whitened alike, but for the number of vectors")
        assert (abs(float(length[0]) - 1) < 1e-5) is not whiten
        alike = (theirs_A * A).sum(1).abs() / theirs_A.norm(dim=1) / A.norm(dim=1)
        close(alike, torch.ones_like(alike), 1e-3, "directions")
        assert not layer.lora_B["default"].weight.any()
