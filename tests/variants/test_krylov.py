"""The block Krylov decomposition against exact ones in float64, and the estimate that it stops by against the truth."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor

from variants.core import krylov
from variants.core.cache import Triplets
from variants.core.cases import close, same_bits
from variants.core.krylov import TOLERANCE, top_krylov
from variants.core.linalg import decomposed_in_full, orthogonality_defect, raised, random_orthonormal, top
from variants.lora_xs import LoRAXS
from variants.pissa import PiSSA

SIDE = 200
AT_LEAST_HALF = torch.linspace(1, 0.5, SIDE, dtype=torch.float64)
SPECTRA = {
    "power": 1 / (1 + torch.arange(SIDE, dtype=torch.float64)),
    "exponential": torch.logspace(0, -2, SIDE, dtype=torch.float64),
    "flat": AT_LEAST_HALF,
    "one above": torch.cat([torch.full((1,), 20.0, dtype=torch.float64), AT_LEAST_HALF[1:]]),
    "two clusters": torch.cat([torch.linspace(1, 0.99, 8), torch.linspace(0.5, 0.49, SIDE - 8)]).double(),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_spectrum(s: Tensor, out: int, in_: int, seed: int = 0) -> Tensor:  # shape: (out, in)
    U, V = (random_orthonormal(n, len(s), rng(seed + k), torch.float64) for k, n in enumerate((out, in_)))
    return U * s @ V.T


def gaussian(out: int, in_: int, seed: int = 0) -> Tensor:
    return torch.randn(out, in_, generator=rng(seed), dtype=torch.float64)


def off(found: Triplets, W: Tensor) -> float:
    """How far the residual is from the exact one, relative to the exact one."""
    U, s, Vh = (part.double() for part in found)
    u, t, v = torch.linalg.svd(W.double(), full_matrices=False)
    rank = len(s)
    exact = (u[:, :rank] * t[:rank]) @ v[:rank]
    return float(((U * s) @ Vh - exact).norm() / (W.double() - exact).norm())


@pytest.fixture
def only_krylov(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who would fall back fails."""
    monkeypatch.setattr(krylov, "top", lambda *_: pytest.fail("fell back to the exact decomposition"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, 300), (300, SIDE)], ids=str)
@pytest.mark.parametrize("spectrum", list(SPECTRA.values()), ids=list(SPECTRA))
def test_the_residual_is_within_the_tolerance(spectrum: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
    W = with_spectrum(spectrum, *shape).to(dtype)
    found = top_krylov(W, 8, rng())
    assert off(found, W) < TOLERANCE
    U, s, Vh = found
    assert [tuple(part.shape) for part in found] == [(shape[0], 8), (8,), (8, shape[1])]
    assert all(part.dtype == dtype and part.is_contiguous() for part in found)
    assert bool((s[:-1] >= s[1:]).all()), "descending"
    assert bool((U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()), "canonical signs"
    for factor in (U, Vh.T):
        assert float(orthogonality_defect(factor)) < 1e-5


@settings(max_examples=15)
@given(seed=st.integers(0, 999), power=st.floats(0.1, 2), rank=st.integers(1, 10), long=st.integers(0, 60))
@example(seed=0, power=0.1, rank=1, long=0)
def test_the_estimate_is_not_below_what_it_estimates(seed: int, power: float, rank: int, long: int) -> None:
    """At every look, also at those which lead to more blocks; the last is within the tolerance."""
    s = (1 + torch.arange(SIDE, dtype=torch.float64)) ** -power
    W = with_spectrum(s, SIDE + long, SIDE, seed)
    looks: list[tuple[float, float]] = []
    original = krylov._ritz

    def watched(A: Tensor, *rest: object) -> tuple[Triplets, float]:
        found, estimate = original(A, *rest)  # type: ignore[arg-type]
        left, t, right = found
        looks.append((float(estimate), off((left.T, t, right), A) * _left(A, rank)))
        return found, estimate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(krylov, "_ritz", watched)
        top_krylov(W, rank, rng(seed))
    for estimate, true in looks:
        if estimate < 0.01:  # before, the order of the triplets may still be wrong
            assert true <= estimate + 1e-12, (estimate, true)


def _left(A: Tensor, rank: int) -> float:
    return float(torch.linalg.svdvals(A)[rank:].norm())


@pytest.mark.usefixtures("only_krylov")
def test_flat_gaussian_weights_need_no_exact_decomposition() -> None:
    for shape in ((192, 576), (576, 192), (400, 300)):
        W = gaussian(*shape).float()
        assert off(top_krylov(W, 8, rng()), W) < TOLERANCE


def too_soon(*args: object) -> tuple[Triplets, float]:
    found, _ = ORIGINAL(*args)  # type: ignore[arg-type]
    return found, 0.0


ORIGINAL = krylov._ritz


def test_stopping_at_the_first_look_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    W = gaussian(400, 300)
    monkeypatch.setattr(krylov, "_ritz", too_soon)
    assert off(top_krylov(W, 8, rng()), W) > 10 * TOLERANCE


def test_a_tighter_tolerance_is_met() -> None:
    W = with_spectrum(SPECTRA["exponential"], 300, SIDE)
    loose, tight = (off(top_krylov(W, 8, rng(), tolerance), W) for tolerance in (1e-2, 1e-8))
    assert tight < 1e-8 < loose < 1e-2


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-5])
def test_a_cluster_across_the_cut_is_resolved_or_left_to_the_exact_one(gap: float) -> None:
    """Any vectors of the cluster do: what is left must be as small as it can be."""
    s = torch.linspace(0.9, 0.1, SIDE, dtype=torch.float64)
    s[:4], s[4:12] = 1.0, 0.9 - gap * torch.arange(8)
    W = with_spectrum(s, SIDE, 260)
    U, t, Vh = top_krylov(W, 8, rng())
    residual = float((W - (U * t) @ Vh).norm())
    assert abs(residual / float(s[8:].norm()) - 1) < 1e-6
    close(t, s[:8], 1e-6, "singular values")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank_of_w", [1, 3, 8, 20])
def test_rank_deficient_matrices(rank_of_w: int, dtype: torch.dtype) -> None:
    W = with_spectrum(torch.linspace(2, 1, rank_of_w, dtype=torch.float64), 260, SIDE).to(dtype)
    U, s, Vh = top_krylov(W, 8, rng())
    want = torch.linalg.svdvals(W)[:8]
    close(s, want, 1e-5, "singular values")
    close((W @ Vh.T), U * s, 1e-5, "triplets belong together")
    for factor in (U, Vh.T):
        assert float(orthogonality_defect(factor)) < 1e-5


def test_zero_and_not_finite_do_as_the_exact_decomposition_does() -> None:
    zero = torch.zeros(SIDE, SIDE)
    assert all(same_bits(a, b) for a, b in zip(top_krylov(zero, 4, rng()), top(zero, 4), strict=True))
    for value in (math.nan, math.inf):
        W = gaussian(SIDE, SIDE)
        W[3, 4] = value
        with pytest.raises(torch.linalg.LinAlgError) as exact:
            top(W, 4)
        with pytest.raises(torch.linalg.LinAlgError) as ours:
            top_krylov(W, 4, rng())
        assert str(ours.value) == str(exact.value)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e-6, 1e12, 1e30])
def test_the_scale_of_a_matrix_does_not_matter(factor: float) -> None:
    """In float32 the squares of the outer two are none."""
    W = with_spectrum(SPECTRA["exponential"], 260, SIDE)
    U, s, Vh = top_krylov((factor * W).float(), 8, rng())
    assert off((U, s.double() / factor, Vh), W) < TOLERANCE


@pytest.mark.parametrize(("shape", "rank"), [((40, 60), 4), ((SIDE, 300), 13), ((300, SIDE), SIDE)])
def test_small_matrices_and_large_ranks_get_the_exact_decomposition(shape: tuple[int, int], rank: int) -> None:
    W = gaussian(*shape).float()
    assert all(same_bits(a, b) for a, b in zip(top_krylov(W, rank, rng()), top(W, rank), strict=True))


def test_inside_decomposed_in_full_there_is_no_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    W = gaussian(SIDE, SIDE).float()
    monkeypatch.setattr(krylov, "_krylov", lambda *_: pytest.fail("iterated"))
    with decomposed_in_full():
        found = top_krylov(W, 4, rng())
    assert all(same_bits(a, b) for a, b in zip(found, top(W, 4), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("only_krylov")
def test_half_precision_is_raised_and_autocast_is_off(dtype: torch.dtype) -> None:
    W = gaussian(SIDE, 260).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = top_krylov(W, 4, rng())
    assert {part.dtype for part in found} == {torch.float32}
    assert off(found, raised(W)) < TOLERANCE


@pytest.mark.usefixtures("only_krylov")
def test_the_generator_decides_the_bits() -> None:
    W = gaussian(SIDE, 260)
    state = torch.random.get_rng_state()
    first, again, other = (top_krylov(W, 8, rng(seed)) for seed in (0, 0, 1))
    assert all(same_bits(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("rank", [0, -1, SIDE + 1])
def test_a_rank_which_a_matrix_does_not_have(rank: int) -> None:
    with pytest.raises(ValueError, match=f"has 1 to {SIDE} singular triplets, not {rank}"):
        top_krylov(gaussian(SIDE, 260), rank, rng())


def test_methods_start_from_it() -> None:
    W = gaussian(SIDE, 260).float()
    mine, exact = (PiSSA(rank=8, svd=how).init(W, rng()).base for how in ("krylov", "exact"))
    assert mine is not None
    assert exact is not None
    assert 0 < float((mine - exact).norm() / exact.norm()) < TOLERANCE
    bases, other = (LoRAXS(rank=8, svd=how).init(W, rng()).frozen for how in ("krylov", "exact"))
    close(bases["B"], other["B"], 0.05, "the same vectors and signs")
    assert not torch.equal(bases["B"], other["B"])
