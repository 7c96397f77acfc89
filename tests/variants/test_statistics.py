"""Statistics which say nothing are refused, with what to do about it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from variants.core import Refused
from variants.core.cases import close
from variants.core.statistics import covariance, gradient


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_gradient_is_handed_on() -> None:
    G = draw(3, 4)
    assert gradient({"gradient": G}) is G


def test_the_covariance_is_about_zero_or_about_the_mean() -> None:
    X = draw(50, 3) + torch.tensor([1.0, -2.0, 0.5])
    stats = {"covariance": (X.T @ X / 50).float(), "mean": X.mean(0).float()}
    found, centred = covariance(stats), covariance(stats, centred=True)
    assert found.dtype == centred.dtype == torch.float64
    close(found, X.T @ X / 50, 1e-6, "about zero")
    close(centred, torch.cov(X.T, correction=0), 1e-5, "about the mean")
    assert float((found - centred).abs().max()) > 0.1, "the control: the mean matters"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("centred", [False, True])
def test_what_is_not_finite_is_refused(bad: float, centred: bool) -> None:
    G, C = draw(3, 4), torch.eye(3)
    G[1, 2] = C[0, 1] = bad
    with pytest.raises(Refused, match="its gradient is not finite: calibrate"):
        gradient({"gradient": G})
    with pytest.raises(Refused, match="its inputs are not finite: calibrate"):
        covariance({"covariance": C, "mean": torch.zeros(3)}, centred=centred)


def test_what_says_nothing_is_refused() -> None:
    with pytest.raises(Refused, match="its gradient is zero: leave the layer out"):
        gradient({"gradient": torch.zeros(3, 4)})
    with pytest.raises(Refused, match="its inputs are all zero: calibrate"):
        covariance({"covariance": torch.zeros(3, 3)})
    constant = {"covariance": torch.ones(3, 3), "mean": torch.ones(3)}
    covariance(constant)
    with pytest.raises(Refused, match="its inputs do not vary: calibrate"):
        covariance(constant, centred=True)
