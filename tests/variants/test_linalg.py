"""Decompositions, projection and retraction against numpy and against their defining identities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.variants.laws import close, same_bits
from variants.core.linalg import (
    bottom,
    full_precision,
    orthogonality_defect,
    polar,
    raised,
    random_orthonormal,
    svd,
    tangent,
    top,
)

SHAPES = [(6, 4), (4, 6), (5, 5), (1, 7), (7, 1)]
HALVES = [torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def on_manifold(n: int, r: int, seed: int = 0) -> Tensor:
    return random_orthonormal(n, r, torch.Generator().manual_seed(seed), torch.float64)


def tangent_direction(X: Tensor, seed: int = 1) -> Tensor:
    return tangent(X, draw(*X.shape, seed=seed))


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


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_raised_and_autocast_is_off(dtype: torch.dtype) -> None:
    W = draw(6, 4, dtype=dtype)
    assert raised(W).dtype == torch.float32
    assert raised(W.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        U, s, Vh = svd(W)
        D = tangent(W, W)
        defect = orthogonality_defect(U)
        inside = full_precision(lambda: torch.ones(2, 2) @ torch.ones(2, 2))()
        outside = torch.ones(2, 2) @ torch.ones(2, 2)
    assert {U.dtype, s.dtype, Vh.dtype, D.dtype, inside.dtype} == {torch.float32}
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


@given(n=st.integers(1, 8), r=st.integers(1, 8), seed=st.integers(0, 99))
def test_tangent_is_an_orthogonal_projection(n: int, r: int, seed: int) -> None:
    n, r = max(n, r), min(n, r)
    X, G = on_manifold(n, r, seed), draw(n, r, seed=seed + 1)
    P = tangent(X, G)
    close(tangent(X, P), P, 1e-10, "idempotent")
    close(X.T @ P + P.T @ X, torch.zeros(r, r, dtype=X.dtype), 1e-10, "in the tangent space")
    other = tangent_direction(X, seed + 2)
    close(((G - P) * other).sum(), torch.zeros((), dtype=X.dtype), 1e-10, "what is taken away is normal")


@pytest.mark.parametrize("shape", [(6, 3), (5, 5), (4, 1)])
def test_polar_is_the_nearest_orthonormal_factor(shape: tuple[int, int]) -> None:
    Y = draw(*shape)
    U, _, Vh = np.linalg.svd(Y.numpy(), full_matrices=False)
    got = polar(Y)
    close(got, torch.from_numpy(U @ Vh), 1e-10, "polar against the SVD")
    for seed in range(1, 21):  # no other factor is nearer
        assert float((got - Y).norm()) < float((on_manifold(*shape, seed=seed) - Y).norm())


def test_retraction_at_a_step_of_zero_is_the_identity() -> None:
    X = on_manifold(8, 3)
    close(polar(X), X, 1e-12, "float64")
    close(polar(X.float()), X.float(), 1e-6, "float32")


def test_retraction_follows_the_step_to_first_order() -> None:
    """``||R(tD) - (X + tD)||`` shrinks with the square of t."""
    X = on_manifold(8, 3)
    D = tangent_direction(X)
    errors = [float((polar(X + t * D) - X - t * D).norm()) for t in (1e-2, 5e-3, 2.5e-3)]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.8 < coarse / fine < 4.2


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_retraction_of_any_tangent_step_is_orthonormal(size: float) -> None:
    X = on_manifold(40, 8).float()
    assert float(orthogonality_defect(polar(X + size * tangent(X, draw(40, 8, seed=3).float())))) < 3e-6


def test_batched_maps_are_the_single_ones() -> None:
    X = torch.stack([on_manifold(6, 3, seed) for seed in range(4)])
    D = draw(4, 6, 3)
    single = torch.stack([polar(x + tangent(x, d)) for x, d in zip(X, D, strict=True)])
    close(polar(X + tangent(X, D)), single, 1e-12, "batch")
    assert orthogonality_defect(X).shape == (4,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_polar_refuses_a_diverged_factor(bad: float) -> None:
    Y = on_manifold(5, 2)
    Y[0, 0] = bad
    with pytest.raises(FloatingPointError, match="finite entries"):
        polar(Y)


def test_polar_refuses_a_lost_column() -> None:
    Y = on_manifold(5, 2)
    Y[:, 1] = Y[:, 0]
    with pytest.raises(FloatingPointError, match="full column rank"):
        polar(Y)


def test_orthogonality_defect() -> None:
    assert float(orthogonality_defect(torch.eye(4)[:, :2])) == 0.0
    close(orthogonality_defect(2 * torch.eye(4)[:, :1]), torch.tensor(3.0), 1e-6, "||4 - 1||")
