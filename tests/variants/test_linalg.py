"""Decompositions against numpy and against their defining identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from variants.core import linalg
from variants.core.cache import Triplets
from variants.core.cases import close, same_bits
from variants.core.linalg import (
    FULL_UP_TO,
    bottom,
    full_precision,
    orthogonality_defect,
    polar,
    qr,
    raised,
    random_orthonormal,
    svd,
    tangent,
    top,
    top_randomised,
)

SHAPES = [(6, 4), (4, 6), (5, 5), (1, 7), (7, 1)]
HALVES = [torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def on_manifold(n: int, r: int, seed: int = 0) -> Tensor:
    return random_orthonormal(n, r, torch.Generator().manual_seed(seed), torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_svd(shape: tuple[int, int]) -> None:
    W = draw(*shape)
    U, s, Vh = svd(W)
    k = min(shape)
    close(U * s @ Vh, W, 1e-12, "product")
    close(s, torch.from_numpy(np.linalg.svd(W.numpy(), compute_uv=False)), 1e-12, "singular values")
    close(U.T @ U, torch.eye(k, dtype=W.dtype), 1e-12, "left")
    close(Vh @ Vh.T, torch.eye(k, dtype=W.dtype), 1e-12, "right")


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_signs_do_not_depend_on_the_sign_of_w(shape: tuple[int, int]) -> None:
    W = draw(*shape)
    U, _, Vh = svd(W)
    assert bool((U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all())
    flipped, _, turned = svd(-W)
    close(flipped, U, 1e-12, "left vectors of -W")
    close(turned, -Vh, 1e-12, "right vectors of -W")


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_top_and_bottom_are_the_ends_of_the_spectrum(shape: tuple[int, int]) -> None:
    W = draw(*shape)
    s = torch.from_numpy(np.linalg.svd(W.numpy(), compute_uv=False))
    for (U, part, Vh), want in ((top(W, 2), s[:2]), (bottom(W, 2), s[-2:])):
        close(part, want, 1e-12, "singular values")
        close(W @ Vh.T, U * part, 1e-12, "triplets belong together")
        assert all(part.is_contiguous() for part in (U, part, Vh))
    assert top(W, 1)[0].shape == (shape[0], 1)
    assert bottom(W, min(shape))[2].shape == (min(shape), shape[1])


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_a_rank_which_a_matrix_does_not_have(rank: int) -> None:
    for decompose in (top, bottom, lambda W, k: top_randomised(W, k, torch.Generator())):
        with pytest.raises(ValueError, match=f"a 6 x 4 matrix has 1 to 4 singular triplets, not {rank}"):
            decompose(draw(6, 4), rank)


# ---- large matrices: Lanczos ----------------------------------------------------------------------------------------


def with_spectrum(s: Tensor, out: int, in_: int) -> Tensor:
    k = len(s)
    return on_manifold(out, k, 1) * s @ on_manifold(in_, k, 2).T


def assert_triplets(found: Triplets, W: Tensor, rank: int, tol: float) -> None:
    """That they are the ``rank`` leading triplets, in order, belonging together, with canonical signs."""
    U, s, Vh = found
    W, I = W.double(), torch.eye(rank, dtype=torch.float64)  # noqa: E741
    U, s, Vh = U.double(), s.double(), Vh.double()
    want = torch.from_numpy(np.linalg.svd(W.numpy(), compute_uv=False))[:rank]
    size = float(want[0])
    close(s / size, want / size, tol, "singular values")
    assert bool((s[:-1] >= s[1:]).all()), "descending"
    close(W @ Vh.T / size, U * s / size, tol, "left vectors")
    close(W.T @ U / size, Vh.T * s / size, tol, "right vectors")
    close(U.T @ U, I, tol, "orthonormal")
    close(Vh @ Vh.T, I, tol, "orthonormal")
    assert bool((U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()), "signs"
    assert all(part.is_contiguous() for part in found)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which decompositions were computed."""
    calls: list[str] = []

    def count(name: str) -> None:
        original = getattr(linalg, name)
        monkeypatch.setattr(linalg, name, lambda W, **of: (calls.append(name), original(W, **of))[1])

    count("_full")
    count("_leading")
    return calls


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices count as large from 41 on, to keep tests short."""
    monkeypatch.setattr(linalg, "FULL_UP_TO", 40)


SIDE = FULL_UP_TO + 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 70), (70, 48)])
@pytest.mark.usefixtures("lowered")
def test_leading_triplets_of_a_large_matrix(shape: tuple[int, int], dtype: torch.dtype, counted: list[str]) -> None:
    W = draw(*shape, dtype=dtype)
    found = top(W, 5)
    assert counted == ["_leading"], "without the full decomposition"
    assert found[0].dtype == raised(W).dtype
    assert_triplets(found, W, 5, 1e-8 if dtype == torch.float64 else 1e-5)
    assert all(same_bits(a, b) for a, b in zip(found, top(W.clone(), 5), strict=True)), "the same on every call"
    U, _, Vh = top(-W, 5)
    close(U, found[0], 1e-6, "left vectors of -W")
    close(Vh, -found[2], 1e-6, "right vectors of -W")


@pytest.mark.parametrize(("side", "rank", "how"), [(FULL_UP_TO, 3, "_full"), (SIDE, SIDE // 8 + 1, "_full")])
def test_small_matrices_and_large_ranks_are_decomposed_in_full(
    side: int, rank: int, how: str, counted: list[str]
) -> None:
    W = draw(side, side + 20, dtype=torch.float32)
    found = top(W, rank)
    assert counted == [how]
    assert all(same_bits(a, b) for a, b in zip(found, top(W, rank + 1), strict=True) if a.shape == b.shape)
    assert same_bits(found[0], top(W, rank + 1)[0][:, :rank].contiguous()), "the bits do not depend on the rank"


FLAT = {
    "equal singular values": torch.ones(SIDE, dtype=torch.float64),
    "nearly equal": torch.linspace(1, 1 - 1e-7, SIDE, dtype=torch.float64),
    "all zero": torch.zeros(SIDE, dtype=torch.float64),
    "rank 2": torch.tensor([3.0, 2.0], dtype=torch.float64),
    "steep": torch.logspace(0, -14, SIDE, dtype=torch.float64),
    "equal in the lead": torch.tensor([1.0] * 8 + [0.5] * (SIDE - 8), dtype=torch.float64),
}


@pytest.mark.parametrize("spectrum", list(FLAT.values()), ids=list(FLAT))
def test_leading_triplets_of_awkward_spectra(spectrum: Tensor) -> None:
    W = with_spectrum(spectrum, SIDE, SIDE + 30)
    U, s, Vh = top(W, 4)
    want = torch.zeros(4, dtype=torch.float64)
    want[: min(4, len(spectrum))] = spectrum[:4]
    close(s, want, 1e-6, "singular values")
    close(W @ Vh.T, U * s, 1e-6, "triplets belong together")
    close(W.T @ U, Vh.T * s, 1e-6, "triplets belong together")
    for factor in (U, Vh.T):
        assert float(orthogonality_defect(factor)) < 1e-5


def gives_up(*_: object, **__: object) -> None:
    raise np.linalg.LinAlgError("no convergence")


def lies(A: np.ndarray, k: int, **_: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triplets that belong together but are not orthonormal: one of them twice."""
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    first = [0] * k
    return U[:, first], s[first], Vh[first]


def errs(A: np.ndarray, k: int, **_: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orthonormal factors that do not belong together."""
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    return U[:, :k], 1.001 * s[:k], Vh[:k]


def breaks(A: np.ndarray, k: int, **_: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.full((len(A), k), np.nan), np.full(k, np.nan), np.full((k, A.shape[1]), np.nan)


@pytest.mark.parametrize("propack", [gives_up, lies, errs, breaks])
@pytest.mark.usefixtures("lowered")
def test_lanczos_is_not_taken_on_trust(propack: object, monkeypatch: pytest.MonkeyPatch, counted: list[str]) -> None:
    W = draw(48, 50)
    monkeypatch.setattr(linalg, "svds", propack)
    found = top(W, 3)
    assert counted == ["_leading", "_full"]
    assert_triplets(found, W, 3, 1e-10)


def test_randomised_triplets_approach_the_leading_ones() -> None:
    """Exact for a matrix of low rank; for a decaying spectrum better with every power iteration."""
    rng = torch.Generator
    low = with_spectrum(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64), 60, 40)
    assert_triplets(top_randomised(low, 3, rng().manual_seed(0)), low, 3, 1e-10)
    W = with_spectrum(torch.linspace(1, 0, 50, dtype=torch.float64) ** 2, 80, 50)
    best = torch.linalg.svdvals(W)[:5]
    errors = []
    for iterations in (0, 2, 8):
        U, s, Vh = top_randomised(W, 5, rng().manual_seed(0), oversampling=2, iterations=iterations)
        assert float(orthogonality_defect(U)) < 1e-10
        assert float(orthogonality_defect(Vh.T)) < 1e-10
        assert bool((s <= best + 1e-12).all()), "never larger than the true ones"
        assert bool((U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all())
        errors.append(float((best - s).norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    first, second = (top_randomised(W, 5, rng().manual_seed(seed)) for seed in (0, 0))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], top_randomised(W, 5, rng().manual_seed(1))[0])
    whole = top_randomised(W, 50, rng().manual_seed(0))
    close(whole[0] * whole[1] @ whole[2], W, 1e-10, "of full rank there is nothing to miss")


@pytest.mark.parametrize("shape", [*SHAPES, (3, 6, 4)])
def test_qr_is_the_unique_one(shape: tuple[int, ...]) -> None:
    W = draw(*shape)
    Q, R = qr(W)
    close(Q @ R, W, 1e-12, "product")
    assert float(orthogonality_defect(Q).max()) < 1e-12
    assert bool((torch.diagonal(R, dim1=-2, dim2=-1) >= 0).all())
    assert not torch.tril(R, diagonal=-1).any()
    flipped, same = qr(-W)
    close(flipped, -Q, 1e-12, "Q of -W")
    close(same, R, 1e-12, "R of -W")


def test_qr_of_a_rank_deficient_matrix() -> None:
    for W in (torch.zeros(5, 3), draw(5, 1) @ draw(1, 3)):
        Q, R = qr(W)
        close(Q @ R, W, 1e-6, "product")
        assert float(orthogonality_defect(Q)) < 1e-6


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_raised_and_autocast_is_off(dtype: torch.dtype) -> None:
    W = draw(6, 4, dtype=dtype)
    assert raised(W).dtype == torch.float32
    assert raised(W.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        U, s, Vh = svd(W)
        Q, R = qr(W)
        rough = top_randomised(W, 2, torch.Generator().manual_seed(0))
        D = tangent(W, W)
        defect = orthogonality_defect(U)
        inside = full_precision(lambda: torch.ones(2, 2) @ torch.ones(2, 2))()
        outside = torch.ones(2, 2) @ torch.ones(2, 2)
    assert {part.dtype for part in (U, s, Vh, Q, R, *rough, D, inside)} == {torch.float32}
    close(Q @ R, W.float(), 1e-6, "qr of a half-precision matrix")
    close(rough[1], s[:2], 1e-5, "randomised, with all columns there are")
    assert outside.dtype == torch.bfloat16, "the control: autocast is on"
    assert float(defect) < 1e-6
    close(U * s @ Vh, W.float(), 1e-6, "svd of a half-precision matrix")
    assert bool(polar(W).isfinite().all())


@given(n=st.integers(1, 9), r=st.integers(1, 9), seed=st.integers(0, 99))
def test_random_orthonormal(n: int, r: int, seed: int) -> None:
    n, r = max(n, r), min(n, r)
    Q = random_orthonormal(n, r, torch.Generator().manual_seed(seed))
    assert Q.shape == (n, r)
    assert float(orthogonality_defect(Q)) < 1e-6
    assert same_bits(Q, random_orthonormal(n, r, torch.Generator().manual_seed(seed)))


def test_random_orthonormal_is_uniform() -> None:
    """Entries of a uniform 3 x 1 factor have mean 0 and variance 1/3; without the sign fix the mean is far off."""
    rng = torch.Generator().manual_seed(0)
    columns = torch.stack([random_orthonormal(3, 2, rng)[:, 1] for _ in range(2000)])
    assert float(columns.mean(0).abs().max()) < 0.05
    assert float((columns.var(0) - 1 / 3).abs().max()) < 0.03
