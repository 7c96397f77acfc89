"""Steps on the Stiefel manifold, rotations and distances, against dense formulas in numpy and defining identities."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from variants.core.cases import close, gap
from variants.core.linalg import (
    above_rounding,
    cayley,
    cayley_inverse,
    cayley_neumann,
    landing,
    orthogonality_defect,
    polar,
    random_orthonormal,
    rank_defect,
    reflections,
    retract_cayley,
    rotation_from,
    skew_defect,
    skew_from,
    tangent,
    tangent_defect,
)

HALVES = [torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def on_manifold(n: int, r: int, seed: int = 0) -> Tensor:
    return random_orthonormal(n, r, torch.Generator().manual_seed(seed), torch.float64)


def skew(n: int, size: float = 1.0, seed: int = 0) -> Tensor:
    M = draw(n, n, seed=seed)
    return size * (M - M.T)


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


# ---- steps on the Stiefel manifold ----------------------------------------------------------------------------------


@given(n=st.integers(1, 8), r=st.integers(1, 8), seed=st.integers(0, 99))
def test_tangent_is_an_orthogonal_projection(n: int, r: int, seed: int) -> None:
    n, r = max(n, r), min(n, r)
    X, G = on_manifold(n, r, seed), draw(n, r, seed=seed + 1)
    P = tangent(X, G)
    close(tangent(X, P), P, 1e-10, "idempotent")
    close(X.T @ P + P.T @ X, torch.zeros(r, r, dtype=X.dtype), 1e-10, "in the tangent space")
    other = tangent(X, draw(*X.shape, seed=seed + 2))
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
    D = tangent(X, draw(*X.shape, seed=1))
    errors = [float((polar(X + t * D) - X - t * D).norm()) for t in (1e-2, 5e-3, 2.5e-3)]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.8 < coarse / fine < 4.2


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_retraction_of_any_tangent_step_is_orthonormal(size: float) -> None:
    X = on_manifold(40, 8).float()
    assert float(orthogonality_defect(polar(X + size * tangent(X, draw(40, 8, seed=3).float())))) < 3e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_polar_refuses_a_diverged_factor(bad: float) -> None:
    Y = on_manifold(5, 2)
    Y[0, 0] = bad
    with pytest.raises(FloatingPointError, match="diverged, the factor is not finite: lower the learning rate"):
        polar(Y)


def test_polar_refuses_a_lost_column() -> None:
    Y = on_manifold(5, 2)
    Y[:, 1] = Y[:, 0]
    with pytest.raises(FloatingPointError, match="full column rank: lower the learning rate"):
        polar(Y)


@pytest.mark.parametrize("shape", [(8, 3), (5, 5), (4, 1)])
def test_cayley_retraction_is_the_curve_with_dense_matrices(shape: tuple[int, int]) -> None:
    """``(I - M / 2)^-1 (I + M / 2) X`` for the n x n skew M of Wen and Yin; D need not be tangent for that."""
    X, D = on_manifold(*shape).numpy(), draw(*shape, seed=1).numpy()
    PD = D - X @ X.T @ D / 2
    M, I = PD @ X.T - X @ PD.T, np.eye(len(X))  # noqa: E741
    want = np.linalg.solve(I - M / 2, (I + M / 2) @ X)
    close(retract_cayley(torch.from_numpy(X), torch.from_numpy(D)), torch.from_numpy(want), 1e-10, "curve")


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 100.0])
def test_cayley_retraction_of_any_step_is_orthonormal(size: float) -> None:
    X = on_manifold(40, 8)
    D = size * tangent(X, draw(40, 8, seed=3))
    assert float(orthogonality_defect(retract_cayley(X, D))) < 1e-12
    assert float(orthogonality_defect(retract_cayley(X.float(), D.float()))) < 2e-5
    if size == 0:
        close(retract_cayley(X, D), X, 1e-13, "no step")
    if size == 1:
        assert float(orthogonality_defect(X + D)) > 1, "the control: the step alone leaves the manifold"


def test_cayley_retraction_follows_the_step_to_second_order_and_takes_its_tangent_part() -> None:
    """``||R(tD) - X - tD||`` shrinks with the square of t for a tangent D; what is normal in a step is ignored."""
    X = on_manifold(8, 3)
    D = tangent(X, draw(8, 3, seed=1))
    errors = [float((retract_cayley(X, t * D) - X - t * D).norm()) for t in (1e-2, 5e-3, 2.5e-3)]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.8 < coarse / fine < 4.2
    S = draw(3, 3, seed=2)
    close(retract_cayley(X, D + X @ (S + S.T)), retract_cayley(X, D), 1e-12, "a normal part")


@pytest.mark.parametrize("shape", [(8, 3), (5, 5)])
def test_landing_field_is_its_dense_formula(shape: tuple[int, int]) -> None:
    X, G = draw(*shape), draw(*shape, seed=1)  # anywhere, not only on the manifold
    for attraction in (0.0, 0.7):
        want = (G @ X.T - X @ G.T) @ X + attraction * X @ (X.T @ X - eye(shape[1]))
        close(landing(X, G, attraction), want, 1e-10, "field")


def test_landing_parts_are_orthogonal_and_both_do_their_work() -> None:
    """The relative gradient is a direction of descent that leaves X^T X alone to first order; the other part draws X
    to the manifold, and is zero there."""
    X, G = 1.3 * on_manifold(8, 3) + 0.1 * draw(8, 3, seed=2), draw(8, 3, seed=1)
    relative, attraction = landing(X, G, 0.0), landing(X, torch.zeros_like(G), 1.0)
    close((relative * attraction).sum(), torch.tensor(0.0, dtype=torch.float64), 1e-10, "orthogonal")
    assert float((relative * G).sum()) > 0
    assert float(tangent_defect(X, relative)) < 1e-10
    assert float(tangent_defect(X, G)) > 1, "the control"
    assert float(orthogonality_defect(X - 0.1 * attraction)) < float(orthogonality_defect(X))
    on = on_manifold(8, 3)
    close(landing(on, G, 5.0), landing(on, G, 0.0), 1e-12, "on the manifold nothing attracts")


def test_landing_lands_on_the_minimum() -> None:
    """Of ``-<T, X>`` over the manifold, from off it and without a retraction; the gradient alone runs away."""
    T, X = draw(8, 3, seed=1), 1.3 * on_manifold(8, 3)
    free = X
    for _ in range(2000):
        X, free = X - 0.02 * landing(X, -T, 1.0), free + 0.02 * T
    close(X, polar(T), 1e-8, "the polar factor of T")
    assert float(orthogonality_defect(free)) > 100


# ---- rotations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_skew_from_entries(n: int) -> None:
    entries = draw(3, n * (n - 1) // 2)
    K = skew_from(entries, n)
    assert K.shape == (3, n, n)
    close(K, -K.mT, 0.0, "skew")
    assert not K.diagonal(dim1=-2, dim2=-1).any()
    for batch in range(3):
        row_by_row = [float(K[batch, i, j]) for i in range(n) for j in range(i + 1, n)]
        assert row_by_row == entries[batch].tolist()
    free = entries.clone().requires_grad_()
    cotangent = draw(3, n, n, seed=1)
    (grad,) = torch.autograd.grad((skew_from(free, n) * cotangent).sum(), free)
    rows, columns = torch.triu_indices(n, n, 1)
    close(grad, (cotangent - cotangent.mT)[:, rows, columns], 1e-12, "gradient")


@given(n=st.integers(1, 7), seed=st.integers(0, 99), size=st.sampled_from([1e-3, 1.0, 30.0]))
def test_cayley_is_a_rotation_and_comes_back(n: int, seed: int, size: float) -> None:
    K = skew(n, size, seed)
    R = cayley(K)
    assert float(orthogonality_defect(R)) < 1e-10
    assert abs(float(torch.linalg.det(R)) - 1) < 1e-10
    want = torch.from_numpy((np.eye(n) + K.numpy()) @ np.linalg.inv(np.eye(n) - K.numpy()))
    close(R, want, 1e-9, "(I + K)(I - K)^-1")
    close(cayley(-K), R.T, 1e-10, "the other way round")
    close(cayley_inverse(R), K, 1e-7, "inverse")


def test_cayley_of_nothing_is_the_identity_and_starts_at_twice_its_argument() -> None:
    assert torch.equal(cayley(torch.zeros(4, 4)), torch.eye(4))
    errors = [float((cayley(skew(4, t)) - eye(4) - 2 * skew(4, t)).norm()) for t in (1e-3, 5e-4)]
    assert 3.8 < errors[0] / errors[1] < 4.2


@pytest.mark.parametrize("terms", [2, 3, 5, 6])
def test_cut_cayley_has_the_singular_values_of_the_closed_form(terms: int) -> None:
    """``|1 - (i a)^(terms - 1)|`` for K's eigenvalues +-ia, and the eigenvalue 0 which an odd size adds."""
    K = skew(5, 0.3)
    a = np.linalg.eigvals(K.numpy()).imag
    want = np.sort(np.abs(1 - (1j * a) ** (terms - 1)))[::-1].copy()
    close(torch.linalg.svdvals(cayley_neumann(K, terms)), torch.from_numpy(want), 1e-10, "singular values")
    assert float(np.abs(want - 1).max()) > 0.1, "far from a rotation at this size"


def test_cut_cayley_of_five_terms_written_out() -> None:
    K = skew(4, 0.1)
    want = eye(4) + 2 * K + 2 * K @ K + 2 * K @ K @ K + K @ K @ K @ K
    close(cayley_neumann(K, 5), want, 1e-12, "five terms")


@pytest.mark.parametrize("terms", [2, 3, 5, 6])
def test_cut_cayley_keeps_one_matrix_and_has_the_gradients_of_the_series(terms: int) -> None:
    K, kept = skew(4, 0.3).requires_grad_(), list[Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        R = cayley_neumann(K, terms)
    assert [t.data_ptr() for t in kept] == [K.data_ptr()]
    eye = torch.eye(4, dtype=K.dtype)
    series = (eye + K) @ sum((torch.linalg.matrix_power(K, j) for j in range(1, terms - 1)), start=eye)
    close(R, series, 1e-13, "value")
    assert torch.autograd.gradcheck(lambda k: cayley_neumann(k, terms), K)
    assert torch.autograd.gradgradcheck(lambda k: cayley_neumann(k, terms), K)


@pytest.mark.parametrize("terms", [3, 5])
def test_cut_cayley_approaches_the_whole_one_at_its_order_with_the_same_sign(terms: int) -> None:
    errors = [gap(cayley_neumann(skew(4, t), terms), cayley(skew(4, t))) for t in (2e-2, 1e-2)]
    assert 0.9 * 2 ** (terms - 1) < errors[0] / errors[1] < 1.1 * 2 ** (terms - 1)
    assert gap(cayley_neumann(skew(4, 1e-2), terms), cayley(skew(4, -1e-2))) > 1e-2, "the other sign is another one"


@pytest.mark.parametrize("r", [1, 2, 5, 8])
def test_reflections_are_the_product_one_after_the_other(r: int) -> None:
    U = draw(6, r)
    U = U / U.norm(dim=0)
    G = reflections(U)
    chain = eye(6)
    for i in range(r):
        chain = chain @ (eye(6) - 2 * torch.outer(U[:, i], U[:, i]))
    close(eye(6) + U @ G @ U.T, chain, 1e-10, "compact form")
    assert not torch.tril(G, diagonal=-1).any()
    assert abs(float(torch.linalg.det(chain)) - (-1) ** r) < 1e-10
    if r > 1:
        assert gap(eye(6) + U @ G.T @ U.T, chain) > 1e-2, "the control: the order matters"


# ---- batches, precision, distances ----------------------------------------------------------------------------------


def each(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    return torch.stack([function(*single) for single in zip(*batches, strict=True)])


def test_batches_are_single_maps() -> None:
    X = torch.stack([on_manifold(6, 3, seed) for seed in range(4)])
    D, K = draw(4, 6, 3), torch.stack([skew(5, 0.3, seed) for seed in range(4)])
    close(polar(X + tangent(X, D)), each(lambda x, d: polar(x + tangent(x, d)), X, D), 1e-12, "polar")
    close(retract_cayley(X, D), each(retract_cayley, X, D), 1e-12, "retract_cayley")
    close(landing(X, D, 0.5), each(lambda x, d: landing(x, d, 0.5), X, D), 1e-12, "landing")
    close(tangent_defect(X, D), each(tangent_defect, X, D), 1e-12, "tangent_defect")
    for function in (cayley, cayley_inverse, lambda k: cayley_neumann(k, 4), skew_defect, orthogonality_defect):
        close(function(K), each(function, K), 1e-12, "rotations")


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_raised_and_autocast_is_off(dtype: torch.dtype) -> None:
    """The same as on the float32 copy of the same numbers."""
    X, D = on_manifold(6, 3).to(dtype), draw(6, 3, dtype=dtype)
    K, U = skew(4, 0.2).to(dtype), (draw(6, 4) / draw(6, 4).norm(dim=0)).to(dtype)
    maps: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "retract_cayley": (retract_cayley, (X, D)),
        "landing": (lambda x, g: landing(x, g, 0.5), (X, D)),
        "cayley": (cayley, (K,)),
        "cayley_inverse": (cayley_inverse, (K,)),
        "cayley_neumann": (lambda k: cayley_neumann(k, 4), (K,)),
        "reflections": (reflections, (U,)),
        "tangent_defect": (tangent_defect, (X, D)),
        "skew_defect": (skew_defect, (D[:3],)),
        "orthogonality_defect": (orthogonality_defect, (X,)),
    }
    for name, (function, arguments) in maps.items():
        want = function(*(argument.float() for argument in arguments))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = function(*arguments)
        assert got.dtype == torch.float32, name
        close(got, want, 1e-6, name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (X.float().T @ X.float()).dtype == torch.bfloat16, "the control: autocast is on"


def test_distances_are_zero_where_they_should_be_and_count_what_is_missing() -> None:
    X = on_manifold(6, 3)
    D = tangent(X, draw(6, 3, seed=1))
    assert float(tangent_defect(X, D)) < 1e-12
    close(tangent_defect(X, D + X), torch.tensor(2 * 3**0.5, dtype=torch.float64), 1e-12, "||2 I||")
    assert float(skew_defect(skew(4))) == 0
    close(skew_defect(skew(4) + 0.5 * eye(4)), torch.tensor(2.0, dtype=torch.float64), 1e-12, "||I||")
    close(orthogonality_defect(2 * X), torch.tensor(3 * 3**0.5, dtype=torch.float64), 1e-12, "||3 I||")
    assert float(orthogonality_defect(torch.eye(4)[:, :2])) == 0.0


def test_the_rank_defect_is_the_distance_to_the_nearest_matrix_of_that_rank() -> None:
    U, V = on_manifold(6, 3), on_manifold(5, 3, seed=1)
    D = U * torch.tensor([5.0, 4.0, 3.0]) @ V.T
    assert float(rank_defect(D, 3)) < 1e-12
    close(rank_defect(D, 1), torch.tensor(5.0, dtype=torch.float64), 1e-12, "sqrt(4^2 + 3^2)")
    assert float(rank_defect(D, 5)) == 0.0, "no matrix has a larger rank"


def test_singular_values_of_zero_are_lifted_to_the_rounding_of_the_matrix_and_others_left_alone() -> None:
    W = 3 * torch.eye(4, dtype=torch.float32)
    least = torch.finfo(torch.float32).eps * 6.0
    S = torch.tensor([3.0, 1e-3, 0.0])
    close(above_rounding(S, W), torch.tensor([3.0, 1e-3, least]), 1e-12, "values")


def test_a_rotation_from_entries_is_the_map_that_was_asked_for() -> None:
    entries = 0.1 * draw(2, 6)
    K = skew_from(entries, 4)
    close(rotation_from(entries, 4, "exact", 5), cayley(K), 0.0, "exact, whatever the terms")
    close(rotation_from(entries, 4, "neumann", 5), cayley_neumann(K, 5), 0.0, "series")
    assert gap(cayley(K), cayley_neumann(K, 5)) > 1e-6, "the control: the two differ"
