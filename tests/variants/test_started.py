"""LoRA from another start, another scale or another step: what each paper promises beyond the formula."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.variants.models import host_of, net
from tests.variants.oracles.dense import singular_part
from variants.corda import CorDA
from variants.core import Init, LayerState, LoRAPair, Refused, Tensors, Variant, attach, create, layer_states
from variants.core.cases import Case, adapted, close, generator, model_of, move
from variants.core.host import hosts
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

SHAPES = [(9, 6), (6, 9), (7, 7)]
RANK = 3
ALPHAS = [None, 1.0, 12.0]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def inputs(n: int, in_: int, seed: int = 1) -> Tensor:  # shape: (n, in)
    """Vectors with a mean, and variances that fall from direction to direction."""
    mixed = noise(n, in_, seed=seed) * 0.7 ** torch.arange(in_)
    return mixed @ torch.linalg.qr(noise(in_, in_, seed=seed + 1)).Q + noise(in_, seed=seed + 2)


def stats_of(X: Tensor) -> dict[str, Tensor]:
    return {"covariance": X.T @ X / len(X), "mean": X.mean(0)}


def begin(variant: Variant, W: Tensor, stats: Tensors | None = None, seed: int = 0) -> Init:
    return variant.init(W, generator(seed), stats)


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def spectrum(W: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.svd(W.detach().numpy(), compute_uv=False))


def dense_svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    return torch.from_numpy(U), torch.from_numpy(S), torch.from_numpy(Vh)


def rank_of(M: Tensor) -> int:
    return int((spectrum(M) > 1e-10 * spectrum(M)[0]).sum())


# ---- what is declared, counted and refused --------------------------------------------------------------------------

LLAMA_2_7B = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]  # 32 times


@pytest.mark.parametrize(
    ("variant", "published"),
    [
        *((create(name, {"rank": 8}), 19_988_480) for name in ("lora_ga", "lora_one", "rslora", "lora_plus")),
        *((create(name, {"rank": 128}), 319_815_680) for name in ("pissa", "corda", "lora_null", "olora")),
        (LoRANull(rank=128, version="v2"), 32 * 128 * (4 * 4096 + 2 * 11008 + 4096)),
    ],
    ids=lambda part: getattr(part, "name", None),
)
def test_counts_of_llama_2_7b(variant: Variant, published: int) -> None:
    assert 32 * sum(variant.parameter_count(*shape) for shape in LLAMA_2_7B) == published


def test_what_is_measured_beforehand() -> None:
    needs = {
        name: set(create(name).needs)
        for name in ("lora_ga", "lora_one", "corda", "lora_null", "eva", "olora", "pissa", "rslora", "scaled_lora")
        if create(name).needs
    }
    assert needs == {
        "lora_ga": {"gradient"},
        "lora_one": {"gradient"},
        "corda": {"covariance"},
        "lora_null": {"covariance"},
        "eva": {"covariance", "mean"},
    }
    assert not LoRAOne().exact_init


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lora_plus", {"ratio": 0.0}),
        ("pissa", {"oversampling": -1}),
        ("pissa", {"iterations": 2.5}),
        ("lora_ga", {"gamma": 0.0}),
        ("lora_one", {"gamma": -1.0}),
        ("corda", {"damping": 0.0}),
        ("eva", {"rho": 0.5}),
        ("scaled_lora", {"damping": 0.0}),
        *((name, {"rank": 0}) for name in ("lora_plus", "pissa", "lora_ga", "lora_one", "corda", "eva", "scaled_lora")),
    ],
)
def test_values_that_no_layer_can_use_are_errors(name: str, values: dict[str, object]) -> None:
    (field,) = values
    with pytest.raises(ValueError, match=f"^{name}: {field} is a .*number"):
        create(name, values)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("variant", [LoRAGA(rank=2), LoRAOne(rank=2), CorDA(rank=2), LoRANull(rank=2), EVA(rank=2)])
def test_statistics_which_say_nothing_are_refused(variant: Variant, bad: float) -> None:
    known = {"gradient": (7, 5), "covariance": (5, 5), "mean": (5,)}
    stats = {need: torch.full(known[need], bad, dtype=torch.float64) for need in variant.needs}
    with pytest.raises(Refused, match="calibrate with"):
        begin(variant, noise(7, 5), stats)


# ---- rsLoRA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 1.0, 16.0])
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_rslora_is_lora_with_another_alpha(rank: int, alpha: float | None) -> None:
    """Exported as LoRA its alpha is multiplied by sqrt(rank); also after the rank is changed."""
    given = rank if alpha is None else alpha
    for variant in (RSLoRA(rank=rank, alpha=alpha), replace(RSLoRA(rank=7 - rank, alpha=alpha), rank=rank)):
        assert variant.scale == pytest.approx(given / rank**0.5, rel=1e-15)
    t = {"A": noise(rank, 6), "B": noise(8, rank)}
    W, rs = noise(8, 6), RSLoRA(rank=rank, alpha=alpha)
    close(rs.weight(W, t), LoRA(rank=rank, alpha=given * rank**0.5).weight(W, t), 1e-13, "exported")
    differs = not torch.allclose(rs.weight(W, t), LoRA(rank=rank, alpha=given).weight(W, t))
    assert differs is (rank > 1), "the control: with the same alpha the two are the same at rank 1 only"


# ---- LoRA+ ----------------------------------------------------------------------------------------------------------


def rates(variant: Variant, model: nn.Module, lr: float) -> dict[str, float]:
    """Each trainable tensor's learning rate, by its path."""
    paths = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    groups = variant.param_groups(layer_states(model), lr)
    return {paths[id(p)]: group["lr"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("ratio", [16.0, 80.0, 1.0])
def test_lora_plus_gives_every_b_the_larger_rate(ratio: float) -> None:
    found = {}
    for variant in (LoRAPlus(rank=2, ratio=ratio), LoRA(rank=2)):
        model = net()
        attach(model, variant)
        found[variant.name] = rates(variant, model, 1e-3)
    for path, rate in found["lora_plus"].items():
        assert rate == 1e-3 * (ratio if path.endswith(".B") else 1.0)
        assert found["lora"][path] == 1e-3, "the control: LoRA has one rate"
    assert LoRAPlus().ratio == 16.0


# ---- PiSSA, randomised ----------------------------------------------------------------------------------------------


def flat(out: int, in_: int) -> Tensor:
    """A matrix without decay in its spectrum, on which approximate decompositions differ most from exact ones."""
    return noise(out, in_, seed=out)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("how", [{}, {"oversampling": 0}, {"oversampling": 0, "iterations": 0}], ids=str)
def test_pissa_randomised_starts_exactly_whatever_it_finds(how: dict[str, int], alpha: float | None) -> None:
    W = flat(40, 30)
    pissa = PiSSA(rank=4, alpha=alpha, svd="randomised", **how)
    init = begin(pissa, W)
    assert init.base is not None
    close(pissa.weight(init.base, init.train), W, 1e-13, "start")
    A, B = init.train["A"], init.train["B"]
    close(B.T @ B, A @ A.T, 1e-12, "balanced")


def test_pissa_randomised_needs_oversampling_or_iterations_to_be_pissa() -> None:
    W = flat(60, 50)
    exact = spectrum(W)[:8]

    def error(oversampling: int, iterations: int) -> float:
        init = begin(PiSSA(rank=8, svd="randomised", oversampling=oversampling, iterations=iterations), W)
        return float((spectrum(init.train["B"] @ init.train["A"])[:8] / exact - 1).abs().max())

    assert error(42, 0) < 1e-12, "with every column it is exact"
    assert error(10, 4) < 0.02
    assert error(10, 30) < 1e-6
    assert error(0, 4) > 2 * error(10, 4), "the authors' call has no oversampling"
    assert error(0, 0) > 0.2


def test_pissa_randomised_depends_on_the_seed_alone() -> None:
    W = flat(40, 30)
    pissa = PiSSA(rank=4, svd="randomised", oversampling=0, iterations=1)
    first, again, other = (begin(pissa, W, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train["A"], again.train["A"])
    assert float((first.train["A"] - other.train["A"]).norm()) > 1e-3


# ---- OLoRA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_olora_takes_the_leading_part_of_the_qr_decomposition(shape: tuple[int, int], alpha: float | None) -> None:
    W = noise(*shape)
    olora = OLoRA(rank=RANK, alpha=alpha)
    init = begin(olora, W)
    A, B = init.train["A"], init.train["B"]
    Q, R = (torch.from_numpy(part) for part in np.linalg.qr(W.numpy()))
    sign = torch.sign(R.diagonal())[:RANK]
    close(B, Q[:, :RANK] * sign, 1e-12, "B = Q_r")
    close(A, sign[:, None] * R[:RANK], 1e-12, "A = R_r")
    close(B.T @ B, eye(RANK), 1e-12, "orthonormal")
    close(A[:, :RANK].tril(-1), torch.zeros(RANK, RANK, dtype=W.dtype), 1e-12, "upper triangular")
    close((B @ A)[:, :RANK], W[:, :RANK], 1e-12, "the first columns of W")
    assert init.base is not None
    close(W - init.base, olora.scale * B @ A, 1e-12, "s is not divided out")


def test_olora_depends_on_the_order_of_the_inputs_and_not_on_the_principal_subspace() -> None:
    W = noise(9, 7) * torch.tensor([0.1, 0.1, 1, 1, 1, 5, 5], dtype=torch.float64)
    B, A = (begin(OLoRA(rank=2), W).train[name] for name in ("B", "A"))
    assert float(spectrum(B @ A)[0] / spectrum(W)[0]) < 0.8
    principal = begin(PiSSA(rank=2), W).train
    close(spectrum(principal["B"] @ principal["A"])[0], spectrum(W)[0], 1e-12, "the control")
    turned = begin(OLoRA(rank=2), W.flip(1)).train["B"]
    assert float((turned @ turned.T - B @ B.T).norm()) > 0.1


def test_olora_starts_exactly_on_columns_that_depend_on_each_other() -> None:
    W = noise(7, 5)
    W[:, 1] = 2 * W[:, 0]
    init = begin(OLoRA(rank=RANK), W)
    assert init.base is not None
    close(init.base + init.train["B"] @ init.train["A"], W, 1e-12, "start")
    close(init.train["B"].T @ init.train["B"], eye(RANK), 1e-12, "orthonormal")


# ---- LoRA-GA --------------------------------------------------------------------------------------------------------

DIRECTIONS = ["ArB2r", "A2rBr", "ArBr", "random"]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("faithful", ["paper", "code"])
@pytest.mark.parametrize("shape", SHAPES)
def test_lora_ga_takes_disjoint_directions_of_the_gradient(
    shape: tuple[int, int], faithful: str, direction: str
) -> None:
    """A 4r wide randomised decomposition of so small a gradient is exact, so that both modes are held to the same."""
    G, out = noise(*shape, seed=3), shape[0]
    ga = LoRAGA(rank=RANK, alpha=5.0, direction=direction, faithful=faithful, gamma=16.0)
    assert ga.scale == 5.0 / RANK**0.5
    t = begin(ga, noise(*shape), {"gradient": G}).train
    U, _, Vh = dense_svd(G)
    c = out**0.25 / 4
    for_A, for_B = (t["A"] @ Vh.T / c).abs(), (t["B"].T @ U / c).abs()  # rows of the identity: which triplet is which
    for chosen in (for_A, for_B):
        close(chosen.sort(dim=1).values[:, -1], torch.ones(RANK, dtype=G.dtype), 1e-9, "singular vectors of G")
    mine, others = for_A.argmax(1).tolist(), for_B.argmax(1).tolist()
    assert sorted(mine + others) == list(range(2 * RANK)), "each of the first 2r triplets is used once"
    first, second = list(range(RANK)), list(range(RANK, 2 * RANK))
    expected = {"ArB2r": (first, second), "A2rBr": (second, first), "ArBr": ([1, 3, 5], [0, 2, 4])}
    assert direction == "random" or expected[direction] == (mine, others)
    close(t["A"] @ t["A"].T, out**0.5 / 16 * eye(RANK), 1e-9, "A A^T")
    close(t["B"].T @ t["B"], out**0.5 / 16 * eye(RANK), 1e-9, "B^T B")


class Overlapping(LoRAGA):
    """Both factors from the same triplets."""

    def starting_pair(self, W: Tensor, rng: torch.Generator, stats: Tensors | None) -> LoRAPair:
        swapped = LoRAGA(rank=self.rank, direction="A2rBr", gamma=self.gamma)
        return LoRAPair(super().starting_pair(W, rng, stats).A, swapped.starting_pair(W, rng, stats).B)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_lora_gas_first_step_is_the_best_of_rank_2r(shape: tuple[int, int], direction: str) -> None:
    G = noise(*shape, seed=3)
    best = singular_part(G, slice(0, 2 * RANK))

    def off(ga: LoRAGA) -> float:
        t = begin(ga, noise(*shape), {"gradient": G}).train
        step = t["B"] @ t["B"].T @ G + G @ t["A"].T @ t["A"]
        return float((step - shape[0] ** 0.5 / ga.gamma * best).norm())

    assert off(LoRAGA(rank=RANK, direction=direction)) < 1e-12
    assert off(Overlapping(rank=RANK)) > 0.01


@pytest.mark.parametrize("cls", [LoRAGA, Overlapping])
def test_a_gradient_step_of_lora_ga_follows_full_fine_tuning(cls: type[LoRAGA]) -> None:
    """With the real gradient of a loss, through the adapted layer, to first order in the learning rate."""
    case = Case(8, 6, bias=False)
    plain, x, y = model_of(case), noise(20, 6, seed=5), noise(20, 8, seed=6)
    (G,) = torch.autograd.grad((plain.layer(x) - y).square().mean(), plain.layer.weight)
    variant = cls(rank=2, alpha=3.0)
    attach(plain, variant, "layer", stats={"layer": {"gradient": G}})
    before = host_of(plain).effective_weight()
    optimiser = torch.optim.SGD(variant.param_groups(layer_states(plain), lr=1e-6))
    (plain(x) - y).square().mean().backward()
    optimiser.step()
    step = (host_of(plain).effective_weight() - before).flatten()
    wanted = -singular_part(G, slice(0, 4)).flatten()
    cosine = float(step @ wanted / step.norm() / wanted.norm())
    assert (cosine > 1 - 1e-6) is (cls is LoRAGA)


def test_lora_ga_does_not_depend_on_sign_or_size_of_the_loss() -> None:
    W, G = noise(8, 6), noise(8, 6, seed=3)
    bases = [begin(LoRAGA(rank=2), W, {"gradient": factor * G}).base for factor in (1.0, 100.0, -1.0)]
    for base in bases[1:]:
        assert base is not None
        assert bases[0] is not None
    products = [W - base for base in bases if base is not None]
    close(products[1], products[0], 1e-12, "size")
    close(products[2].abs(), products[0].abs(), 1e-12, "sign")
    plain = begin(LoRAGA(rank=2, stable=False), W, {"gradient": G}).train
    close(plain["A"] @ plain["A"].T, eye(2), 1e-12, "without the stable scale the factors are orthonormal")


def test_lora_gas_code_decomposes_approximately() -> None:
    G = flat(60, 50)
    exact, code = (begin(LoRAGA(rank=4, faithful=how), G, {"gradient": G}).train["A"] for how in ("paper", "code"))
    apart = float((exact.T @ exact - code.T @ code).norm() / (exact.T @ exact).norm())
    assert 1e-6 < apart < 0.5


@pytest.mark.parametrize(("shape", "says"), [((9, 5), "write a rank from 1 to 2"), ((9, 1), "leave it out")])
def test_lora_ga_needs_room_for_twice_its_rank(shape: tuple[int, int], says: str) -> None:
    LoRAGA(rank=2).check(9, 4)
    with pytest.raises(Refused, match=f"has no 6 triplets.*{says}"):
        LoRAGA(rank=3).check(*shape)


# ---- CorDA ----------------------------------------------------------------------------------------------------------


def oriented(W: Tensor, C: Tensor, damping: float = 0.01) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T C'^(-1), with the inverse written out."""
    C = C + damping * C.diagonal().mean() * eye(len(C))
    U, S, Vh = dense_svd(W @ C)
    return U, S, Vh @ torch.linalg.inv(C)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("mode", ["ipa", "kpa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_corda_takes_triplets_in_the_geometry_of_the_inputs(
    shape: tuple[int, int], mode: str, alpha: float | None
) -> None:
    W, k = noise(*shape), min(shape)
    C = stats_of(inputs(50, shape[1]))["covariance"]
    corda = CorDA(rank=RANK, alpha=alpha, mode=mode)
    A, B = (begin(corda, W, {"covariance": C}).train[name] for name in ("A", "B"))
    U, S, Vh = oriented(W, C)
    close(U * S @ Vh, W, 1e-10, "the whole decomposition is W")
    chosen = slice(0, RANK) if mode == "ipa" else slice(k - RANK, k)
    close(corda.scale * B @ A, U[:, chosen] * S[chosen] @ Vh[chosen], 1e-9, "the chosen part")
    close(B.T @ B, torch.diag(S[chosen]) / corda.scale, 1e-9, "columns of B are orthogonal")
    damped = C + 0.01 * C.diagonal().mean() * eye(shape[1])
    close(A @ damped @ damped @ A.T, torch.diag(S[chosen]) / corda.scale, 1e-9, "rows of A C' are orthogonal")
    assert float((A @ A.T - torch.diag((A @ A.T).diagonal())).norm()) > 1e-3, "rows of A are not"


def test_cordas_last_triplets_matter_least_to_the_calibration_inputs() -> None:
    W, X = noise(8, 8), inputs(200, 8)
    C = stats_of(X)["covariance"]
    U, S, Vh = oriented(W, C)
    effect = [
        float((X @ (U[:, i : i + 2] * S[i : i + 2] @ Vh[i : i + 2]).T).norm()) for i in range(7)
    ]  # of each slice of two triplets
    pair = {}
    for variant in (CorDA(rank=2, mode="kpa"), CorDA(rank=2, mode="ipa"), MiLoRA(rank=2)):
        t = begin(variant, W, {"covariance": C}).train
        pair[getattr(variant, "mode", "milora")] = float((X @ (t["B"] @ t["A"]).T).norm())
    assert pair["kpa"] == pytest.approx(min(effect), rel=1e-8)
    assert pair["kpa"] < pair["milora"] < pair["ipa"]


def test_corda_without_directions_is_pissa() -> None:
    """A covariance which prefers none leaves the decomposition of W; its unit moves size from one factor to the other
    and leaves the product."""
    W = noise(9, 6)
    for unit in (1.0, 100.0):
        corda, pissa = begin(CorDA(rank=2), W, {"covariance": unit * eye(6)}), begin(PiSSA(rank=2), W)
        assert corda.base is not None
        assert pissa.base is not None
        close(corda.base, pissa.base, 1e-12, "residual")
        close(corda.train["B"], (1.01 * unit) ** 0.5 * pissa.train["B"], 1e-12, "B grows with the unit of C")


def test_corda_works_on_a_singular_covariance_and_a_weight_that_lacks_rank() -> None:
    X, low = inputs(3, 9), noise(6, 2) @ noise(2, 9)
    singular, axes = stats_of(X)["covariance"], nn.functional.pad(eye(2), (0, 7, 0, 4))
    pairs = ((low, singular), (axes, singular.diag().diag()))  # the second with singular values of exactly zero
    for dtype, (W, C) in itertools.product((torch.float32, torch.float64), pairs):
        init = begin(CorDA(rank=RANK, mode="kpa"), W.to(dtype), {"covariance": C.to(dtype)})
        assert all(bool(tensor.isfinite().all()) for tensor in init.train.values())
        assert bool(init.train["A"].norm(dim=1).all())
        assert bool(init.train["B"].norm(dim=0).all())
        assert init.base is not None
        close(init.base + init.train["B"] @ init.train["A"], W, 1e-5, "start")


# ---- EVA ------------------------------------------------------------------------------------------------------------


def directions(X: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k principal directions of the rows of X, and their singular values, by an SVD of the data."""
    _, S, Vh = dense_svd(X - X.mean(0))
    return Vh[:k], S[:k]


def up_to_sign(got: Tensor, want: Tensor, tol: float, what: str) -> None:
    close(torch.sign((got * want).sum(1, keepdim=True)) * got, want, tol, what)


@pytest.mark.parametrize("shape", SHAPES)
def test_eva_starts_from_the_principal_directions_of_the_centred_inputs(shape: tuple[int, int]) -> None:
    X = inputs(60, shape[1])
    t = begin(EVA(rank=RANK), noise(*shape), stats_of(X)).train
    want, S = directions(X, RANK)
    up_to_sign(t["A"], want, 1e-8, "A")
    close(t["A"] @ t["A"].T, eye(RANK), 1e-10, "orthonormal")
    assert not t["B"].any()
    uncentred = dense_svd(X)[2][:RANK]
    assert float((uncentred.T @ uncentred - t["A"].T @ t["A"]).norm()) > 0.1, "the control: the mean matters"
    whitened = begin(EVA(rank=RANK, whiten=True), noise(*shape), stats_of(X)).train["A"]
    up_to_sign(whitened, want / S.sqrt()[:, None] * len(X) ** 0.25, 1e-8, "divided by the root of the singular value")


def test_eva_does_not_whiten_what_does_not_vary() -> None:
    X = inputs(3, 6)  # two directions about their mean
    begin(EVA(rank=2, whiten=True), noise(7, 6), stats_of(X))
    begin(EVA(rank=3), noise(7, 6), stats_of(X))
    for dtype in (torch.float32, torch.float64):  # what rounding leaves of a variance of zero depends on it
        stats = {name: tensor.to(dtype) for name, tensor in stats_of(X).items()}
        with pytest.raises(Refused, match="vary in fewer than 3 directions: write a lower rank"):
            begin(EVA(rank=3, whiten=True), noise(7, 6).to(dtype), stats)


Data = dict[str, Tensor]


def layered(spread: dict[str, float], in_: int = 8) -> Data:
    """Inputs of several layers: the larger the spread, the fewer directions explain a layer's variance."""
    return {path: noise(80, in_, seed=i) * spread[path] ** torch.arange(in_) + 0.5 for i, path in enumerate(spread)}


def by_hand(data: Data, rank: int, rho: float) -> dict[str, int]:
    """Ranks by explained variance, taken one at a time from whoever has the largest share left."""
    ranks = dict.fromkeys(data, 0)
    shares = {
        path: (directions(X, 8)[1] ** 2 / directions(X, 8)[1].square().sum()).tolist() for path, X in data.items()
    }
    for _ in range(rank * len(data)):
        open_ = [path for path in data if ranks[path] < int(rho * rank)]
        taken = max(open_, key=lambda path: shares[path][ranks[path]])
        ranks[taken] += 1
    return {path: n for path, n in ranks.items() if n}


@pytest.mark.parametrize("alpha", [None, 5.0])
@pytest.mark.parametrize(("rank", "rho"), [(2, 2.0), (2, 1.0), (3, 1.5), (1, 4.0), (2, 4.0), (3, 1.4)])
def test_eva_divides_ranks_by_explained_variance(rank: int, rho: float, alpha: float | None) -> None:
    data = layered({"a": 0.9, "b": 0.4, "c": 0.7, "d": 0.99})
    eva = EVA(rank=rank, rho=rho, alpha=alpha)
    allotted = eva.allocate(dict.fromkeys(data, (10, 8)), {path: stats_of(X) for path, X in data.items()})
    ranks = {path: local.rank for path, local in allotted.items() if isinstance(local, EVA)}
    assert ranks == by_hand(data, rank, rho)
    assert sum(ranks.values()) == rank * len(data)
    assert max(ranks.values()) <= rho * rank
    for local in allotted.values():
        assert isinstance(local, EVA)
        assert local.scale == pytest.approx(eva.scale, rel=1e-14)
    if rho == 1:
        assert set(ranks.values()) == {rank}
    if rank == 1:
        assert set(ranks) < set(data), "a layer was left out, or this would show nothing"


def test_evas_layers_without_a_rank_carry_no_adapter() -> None:
    """Of two layers the one whose inputs go everywhere; the other one has a rank of its own in every formula."""
    model = nn.ModuleDict({"flat": nn.Linear(8, 5), "steep": nn.Linear(8, 5)}).double()
    data = {"flat": noise(80, 8), "steep": noise(80, 8) * torch.tensor([1.0, 1.0] + [0.01] * 6)}
    paths = attach(model, EVA(rank=1, alpha=3.0), "all", stats={path: stats_of(X) for path, X in data.items()})
    assert paths == ["steep"] == list(hosts(model))
    (state,) = layer_states(model)
    assert state.t["A"].shape == (2, 8)
    local = hosts(model)["steep"].carried("default").variant
    assert local.parameter_count(5, 8) == 2 * (5 + 8)
    with torch.no_grad():
        state.t["B"].normal_(generator=generator(1))
    want = model["steep"].weight + 3.0 * state.t["B"] @ state.t["A"]
    close(hosts(model)["steep"].effective_weight(), want, 1e-12, "scale of rank 1 at rank 2")


def test_evas_layers_with_the_same_inputs_start_alike() -> None:
    X = inputs(60, 8)
    first, second = (begin(EVA(rank=n), noise(5, 8), stats_of(X)).train["A"] for n in (2, 4))
    close(first, second[:2], 1e-12, "leading rows")


def test_eva_names_the_layer_that_it_cannot_calibrate() -> None:
    data = {"a": inputs(20, 8), "b": torch.ones(20, 8, dtype=torch.float64)}
    with pytest.raises(Refused, match="eva on b: its inputs do not vary"):
        EVA(rank=2).allocate(dict.fromkeys(data, (8, 8)), {path: stats_of(X) for path, X in data.items()})
    with pytest.raises(Refused, match="rank 9 does not fit"):
        EVA(rank=9).allocate({"a": (8, 8)}, {"a": stats_of(data["a"])})


# ---- LoRA-One -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 1.0, 16.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_lora_one_starts_after_a_normalised_step(shape: tuple[int, int], alpha: float | None) -> None:
    W, G, gamma = noise(*shape), noise(*shape, seed=3), 20.0
    one = LoRAOne(rank=RANK, alpha=alpha, gamma=gamma)
    size = (RANK if alpha is None else alpha) / (gamma * RANK**0.5)
    for factor in (1.0, 1e-3, 50.0):  # the loss's unit does not matter
        init = begin(one, W, {"gradient": factor * G})
        step = one.weight(W, init.train) - W
        close(step, -size * singular_part(G, slice(0, RANK)) / spectrum(G)[0], 1e-12, "start")
        close(spectrum(step)[0], torch.tensor(size, dtype=W.dtype), 1e-12, "its size")
    assert init.base is None
    assert float((step * G).sum()) < 0, "against the gradient"
    ascent = one.weight(W, begin(one, W, {"gradient": -G}).train) - W
    assert float((ascent * G).sum()) > 0, "the control: the sign decides"
    A, B = init.train["A"], init.train["B"]
    close(A @ A.T, B.T @ B, 1e-12, "balanced")


def test_lora_ones_start_lowers_the_loss() -> None:
    case = Case(8, 6, bias=False)
    model, x, y = model_of(case), noise(20, 6, seed=5), noise(20, 8, seed=6)

    def loss() -> Tensor:
        return (model(x) - y).square().mean()

    before = loss()
    (G,) = torch.autograd.grad(before, model.layer.weight)
    attach(model, LoRAOne(rank=2), "layer", stats={"layer": {"gradient": G}})
    assert float(loss().detach()) < float(before.detach()) - 1e-4


# ---- LoRA-Null ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_lora_null_takes_the_part_of_the_weight_that_the_inputs_hardly_see(
    shape: tuple[int, int], version: str, alpha: float | None
) -> None:
    W, X = noise(*shape), inputs(50, shape[1])
    C = stats_of(X)["covariance"]
    null = LoRANull(rank=RANK, alpha=alpha, version=version)
    init = begin(null, W, {"covariance": C})
    A, B = ({**init.train, **init.frozen}[name] for name in ("A", "B"))
    N = torch.linalg.eigh(C).eigenvectors[:, :RANK]  # ascending
    close(null.scale * B @ A, W @ N @ N.T, 1e-9, "the pair is W N N^T")
    close(A @ N @ N.T, A, 1e-9, "rows of A lie in the span of N")
    close(A @ A.T, B.T @ B, 1e-9, "balanced")
    loud = begin(LoRA(rank=RANK), W).train["A"]
    assert float((X @ A.T).norm() / A.norm()) < 0.7 * float((X @ loud.T).norm() / loud.norm())
    assert set(init.train) == ({"A", "B"} if version == "v1" else {"B"})


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_lora_null_v2_leaves_what_was_calibrated_on_alone(version: str) -> None:
    """Calibration inputs without any energy in ``rank`` directions; after training steps of any size."""
    case = Case(7, 8)
    model, X = model_of(case), inputs(5, 8)
    before = model(X).detach()
    null = LoRANull(rank=3, alpha=2.0, version=version)
    attach(model, null, "layer", stats={"layer": {"covariance": stats_of(X)["covariance"]}})
    W = host_of(model).original_dense().detach().clone()
    move(model)
    assert (float((model(X) - before).detach().norm()) < 1e-8) is (version == "v2")
    delta = host_of(model).effective_weight() - W
    assert float(delta.norm()) > 0.1
    pair = null.as_lora(W, host_of(model).carried("default").tensors())
    assert pair is not None
    assert rank_of(delta) == pair.A.shape[0] == (6 if version == "v1" else 3)


def test_lora_null_can_train_where_the_weight_has_nothing_to_take() -> None:
    W = torch.zeros(6, 5)
    W[0, 0] = 1.0  # nothing of it in the null space of inputs along the first axis
    C = torch.diag(torch.tensor([1.0, 0.1, 0.01, 1e-3, 1e-4]))
    init = begin(LoRANull(rank=2, version="v2"), W, {"covariance": C})
    assert bool(init.frozen["A"].norm(dim=1).all())
    assert init.base is not None
    close(init.base, W, 1e-6, "start")


# ---- Riemannian preconditioning -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OneSided(ScaledLoRA):
    """Preconditions A only."""

    def before_step(self, states: object) -> None:
        (state,) = states
        kept = state.t["B"].grad.clone()
        super().before_step(states)
        state.t["B"].grad.copy_(kept)


Optimiser = Callable[..., torch.optim.Optimizer]


def trained(variant: LoRA, optimiser: Optimiser, G: Tensor, lr: float, steps: int = 3) -> Tensor:
    """The effective weight after steps from the factors ``B G`` and ``G^(-1) A`` of one and the same start."""
    model = model_of(Case(8, 6, bias=False))
    attach(model, variant, "layer")
    states = layer_states(model)
    with torch.no_grad():
        states[0].t["A"].copy_(torch.linalg.inv(G) @ noise(variant.rank, 6, seed=7))
        states[0].t["B"].copy_(noise(8, variant.rank, seed=8) @ G)
    optim = optimiser(variant.param_groups(states, lr))
    x, y = noise(30, 6, seed=5), noise(30, 8, seed=6)
    for step in range(steps):
        optim.zero_grad()
        (model(x) - y).square().mean().backward()
        variant.before_step(states)
        optim.step()
        variant.after_step(states, step, steps)
    return host_of(model).effective_weight()


@pytest.mark.parametrize(
    ("variant", "optimiser", "invariant"),
    [
        (ScaledLoRA(rank=3, damping=1e-14), torch.optim.SGD, True),
        (OneSided(rank=3, damping=1e-14), torch.optim.SGD, False),
        (ScaledLoRA(rank=3, damping=1.0), torch.optim.SGD, False),
        (ScaledLoRA(rank=3, damping=1e-14), torch.optim.AdamW, False),
        (LoRA(rank=3), torch.optim.SGD, False),
    ],
)
def test_scaled_gradient_descent_does_not_depend_on_the_factorisation(
    variant: LoRA, optimiser: Optimiser, invariant: bool
) -> None:
    turned = noise(3, 3, seed=11) + 3 * eye(3)
    first, second = (trained(variant, optimiser, G, lr=0.1) for G in (eye(3), turned))
    apart = float((first - second).norm() / first.norm())
    assert apart < 1e-10 if invariant else apart > 1e-4


def with_gradients(out: int, in_: int, seed: int, dtype: torch.dtype = torch.float64) -> LayerState:
    """A layer of rank 2 off its start, with gradients."""
    model = nn.ModuleDict({"layer": nn.Linear(in_, out, bias=False, dtype=dtype)})
    attach(model, ScaledLoRA(rank=2), "layer", seed)
    move(model, seed=seed)
    (state,) = layer_states(model)
    for i, p in enumerate(state.t.values()):
        p.grad = noise(*p.shape, seed=100 * seed + i).to(dtype)
    return state


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
def test_preconditioning_divides_by_the_gram_matrix_of_the_other_factor(damping: float) -> None:
    """For layers of several shapes and precisions at once; the factors themselves stay."""
    states = [
        with_gradients(8, 6, 0),
        with_gradients(8, 6, 1),
        with_gradients(6, 8, 2),
        with_gradients(8, 6, 3, torch.float32),
    ]
    want = []
    for state in states:
        A, B, dA, dB = (tensor.detach().double() for tensor in (*state.t.values(), *(p.grad for p in state.t.values())))
        want += [
            torch.linalg.inv(B.T @ B + damping * eye(2)) @ dA,
            dB @ torch.linalg.inv(A @ A.T + damping * eye(2)),
            A.clone(),
            B.clone(),
        ]
    ScaledLoRA(rank=2, damping=damping).before_step(states)
    got = itertools.chain(*((s.t["A"].grad, s.t["B"].grad, s.t["A"], s.t["B"]) for s in states))
    for mine, theirs in zip(got, want, strict=True):
        close(mine, theirs, 1e-11 if mine.dtype == torch.float64 else 1e-5, "preconditioned")


def test_large_damping_leaves_loras_direction() -> None:
    states = [with_gradients(8, 6, 1)]
    kept = {name: p.grad.clone() for name, p in states[0].t.items() if p.grad is not None}
    ScaledLoRA(rank=2, damping=1e9).before_step(states)
    for name, gradient in kept.items():
        close(1e9 * states[0].t[name].grad, gradient, 1e-6, name)


def test_preconditioning_passes_over_tensors_without_gradient() -> None:
    states = [with_gradients(8, 6, 1)]
    states[0].t["A"].grad = None
    kept = states[0].t["B"].grad.clone()
    ScaledLoRA(rank=2).before_step(states)
    assert states[0].t["A"].grad is None
    assert not torch.equal(states[0].t["B"].grad, kept)


def test_preconditioning_starts_from_a_b_of_zeros_and_stops_at_divergence() -> None:
    variant = ScaledLoRA(rank=2, damping=1e-6)
    model = adapted(variant, Case(8, 6), torch.float32)
    states = layer_states(model)
    model(noise(9, 6).float()).square().mean().backward()
    variant.before_step(states)
    assert not states[0].t["A"].grad.any(), "B is zero, and a damping of 1e-6 divides nothing by it"
    assert bool(states[0].t["B"].grad.isfinite().all())
    with torch.no_grad():
        states[0].t["A"][0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"):
        variant.before_step(states)
