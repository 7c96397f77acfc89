"""What each paper promises of its method beyond the formula: starts, spectra, ranks, manifolds, published counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import variants  # noqa: F401  registers the methods
from tests.variants.models import host_of
from tests.variants.oracles.dense import singular_part
from variants.core import Init, Variant, attach, create, layer_states, names
from variants.core.cases import Case, adapted, close, linear, move
from variants.core.linalg import orthogonality_defect, random_orthonormal
from variants.dora import DoRA
from variants.lora import LoRA
from variants.lora_xs import LoRAXS
from variants.milora import MiLoRA
from variants.pissa import PiSSA
from variants.stiefel import Stiefel

SHAPES = [(9, 6), (6, 9), (7, 7)]
RANK = 3


def weight_of(out: int, in_: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(out, in_, generator=torch.Generator().manual_seed(out), dtype=torch.float64).to(dtype)


def start(variant: Variant, W: Tensor, seed: int = 0) -> Init:
    return variant.init(W, torch.Generator().manual_seed(seed))


def spectrum(W: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.svd(W.detach().numpy(), compute_uv=False))


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


# ---- what is declared -----------------------------------------------------------------------------------------------


def test_declarations() -> None:
    """Pinned here, so that a law which depends on a declaration cannot be escaped by changing it."""
    made = {name: create(name) for name in names()}
    assert [n for n in made if not made[n].exact_init] == ["kasa", "lora_one", "lora_sb", "lora_xs", "stella"]
    assert [n for n in made if not made[n].mergeable] == ["adapter"]
    assert {n: set(made[n].needs) for n in made if made[n].needs} == {
        "corda": {"covariance"},
        "eva": {"covariance", "mean"},
        "lora_ga": {"gradient"},
        "lora_null": {"covariance"},
        "lora_one": {"gradient"},
        "lora_sb": {"gradient"},
    }
    others = {"full": "base", "bitfit": "base", "probe": "head"}
    assert {n: made[n].trains for n in made if made[n].trains != "layers"} == others
    assert [n for n in made if made[n].expected_failures] == []
    assert create("full").trains_base("any.weight")
    assert not create("probe").trains_base("any.weight")


@pytest.mark.parametrize(
    ("name", "rank_of_pair"), [("lora", 3), ("lora_xs", 3), ("stiefel", 3), ("pissa", 6), ("milora", 6)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_rank_of_the_update(name: str, rank_of_pair: int, shape: tuple[int, int]) -> None:
    """The change of the ORIGINAL weight has the rank the pair says."""
    model = adapted(create(name, {"rank": 3}), Case(*shape))
    W = host_of(model).original_dense().detach().clone()
    move(model)
    delta = host_of(model).effective_weight() - W
    pair = create(name, {"rank": 3}).as_lora(W, host_of(model).carried("default").tensors())
    assert pair is not None
    assert pair.A.shape == (rank_of_pair, shape[1])
    assert pair.B.shape == (shape[0], rank_of_pair)
    assert int(torch.linalg.matrix_rank(delta, rtol=1e-10)) == min(rank_of_pair, *shape)


# Layers of real models (out, in) and how many of each; counts are published or recounted exactly (svd-family.md,
# section 6, orthogonal-family.md, section G). LLaMA-3-8B adapts q, k, v, up and down.
ROBERTA_LARGE = {(1024, 1024): 3 * 24, (1024, 4096): 24}
LLAMA3_8B = {(4096, 4096): 32, (1024, 4096): 64, (14336, 4096): 32, (4096, 14336): 32}


@pytest.mark.parametrize(
    ("variant", "layers", "published"),
    [
        (LoRA(rank=8), {(768, 768): 24}, 294_912),
        (LoRA(rank=8), {(1024, 1024): 48}, 786_432),
        (LoRA(rank=8), {(12288, 12288): 192}, 37_748_736),
        (PiSSA(rank=64), {(4096, 4096): 128, (1024, 4096): 0, (11008, 4096): 64, (4096, 11008): 32}, 159_907_840),
        (DoRA(rank=32), LLAMA3_8B, 57_409_536),
        (LoRAXS(rank=25), ROBERTA_LARGE, 60_000),
        (LoRAXS(rank=4), ROBERTA_LARGE, 1_536),
        (Stiefel(rank=32), LLAMA3_8B, 56_628_224),
    ],
    ids=lambda it: getattr(it, "name", None),
)
def test_published_counts(variant: Variant, layers: dict[tuple[int, int], int], published: int) -> None:
    assert sum(n * variant.parameter_count(*shape) for shape, n in layers.items()) == published


def test_counts_of_the_baselines() -> None:
    assert create("full").parameter_count(7, 5) == 35
    assert create("probe").parameter_count(7, 5) == 0


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def test_lora_starts_uniform_and_zero() -> None:
    W = weight_of(48, 400)
    t = start(LoRA(rank=32), W).train
    assert not t["B"].any()
    assert float(t["A"].abs().max()) <= 400**-0.5
    assert 0.97 < float(t["A"].std()) * (3 * 400) ** 0.5 < 1.03
    assert abs(float(t["A"].mean())) * 400**0.5 < 0.02
    assert start(LoRA(rank=2), W).base is None


def test_lora_delta_is_linear_in_the_scale() -> None:
    W = weight_of(9, 6)
    t = start(LoRA(rank=2), W).train
    t["B"] = weight_of(9, 2)
    deltas = [LoRA(rank=2, alpha=alpha).weight(W, t) - W for alpha in (2.0, 6.0)]
    close(deltas[1], 3 * deltas[0], 1e-12, "scale")
    assert LoRA(rank=4).scale == 1.0
    assert LoRA(rank=4, alpha=2).scale == 0.5


# ---- DoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_dora_rows_have_the_trained_lengths(shape: tuple[int, int]) -> None:
    W = weight_of(*shape)
    dora = DoRA(rank=RANK, alpha=2.0)
    t = start(dora, W).train
    close(t["m"], W.norm(dim=1), 1e-12, "starting magnitudes: one for each output")
    t = {key: tensor + weight_of(*tensor.shape) if tensor.ndim == 2 else -2 * tensor for key, tensor in t.items()}
    merged = dora.weight(W, t)
    close(merged.norm(dim=1), t["m"].abs(), 1e-12, "lengths of the rows")
    close(dora.weight(W, {**t, "m": 3 * t["m"]}), 3 * merged, 1e-12, "linear in m")
    close(dora.weight(2 * W, {**t, "B": 2 * t["B"]}), merged, 1e-12, "the length of V does not matter")


def test_dora_norm_is_in_the_gradient_only_if_asked() -> None:
    """With the whole gradient, a step of V along itself changes nothing; with the norm detached it does."""
    W = weight_of(7, 5)
    for detach_norm in (True, False):
        dora = DoRA(rank=5, detach_norm=detach_norm)
        t = start(dora, W).train
        V = W.clone().requires_grad_()
        (grad,) = torch.autograd.grad((dora.weight(V, t) * weight_of(7, 5)).sum(), V)
        along = (grad * W).sum(dim=1).abs()
        assert bool((along < 1e-12).all()) is not detach_norm


def test_dora_survives_a_row_of_zeros() -> None:
    W = weight_of(5, 4)
    W[2] = 0
    dora = DoRA(rank=2)
    t = {key: tensor.requires_grad_() for key, tensor in start(dora, W).train.items()}
    for step in range(2):
        weight = dora.weight(W, t)
        if step == 0:
            close(weight, W, 1e-12, "start")
        grads = torch.autograd.grad((weight * weight_of(5, 4)).sum(), list(t.values()))
        assert all(bool(grad.isfinite().all()) for grad in grads)
        t = {key: (p - 0.1 * g).detach().requires_grad_() for (key, p), g in zip(t.items(), grads, strict=True)}
    assert bool(dora.weight(W, t).isfinite().all())


# ---- PiSSA and MiLoRA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 1.0, 12.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_pissa_takes_the_principal_part(shape: tuple[int, int], alpha: float | None) -> None:
    W = weight_of(*shape)
    pissa = PiSSA(rank=RANK, alpha=alpha)
    init = start(pissa, W)
    A, B, s, S = init.train["A"], init.train["B"], pissa.scale, spectrum(W)
    assert init.base is not None
    close(init.base + s * B @ A, W, 1e-12, "start")
    close(s * B @ A, singular_part(W, slice(0, RANK)), 1e-12, "principal part")
    close(spectrum(s * B @ A)[:RANK], S[:RANK], 1e-12, "spectrum of the pair")
    close(spectrum(init.base)[0], S[RANK], 1e-12, "largest singular value of the residual")
    close(B.T @ B, torch.diag(S[:RANK]) / s, 1e-12, "B^T B")
    close(A @ A.T, torch.diag(S[:RANK]) / s, 1e-12, "A A^T")
    assert torch.equal(init.frozen["A0"], A)
    assert torch.equal(init.frozen["B0"], B)


@pytest.mark.parametrize("alpha", [None, 1.0, 12.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_milora_takes_the_minor_part(shape: tuple[int, int], alpha: float | None) -> None:
    W = weight_of(*shape)
    milora = MiLoRA(rank=RANK, alpha=alpha)
    init = start(milora, W)
    A, B, s, S = init.train["A"], init.train["B"], milora.scale, spectrum(W)
    k = min(shape)
    assert init.base is not None
    close(init.base + s * B @ A, W, 1e-12, "start")
    close(spectrum(s * B @ A)[:RANK], S[-RANK:], 1e-12, "spectrum of the pair")
    close(spectrum(init.base)[: k - RANK], S[: k - RANK], 1e-12, "the top of the residual is the top of W")
    close(spectrum(init.base)[k - RANK :], torch.zeros(RANK, dtype=W.dtype), 1e-12, "the rest of it is gone")
    close(B.T @ B, torch.diag(S[-RANK:]) / s, 1e-12, "B^T B")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_milora_can_train_on_a_weight_that_lacks_rank(dtype: torch.dtype) -> None:
    """Exactly zero singular values would make A = B = 0, a point that no gradient leaves."""
    W = weight_of(8, 2, dtype) @ weight_of(2, 6, dtype)
    for low in (W, torch.nn.functional.pad(torch.eye(2, dtype=dtype), (0, 4, 0, 6))):
        init = start(MiLoRA(rank=RANK), low)
        assert bool(init.train["A"].norm(dim=1).all())
        assert bool(init.train["B"].norm(dim=0).all())
        assert init.base is not None
        close(init.base + init.train["B"] @ init.train["A"], low, 1e-6, "start")


# ---- LoRA-XS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_lora_xs_bases(shape: tuple[int, int]) -> None:
    W = weight_of(*shape)
    init = start(LoRAXS(rank=RANK), W)
    A, B, S = init.frozen["A"], init.frozen["B"], spectrum(W)[:RANK]
    close(B.T @ B, eye(RANK), 1e-12, "B is orthonormal")
    close(A @ A.T, torch.diag(S**2), 1e-12, "the singular values sit on A")
    close(B @ A, singular_part(W, slice(0, RANK)), 1e-12, "the bases belong together")
    assert list(init.train) == ["R"]


@pytest.mark.parametrize("shape", SHAPES)
def test_lora_xs_starts_near_the_base_in_closed_form(shape: tuple[int, int]) -> None:
    W = weight_of(*shape)
    xs = LoRAXS(rank=RANK, alpha=2.0)
    init = start(xs, W)
    R, S = init.train["R"], spectrum(W)[:RANK]
    delta = xs.weight(W, {**init.train, **init.frozen}) - W
    close(delta.norm(), xs.scale * (R * S).norm(), 1e-12, "||s B R A|| = s ||R diag(S)||")
    assert 0 < float(delta.norm()) < 1e-4 * float(W.norm())
    assert not start(replace(xs, init_std=0.0), W).train["R"].any()


def test_lora_xs_randomised_is_near_the_top_and_another_for_every_seed() -> None:
    """As the spectrum asks: more power iterations find more of the top subspace, and different draws agree on it."""
    W = weight_of(48, 40)
    exact = start(LoRAXS(rank=4), W).frozen["B"]

    def bases(iterations: int, seed: int) -> Tensor:
        variant = LoRAXS(rank=4, svd="randomised", oversampling=0, iterations=iterations)
        return variant.init(W, torch.Generator().manual_seed(seed)).frozen["B"]

    def missed(B: Tensor) -> float:
        """Of the exact top subspace: squared sines of the angles, summed."""
        return 4 - float((exact.T @ B).square().sum())

    assert missed(bases(0, 1)) > missed(bases(2, 1)) > missed(bases(30, 1))
    assert missed(bases(300, 1)) < 1e-3
    close(bases(2, 1), bases(2, 1), 0.0, "the seed decides")
    assert float((bases(2, 1) - bases(2, 2)).norm()) > 0.1
    close(bases(2, 1).T @ bases(2, 1), eye(4), 1e-12, "still orthonormal")
    assert missed(exact) < 1e-9, "the control"


def test_lora_xs_noise_has_the_declared_size() -> None:
    R = start(LoRAXS(rank=40), weight_of(48, 48)).train["R"]
    assert 0.95e-5 < float(R.std()) < 1.05e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_lora_xs_stays_between_the_top_singular_spaces(shape: tuple[int, int]) -> None:
    model = adapted(LoRAXS(rank=RANK), Case(*shape))
    W = host_of(model).dense().detach().clone()
    move(model)
    delta = host_of(model).effective_weight() - W
    U, _, Vh = np.linalg.svd(W.numpy())
    left = torch.from_numpy(U[:, :RANK] @ U[:, :RANK].T)
    right = torch.from_numpy(Vh[:RANK].T @ Vh[:RANK])
    assert float(delta.norm()) > 0.1
    close(left @ delta @ right, delta, 1e-12, "projected update")


# ---- Stiefel --------------------------------------------------------------------------------------------------------


def fit(
    model: torch.nn.Module,
    variant: Stiefel,
    optimiser: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
    *,
    retract: bool = True,
    flat: bool = False,
    steps: int = 200,
) -> None:
    """Regression towards a random map under gradient noise. ``flat`` ignores the method's parameter groups."""
    states = layer_states(model)
    groups = variant.param_groups(states, lr=1e-2)
    if flat:
        groups = [{"params": [p for group in groups for p in group["params"]], "lr": 1e-2}]
    optim = optimiser(groups)
    rng = torch.Generator().manual_seed(0)
    dtype = states[0].W.dtype
    out, in_ = states[0].W.shape
    target = torch.randn(out, in_, generator=rng, dtype=torch.float64).to(dtype)
    for step in range(steps):
        x = torch.randn(8, in_, generator=rng, dtype=torch.float64).to(dtype)
        optim.zero_grad()
        (model(x) - x @ target.T).square().mean().backward()
        variant.before_step(states)
        optim.step()
        if retract:
            variant.after_step(states, step, steps)


def adamw(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=0.1)


def momentum(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01)


def defects(model: torch.nn.Module) -> list[float]:
    t = layer_states(model)[0].t
    return [float(orthogonality_defect(t[key].detach())) for key in ("U", "V")]


@pytest.mark.parametrize("optimiser", [adamw, momentum])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("shape", [(10, 6), (5, 9)])
def test_stiefel_stays_on_the_manifold(
    optimiser: Callable[[list[dict[str, object]]], torch.optim.Optimizer], flat: bool, shape: tuple[int, int]
) -> None:
    stiefel = Stiefel(rank=4)
    model = adapted(stiefel, Case(*shape), torch.float32)
    before = {key: tensor.detach().clone() for key, tensor in layer_states(model)[0].t.items()}
    fit(model, stiefel, optimiser, flat=flat)
    assert max(defects(model)) < 1e-5
    moved = [float((layer_states(model)[0].t[key].detach() - before[key]).norm()) for key in ("U", "s", "V")]
    assert min(moved) > 0.1, "the control: the factors have moved"


@pytest.mark.parametrize("optimiser", [adamw, momentum])
def test_without_retraction_the_factors_leave_the_manifold(
    optimiser: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
) -> None:
    stiefel = Stiefel(rank=4)
    model = adapted(stiefel, Case(10, 6), torch.float32)
    fit(model, stiefel, optimiser, retract=False)
    assert min(defects(model)) > 0.1


def test_stiefel_starts_orthonormal_with_nothing_added() -> None:
    t = start(Stiefel(rank=4), weight_of(10, 6, torch.float32)).train
    assert float(orthogonality_defect(t["U"])) < 1e-6
    assert float(orthogonality_defect(t["V"])) < 1e-6
    assert not t["s"].any()


def test_stiefel_factors_carry_no_weight_decay() -> None:
    model = adapted(Stiefel(rank=2), Case(7, 5))
    state = layer_states(model)[0]
    s_group, factors = Stiefel(rank=2).param_groups([state], lr=0.5)
    assert s_group["params"] == [state.t["s"]]
    assert "weight_decay" not in s_group
    assert {id(p) for p in factors["params"]} == {id(state.t["U"]), id(state.t["V"])}
    assert factors["weight_decay"] == 0.0
    assert s_group["lr"] == factors["lr"] == 0.5


def test_stiefel_under_sgd_does_not_depend_on_the_gauge() -> None:
    """Reordering the triplets and flipping both signs of one describes the same matrix, also after training."""
    stiefel = Stiefel(rank=3)
    weights = []
    order, signs = torch.tensor([2, 0, 1]), torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    for turned in (False, True):
        model = adapted(stiefel, Case(8, 6))
        t = layer_states(model)[0].t
        with torch.no_grad():
            t["s"].copy_(torch.tensor([0.5, 1.0, 2.0]))
            if turned:
                t["U"].copy_(t["U"][:, order] * signs)
                t["V"].copy_(t["V"][:, order] * signs)
                t["s"].copy_(t["s"][order])
        fit(model, stiefel, torch.optim.SGD, steps=50)
        weights.append(host_of(model).effective_weight())
    close(weights[1], weights[0], 1e-10, "trained from another gauge")


def test_stiefel_step_is_the_optimisers_step_to_first_order() -> None:
    """A small step D of the optimiser moves the factor by D's tangent part, not by D: written out by hand."""
    stiefel = Stiefel(rank=2)
    model = adapted(stiefel, Case(7, 5))
    states = layer_states(model)
    U = states[0].t["U"]
    X = U.detach().clone()
    D = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gaps = []
    for t in (1e-3, 5e-4):
        with torch.no_grad():
            U.copy_(X)
            stiefel.before_step(states)
            U.add_(t * D)
            stiefel.after_step(states, 0, 1)
        want = X + t * (D - X @ (X.T @ D + D.T @ X) / 2)
        gaps.append(float((U - want).detach().norm()))
    assert gaps[0] < 1e-5
    assert 3.8 < gaps[0] / gaps[1] < 4.2


def test_stiefel_step_of_any_size() -> None:
    """The polar factor of the tangent step, by a dense SVD; also where the step itself would wipe out a column."""
    stiefel = Stiefel(rank=2)
    model = adapted(stiefel, Case(7, 5))
    states = layer_states(model)
    U = states[0].t["U"]
    X = U.detach().clone()
    wipe = torch.zeros_like(X)
    wipe[:, 0] = -X[:, 0]
    for D in (weight_of(7, 2), 10 * weight_of(7, 2), wipe):
        with torch.no_grad():
            U.copy_(X)
            stiefel.before_step(states)
            U.add_(D)
            stiefel.after_step(states, 0, 1)
        P, _, Qh = np.linalg.svd((X + D - X @ (X.T @ D + D.T @ X) / 2).numpy(), full_matrices=False)
        close(U, torch.from_numpy(P @ Qh), 1e-10, "retracted")


def test_stiefel_batches_layers_only_where_they_are_alike() -> None:
    """Layers of one shape in two precisions, and layers of several shapes, are stepped together."""
    model = torch.nn.ModuleDict(
        {"a": linear(6, 4, True), "b": linear(6, 4, True).double(), "c": linear(4, 6, True), "d": linear(4, 4, True)}
    )
    stiefel = Stiefel(rank=2)
    attach(model, stiefel, "all")
    states = layer_states(model)
    stiefel.before_step(states)
    move(model, scale=0.1)
    stiefel.after_step(states, 0, 1)
    for state in states:
        for key in ("U", "V"):
            assert float(orthogonality_defect(state.t[key].detach())) < 2e-6
            assert state.t[key].dtype == state.W.dtype
        assert state.scratch == {}


def test_stiefel_refuses_to_go_on_after_divergence() -> None:
    stiefel = Stiefel(rank=2)
    model = adapted(stiefel, Case(7, 5))
    states = layer_states(model)
    stiefel.before_step(states)
    with torch.no_grad():
        states[0].t["U"].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="diverged"):
        stiefel.after_step(states, 0, 1)


def test_stiefel_of_full_rank() -> None:
    stiefel = Stiefel(rank=5)
    model = adapted(stiefel, Case(5, 5), torch.float32)
    fit(model, stiefel, adamw, steps=50)
    assert max(defects(model)) < 1e-5


# ---- seeds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "dora", "lora_xs", "stiefel"])
def test_another_seed_is_another_start(name: str) -> None:
    W = weight_of(7, 5)
    first, second = (start(create(name, {"rank": 2}), W, seed).train for seed in (0, 1))
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_random_orthonormal_takes_the_generator_it_is_given() -> None:
    rng = torch.Generator().manual_seed(0)
    first, second = (random_orthonormal(5, 2, rng) for _ in range(2))
    assert not torch.equal(first, second)
