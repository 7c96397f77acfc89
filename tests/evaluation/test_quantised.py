"""Starts on a quantised base against the same alternations in NumPy, and what is known of them."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from evaluation.clock import Clock
from evaluation.measures import quantised as module
from evaluation.measures.quantised import quantised, quantised_start
from evaluation.training import Classifier, logits
from tests.evaluation import toy
from variants.core.rounding import Format, Rounding

CPU = torch.device("cpu")


def weight(out: int, in_: int, seed: int = 0, decay: float = 0.9) -> Tensor:
    """A Gaussian matrix with a part of falling spectrum, as trained weights have one."""
    rng = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(n, min(out, in_), generator=rng, dtype=torch.float64)).Q for n in (out, in_))
    noise = torch.randn(out, in_, generator=rng, dtype=torch.float64) / (out * in_) ** 0.5
    return U * decay ** torch.arange(min(out, in_)) @ V.T + noise


def slow(W: Tensor, format: Format, start: str, rank: int, rounds: int) -> np.ndarray:
    """Q + B A by NumPy."""

    def leading(M: np.ndarray) -> np.ndarray:
        U, s, Vh = np.linalg.svd(M)
        return sum(np.outer(U[:, i], Vh[i]) * s[i] for i in range(rank))

    BA = leading(W.numpy()) if start == "qpissa" else np.zeros(W.shape)
    for _ in range(rounds):
        Q = Rounding(format)(W - torch.from_numpy(BA)).numpy()
        BA = leading(W.numpy() - Q)
    return Q + BA


@settings(max_examples=15)
@given(
    st.integers(2, 20),
    st.integers(2, 20),
    st.integers(1, 4),
    st.sampled_from(["int8", "nf4"]),
    st.sampled_from(["loftq", "qpissa"]),
)
def test_the_alternation(out, in_, rounds, format, start):
    W, rank = weight(out, in_), min(out, in_) // 2 + 1
    rank = min(rank, out, in_)
    made = quantised_start(W, Rounding(format), start, rank, rounds)
    assert torch.allclose(made.weight(), torch.from_numpy(slow(W, format, start, rank, rounds)), atol=1e-10)
    assert (made.pair.A.shape, made.pair.B.shape) == ((rank, in_), (out, rank))
    assert torch.allclose(Rounding(format)(made.Q), made.Q, atol=1e-12), "Q is not what the format holds"


def errors(W: Tensor, start: str, ranks: tuple[int, ...], rounds: int) -> list[float]:
    made = [quantised_start(W, Rounding("nf4"), start, rank, rounds).weight() for rank in ranks]
    return [float((W - M).norm() / W.norm()) for M in made]


@pytest.mark.parametrize("rounds", [1, 5])
@pytest.mark.parametrize("start", ["loftq", "qpissa"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_pair_makes_up_for_rounding_and_more_so_at_higher_rank(seed, start, rounds):
    W = weight(96, 128, seed)
    ranks = (2, 8, 32)
    (alone,) = errors(W, "qlora", (1,), rounds)
    found = errors(W, start, ranks, rounds)
    assert 0.05 < alone < 0.15
    assert all(error < alone for error in found)
    assert all(low < high for high, low in pairwise(found))


def test_the_principal_part_in_the_pair_helps_where_it_is_large():
    W = weight(96, 128, decay=0.5)
    assert errors(W, "qpissa", (8,), 1)[0] < 0.9 * errors(W, "loftq", (8,), 1)[0]


def test_at_full_rank_nothing_is_lost():
    assert errors(weight(12, 16), "loftq", (12,), 1)[0] < 1e-12


def test_qlora_has_no_pair_and_no_rank():
    W = weight(8, 8)
    a, b = (quantised_start(W, Rounding("nf4"), "qlora", rank) for rank in (1, 8))
    assert a.pair is b.pair is None
    assert torch.equal(a.Q, Rounding("nf4")(W))
    assert torch.equal(a.weight(), b.Q)
    with pytest.raises(ValueError, match="at least one alternation"):
        quantised_start(W, Rounding("nf4"), "loftq", 2, 0)


# ---- on a model -----------------------------------------------------------------------------------------------------


def check_model(build, where: tuple[str, ...]) -> None:
    encoder = build()
    model, split = Classifier(encoder, toy.HIDDEN, toy.CLASSES, 0), toy.data().test.head(10)
    before = toy.bits(model)
    found = quantised(model, where, ("int8", "nf4"), (1, 4), split, Clock(), alternations=2)
    assert toy.same(before, toy.bits(model))
    json.dumps(found, allow_nan=False)
    exact = logits(model, split, Clock(), CPU)
    for format, ranks in found.items():
        assert list(ranks) == ["1", "4"]
        assert ranks["1"]["qlora"] == ranks["4"]["qlora"]
        for rank, starts in ranks.items():
            assert list(starts) == ["qlora", "loftq", "qpissa"]
            for start, got in starts.items():
                other = build()
                off = size = 0.0
                for path, layer in other.named_modules():
                    if path.endswith(where):
                        turned = type(layer).__name__ == "Conv1D"
                        W = (layer.weight.T if turned else layer.weight).detach()
                        made = quantised_start(W, Rounding(format), start, int(rank), 2).weight()
                        off, size = off + float((W - made).norm() ** 2), size + float(W.norm() ** 2)
                        layer.weight.data = made.T if turned else made
                out = logits(Classifier(other, toy.HIDDEN, toy.CLASSES, 0), split, Clock(), CPU)
                assert got["weight_error"] == pytest.approx((off / size) ** 0.5, rel=1e-5), (format, rank, start)
                want = float((out - exact).norm() / exact.norm())
                assert got["output_error"] == pytest.approx(want, rel=1e-4), (format, rank, start)


@pytest.mark.parametrize(("build", "where"), [(toy.bert, ("query", "value")), (toy.gpt2, ("c_attn",))])
def test_a_model_of_quantised_layers(build, where):
    check_model(build, where)


@pytest.mark.parametrize("case", ["pair forgotten", "nothing swapped"])
def test_a_broken_measurement_is_caught(monkeypatch, case):
    if case == "pair forgotten":
        made = module.quantised_start
        monkeypatch.setattr(module, "quantised_start", lambda *rest: made(*rest)._replace(pair=None))
    else:
        monkeypatch.setattr(module, "swapped", lambda _: torch.no_grad())
    with pytest.raises(AssertionError):
        check_model(toy.bert, ("query", "value"))
