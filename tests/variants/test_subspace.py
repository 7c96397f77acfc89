"""What the papers of the subspace and triplet methods promise: starts, spectra, patterns, budgets, penalties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.variants.models import host_of
from tests.variants.oracles.dense import singular_part
from variants.adalora import AdaLoRA
from variants.core import Init, LayerState, Refused, Variant, activate, attach, layer_states
from variants.core.cases import Case, adapted, close, move
from variants.core.checks import CHECKS, SLOW_CHECKS, Check
from variants.core.linalg import orthogonality_defect, random_orthonormal
from variants.core.lowrank import DiagonalPair
from variants.dora import DoRA
from variants.ia3 import IA3
from variants.kasa import KaSA
from variants.lora import LoRA
from variants.lora_sb import LoRASB
from variants.lora_xs import LoRAXS
from variants.psoft import PSOFT
from variants.sorsa import SORSA
from variants.spectral_adapter import SpectralAdapter
from variants.svdiff import SVDiff
from variants.svf import SVF
from variants.svft import SVFT

SHAPES = [(9, 6), (6, 9), (7, 7)]


def weight_of(out: int, in_: int, seed: int = 0) -> Tensor:
    return torch.randn(out, in_, generator=torch.Generator().manual_seed(100 * out + seed), dtype=torch.float64)


def start(variant: Variant, W: Tensor, seed: int = 0, **stats: Tensor) -> Init:
    return variant.init(W, torch.Generator().manual_seed(seed), stats)


def at(variant: Variant, W: Tensor, scale: float = 0.0, **stats: Tensor) -> dict[str, Tensor]:
    """The tensors at the start, the trained ones taken ``scale`` off it."""
    init = start(variant, W, **stats)
    rng = torch.Generator().manual_seed(5)
    moved = {k: p + scale * torch.randn(p.shape, generator=rng, dtype=p.dtype) for k, p in init.train.items()}
    return {**init.frozen, **moved}


def spectrum(W: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.svd(W.detach().numpy(), compute_uv=False))


def descending(values: Tensor) -> Tensor:
    return values.sort(descending=True).values


def differs(got: Tensor, want: Tensor, by: float = 1e-3) -> bool:
    return float((got - want).detach().abs().max()) > by


# ---- counts and declarations ----------------------------------------------------------------------------------------


def decoder(layers: int, hidden: int, kv: int, ffn: int, which: str, q: int | None = None) -> dict[Any, int]:
    """Shapes of a decoder's layers by letter: q, k, v, o, gate, up, down."""
    q = q or hidden
    shapes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
    shapes |= {"g": (ffn, hidden), "u": (ffn, hidden), "d": (hidden, ffn)}
    found: dict[Any, int] = {}
    for letter in which:
        found[shapes[letter]] = found.get(shapes[letter], 0) + layers
    return found


MISTRAL_7B = (32, 4096, 1024, 14336)  # the shapes of LLaMA-3-8B too
LLAMA_3B = (28, 3072, 1024, 8192)
GEMMA_2B = (18, 2048, 256, 16384)
ALL = "qkvogud"
DEBERTA = {(768, 768): 48, (3072, 768): 12, (768, 3072): 12}


@pytest.mark.parametrize(
    ("variant", "layers", "published"),
    [
        (LoRASB(rank=32), decoder(*MISTRAL_7B, ALL), 229_376),
        (LoRASB(rank=96), decoder(*MISTRAL_7B, ALL), 2_064_384),
        (LoRASB(rank=64), decoder(*LLAMA_3B, ALL), 802_816),
        (LoRAXS(rank=64), decoder(*MISTRAL_7B, ALL), 917_504),
        (SVFT(pattern="plain"), decoder(*GEMMA_2B, ALL), 193_536),
        (SVFT(pattern="random", band=16), decoder(*GEMMA_2B, ALL), 6_352_416),
        (SVFT(pattern="random", band=16), decoder(28, 3072, 4096, 24576, ALL, q=4096), 19_816_384),
        (SVFT(band=8), decoder(28, 3072, 4096, 24576, ALL, q=4096), 10_221_792),  # the paper says 9.80M
        (SVFT(pattern="random", band=12), decoder(*MISTRAL_7B, "udog"), 13_087_232),
        (SVFT(pattern="plain"), decoder(*MISTRAL_7B, "udog"), 524_288),  # the paper says 0.48M
        (SVFT(pattern="plain"), decoder(*LLAMA_3B, ALL), 487_424),
        (SVFT(pattern="random", band=2), DEBERTA, 276_048),
        (SVFT(pattern="plain", faithful="code"), {(768, 768): 24}, 18_456),  # published with the hidden gate
        (SVFT(band=8, faithful="code"), DEBERTA, 934_920),
        (SVF(), decoder(*MISTRAL_7B, "qv"), 163_840),
        (SVF(), decoder(*MISTRAL_7B, "gud"), 393_216),
        (SVDiff(), decoder(*MISTRAL_7B, ALL), 720_896),
        (KaSA(rank=8), {(768, 768): 24}, 295_104),
        (KaSA(rank=8), {(1024, 1024): 48}, 786_816),
        (SORSA(rank=128), {(4096, 4096): 128, (11008, 4096): 64, (4096, 11008): 32}, 319_844_352),
        (SORSA(rank=64), decoder(*MISTRAL_7B, ALL), 167_786_496),
        (SpectralAdapter(rank=24), {(768, 768): 36}, 1_327_104),
        (SpectralAdapter(rank=8), decoder(*MISTRAL_7B, "qkvog"), 11_534_336),
        (SpectralAdapter(rank=8, form="rotational"), {(7, 9): 1}, 128),
        (SpectralAdapter(rank=8, form="rotational", faithful="code"), {(7, 9): 1}, 136),
        (PSOFT(rank=46), DEBERTA, 81_144),
        (PSOFT(rank=352), decoder(*LLAMA_3B, ALL), 12_246_080),
        (PSOFT(rank=256), decoder(*LLAMA_3B, "qv"), 1_856_512),
        (PSOFT(rank=4, vectors=False), {(7, 9): 1}, 6),
        (AdaLoRA(rank=12), DEBERTA, 1_991_520),
        (AdaLoRA(rank=64), decoder(*LLAMA_3B, "qv"), 18_353_664),
    ],
    ids=lambda it: str(it) if isinstance(it, int) else getattr(it, "name", None),
)
def test_published_counts(variant: Variant, layers: dict[tuple[int, int], int], published: int) -> None:
    assert sum(n * variant.parameter_count(*shape) for shape, n in layers.items()) == published


def test_what_starts_off_the_base() -> None:
    off = [LoRAXS(), LoRASB(), KaSA(), SVFT(faithful="code"), SVF(faithful="code")]
    on = [SVFT(), SVF(), SVDiff(), SORSA(), SORSA(faithful="code"), SpectralAdapter(), PSOFT(), AdaLoRA()]
    assert not any(variant.exact_init for variant in off)
    assert all(variant.exact_init for variant in on)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRASB(first_step=0.0), "first_step is a positive number"),
        (lambda: SVFT(band=-1), "band is a whole number from 0"),
        (lambda: PSOFT(rank=0), "rank is a whole number from 1"),
        (lambda: PSOFT(terms=3), "terms is a whole number from 4"),
        (lambda: SORSA(penalty_weight=-1.0), "penalty_weight is a number from 0"),
        (lambda: KaSA(gamma=-1.0), "gamma is a number from 0, not -1.0"),
        (lambda: AdaLoRA(rank=4, target=5), "target is a whole number from 1 to the rank 4"),
        (lambda: AdaLoRA(tinit=0.5, tfinal=0.5), "shares of a run with some left between"),
        (lambda: AdaLoRA(beta2=1.0), "beta2 is a number between 0 and 1, not 1.0"),
        (lambda: AdaLoRA(interval=0), "interval is a whole number from 1, not 0"),
    ],
)
def test_wrong_on_any_layer(make: Callable[[], Variant], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("variant", "shape", "message"),
    [
        (SVFT(band=6), (6, 9), "band 6 does not fit the 6 triplets of a 6 x 9 layer: write a band from 0 to 5"),
        (SVFT(band=1, pattern="top_k"), (6, 9), "needs a square layer, not 6 x 9: write pattern banded or random"),
        (KaSA(rank=6), (6, 9), "rank 6 leaves nothing of a 6 x 9 layer: write a rank from 1 to 5"),
        (PSOFT(rank=7), (6, 9), "rank 7 does not fit a 6 x 9 layer: write a rank from 2 to 6"),
        (PSOFT(rank=1), (6, 9), "write a rank from 2 to 6"),
        (PSOFT(rank=2), (1, 9), "leave the layer out"),
        (SpectralAdapter(rank=1, form="rotational"), (6, 9), "write a rank from 2 to 6"),
        (SpectralAdapter(rank=7), (6, 9), "write a rank from 1 to 6"),
    ],
)
def test_refusals(variant: Variant, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(Refused, match=message):
        variant.check(*shape)


@pytest.mark.parametrize("variant", [SVFT(band=99, pattern="plain"), SpectralAdapter(rank=1), PSOFT(rank=2)])
def test_the_nearest_settings_which_fit(variant: Variant) -> None:
    variant.check(2, 3)


@pytest.mark.parametrize(
    ("variant", "still"),
    [
        (SVF(), {"z"}),
        (SVF(faithful="code"), {"p"}),
        (PSOFT(rank=2), {"a", "b"}),
        (SpectralAdapter(rank=2, form="rotational", faithful="code"), {"c"}),
        (SpectralAdapter(rank=2), set()),
        (PSOFT(rank=2, vectors=False), set()),
        (DoRA(rank=2), {"m"}),
        (IA3(), {"l"}),
        (LoRA(rank=2), set()),
    ],
    ids=lambda it: str(sorted(it) if isinstance(it, set) else it),  # workers must agree on the order
)
def test_no_weight_decay_where_zero_is_not_the_base(variant: Variant, still: set[str]) -> None:
    (state,) = layer_states(adapted(variant, Case(7, 5)))
    names = {id(p): name for name, p in state.t.items()}
    groups = variant.param_groups([state], lr=0.5)
    assert {group["lr"] for group in groups} == {0.5}
    undecayed = [p for group in groups if group.get("weight_decay") == 0.0 for p in group["params"]]
    assert {names[id(p)] for p in undecayed} == still


@pytest.mark.parametrize("check", [*CHECKS, *SLOW_CHECKS], ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("variant", "case"),
    [
        (SVFT(pattern="top_k", band=2), Case(6, 6)),
        (SVFT(pattern="plain", faithful="code"), Case(6, 9)),
        (SpectralAdapter(rank=2, form="rotational", faithful="code"), Case(8, 6)),
        (PSOFT(rank=3, vectors=False, inverse="neumann"), Case(6, 9)),
    ],
    ids=str,
)
def test_pairs_of_choices_conform(check: Check, variant: Variant, case: Case) -> None:
    """The suite tries one choice at a time, and none which needs a square layer."""
    check(variant, case)


# ---- LoRA-SB --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 1.0, 9.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_lora_sb_starts_one_sign_step_in(shape: tuple[int, int], alpha: float | None) -> None:
    W, G = weight_of(*shape), weight_of(*shape, seed=1)
    sb = LoRASB(rank=3, alpha=alpha, first_step=0.01)
    t = at(sb, W, gradient=G)
    moved = sb.weight(W, t) - W
    close(moved, singular_part(-0.01 * G.sign(), slice(0, 3)), 1e-12, "the best part of rank 3")
    assert differs(moved, singular_part(0.01 * G.sign(), slice(0, 3))), "the control: uphill"
    assert float((moved * G).sum()) < 0, "a descent direction"
    close(t["B"].T @ t["B"], torch.eye(3, dtype=W.dtype), 1e-12, "B is orthonormal")
    close(t["A"] @ t["A"].T, torch.eye(3, dtype=W.dtype), 1e-12, "A is orthonormal")
    R = t["R"].diagonal()
    close(t["R"], torch.diag(R), 0.0, "R is diagonal")
    assert bool((R > 0).all())
    assert bool((R.diff() <= 0).all())
    initial = sb.initial_weight(W, {"gradient": 7 * G})
    assert initial is not None
    close(initial, sb.weight(W, t), 1e-12, "only the sign of the gradient counts")


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_lora_sb_refuses_a_gradient_without_direction(bad: float) -> None:
    with pytest.raises(Refused, match=r"its gradient is (zero|not finite): "):
        start(LoRASB(rank=2), weight_of(5, 4), gradient=torch.full((5, 4), bad, dtype=torch.float64))


@pytest.mark.parametrize(("cls", "holds"), [(LoRASB, True), (LoRAXS, False)])
def test_lora_sb_gradient_is_the_projected_full_gradient(cls: type[LoRASB] | type[LoRAXS], holds: bool) -> None:
    """B (dL/dR) A == B B^T G A^T A projects G only between orthonormal bases: with LoRA-XS's it does not."""
    W, G = weight_of(7, 5), weight_of(7, 5, seed=1)
    variant = cls(rank=2)
    t = at(variant, W, gradient=G)
    R = t["R"].requires_grad_()
    (gradient,) = torch.autograd.grad((variant.weight(W, t) * G).sum(), R)
    step = (t["B"] @ gradient @ t["A"]).detach()
    close(step, t["B"] @ t["B"].T @ G @ t["A"].T @ t["A"], 1e-12, "identity")
    left = t["B"] @ torch.linalg.pinv(t["B"])
    right = torch.linalg.pinv(t["A"]) @ t["A"]
    assert differs(step, left @ G @ right) is not holds


# ---- SVFT -----------------------------------------------------------------------------------------------------------


def places(svft: SVFT, W: Tensor, seed: int = 0) -> set[tuple[int, int]]:
    found = start(svft, W, seed).frozen["places"].long().T.tolist()
    assert len({tuple(place) for place in found}) == len(found) == svft.parameter_count(*W.shape), "none twice"
    return {(i, j) for i, j in found}


@pytest.mark.parametrize("shape", SHAPES)
def test_svft_patterns(shape: tuple[int, int]) -> None:
    W, k, d = weight_of(*shape), min(shape), 2
    banded = {(i, j) for i in range(k) for j in range(k) if abs(i - j) <= d}
    assert len(banded) == k * (2 * d + 1) - d * (d + 1)
    assert places(SVFT(band=d), W) == banded
    assert places(SVFT(pattern="plain"), W) == {(i, i) for i in range(k)} == places(SVFT(band=0), W)
    drawn = [places(SVFT(pattern="random", band=d), W, seed) for seed in range(2)]
    assert drawn[0] != drawn[1]
    assert all(len(some) == len(banded) and some <= {(i, j) for i in range(k) for j in range(k)} for some in drawn)


def test_svft_top_k_takes_the_best_aligned_pairs() -> None:
    W = weight_of(8, 8)
    init = start(SVFT(pattern="top_k", band=1), W)
    U, V = init.frozen["U"], init.frozen["Vh"].T
    count = 8 * 3 - 2

    def best(score: Tensor) -> set[tuple[int, int]]:
        ranked = sorted(((float(score[i, j]), i, j) for i in range(8) for j in range(8)), reverse=True)
        return {(i, j) for _, i, j in ranked[:count]}

    scores = torch.tensor([[abs(float(U[:, i] @ V[:, j])) for j in range(8)] for i in range(8)])
    assert places(SVFT(pattern="top_k", band=1), W) == best(scores)
    assert best(scores) != best(U @ V), "the control: the authors' score, a plain product, means other places"


@pytest.mark.parametrize("shape", SHAPES)
def test_svft_plain_moves_only_singular_values(shape: tuple[int, int]) -> None:
    W = weight_of(*shape)
    for svft, gate in ((SVFT(pattern="plain"), 1.0), (SVFT(pattern="plain", faithful="code"), None)):
        t = at(svft, W, 0.5)
        gate = gate or float(torch.sigmoid(t["g"]))
        close(spectrum(svft.weight(W, t)), descending((spectrum(W) + gate * t["m"]).abs()), 1e-12, "spectrum")
        assert differs(spectrum(svft.weight(W, t)), descending((spectrum(W) + 2 * gate * t["m"]).abs()))


def test_svft_code_starts_at_random_behind_half_a_gate() -> None:
    W = weight_of(80, 48)
    code = SVFT(band=8, faithful="code")
    t = at(code, W)
    count = t["m"].numel()
    assert 0.9 < float(t["m"].std()) * (count / 2) ** 0.5 < 1.1
    assert not t["g"].any()
    close((code.weight(W, t) - W).norm(), 0.5 * t["m"].norm(), 1e-12, "||U (m / 2) V^T||")
    close(SVFT(band=8).weight(W, at(SVFT(band=8), W)), W, 0.0, "the paper's start")


# ---- SVF and SVDiff -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_svf_scales_singular_values_and_keeps_the_vectors(shape: tuple[int, int]) -> None:
    W = weight_of(*shape)
    t = at(SVF(), W, 0.5)
    scaled = SVF().weight(W, t)
    close(spectrum(scaled), descending((spectrum(W) * t["z"]).abs()), 1e-12, "spectrum")
    U, _, Vh = (torch.from_numpy(part) for part in np.linalg.svd(W.numpy(), full_matrices=False))
    inside = U.T @ scaled @ Vh.T
    close(inside, torch.diag(inside.diagonal()), 1e-12, "diagonal between W's own singular vectors")
    flipped = {**t, "U": -t["U"], "Vh": -t["Vh"]}
    close(SVF().weight(W, flipped), scaled, 1e-12, "the sign of a pair of vectors does not matter")
    assert differs(SVF().weight(W, {**t, "U": -t["U"]}), scaled), "the control: of one alone it does"


@pytest.mark.parametrize("shape", [(80, 48), (6, 9)])
def test_svf_code_keeps_the_nuclear_norm(shape: tuple[int, int]) -> None:
    W, code = weight_of(*shape), SVF(faithful="code")
    t = at(code, W, 0.5)
    close(spectrum(code.weight(W, t)).sum(), spectrum(W).sum(), 1e-10, "nuclear norm")
    plain = SVF().weight(W, {**t, "z": torch.sigmoid(t["p"])})
    assert differs(spectrum(plain).sum(), spectrum(W).sum()), "the control: the paper's form does not"
    off = float((code.weight(W, at(code, W)) - W).norm() / W.norm())
    assert 1e-4 < off < 2e-2, "near the base, not at it"


def test_svf_experts_mix() -> None:
    """One expert is itself, no expert is the base, and two are their mixed z: never their mixed p."""

    def model_with(variant: SVF) -> nn.Module:
        model: nn.Module = adapted(variant, Case(7, 5))
        attach(model, variant, "layer", name="other")
        for name, seed in (("default", 2), ("other", 3)):
            for p in host_of(model).carried(name).parameters():
                with torch.no_grad():
                    p.copy_(0.2 + torch.rand(p.shape, generator=torch.Generator().manual_seed(seed)))
        return model

    model = model_with(SVF())
    host = host_of(model)
    W, (one, two) = host.dense().detach(), (host.carried(name).tensors() for name in ("default", "other"))
    activate(model, {"default": 1.0, "other": 0.0})
    close(host.effective_weight(), SVF().weight(W, one), 1e-12, "the one expert")
    activate(model, {"default": 0.0, "other": 0.0})
    close(host.effective_weight(), W, 1e-12, "the base")
    activate(model, {"default": 0.3, "other": 0.7})
    mixed = {**one, "z": 0.3 * one["z"] + 0.7 * two["z"]}
    close(host.effective_weight(), SVF().weight(W, mixed), 1e-12, "z, mixed")

    code = SVF(faithful="code")
    model = model_with(code)
    host = host_of(model)
    t = host.carried("default").tensors()
    activate(model, {"default": 1.0, "other": 0.0})
    close(host.effective_weight(), code.weight(W, t), 1e-12, "the one expert")
    raw = SVF().weight(W, {**t, "z": t["p"]})  # the authors' mixing takes p for z
    assert differs(raw * (t["s"].sum() / (t["s"] * t["p"]).sum()), host.effective_weight(), 1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_svdiff_shifts_singular_values_down_to_zero(shape: tuple[int, int]) -> None:
    W = weight_of(*shape)
    t = at(SVDiff(), W, 0.5)
    t["delta"][1] = -2 * t["s"][1]
    shifted = (spectrum(W) + t["delta"]).clamp_min(0)
    close(spectrum(SVDiff().weight(W, t)), descending(shifted), 1e-12, "spectrum")
    assert differs(spectrum(SVDiff().weight(W, t)), descending((spectrum(W) + t["delta"]).abs())), "the control"
    delta = t["delta"].requires_grad_()
    (gradient,) = torch.autograd.grad((SVDiff().weight(W, t) * weight_of(*shape, seed=1)).sum(), delta)
    assert (gradient == 0).tolist() == (shifted == 0).tolist(), "below zero there is no gradient"


# ---- KaSA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_kasa_drops_the_smallest_components(shape: tuple[int, int], alpha: float | None) -> None:
    W, k, kasa = weight_of(*shape), min(shape), KaSA(rank=2, alpha=alpha)
    init = start(kasa, W)
    assert init.base is not None
    S = spectrum(init.base)
    close(S[: k - 2], spectrum(W)[: k - 2], 1e-12, "the top stays")
    close(S[k - 2 :], torch.zeros(2, dtype=W.dtype), 1e-12, "exactly two are gone")
    close(kasa.weight(init.base, {**init.train, **init.frozen}), init.base, 0.0, "nothing is added")
    close(W - init.base, kasa.scale * init.frozen["B0"] @ init.frozen["A0"], 1e-12, "what was dropped is kept")
    assert 0.3 < float(start(replace(kasa, rank=5), W).train["E"].std()) < 3


@pytest.mark.parametrize(
    ("shape", "gone"), [((9, 6), 3), ((7, 7), 3), ((6, 7), 2), ((6, 8), 1), ((6, 9), 0), ((6, 20), 0)]
)
def test_kasa_code_drops_less_of_wide_layers(shape: tuple[int, int], gone: int) -> None:
    W, code = weight_of(*shape), KaSA(rank=3, faithful="code")
    base = start(code, W).base
    assert base is not None
    assert int((spectrum(base) < 1e-10).sum()) == gone
    assert int((spectrum(start(KaSA(rank=3), W).base) < 1e-10).sum()) == 3  # type: ignore[arg-type]


def two_layers(variant: Variant) -> list[LayerState]:
    """Two layers of different shapes, off their start."""
    found = []
    for path, shape in (("a", (7, 5)), ("b", (5, 8))):
        model = adapted(variant, Case(*shape))
        move(model)
        (state,) = layer_states(model)
        found.append(LayerState(path, state.W, state.t))
    return found


def grams(states: list[LayerState]) -> list[np.ndarray]:
    """``A A^T - I`` and ``B^T B - I`` of each layer."""
    pairs = [(s.t["A"].detach().numpy(), s.t["B"].detach().numpy()) for s in states]
    return [gram - np.eye(len(gram)) for A, B in pairs for gram in (A @ A.T, B.T @ B)]


def test_penalties_by_hand() -> None:
    for variant in (
        KaSA(rank=2, beta=0.3, gamma=0.2),
        SORSA(rank=2, penalty_weight=3.0),
        AdaLoRA(rank=2, penalty_weight=3.0),
    ):
        states = two_layers(variant)
        squares = [float((gram**2).sum()) for gram in grams(states)]
        values = sum(float((s.t["E"].detach() ** 2).sum()) for s in states)
        want = {
            KaSA: (0.3 * values + 0.2 * sum(squares)) / 2,
            SORSA: 3.0 * sum(squares) / 4,
            AdaLoRA: 3.0 * sum(squares),
        }[type(variant)]
        penalty = variant.penalty(states)
        assert penalty is not None
        close(penalty, torch.tensor(want, dtype=torch.float64), 1e-12, variant.name)
    code = AdaLoRA(rank=2, penalty_weight=3.0, faithful="code")
    states = two_layers(code)
    mean = 3.0 * float(np.mean([np.sqrt((gram**2).sum()) for gram in grams(states)]))
    penalty = code.penalty(states)
    assert penalty is not None
    close(penalty, torch.tensor(mean, dtype=torch.float64), 1e-12, "adalora's code")
    assert SORSA(faithful="code").penalty(states) is None


def test_kasa_code_penalises_the_wrong_side() -> None:
    """The authors' dense formula less a constant: the same gradients. Its value cannot fall below that constant."""
    code = KaSA(rank=2, beta=0.3, gamma=0.2, faithful="code")
    states = two_layers(code)
    factors = [s.t[name] for s in states for name in ("A", "B", "E")]
    dense = torch.zeros((), dtype=torch.float64)
    constant = 0.0
    for s in states:
        A, B, (out, in_) = s.t["A"], s.t["B"], s.W.shape
        wrong = (A.T @ A - torch.eye(in_)).norm() + (B @ B.T - torch.eye(out)).norm()
        dense = dense + (0.3 * s.t["E"].square().sum() + 0.2 * wrong) / 2
        constant += 0.2 * ((in_ - 2) ** 0.5 + (out - 2) ** 0.5) / 2
    penalty = code.penalty(states)
    assert penalty is not None
    close(penalty, dense - constant, 1e-12, "value")
    for mine, theirs in zip(torch.autograd.grad(penalty, factors), torch.autograd.grad(dense, factors), strict=True):
        close(mine, theirs, 1e-12, "gradient")
    semi = random_orthonormal(48, 8, torch.Generator().manual_seed(0), torch.float64).T
    assert 6.32 < float((semi.T @ semi - torch.eye(48)).norm()) < 6.33
    right = KaSA(rank=2).penalty(states)
    assert right is not None
    assert differs(right, penalty)


# ---- SORSA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_sorsa_starts_as_the_principal_triplets(shape: tuple[int, int], alpha: float | None) -> None:
    W, sorsa = weight_of(*shape), SORSA(rank=3, alpha=alpha)
    init = start(sorsa, W)
    t, eye = {**init.train, **init.frozen}, torch.eye(3, dtype=W.dtype)
    assert init.base is not None
    close(sorsa.weight(init.base, t), W, 1e-12, "exact for any scale")
    close(t["A"] @ t["A"].T, eye, 1e-12, "A")
    close(t["B"].T @ t["B"], eye, 1e-12, "B")
    close(t["E"], spectrum(W)[:3], 1e-12, "E is not divided by the scale")
    close(W - init.base, sorsa.scale * singular_part(W, slice(0, 3)), 1e-12, "so the base loses s times them")


def extra_gradient(sorsa: SORSA, defect: float) -> float:
    """What the penalty adds to the gradient of B at this distance from orthonormal factors."""
    (state,) = layer_states(adapted(sorsa, Case(7, 5)))
    B = state.t["B"]
    with torch.no_grad():
        B.mul_((1 + defect) ** 0.5)
    for p in (state.t["A"], B):
        p.grad = torch.zeros_like(p)
    penalty = sorsa.penalty([state])
    if penalty is not None:
        penalty.backward()
    sorsa.before_step([state])
    assert B.grad is not None
    return float(B.grad.norm())


def test_sorsa_code_pulls_equally_hard_however_near() -> None:
    code, clean = SORSA(rank=2, penalty_weight=3.0, faithful="code"), SORSA(rank=2, penalty_weight=3.0)
    near, nearer = (extra_gradient(code, defect) for defect in (1e-3, 1e-6))
    close(torch.tensor(near), torch.tensor(3.0), 1e-2, "3 / 2 of the norm's gradient 2 X")
    close(torch.tensor(nearer), torch.tensor(near), 1e-2, "constant")
    assert extra_gradient(clean, 1e-6) < 1e-4 < extra_gradient(clean, 1e-3)


def test_sorsa_code_leaves_tensors_without_a_gradient_alone() -> None:
    code = SORSA(rank=2, faithful="code")
    states = two_layers(code)
    states[0].t["A"].grad = torch.zeros_like(states[0].t["A"])
    code.before_step(states)
    assert bool(states[0].t["A"].grad.any())
    assert all(s.t[name].grad is None for s, name in ((states[0], "B"), (states[1], "A"), (states[1], "B")))
    factor = states[0].t["A"]
    loss = 13.0 * torch.stack([orthogonality_defect(x) for s in states for x in (s.t["A"].mT, s.t["B"])]).mean()
    close(factor.grad, torch.autograd.grad(loss, factor)[0], 1e-12, "added after clipping")  # type: ignore[arg-type]


# ---- Spectral Adapter and PSOFT -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_rotation_keeps_the_spectrum(shape: tuple[int, int]) -> None:
    W = weight_of(*shape)
    paper = SpectralAdapter(rank=3, form="rotational")
    turned = paper.weight(W, at(paper, W, 0.5))
    close(spectrum(turned), spectrum(W), 1e-12, "spectrum")
    assert differs(turned, W, 0.1)
    assert int(torch.linalg.matrix_rank(turned - W, rtol=1e-10)) == 3
    code = replace(paper, faithful="code")
    assert differs(spectrum(code.weight(W, at(code, W, 0.5))), spectrum(W)), "the control: the authors' factor c"


def test_spectral_rotation_is_the_authors_with_the_other_sign() -> None:
    W = weight_of(7, 5)
    paper = SpectralAdapter(rank=3, form="rotational")
    t = at(paper, W, 0.5)
    eye = torch.eye(3, dtype=W.dtype)

    def authors(D: Tensor) -> Tensor:
        K = (D - D.T) / 2
        return (eye - K) @ torch.linalg.inv(eye + K)

    def change(sign: float) -> Tensor:
        core = authors(sign * t["Du"]) @ torch.diag(t["s"]) @ authors(sign * t["Dv"]).T - torch.diag(t["s"])
        return t["U"] @ core @ t["Vh"]

    close(paper.weight(W, t) - W, change(-1.0), 1e-12, "the other sign")
    assert differs(paper.weight(W, t) - W, change(1.0))


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_spectral_addition_has_twice_the_rank(shape: tuple[int, int]) -> None:
    W, additive = weight_of(*shape), SpectralAdapter(rank=3)
    t = at(additive, W, 0.5)
    assert int(torch.linalg.matrix_rank(additive.weight(W, t) - W, rtol=1e-10)) == 6


@pytest.mark.parametrize("shape", SHAPES)
def test_psoft_without_vectors_is_a_rotation_of_the_inputs(shape: tuple[int, int]) -> None:
    W, strict = weight_of(*shape), PSOFT(rank=3, vectors=False)
    t = at(strict, W, 0.5)
    R, V = strict.rotation(t), t["Vh"].T
    turned = strict.weight(W, t)
    close(R.T @ R, torch.eye(3, dtype=W.dtype), 1e-12, "R")
    Q = torch.eye(shape[1], dtype=W.dtype) + V @ (R - torch.eye(3, dtype=W.dtype)) @ V.T
    close(Q.T @ Q, torch.eye(shape[1], dtype=W.dtype), 1e-12, "Q")
    close(turned, W @ Q, 1e-12, "W Q")
    close(turned @ turned.T, W @ W.T, 1e-12, "angles and lengths of the rows")
    close(spectrum(turned), spectrum(W), 1e-12, "spectrum")
    assert int(torch.linalg.matrix_rank(turned - W, rtol=1e-10)) <= 3
    root = t["s"].sqrt()
    split = W + (t["U"] * root) @ (R - torch.eye(3, dtype=W.dtype)) @ (root[:, None] * t["Vh"])
    assert differs(split @ split.T, W @ W.T, 0.1), "the control: half of S on each side breaks it"
    free = PSOFT(rank=3)
    assert differs(spectrum(free.weight(W, at(free, W, 0.3))), spectrum(W)), "the control: so do the vectors"


@pytest.mark.parametrize("terms", [4, 5, 7])
def test_psoft_neumann_is_nearly_a_rotation(terms: int) -> None:
    """Its singular values are |1 - (i angle)^(terms - 1)|, which come near 1 as fast as the exact map is approached."""
    W = weight_of(7, 7)
    exact, series = PSOFT(rank=5, vectors=False), PSOFT(rank=5, vectors=False, inverse="neumann", terms=terms)
    t = at(series, W, 0.05)
    gaps = []
    for factor in (1.0, 0.5):
        small = {**t, "K": factor * t["K"]}
        R = series.rotation(small)
        K = torch.zeros(5, 5, dtype=W.dtype)
        K[tuple(torch.triu_indices(5, 5, 1))] = small["K"]
        angles = np.linalg.eigvals((K - K.T).numpy()).imag
        want = torch.from_numpy(np.abs(1 - (1j * angles) ** (terms - 1)))
        close(spectrum(R), descending(want), 1e-12, "singular values")
        assert differs(spectrum(R), torch.ones(5, dtype=W.dtype), 1e-10), "the control: not orthogonal"
        gaps.append(float((R - exact.rotation(small)).norm()))
    assert 0.9 * 2 ** (terms - 1) < gaps[0] / gaps[1] < 1.2 * 2 ** (terms - 1)


@pytest.mark.parametrize("variant", [PSOFT(rank=3), SpectralAdapter(rank=3), SVDiff(), SVF(), SVFT(band=1)], ids=str)
def test_identity_to_the_bit_at_the_start(variant: Variant) -> None:
    W = weight_of(7, 5)
    assert torch.equal(variant.weight(W, at(variant, W)), W)
    assert not torch.equal(variant.weight(W, at(variant, W, 1e-3)), W)


# ---- AdaLoRA --------------------------------------------------------------------------------------------------------


def test_adalora_budget_falls_with_the_cube_of_the_time_left() -> None:
    ada = AdaLoRA(rank=12, target=8, tinit=0.1, tfinal=0.5)
    budget = [ada.budget(step, 100, layers=72) for step in range(101)]
    assert budget[10] == 864
    assert budget[50] == 576
    assert set(budget[:11]) == {864}
    assert set(budget[50:]) == {576}
    assert budget[30] == int(288 * 0.5**3 + 576)
    assert all(a >= b for a, b in pairwise(budget))
    printed = 576 + 288 * (1 - (11 - 10 - 50) / (100 - 10 - 50)) ** 3
    assert printed > 864, "the control: equation 12 as printed would make the budget jump up"


@pytest.mark.parametrize("total", [20, 200, 5000])
def test_adalora_schedule_scales_with_the_run(total: int) -> None:
    ada = AdaLoRA(rank=6, target=2, tinit=0.2, tfinal=0.3)
    assert ada.phases(total) == (0.2 * total, 0.7 * total)
    assert ada.budget(round(0.45 * total), total, layers=1) == 2 + int(4 * 0.125)


@pytest.mark.parametrize(("rank", "target"), [(1, 1), (2, 1), (3, 2), (6, 4), (12, 8)])
def test_adalora_target_follows_the_rank(rank: int, target: int) -> None:
    assert AdaLoRA(rank=rank).budget(10, 10, layers=1) == target


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_run_too_short_for_a_schedule_still_meets_its_budget(total: int) -> None:
    ada = AdaLoRA(rank=3)
    for step, (states, diagonals) in enumerate(run(ada, total), start=1):
        assert sum(int(E.count_nonzero()) for E in diagonals) == ada.budget(step, total, layers=2) == 4
        assert all(bool(tensor.isfinite().all()) for state in states for tensor in state.t.values())


def run(ada: AdaLoRA, total: int, seed: int = 0) -> list[tuple[list[LayerState], list[Tensor]]]:
    """E of both layers after each step of a run with random gradients and plain descent."""
    states, rng, history = two_layers(ada), torch.Generator().manual_seed(seed), []
    for step in range(1, total + 1):
        with torch.no_grad():
            for state in states:
                for name in ("A", "B", "E"):
                    p = state.t[name]
                    p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype)
                    p.sub_(0.05 * p.grad)
        ada.after_step(states, step, total)
        history.append((states, [state.t["E"].detach().clone() for state in states]))
    return history


def test_adalora_keeps_to_its_budget() -> None:
    ada, total = AdaLoRA(rank=4, target=2, tinit=0.2, tfinal=0.4, interval=5), 50
    history = run(ada, total)
    counts = [sum(int((E != 0).sum()) for E in values) for _, values in history]
    assert set(counts[:10]) == {8}, "none is pruned in the warm-up"
    for step, count in enumerate(counts, start=1):
        masked = step > 10 and (step % 5 == 0 or step >= 30)
        assert count == (ada.budget(step, total, layers=2) if masked else 8), f"step {step}"
    masks = [torch.cat([E != 0 for E in values]) for _, values in history[29:]]
    assert all(torch.equal(mask, masks[0]) for mask in masks), "in the last phase the mask stays"
    assert differs(history[-1][1][0], history[29][1][0]), "while what is kept goes on training"
    pair = ada.as_lora(history[-1][0][0].W, history[-1][0][0].t)
    assert pair is not None
    assert pair.A.shape[0] == int((history[-1][1][0] != 0).sum()), "the pair has the rank that survived"


def test_adalora_prunes_nothing_if_the_target_is_the_rank() -> None:
    assert all(bool(E.all()) for _, values in run(AdaLoRA(rank=4, target=4), 20) for E in values)


def test_adalora_importance_by_hand() -> None:
    """Smoothed sensitivity times smoothed deviation from the smoothed, of the updated weights, over three steps."""
    ada = AdaLoRA(rank=3, beta1=0.7, beta2=0.6)
    states = two_layers(ada)
    kept: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}
    rng = torch.Generator().manual_seed(1)
    for step in range(1, 4):
        for n, state in enumerate(states):
            for name in ("A", "B", "E"):
                p = state.t[name]
                p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype)
                now = np.abs(p.detach().numpy() * p.grad.numpy())
                mean, spread = kept.get((n, name), (np.zeros_like(now), np.zeros_like(now)))
                mean = 0.7 * mean + 0.3 * now
                kept[n, name] = mean, 0.6 * spread + 0.4 * np.abs(now - mean)
        ada.after_step(states, step, 1000)
    for n, state in enumerate(states):
        score = {name: kept[n, name][0] * kept[n, name][1] for name in ("A", "B", "E")}
        want = score["E"] + score["A"].mean(1) + score["B"].mean(0)
        close(ada._scores(state), torch.from_numpy(want), 1e-12, "score of a triplet")
        assert differs(ada._scores(state), torch.from_numpy(score["E"]), 1e-6), "the control: E alone"


def test_adalora_does_nothing_without_gradients() -> None:
    ada = AdaLoRA(rank=4, target=1)
    states = two_layers(ada)
    before = [state.t["E"].detach().clone() for state in states]
    for step in range(1, 11):
        ada.after_step(states, step, 10)
    assert all(torch.equal(state.t["E"], E) for state, E in zip(states, before, strict=True))


def test_adalora_starts_small_and_code_divides_by_a_little_more() -> None:
    t = at(AdaLoRA(rank=30), weight_of(60, 80))
    assert not t["E"].any()
    assert all(0.018 < float(t[name].std()) < 0.022 for name in ("A", "B"))
    assert AdaLoRA(rank=4, alpha=8).scale == 2.0
    assert AdaLoRA(rank=4, alpha=8, faithful="code").scale == 8 / (4 + 1e-5)
    assert AdaLoRA(rank=4, faithful="code").scale == 4 / (4 + 1e-5)


@pytest.mark.parametrize("cls", [KaSA, SORSA, AdaLoRA])
def test_the_diagonal_is_part_of_the_update(cls: type[DiagonalPair]) -> None:
    """The update is linear in E and in the scale."""
    W = weight_of(9, 7)
    small, large = cls(rank=3, alpha=3.0), cls(rank=3, alpha=6.0)
    t = at(small, W, 0.5)
    close(large.weight(W, t) - W, 2 * (small.weight(W, t) - W), 1e-12, "scale")
    close(small.weight(W, {**t, "E": 3 * t["E"]}) - W, 3 * (small.weight(W, t) - W), 1e-12, "E")
