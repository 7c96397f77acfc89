"""What methods under an orthogonality constraint promise, each beside something that breaks the promise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from tests.variants.models import host_of
from variants.boft import BOFT
from variants.core import Init, LayerState, Refused, Tensors, Variant, create, layer_states
from variants.core.cases import Case, adapted, close, gap, move
from variants.core.linalg import orthogonality_defect, random_orthonormal, tangent_defect
from variants.goft import GOFT
from variants.hra import HRA
from variants.oft import OFT
from variants.polar import PoLAR
from variants.stella import StelLA
from variants.stiefel import RETRACTIONS, Stiefel
from variants.usv_parametrized import USVParametrized, reflected, reflectors
from variants.usv_penalty import USVPenalty

MAPS = ["cayley", "matrix_exp", "householder"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def orthonormal(n: int, rank: int, seed: int = 0) -> Tensor:
    return random_orthonormal(n, rank, torch.Generator().manual_seed(seed), torch.float64)


def start(variant: Variant, out: int, in_: int, seed: int = 0) -> Init:
    return variant.init(normal(out, in_, seed=9), torch.Generator().manual_seed(seed))


def rotation(variant: Variant, n: int, scale: float = 0.5, seed: int = 0) -> Tensor:  # shape: (n, n)
    """R of a method ``W R^T`` on a layer of width n, its tensors moved by noise."""
    init = variant.init(eye(n), torch.Generator().manual_seed(seed))
    moved = {key: value + scale * normal(*value.shape, seed=seed + 1) for key, value in init.train.items()}
    if "s" in moved:
        moved["s"] = torch.ones_like(moved["s"])
    return variant.weight(eye(n), {**moved, **init.frozen}).T


def fit(
    model: nn.Module, variant: Variant, optimiser: Callable[..., torch.optim.Optimizer], steps: int, **options: Any
) -> None:
    """Regression towards a random map, with the method's groups, penalty and hooks."""
    states = layer_states(model)
    optim = optimiser(variant.param_groups(states, options.pop("lr", 1e-2)), **options)
    out, in_ = states[0].W.shape
    dtype, target = states[0].W.dtype, normal(out, in_, seed=3)
    for step in range(steps):
        x = normal(8, in_, seed=100 + step)
        optim.zero_grad()
        loss = (model(x.to(dtype)) - (x @ target.T).to(dtype)).square().mean()
        penalty = variant.penalty(states)
        (loss if penalty is None else loss + penalty).backward()
        variant.before_step(states)
        optim.step()
        variant.after_step(states, step, steps)


def residual(model: nn.Module) -> float:
    t = layer_states(model)[0].t
    return max(float(orthogonality_defect(t[key].detach())) for key in ("U", "V"))


# ---- counts ---------------------------------------------------------------------------------------------------------

# (out, in) and how many of them: published counts of all linear layers, biases apart
DEBERTA = {(768, 768): 48, (3072, 768): 12, (768, 3072): 12}
LLAMA2_7B = {(4096, 4096): 128, (11008, 4096): 64, (4096, 11008): 32}
LLAMA3_8B = {(4096, 4096): 32, (1024, 4096): 64, (14336, 4096): 32, (4096, 14336): 32}


@pytest.mark.parametrize(
    ("variant", "layers", "published"),
    [
        (StelLA(rank=32), LLAMA3_8B, 56_786_944),
        (StelLA(rank=32, middle="diagonal"), LLAMA3_8B, 56_628_224),
        (OFT(block=32), LLAMA2_7B, 17_649_664),
        (OFT(block=96), {(3072, 3072): 28, (1024, 3072): 28}, 8_171_520),
        (OFT(block=32), DEBERTA, 1_285_632),
        (BOFT(block=8, butterflies=2), DEBERTA, 746_496 - 12 * 6912),  # less the biases which the paper trains too
        (HRA(rank=32), {(4096, 4096): 64}, 8_388_608),
        (HRA(rank=8), DEBERTA, 663_552),
        (GOFT(), DEBERTA, 82_872),
        (GOFT(form="quasi"), DEBERTA, 331_488),
    ],
    ids=str,
)
def test_published_counts(variant: Variant, layers: dict[tuple[int, int], int], published: int) -> None:
    assert sum(n * variant.parameter_count(*shape) for shape, n in layers.items()) == published


# ---- hyperparameters and layers that do not work --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("usv_penalty", {"penalty_weight": -0.1}, "penalty_weight is a number from 0"),
        ("polar", {"attraction": 0.0}, "attraction is a positive number"),
        ("stella", {"width": 0}, "width is a whole number from 1"),
        ("oft", {"block": 0}, "block is a whole number from 1"),
        ("oft", {"terms": 3}, "terms is a whole number from 4 to 64"),
        ("oft", {"terms": 65}, "terms is a whole number from 4 to 64"),
        ("psoft", {"terms": 10**9}, "terms is a whole number from 4 to 64"),
        ("boft", {"butterflies": 0}, "butterflies is a whole number from 1"),
        ("hra", {"rank": 0}, "rank is a whole number from 1"),
        ("hra", {"penalty_weight": -1.0}, "penalty_weight is a number from 0"),
        ("goft", {"penalty_weight": 0.0}, "penalty_weight is a positive number"),
        ("stiefel", {"retraction": "exp"}, "retraction is 'polar' or 'qr' or 'cayley'"),
        ("usv_parametrized", {"map": "exp"}, "map is 'cayley' or 'matrix_exp' or 'householder'"),
    ],
)
def test_wrong_hyperparameters(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, wrong)


@pytest.mark.parametrize(
    ("variant", "width", "message"),
    [
        (OFT(block=4), 10, "blocks of 4 do not fit an input of width 10: write one of 2, 5, 10"),
        (OFT(block=1), 9, "write one of 3, 9"),
        (OFT(block=2), 1, "leave the layer out"),
        (BOFT(block=4, butterflies=1), 6, "write one of 2, 3, 6"),
        (BOFT(block=3, butterflies=2), 9, "block 3 is odd: write an even block$"),
        (BOFT(block=2, butterflies=4), 8, "do not fit an input of width 8: write fewer butterflies$"),
        (BOFT(block=2, butterflies=10**15), 8, "do not fit an input of width 8: write fewer butterflies$"),
        (HRA(rank=3), 9, "write an even rank, or gram_schmidt=True"),
        (HRA(rank=6), 5, "6 reflections are more than an input of width 5 has dimensions"),
        (GOFT(), 1, "leave the layer out"),
    ],
    ids=str,
)
def test_layers_that_do_not_fit(variant: Variant, width: int, message: str) -> None:
    with pytest.raises(Refused, match=message):
        variant.check(7, width)


@pytest.mark.parametrize(
    ("variant", "width"),
    [(OFT(block=5), 10), (BOFT(block=3, butterflies=1), 9), (BOFT(block=2, butterflies=3), 8), (GOFT(), 2)],
    ids=str,
)
def test_layers_that_just_fit(variant: Variant, width: int) -> None:
    variant.check(7, width)
    assert float(orthogonality_defect(rotation(variant, width))) < 1e-12


# ---- U s V^T, free under a penalty ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["squared", "norm"])
def test_penalty_is_what_it_says_summed_over_layers(form: Any) -> None:
    variant = USVPenalty(rank=2, form=form, penalty_weight=0.7)
    factors = [normal(5, 2, seed=1), normal(4, 2, seed=2), normal(3, 2, seed=3), normal(6, 2, seed=4)]
    states = [LayerState(path, eye(1), {"U": U, "V": V}) for path, U, V in (("a", *factors[:2]), ("b", *factors[2:]))]
    norms = [((X.T @ X - eye(2)) ** 2).sum().sqrt() for X in factors]
    want = 0.7 * (sum(norm**2 for norm in norms) if form == "squared" else sum(norms) / 4)
    close(variant.penalty(states), want, 1e-12, "penalty")


@pytest.mark.parametrize(("form", "ratio"), [("squared", 10.0), ("norm", 1.0)])
def test_only_the_squared_penalty_fades_near_the_constraint(form: Any, ratio: float) -> None:
    """Ten times nearer, the gradient is ten times smaller, or as large as before."""
    gradients = []
    for distance in (1e-4, 1e-5):
        U = (orthonormal(6, 2) + distance * normal(6, 2)).requires_grad_()
        penalty = USVPenalty(rank=2, form=form).penalty([LayerState("a", eye(1), {"U": U, "V": orthonormal(5, 2)})])
        gradients.append(float(torch.autograd.grad(penalty, U)[0].norm()))
    assert abs(gradients[0] / gradients[1] / ratio - 1) < 0.01


def test_penalty_draws_the_factors_back() -> None:
    """From off the constraint, against training with next to no penalty."""
    ends = []
    for weight in (1.0, 1e-9):
        variant = USVPenalty(rank=2, penalty_weight=weight)
        model = adapted(variant, Case(8, 6))
        move(model)
        before = residual(model)
        fit(model, variant, torch.optim.AdamW, 300)
        ends.append(residual(model))
    assert ends[0] < 0.2 * before
    assert ends[1] > 2 * ends[0]


@pytest.mark.parametrize("name", ["usv_penalty", "usv_parametrized", "stella", "polar"])
def test_weight_decay_reaches_the_core_alone(name: str) -> None:
    variant = create(name, {"rank": 2})
    state = layer_states(adapted(variant, Case(7, 5)))[0]
    cores, factors = variant.param_groups([state], lr=0.5)
    assert cores == {"params": [state.t["s"]], "lr": 0.5}
    assert len(factors["params"]) == 2
    assert factors["weight_decay"] == 0.0


# ---- U s V^T, parametrised ------------------------------------------------------------------------------------------


def torchs(n: int, rank: int, map_: str, base: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the completion of the base draws from the global generator
        torch.manual_seed(n)
        layer = nn.Linear(rank, n, bias=False).double()
        layer.weight.data.copy_(orthonormal(n, rank))
        return orthogonal(layer, orthogonal_map=map_, use_trivialization=base)


@pytest.mark.parametrize("shape", [(9, 3), (4, 3), (4, 4), (5, 1)], ids=str)
@pytest.mark.parametrize("map_", MAPS)
def test_factors_are_torchs_without_its_square_matrices(map_: Any, shape: tuple[int, int]) -> None:
    """Value and gradient. torch's tensor Z is our X in the coordinates of its base: ``X = base tril(Z)``."""
    n, rank = shape
    with_base = map_ != "householder"
    layer = torchs(n, rank, map_, with_base)
    (given,), Z = layer.parametrizations["weight"], layer.parametrizations["weight"].original
    noise = normal(n, rank, seed=5).tril(-1)
    with torch.no_grad():
        if with_base:
            carry, U0 = given.base, given.base[:, :rank]
            X = carry @ (Z.tril() + noise)
        else:
            carry = eye(n)
            X, U0 = reflectors(orthonormal(n, rank))
            close(reflected(X) * U0, orthonormal(n, rank), 1e-12, "start")
            close(X, Z.tril(-1), 1e-12, "reflectors of the start")
            X = X + noise
        Z.add_(noise)
    t = {"X": X.requires_grad_(), "U0": U0, "Y": X.detach(), "V0": U0}
    U, _ = USVParametrized(rank=rank, map=map_).factors(t)
    close(U, layer.weight, 1e-11, "value")
    cotangent = normal(n, rank, seed=6)
    (mine,) = torch.autograd.grad(U, X, cotangent)
    (theirs,) = torch.autograd.grad(layer.weight, Z, cotangent)
    close((carry.T @ mine).tril(-1), theirs, 1e-10, "gradient")
    if with_base and n > rank:
        other: Any = MAPS[1 - MAPS.index(map_)]
        wrong, _ = USVParametrized(rank=rank, map=other).factors(t)
        assert gap(wrong, U) > 1e-3, "the control: the other map is another one"


@pytest.mark.parametrize("base", [True, False])
def test_weight_decay_destroys_torchs_householder_map_and_not_ours(base: bool) -> None:
    """torch keeps the signs inside the trained tensor and reads them as whole numbers: after one decay they are 0."""
    theirs = torchs(9, 3, "householder", base)
    optim = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.01)
    close(theirs.weight.norm(), torch.tensor(3.0, dtype=torch.float64).sqrt(), 1e-12, "norm before")
    for _ in range(3):
        optim.zero_grad()
        theirs.weight.sum().backward()
        optim.step()
    assert not theirs.weight.detach().any(), "torch has been mended: this method may use its parametrisation"

    model = adapted(USVParametrized(rank=3, map="householder"), Case(9, 5))
    state = layer_states(model)[0]
    optim = torch.optim.AdamW([p for p in state.t.values() if p.requires_grad], lr=1e-3, weight_decay=0.01)
    for _ in range(3):
        optim.zero_grad()
        model(normal(4, 5)).square().sum().backward()
        optim.step()
    for factor in USVParametrized(rank=3, map="householder").factors(state.t):
        close(factor.norm(), torch.tensor(3.0, dtype=torch.float64).sqrt(), 1e-12, "norm")
        assert float(orthogonality_defect(factor.detach())) < 1e-12


@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_parametrised_factors_are_orthonormal_however_far_they_are_taken(map_: Any, scale: float) -> None:
    init = start(USVParametrized(rank=3, map=map_), 40, 30)
    X = (init.train["X"] + scale * normal(40, 3, seed=8)).float()
    t = {"X": X, "U0": init.frozen["U0"].float(), "Y": X[:30], "V0": init.frozen["V0"].float()}
    for factor in USVParametrized(rank=3, map=map_).factors(t):
        assert float(orthogonality_defect(factor)) < 1e-4
    if scale == 30 and map_ != "householder":
        broken = USVParametrized(rank=3, map=map_).factors({**t, "U0": 1.1 * t["U0"]})[0]
        assert float(orthogonality_defect(broken)) > 0.1, "the control: it hangs on an orthonormal U0"


@pytest.mark.parametrize("map_", MAPS[:2])
def test_what_of_the_generator_does_not_matter(map_: Any) -> None:
    """``rank (rank + 1) / 2`` of X's entries: ``X + U0 S`` with symmetric S is the same skew-symmetric matrix."""
    variant, U0, X, S = USVParametrized(rank=3, map=map_), orthonormal(7, 3), normal(7, 3, seed=1), normal(3, 3, seed=2)
    for free, same in ((S + S.T, True), (S - S.T, False)):
        U, V = variant.factors({"X": X, "U0": U0, "Y": X + U0 @ free, "V0": U0})
        assert bool((U - V).abs().max() < 1e-12) == same


# ---- U s V^T, on the manifold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RETRACTIONS))
def test_retractions_are_points_near_the_step(name: str) -> None:
    """Orthonormal for steps of any size; at zero the point itself; off the straight step by a square of its size."""
    X = torch.stack([orthonormal(7, 3, seed) for seed in (0, 1)])
    D = torch.stack([normal(7, 3, seed=seed) for seed in (2, 3)])
    D = D - X @ ((X.mT @ D + D.mT @ X) / 2)
    retract = RETRACTIONS[name]
    close(retract(X, torch.zeros_like(D)), X, 1e-14, "no step")
    for scale in (1e-3, 1.0, 100.0):
        assert float(orthogonality_defect(retract(X, scale * D)).max()) < 1e-12
    gaps = [float((retract(X, t * D) - X - t * D).norm()) for t in (1e-3, 5e-4)]
    assert 3.8 < gaps[0] / gaps[1] < 4.2
    close(retract(X, D)[1], retract(X[1:], D[1:])[0], 1e-13, "alone and in a batch")


def test_qr_alone_would_be_no_retraction() -> None:
    """Without its signs fixed it sends a point to another one: the control of the test above."""
    X = orthonormal(7, 3)
    assert float((torch.linalg.qr(X).Q - X).norm()) > 1


@pytest.mark.parametrize(
    "variant", [Stiefel(rank=4, retraction=name) for name in RETRACTIONS] + [StelLA(rank=4)], ids=str
)
def test_a_thousand_steps_leave_float32_factors_orthonormal(variant: Stiefel) -> None:
    model = adapted(variant, Case(16, 12), torch.float32)
    fit(model, variant, torch.optim.AdamW, 1000)
    assert residual(model) < 1e-5


def test_a_thousand_steps_of_the_free_triple_do_not() -> None:
    """The control of the test above."""
    variant = USVPenalty(rank=4, penalty_weight=1e-9)
    model = adapted(variant, Case(16, 12), torch.float32)
    fit(model, variant, torch.optim.AdamW, 1000)
    assert residual(model) > 0.1


@pytest.mark.parametrize("name", list(RETRACTIONS))
def test_every_retraction_refuses_to_go_on_after_divergence(name: Any) -> None:
    variant = Stiefel(rank=2, retraction=name)
    states = layer_states(adapted(variant, Case(7, 5)))
    variant.before_step(states)
    with torch.no_grad():
        states[0].t["V"][0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="diverged"):
        variant.after_step(states, 0, 1)


# ---- StelLA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["full", "diagonal"])
def test_stella_starts_with_equal_singular_values_or_none(core: Any) -> None:
    variant = StelLA(rank=3, alpha=6, middle=core)
    delta = variant.weight(eye(8)[:, :7], start(variant, 8, 7).train) - eye(8)[:, :7]
    close(torch.linalg.svdvals(delta), torch.tensor([2.0] * 3 + [0.0] * 4), 1e-12, "spectrum")
    assert not variant.exact_init
    zero = StelLA(rank=3, middle=core, start="zero")
    assert zero.exact_init
    assert not start(zero, 8, 7).train["s"].any()


def test_stella_makes_gradients_riemannian_and_leaves_absent_ones() -> None:
    variant = StelLA(rank=2)
    state = layer_states(adapted(variant, Case(7, 5)))[0]
    G, S, U = normal(7, 2), normal(2, 2), state.t["U"].detach().clone()
    state.t["U"].grad, state.t["s"].grad = G.clone(), S.clone()
    variant.before_step([state])
    assert state.t["V"].grad is None
    close(state.t["s"].grad, S, 0.0, "the core's gradient")
    close(state.t["U"].grad, (G @ U.T - U @ G.T) @ U, 1e-13, "the canonical gradient")
    assert float(tangent_defect(U, state.t["U"].grad)) < 1e-13
    assert float(tangent_defect(U, G)) > 0.1, "the control: the gradient itself is not tangent"


@pytest.mark.parametrize(("width", "hidden"), [(None, 6), (24, 24)])
def test_stella_scales_the_step_of_each_factor_by_the_hidden_size(width: int | None, hidden: int) -> None:
    """Attention (6, 6) and (3, 6), an MLP (20, 6) and (6, 20): 6 is the hidden size. To first order in the step."""
    variant = StelLA(rank=2, width=width)
    states = [
        LayerState(str(shape), torch.zeros(shape), dict(start(variant, *shape).train))
        for shape in ((6, 6), (3, 6), (20, 6), (6, 20))
    ]
    variant.before_step(states)
    left = [{key: state.t[key].clone() for key in ("U", "V")} for state in states]
    for state in states:
        for key in ("U", "V"):
            state.t[key].add_(1e-6 * normal(*state.t[key].shape))
    variant.after_step(states, 0, 1)
    for state, X in zip(states, left, strict=True):
        for key in ("U", "V"):
            D = normal(*X[key].shape)
            tangent = D - X[key] @ (X[key].T @ D + D.T @ X[key]) / 2
            want = 1e-6 * (hidden / len(D)) ** 0.5 * tangent
            close(1e6 * (state.t[key] - X[key]), 1e6 * want, 1e-4, f"step of {key} on {state.path}")


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_stella_takes_the_shorter_of_two_sides_which_are_as_common(shape: tuple[int, int]) -> None:
    assert StelLA().step_factor(24, [LayerState("a", torch.zeros(shape), {})]) == 0.5


@pytest.mark.parametrize(("optimiser", "same"), [(torch.optim.SGD, True), (torch.optim.Adam, False)])
def test_stella_depends_on_the_gauge_only_under_adam(optimiser: Any, same: bool) -> None:
    """(U P, P^T S Q, V Q) for rotations P and Q describes the same matrix, also after training with SGD."""
    variant, weights = StelLA(rank=3), []
    P, Q = orthonormal(3, 3, 1), orthonormal(3, 3, 2)
    for turned in (False, True):
        model = adapted(variant, Case(8, 6))
        t = layer_states(model)[0].t
        with torch.no_grad():
            t["s"].copy_(normal(3, 3, seed=4))
            if turned:
                t["U"].copy_(t["U"] @ P)
                t["s"].copy_(P.T @ t["s"] @ Q)
                t["V"].copy_(t["V"] @ Q)
        fit(model, variant, optimiser, 50)
        weights.append(host_of(model).effective_weight())
    assert bool((weights[0] - weights[1]).abs().max() < 1e-9) == same


# ---- PoLAR ----------------------------------------------------------------------------------------------------------


def test_polar_replaces_gradients_by_the_landing_field() -> None:
    variant = PoLAR(rank=2, attraction=0.3)
    model = adapted(variant, Case(7, 5))
    move(model)
    state = layer_states(model)[0]
    G, S, X = normal(7, 2), normal(2, 2), state.t["U"].detach().clone()
    state.t["U"].grad, state.t["s"].grad = G.clone(), S.clone()
    variant.before_step([state])
    want = (G @ X.T - X @ G.T) @ X + 0.3 * X @ (X.T @ X - eye(2))
    close(state.t["U"].grad, want, 1e-12, "landing field")
    close(state.t["s"].grad, S, 0.0, "the core's gradient")
    assert state.t["V"].grad is None


def test_polar_moves_only_the_core_at_first() -> None:
    variant = PoLAR(rank=2)
    model = adapted(variant, Case(7, 5))
    t = layer_states(model)[0].t
    model(normal(4, 5)).square().sum().backward()
    variant.before_step(layer_states(model))
    assert float(t["s"].grad.abs().max()) > 0.1
    assert max(float(t[key].grad.abs().max()) for key in ("U", "V")) < 1e-15


def test_polar_under_sgd_lands_and_under_adam_its_attraction_decides() -> None:
    """Attraction alone contracts the distance to the manifold; beside a loss and Adam a weak one leaves it larger."""
    model = adapted(PoLAR(rank=2, attraction=1.0), Case(8, 6))
    move(model, scale=0.1)
    distances = []
    for _ in range(30):
        t = layer_states(model)[0].t
        distances.append(residual(model))
        for key in ("U", "V"):
            t[key].grad = torch.zeros_like(t[key])
        PoLAR(rank=2, attraction=1.0).before_step(layer_states(model))
        with torch.no_grad():
            for key in ("U", "V"):
                t[key].sub_(0.2 * t[key].grad)
    assert all(later < earlier for earlier, later in itertools.pairwise(distances))
    assert distances[-1] < 1e-3 * distances[0]
    ends = []
    for attraction in (5e-3, 1.0):
        variant = PoLAR(rank=2, attraction=attraction)
        model = adapted(variant, Case(8, 6))
        fit(model, variant, torch.optim.Adam, 300, lr=3e-2)
        ends.append(residual(model))
    assert ends[0] > 3 * ends[1]


# ---- rotations: the geometry of the rows ----------------------------------------------------------------------------


def energy(W: Tensor) -> Tensor:
    """The hyperspherical energy of the rows."""
    unit = W / W.norm(dim=1, keepdim=True)
    return (1 / torch.pdist(unit)).sum()


ROTATIONS = [
    OFT(block=4),
    BOFT(block=4, butterflies=2),
    BOFT(block=2, butterflies=3),
    HRA(rank=4),
    HRA(rank=3, gram_schmidt=True),
    GOFT(),
]


@pytest.mark.parametrize("variant", ROTATIONS, ids=str)
def test_rotations_keep_the_spectrum_and_the_rows_geometry(variant: Variant) -> None:
    W, R = normal(9, 12, seed=7), rotation(variant, 12)
    assert float((R - eye(12)).norm()) > 0.5, "the control: it turns"
    turned = W @ R.T
    close(torch.linalg.svdvals(turned), torch.linalg.svdvals(W), 1e-10, "spectrum")
    close(turned @ turned.T, W @ W.T, 1e-10, "Gram matrix of the rows")
    close(energy(turned), energy(W), 1e-10, "hyperspherical energy")
    added = W + normal(9, 12) * (turned - W).norm() / normal(9, 12).norm()
    assert abs(float(energy(added) - energy(W))) > 1e-3, "the control: an additive change of the same size"


@pytest.mark.parametrize(
    ("variant", "spoilt"),
    [
        (OFT(block=4, inverse="neumann"), "K"),
        (GOFT(form="quasi"), "E"),
        (BOFT(block=4, butterflies=2), "s"),
    ],
    ids=str,
)
def test_what_is_no_rotation_is_found_out(variant: Variant, spoilt: str) -> None:
    init = start(variant, 12, 12)
    moved = init.train | {spoilt: init.train[spoilt] + 0.3 * normal(*init.train[spoilt].shape)}
    assert float(orthogonality_defect(variant.weight(eye(12), moved))) > 1e-2


# ---- OFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [4, 5, 6, 7])
def test_oft_singular_values_of_the_cut_series(terms: int) -> None:
    """``|1 - (i a)^(terms - 1)|`` for the eigenvalues +-i a of K."""
    K = 0.3 * normal(1, 10, seed=3)
    R = OFT(block=5, inverse="neumann", terms=terms).rotations({"K": K})[0]
    dense = torch.zeros(5, 5, dtype=torch.float64)
    dense[tuple(torch.triu_indices(5, 5, 1))] = K[0]
    a = torch.linalg.eigvals(dense - dense.T).imag
    want = torch.abs(1 - (1j * a) ** (terms - 1)).sort(descending=True).values
    close(torch.linalg.svdvals(R), want, 1e-12, "spectrum")
    assert float((want - 1).abs().max()) > 1e-3, "the control: it is no rotation"


@pytest.mark.parametrize("terms", [4, 5, 6])
def test_oft_maps_differ_only_in_high_order(terms: int) -> None:
    """The difference falls with the power ``terms - 1`` of K, which a change of sign would make a first power."""
    K = normal(2, 6, seed=3)
    gaps = [
        (
            OFT(block=4).rotations({"K": t * K}) - OFT(block=4, inverse="neumann", terms=terms).rotations({"K": t * K})
        ).norm()
        for t in (2e-2, 1e-2)
    ]
    assert abs(float(torch.log2(gaps[0] / gaps[1])) - (terms - 1)) < 0.05
    flipped = [
        (OFT(block=4).rotations({"K": t * K}) - OFT(block=4).rotations({"K": -t * K})).norm() for t in (2e-2, 1e-2)
    ]
    assert abs(float(torch.log2(flipped[0] / flipped[1])) - 1) < 0.05


@pytest.mark.parametrize("size", [0.9, 0.999, 1.001, float("nan")])
def test_oft_stops_where_the_series_does_not_converge(size: float) -> None:
    """The norm of K decides, not the larger one of its entries; the exact map goes on."""
    K = torch.zeros(3, 6, dtype=torch.float64)
    K[1, 0] = K[1, 5] = size  # two planes, the Frobenius norm is twice as large as the spectral one
    state = LayerState("some.layer", eye(12), {"K": K})
    OFT(block=4).after_step([state], 0, 1)
    series = OFT(block=4, inverse="neumann")
    if size < 1:
        series.after_step([state], 0, 1)
    else:
        with pytest.raises(FloatingPointError, match=r"some\.layer: the Neumann series has left its radius"):
            series.after_step([state], 0, 1)


# ---- BOFT -----------------------------------------------------------------------------------------------------------


def test_boft_with_one_factor_is_oft_and_a_scale_of_rows() -> None:
    W, K, s = normal(5, 12), normal(3, 6, seed=1), normal(5, seed=2)
    got = BOFT(block=4, butterflies=1).weight(W, {"K": K, "s": s})
    close(got, s[:, None] * OFT(block=4).weight(W, {"K": K}), 1e-12, "one factor")
    assert float((got - OFT(block=4).weight(W, {"K": K})).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("block", "butterflies", "dense"), [(2, 3, False), (2, 4, True), (4, 2, False), (4, 3, True), (8, 2, True)]
)
def test_boft_is_dense_once_its_butterflies_span_the_input(block: int, butterflies: int, dense: bool) -> None:
    """``block * 2^(butterflies - 1) >= in``, at a width of 16."""
    R = rotation(BOFT(block=block, butterflies=butterflies), 16)
    assert bool((R.abs() > 1e-12).all()) == dense
    assert float(orthogonality_defect(R)) < 1e-12


@pytest.mark.parametrize("width", [6, 10, 12, 20, 24])
def test_boft_stays_a_rotation_where_half_blocks_have_no_partner(width: int) -> None:
    R = rotation(BOFT(block=2, butterflies=3), width)
    assert float(orthogonality_defect(R)) < 1e-12
    for factor in BOFT(block=2, butterflies=3).places(width):
        assert len(set(factor.flatten().tolist())) == factor.numel(), "a place is rotated twice in one factor"


def test_boft_does_not_decay_its_scale() -> None:
    variant = BOFT(block=2)
    state = layer_states(adapted(variant, Case(7, 4)))[0]
    rotations, scales = variant.param_groups([state], lr=0.5)
    assert rotations == {"params": [state.t["K"]], "lr": 0.5}
    assert scales == {"params": [state.t["s"]], "lr": 0.5, "weight_decay": 0.0}


# ---- HRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 4])
def test_hra_starts_in_pairs_and_stays_a_product_of_reflections(rank: int) -> None:
    u = start(HRA(rank=rank), 5, 9).train["u"]
    assert torch.equal(u[:, 0::2], u[:, 1::2])
    assert float(u.abs().max()) <= (2 / rank) ** 0.5
    H = HRA(rank=rank).weight(eye(9), {"u": u + normal(9, rank, seed=3)})
    close(torch.linalg.det(H), torch.tensor(1.0), 1e-10, "determinant")
    assert int(torch.linalg.matrix_rank(H - eye(9), rtol=1e-10)) == rank


def test_hra_of_odd_rank_could_not_start_as_the_base_model() -> None:
    """Why it is refused: the determinant is -1 whatever the columns."""
    H = HRA(rank=3).weight(eye(9), {"u": normal(9, 3)})
    close(torch.linalg.det(H), torch.tensor(-1.0), 1e-10, "determinant")
    assert float((H - eye(9)).norm()) >= 2 - 1e-12


@pytest.mark.parametrize("rank", [3, 4])
def test_hra_with_gram_schmidt_starts_as_the_base_model_with_twice_the_rank(rank: int) -> None:
    variant = HRA(rank=rank, gram_schmidt=True)
    init = start(variant, 5, 12)
    close(variant.weight(eye(12), {**init.train, **init.frozen}), eye(12), 1e-13, "start")
    u = init.train["u"] + 0.3 * normal(12, rank, seed=3)
    H = variant.weight(eye(12), {"u": u, **init.frozen})
    assert int(torch.linalg.matrix_rank(H - eye(12), rtol=1e-10)) == 2 * rank
    span = u @ torch.linalg.inv(u.T @ u) @ u.T
    U0 = init.frozen["U0"]
    close(H, (eye(12) - 2 * span) @ (eye(12) - 2 * U0 @ U0.T), 1e-11, "only the span of u matters")


def test_hra_length_of_a_column_does_not_matter() -> None:
    u, gains = normal(9, 4), torch.tensor([0.1, 1.0, 3.0, -2.0], dtype=torch.float64)
    H = HRA(rank=4).weight(eye(9), {"u": u})
    close(HRA(rank=4).weight(eye(9), {"u": u * gains}), H, 1e-12, "other lengths")
    assert float((HRA(rank=4).weight(eye(9), {"u": u[:, [1, 0, 2, 3]]}) - H).norm()) > 1e-3, "the order does"


def test_hra_penalty() -> None:
    states = [
        LayerState("a", eye(6), {"u": normal(6, 4, seed=1)}),
        LayerState("b", eye(6), {"u": normal(6, 4, seed=2)}),
    ]
    want = torch.zeros((), dtype=torch.float64)
    for state in states:
        for i in range(4):
            for j in range(4):
                a, b = state.t["u"][:, i], state.t["u"][:, j]
                want = want + (0.0 if i == j else (a @ b / (a.norm() * b.norm())) ** 2)
    got = HRA(rank=4, penalty_weight=1e-3).penalty(states)
    assert got is not None
    close(1e3 * got, want, 1e-12, "penalty")
    assert HRA(rank=4).penalty(states) is None
    assert HRA(rank=4, gram_schmidt=True, penalty_weight=1e-3).penalty(states) is None, "it is zero by construction"


# ---- GOFT -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Neighbours(GOFT):
    """Pairs neighbours at every distance, as the authors' published code does."""

    def factors(self, t: Tensors, n: int) -> list[tuple[Tensor, Tensor]]:
        return [(torch.stack([p[:, 0], p[:, 0] + 1], dim=1), blocks) for p, blocks in super().factors(t, n)]


@pytest.mark.parametrize("n", [2, 3, 7, 8, 16, 21])
def test_goft_is_a_rotation_at_every_width(n: int) -> None:
    R = rotation(GOFT(), n, scale=1.0)
    assert float(orthogonality_defect(R)) < 1e-12
    close(torch.linalg.det(R), torch.tensor(1.0), 1e-12, "determinant")
    assert sum(len(places) for places, _ in GOFT().factors({"angle": torch.zeros(n - 1)}, n)) == n - 1


@pytest.mark.parametrize("n", [2, 3, 7, 8, 13])
def test_goft_turns_the_first_unit_vector_into_any_other(n: int) -> None:
    """The angles which fold a vector onto its first entry, factor by factor, unfold that entry again."""
    v = normal(n, seed=n)
    v = rest = v / v.norm()
    angles = []
    for places, _ in GOFT().factors({"angle": torch.zeros(n - 1)}, n):
        i, j = places.T
        angles.append(-torch.atan2(rest[j], rest[i]))
        rest = rest.index_copy(0, i, torch.hypot(rest[i], rest[j])).index_fill(0, j, 0.0)
    W = GOFT().weight(eye(n), {"angle": torch.cat(angles)})
    close(W[:, 0], v, 1e-12, "R^T e_1")
    if n > 3:
        other = Neighbours().weight(eye(n), {"angle": torch.cat(angles)})
        assert float((other[:, 0] - v).norm()) > 1e-2, "the control: pairing neighbours reaches something else"


def test_goft_quasi_holds_the_strict_form() -> None:
    angle = normal(6)
    blocks = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2
    )
    got = GOFT(form="quasi").weight(eye(7), {"E": blocks - eye(2)})
    close(got, GOFT().weight(eye(7), {"angle": angle}), 1e-12, "rotations as 2 x 2 matrices")


def test_goft_penalty_is_on_the_angle_alone() -> None:
    lengths = torch.diag(torch.tensor([3.0, 0.5], dtype=torch.float64))
    turned = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    sheared = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    quasi = GOFT(form="quasi", penalty_weight=0.3)
    for blocks, want in (([turned @ lengths], 0.0), ([sheared, eye(2), 2 * sheared], 0.25 + 4.0)):
        state = LayerState("a", eye(2), {"E": torch.stack(blocks) - eye(2)})
        penalty = quasi.penalty([state, state])
        assert penalty is not None
        assert abs(float(penalty) - 0.3 * 2 * want) < 1e-12
    assert GOFT().penalty([LayerState("a", eye(2), {"angle": normal(1)})]) is None
