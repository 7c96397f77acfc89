"""Rounding to a format: to the nearest number which it can hold, or by chance with the right expectation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from variants.core.rounding import BLOCK, FORMATS, NF4_LEVELS, Format, Rounding, _next_level


def drawn(rows: int, columns: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, columns, generator=rng, dtype=torch.float64)


def by_search(W: Tensor, format: Format) -> np.ndarray:
    """The slow way: for every number, the nearest of all that its row or block can hold."""
    numbers, out = W.numpy(), np.zeros(W.shape)
    block = W.shape[1] if format == "int8" else BLOCK
    levels = np.arange(-127, 128) / 127 if format == "int8" else np.array(NF4_LEVELS)
    for i, row in enumerate(numbers):
        for start in range(0, len(row), block):
            part = row[start : start + block]
            held = levels * np.abs(part).max()
            out[i, start : start + block] = [held[np.argmin(np.abs(held - x))] for x in part]
    return out


@given(rows=st.integers(1, 4), columns=st.integers(1, 150), seed=st.integers(0, 99))
@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_the_nearest_level_of_row_or_block(format: Format, rows: int, columns: int, seed: int) -> None:
    W = drawn(rows, columns, seed)
    np.testing.assert_allclose(Rounding(format)(W).numpy(), by_search(W, format), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("format", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_half_precisions_are_torchs_own(format: Format, dtype: torch.dtype) -> None:
    W = drawn(5, 40)
    assert torch.equal(Rounding(format)(W), W.to(dtype).double())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("chance", [False, True])
def test_what_a_format_holds_stays(format: Format, chance: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    once = Rounding(format)(drawn(4, 130))
    assert torch.allclose(Rounding(format, rng if chance else None)(once), once, rtol=1e-12, atol=0)


@pytest.mark.parametrize("format", FORMATS)
def test_chance_goes_to_a_neighbour_and_is_right_on_average(format: Format) -> None:
    W, n = drawn(3, 70), 4000
    rng = torch.Generator().manual_seed(2)
    rounds = torch.stack([Rounding(format, rng)(W) for _ in range(n)])
    low, high = rounds.amin(0), rounds.amax(0)
    assert bool(((low <= W) & (high >= W)).all())
    assert all(len(set(column.tolist())) <= 2 for column in rounds.flatten(1).T)
    error = (rounds.mean(0) - W).abs()
    rare = 12 * (high - low).max() / n  # a neighbour so rarely drawn that it was not seen
    assert bool((error <= 5 * (high - low) / 2 / n**0.5 + rare).all())  # a coin's deviation is at most 1/2
    nearest = Rounding(format)(W)
    biased = (nearest - W).abs()
    assert bool((biased > 5 * (high - low) / 2 / n**0.5).any())  # the same test sees the bias of rounding to nearest


def test_numbers_beyond_a_format() -> None:
    W = torch.tensor([[0.0, -0.0, 65504.0, 65519.0, 65520.0, 1e5, -1e5]])
    expected = torch.tensor([[0.0, -0.0, 65504.0, 65504.0, torch.inf, torch.inf, -torch.inf]])
    assert torch.equal(Rounding("float16")(W), expected)
    assert torch.equal(Rounding("float16", torch.Generator().manual_seed(0))(W), expected)


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_zeros_have_no_scale_and_stay(format: Format) -> None:
    assert torch.equal(Rounding(format)(torch.zeros(2, 70)), torch.zeros(2, 70))


@pytest.mark.parametrize("format", FORMATS)
def test_only_weights_are_quantised(format: Format) -> None:
    W, b = drawn(2, 8), drawn(1, 2)[0]
    _, stored = Rounding(format).of_layer(W, b)
    assert stored is not None
    assert torch.equal(stored, b) == (format in ("int8", "nf4"))


def test_the_same_generator_gives_the_same_numbers() -> None:
    first, second = (Rounding("bfloat16", torch.Generator().manual_seed(7))(drawn(2, 9)) for _ in range(2))
    assert torch.equal(first, second)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="no format 'int3': there are float32"):
        Rounding("int3")  # type: ignore[arg-type]


def test_the_next_level_of_nf4_is_that_of_a_search() -> None:
    levels = torch.tensor(NF4_LEVELS)
    around = torch.cat([levels, levels.nextafter(levels + 1), levels.nextafter(levels - 1)]).clamp(-1, 1)
    x = torch.cat([around, torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 2 - 1])
    assert torch.equal(_next_level(x).long(), torch.searchsorted(levels, x).clamp(1, 15))
