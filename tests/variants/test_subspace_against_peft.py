"""KaSA, AdaLoRA and PSOFT against PEFT 0.21.2 on equal tensors: outputs, every gradient, schedules and penalties; and
where PEFT does otherwise than the papers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PsoftConfig, get_peft_model
from peft.tuners.lora.config import KasaConfig
from torch import Tensor, nn

from tests.variants.models import host_of
from variants.adalora import AdaLoRA
from variants.core import LayerState, Variant, detach, layer_states
from variants.core.cases import Case, adapted, close, conv1d, input_of, linear, model_of, move, same_bits
from variants.core.linalg import random_orthonormal
from variants.kasa import KaSA
from variants.psoft import PSOFT

CASES = [Case(7, 5), Case(4, 9, bias=False, lead=(2, 3)), Case(6, 6, lead=(2, 3))]
THROUGH_CONV1D = Case(7, 5, lead=(2, 3), layer=conv1d)


class Triple:
    """PEFT's model in float64, its adapted layer, and its tensors under our names."""

    def __init__(self, variant: Variant, case: Case, model: nn.Module | None = None, **options: Any) -> None:
        assert peft.__version__ == "0.21.2"
        common: dict[str, Any] = {"target_modules": ["layer"], "fan_in_fan_out": case.layer is conv1d}
        config: peft.PeftConfig
        if isinstance(variant, KaSA):
            settings = KasaConfig(beta=variant.beta, gamma=variant.gamma)
            config = LoraConfig(r=variant.rank, lora_alpha=alpha_of(variant), kasa_config=settings, **common)
        elif isinstance(variant, AdaLoRA):
            budget = {"init_r": variant.rank, "lora_alpha": alpha_of(variant), **options}
            config = AdaLoraConfig(**{"total_step": 10, **budget}, **common)
        else:
            config = PsoftConfig(r=variant.rank, psoft_alpha=3 * variant.rank, **options, **common)
        self.model = get_peft_model(model or model_of(case, torch.float32), config).double()
        self.layer: Any = self.model.base_model.model.layer

    def tensors(self) -> dict[str, nn.Parameter]:
        layer = self.layer
        if hasattr(layer, "psoft_R"):
            R = layer.psoft_R["default"]
            found = {"K": R.weight, "a": R.vector_a, "b": R.vector_b}
            return {name: p for name, p in found.items() if p is not None}
        if hasattr(layer, "lora_E"):
            return {name: getattr(layer, f"lora_{name}")["default"] for name in ("A", "B", "E")}
        pair = {name: getattr(layer, f"lora_{name}")["default"].weight for name in ("A", "B")}
        return {**pair, "E": layer.lora_diag["default"]}

    @torch.no_grad()
    def take(self, mine: nn.Module) -> None:
        """Makes PEFT's tensors, base included, equal to ours."""
        host = host_of(mine)
        carried = host.carried("default")
        self.layer.base_layer.weight.copy_(host.weight)
        for name, p in self.tensors().items():
            p.copy_(carried.get_parameter(name).view_as(p))
        if hasattr(self.layer, "psoft_R"):
            t, scale = carried.tensors(), self.layer.scaling["default"]
            self.layer._set_psoft_ab_cache_buffers("default", t["Vh"], t["U"] * t["s"] / scale)


def alpha_of(variant: KaSA | AdaLoRA) -> Any:
    return variant.rank if variant.alpha is None else variant.alpha


def results(model: nn.Module, x: Tensor, tensors: list[nn.Parameter]) -> list[Tensor]:
    """The output, and the gradients of x and of the tensors."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    return [y, *torch.autograd.grad(y, [x, *tensors], cotangent)]


def compare(variant: Variant, case: Case, scale: float, **options: Any) -> None:
    mine = adapted(variant, case)
    move(mine, scale)
    theirs = Triple(variant, case, **options)
    theirs.take(mine)
    names = list(theirs.tensors())
    carried = host_of(mine).carried("default")
    assert sorted(names) == sorted(dict(carried.named_parameters()))
    x = input_of(case)
    got = results(mine, x, [carried.get_parameter(name) for name in names])
    want = results(theirs.model, x, list(theirs.tensors().values()))
    for what, a, b in zip(["output", "x", *names], got, want, strict=True):
        close(a, b.view_as(a), 1e-8, what)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("variant", [KaSA(rank=3), KaSA(rank=2, alpha=3)], ids=str)
def test_kasa_is_pefts(variant: KaSA, case: Case) -> None:
    compare(variant, case, 0.3)


@pytest.mark.parametrize("case", [*CASES, THROUGH_CONV1D], ids=str)
@pytest.mark.parametrize("alpha", [None, 3])
def test_adalora_code_is_pefts(alpha: int | None, case: Case) -> None:
    compare(AdaLoRA(rank=3, alpha=alpha, faithful="code"), case, 0.3)


def test_adalora_of_the_paper_is_pefts_up_to_its_1e_5() -> None:
    with pytest.raises(AssertionError, match="output: off by"):
        compare(AdaLoRA(rank=3, alpha=3), CASES[0], 0.3)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("terms", [None, 4, 5, 7])
def test_psoft_is_pefts(case: Case, vectors: bool, terms: int | None) -> None:
    series = {} if terms is None else {"use_cayley_neumann": True, "num_cayley_neumann_terms": terms}
    mine = (
        PSOFT(rank=3, vectors=vectors)
        if terms is None
        else PSOFT(rank=3, vectors=vectors, inverse="neumann", terms=terms)
    )
    compare(mine, case, 0.3, psoft_mag_a=vectors, psoft_mag_b=vectors, **series)


def test_exact_and_series_differ_in_both() -> None:
    with pytest.raises(AssertionError, match="output: off by"):
        compare(PSOFT(rank=3), CASES[0], 0.3, use_cayley_neumann=True)


# ---- starts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_starts_agree(case: Case) -> None:
    """PEFT decomposes in float32, hence the tolerance."""
    base = model_of(case, torch.float64)
    x = input_of(case)
    close(Triple(PSOFT(rank=3), case).model(x), base(x), 1e-5, "PSOFT starts as the base")
    kasa = adapted(KaSA(rank=2), case)
    theirs = Triple(KaSA(rank=2), case)
    close(host_of(kasa).dense(), theirs.layer.base_layer.weight, 1e-5, "what is left of W")
    close(kasa(x), theirs.model(x), 1e-5, "and nothing added")
    close(Triple(AdaLoRA(rank=3), case).model(x), base(x), 1e-5, "AdaLoRA starts as the base")


def test_peft_loses_the_base_under_kasa_and_we_do_not() -> None:
    case = CASES[0]
    x = input_of(case, torch.float32)
    want = model_of(case, torch.float32)
    theirs = get_peft_model(
        model_of(case, torch.float32), LoraConfig(r=2, target_modules=["layer"], kasa_config=KasaConfig())
    )
    with theirs.disable_adapter():
        assert float((theirs(x) - want(x)).detach().abs().max()) > 0.1, "switched off it is not the base"
    assert float((theirs.unload().layer.weight - want.layer.weight).detach().abs().max()) > 0.1, "nor taken off"
    mine = adapted(KaSA(rank=2), case, torch.float32)
    detach(mine, merge=False)
    assert same_bits(mine.layer.weight, want.layer.weight)


def test_peft_cannot_turn_kasa_into_lora_though_there_is_an_exact_pair() -> None:
    case = CASES[0]
    assert not Triple(KaSA(rank=2), case).layer.supports_lora_conversion("default")
    W = model_of(case).layer.weight.detach()
    mine = adapted(KaSA(rank=2), case)
    move(mine)
    pair = KaSA(rank=2).as_lora(W, host_of(mine).carried("default").tensors())
    assert pair is not None
    assert pair.A.shape[0] == 4
    close(W + pair.delta(), host_of(mine).effective_weight(), 1e-12, "pair")


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_kasa_refuses_the_ranks_which_peft_refuses(rank: int) -> None:
    case = CASES[0]
    if rank < 5:
        Triple(KaSA(rank=rank), case)
        adapted(KaSA(rank=rank), case)
        return
    with pytest.raises(ValueError, match="smaller than min"):
        Triple(KaSA(rank=rank), case)
    with pytest.raises(ValueError, match="leaves nothing"):
        adapted(KaSA(rank=rank), case)


def test_a_series_of_three_terms_is_one_of_four_in_peft() -> None:
    """Hence a series here has at least four: of three, PEFT makes another one than it says."""
    case = CASES[0]
    mine = adapted(PSOFT(rank=3), case)
    move(mine)
    outputs = []
    for terms in (3, 4, 5):
        theirs = Triple(PSOFT(rank=3), case, use_cayley_neumann=True, num_cayley_neumann_terms=terms)
        theirs.take(mine)
        outputs.append(theirs.model(input_of(case)).detach())
    close(outputs[0], outputs[1], 1e-12, "three and four")
    assert float((outputs[1] - outputs[2]).abs().max()) > 1e-4


def test_pefts_other_split_of_the_singular_values_changes_angles() -> None:
    case = Case(6, 6)
    for split, kept in (("psoft_init", True), ("pissa_init", False)):
        theirs = Triple(PSOFT(rank=3, vectors=False), case, ab_svd_init=split, psoft_mag_a=False, psoft_mag_b=False)
        with torch.no_grad():
            theirs.tensors()["K"].copy_(torch.tensor([0.3, -0.5, 0.2]))
        W = theirs.layer.base_layer.weight.detach()
        turned = W + theirs.layer.get_delta_weight("default").detach()
        off = float((turned @ turned.T - W @ W.T).norm() / (W @ W.T).norm())
        assert (off < 1e-5) is kept


# ---- penalties ------------------------------------------------------------------------------------------------------


def test_kasa_penalty_is_pefts_without_its_square_root() -> None:
    """With B orthonormal PEFT's loss is beta |E|^2 + gamma |A A^T - I|, ours the same with the norm squared; in float32
    as PEFT casts to it. PEFT sums over layers, and leaves it to the user to add the loss."""
    variant, case = KaSA(rank=2, beta=0.3, gamma=0.2), CASES[0]
    mine = adapted(variant, case)
    move(mine)
    (state,) = layer_states(mine)
    with torch.no_grad():
        state.t["B"].copy_(random_orthonormal(7, 2, torch.Generator().manual_seed(0), torch.float64))
    theirs = Triple(variant, case)
    theirs.take(mine)
    values = 0.3 * float(state.t["E"].detach().square().sum())
    loss = float(theirs.model.base_model._get_kasa_loss().detach())
    penalty = variant.penalty([state])
    assert penalty is not None
    norm = (loss - values) / 0.2
    assert norm > 0.1
    close(penalty, torch.tensor(values + 0.2 * norm**2, dtype=torch.float64), 1e-5, "penalty")


class WithLoss(nn.Module):
    """A layer in a model which answers with a loss, as PEFT wants it for AdaLoRA's penalty."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layer = model_of(case, torch.float32).layer
        self.config = SimpleNamespace(model_type="none", use_return_dict=True, tie_word_embeddings=False)

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(loss=self.layer(x).sum())


def test_adalora_penalty_is_the_one_which_peft_adds_to_the_loss() -> None:
    variant, case = AdaLoRA(rank=3, faithful="code", penalty_weight=0.7), CASES[0]
    mine = adapted(variant, case)
    move(mine)
    theirs = Triple(variant, case, model=WithLoss(case), orth_reg_weight=0.7)
    theirs.take(mine)
    x = input_of(case)
    inner: Any = theirs.model.base_model
    added = inner(x).loss - theirs.layer(x).sum()
    penalty = variant.penalty(layer_states(mine))
    assert penalty is not None
    close(penalty, added, 1e-10, "penalty")
    assert float(added.detach()) > 0.1
    whole: Any = theirs.model(x)
    close(whole.loss, theirs.layer(x).sum(), 0.0, "PEFT adds nothing if the model was wrapped without a task type")


# ---- AdaLoRA's budget -----------------------------------------------------------------------------------------------


def test_adalora_allocates_as_peft_does() -> None:
    """Two layers, the same weights and gradients at every step: the same triplets survive, at every step of the run."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (linear(*shape, True) for shape in ((7, 5), (5, 8)))

    total, rank = 40, 6
    ada = AdaLoRA(rank=rank, target=2, tinit=0.25, tfinal=0.25, interval=3, beta1=0.8, beta2=0.7, faithful="code")
    options = {"tinit": 10, "tfinal": 10, "deltaT": 3, "beta1": 0.8, "beta2": 0.7, "target_r": 2}
    config = AdaLoraConfig(init_r=rank, lora_alpha=rank, total_step=total, target_modules=["one", "two"], **options)
    model = get_peft_model(Two(), config).double()
    inner: Any = model.base_model
    theirs = {path: getattr(inner.model, path) for path in ("one", "two")}
    states = []
    for path, layer in theirs.items():
        names = ("A", "B", "E")
        t = {name: nn.Parameter(getattr(layer, f"lora_{name}")["default"].detach().clone()) for name in names}
        t["E"] = nn.Parameter(t["E"].detach().view(-1))
        states.append(LayerState(path, layer.base_layer.weight.detach(), t))

    rng, pruned = torch.Generator().manual_seed(1), []
    for step in range(1, total + 1):
        for state in states:
            for name, p in state.t.items():
                other = getattr(theirs[state.path], f"lora_{name}")["default"]
                p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype)
                other.grad = p.grad.view_as(other).clone()
                with torch.no_grad():
                    p.sub_(0.05 * p.grad)
                    other.sub_(0.05 * other.grad)
        ada.after_step(states, step, total)
        inner.update_and_allocate(step)
        assert ada.budget(step, total, 2) == inner.rankallocator.budget_schedule(step)[0], f"step {step}"
        for state in states:
            other = theirs[state.path].lora_E["default"].detach().view(-1)
            close(state.t["E"], other, 1e-12, f"E of {state.path} after step {step}")
        pruned.append(sum(int((state.t["E"] == 0).sum()) for state in states))
    assert pruned[-1] == 2 * (rank - 2)
    assert len(set(pruned)) > 3, "the control: it was pruned in several steps"


def test_peft_fails_where_nothing_is_to_be_pruned() -> None:
    """kthvalue has no zeroth smallest; here the budget simply keeps all."""
    config = AdaLoraConfig(init_r=3, target_r=3, total_step=4, target_modules=["layer"])
    model: Any = get_peft_model(model_of(CASES[0], torch.float32), config)
    model(input_of(CASES[0], torch.float32)).sum().backward()
    with pytest.raises((RuntimeError, IndexError), match=r"kthvalue|selected"):
        model.base_model.update_and_allocate(1)
