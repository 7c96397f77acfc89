"""What merging is said to do to weights: what survives, what drifts, what is recovered, what it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation.clock import Clock
from evaluation.measures.merging import cost, drift, factors, merging, updates
from evaluation.measures.merging.updates import Changed, Stored, by_chance, relative_size, spread, survival, survived
from evaluation.spec import Merging
from tests.evaluation import toy
from tests.evaluation.merge_cases import WithWeights, gaussian, gaussian_layers, merge_case
from variants.core import Variant, adapter_state, create, merged
from variants.core.host import hosts
from variants.core.rounding import FORMATS, Format, Rounding

CPU = torch.device("cpu")
TALL = ((256, 192), (192, 256))


def moved(name: str, **hyperparameters: Any) -> Variant:
    return create(name, hyperparameters)


def row(rows: list[dict[str, Any]], format: str, rounding: str, size: float) -> dict[str, Any]:
    (found,) = [
        r for r in rows if (r["format"], r["rounding"]) == (format, rounding) and math.isclose(r["relative_size"], size)
    ]
    return found


# ---- what survives --------------------------------------------------------------------------------------------------


def test_survived_by_hand():
    Q, D = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])  # <D, D> = 1.25
    found = survived([Stored(Q, D, torch.tensor([[2.0, 1.0]]))])  # S - Q = (1, -1), S - Q - D = (0.5, 0)
    assert found == pytest.approx({"kept": 1.5 / 1.25, "update_error": 0.5 / 1.25**0.5})
    twice = [Stored(Q, D, Q + D), Stored(Q, D, Q)]  # one kept, one lost: together, not the mean of quotients
    assert survived(twice) == pytest.approx({"kept": 0.5, "update_error": 0.5**0.5})
    none = {"kept": None, "update_error": None}
    assert survived([]) == survived([Stored(Q, 0 * D, Q)]) == none
    assert survived([Stored(Q, D, torch.tensor([[math.inf, 1.0]]))]) == none


def test_relative_size_is_of_all_layers_together():
    layers = gaussian_layers(moved("lora", rank=4), shapes=TALL)
    D2 = sum(float((one.D.double() ** 2).sum()) for one in layers)
    W2 = sum(float((one.W.double() ** 2).sum()) for one in layers)
    assert relative_size(layers) == pytest.approx(math.sqrt(D2 / W2), rel=1e-6)
    t = next(iter(hosts(nn.ModuleDict({"a": layers[0].layer})).values())).carried("default").tensors()
    assert torch.allclose(layers[0].D, t["B"] @ t["A"], atol=1e-7)
    assert relative_size([]) is None


def test_layers_are_found_by_what_changes_and_not_by_what_is_attached():
    for name, count in {"lora": 4, "full": 12, "probe": 0, "bitfit": 0}.items():
        model, variant, stock = merge_case(name if name != "bitfit" else create(name))
        del variant
        assert len(updates.changed_layers(model.encoder, stock)) == count, name
    model, _, stock = merge_case("lora")
    with torch.no_grad():
        next(iter(hosts(model.encoder).values())).carried("default").B.zero_()
    assert len(updates.changed_layers(model.encoder, stock)) == 3


def test_spread_takes_both_ends_and_heeds_its_limit():
    layers = [Changed(nn.Linear(1, 1), torch.empty(10, 10), torch.full((1,), float(i))) for i in range(12)]
    assert [int(one.D) for one in spread(layers)] == [0, 11]
    assert [int(one.D) for one in spread(layers, 4)] == [0, 3, 7, 11]
    assert len(spread(layers, 4, weights=250)) == 2
    assert len(spread(layers, weights=1)) == 1
    assert spread(layers[:1]) == layers[:1]
    assert spread([]) == []


# Share of a random update of this relative size that one rounding to nearest loses, for Gaussian weights.
LOST = {("bfloat16", 1e-1): 0.017, ("bfloat16", 1e-2): 0.17, ("bfloat16", 1e-3): 0.79, ("bfloat16", 1e-4): 0.98}
LOST |= {("float16", 1e-2): 0.021, ("float16", 1e-3): 0.21, ("float16", 1e-4): 0.83}


def check_survival() -> None:
    rows = survival(gaussian_layers(moved("lora", rank=16), shapes=TALL), FORMATS, seed=0)
    assert len(rows) == 4 * 2 * len(updates.SIZES)
    for (format, size), lost in LOST.items():
        assert row(rows, format, "nearest", size)["error"] == pytest.approx(lost, rel=0.2), (format, size)
    for size, kept in {1e-2: (0, 0.08), 1e-1: (0.6, 0.95), 1.0: (0.97, 1.03)}.items():
        assert kept[0] <= row(rows, "nf4", "nearest", size)["kept"] <= kept[1], size
    for format in ("bfloat16", "float16", "int8", "nf4"):
        errors = [row(rows, format, "nearest", size)["error"] for size in updates.SIZES]
        assert all(big >= small - 0.02 for big, small in pairwise(errors)), format
        for size in updates.SIZES:
            chance = row(rows, format, "stochastic", size)
            # Each number's error is independent of the update, so the share kept is 1 give or take error / sqrt(n).
            assert abs(chance["kept"] - 1) < 5 * chance["error"] / (2 * 256 * 192) ** 0.5 + 1e-3, (format, size)
            assert chance["error"] > row(rows, format, "nearest", size)["error"]


def test_how_much_survives_by_size():
    check_survival()


@pytest.mark.parametrize("format", ["bfloat16", "int8", "nf4"])
def test_the_update_of_a_trained_weight_is_not_what_its_base_loses(format):
    """It is stored with a single rounding, and compared with what training did, whatever the base lost."""
    layers = gaussian_layers(moved("full"), scale=2e-5)
    (layer,), own = layers, relative_size(layers)
    rounding = Rounding(format)
    assert own == pytest.approx(1e-3, rel=0.1)
    for size in (1e-4, 1e-3, 1e-1):
        D = layer.D.double() * (size / own)
        lost = rounding((layer.W + D).float()).double() - rounding(layer.W).double() - D
        error = row(survival(layers, (format,), seed=0), format, "nearest", size)["error"]
        assert error == pytest.approx(float(lost.norm() / D.norm()), rel=1e-2), size
    Q, D, S = layer.stored(rounding)
    assert torch.equal(D, layer.D)
    assert torch.equal(Q, rounding(layer.W))
    assert torch.equal(S, rounding(layer.present()))


@pytest.mark.parametrize("case", ["update not scaled", "never by chance", "not quantised"])
def test_a_broken_survival_is_caught(monkeypatch, case):
    if case == "update not scaled":
        monkeypatch.setattr(updates, "relative_size", lambda _: 1.0)
    elif case == "never by chance":
        monkeypatch.setattr(updates, "by_chance", lambda format, _: Rounding(format))
    else:
        monkeypatch.setattr(updates, "Rounding", lambda f, *rng: Rounding("float32" if f == "nf4" else f, *rng))
    with pytest.raises(AssertionError):
        check_survival()


def test_draws_depend_on_the_seed_and_the_format_alone():
    W = torch.linspace(-1, 1, 64)[None]
    a, b, c = (by_chance("nf4", seed)(W) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    case = merge_case("lora")
    spec = Merging(items=4, formats=("nf4",)), Merging(items=4)
    one, all_ = (merging(*case, toy.data().test, s, Clock(), 7)["formats"]["nf4"] for s in spec)
    assert one == all_
    other = merging(*case, toy.data().test, spec[0], Clock(), 8)["formats"]["nf4"]
    assert {**other, "stochastic": 0} == {**one, "stochastic": 0}
    assert other["stochastic"] != one["stochastic"]


# ---- drift ----------------------------------------------------------------------------------------------------------

CYCLES = (1, 10, 100)


def drifted(variant: Variant, formats: tuple[Format, ...] = ("bfloat16",), **changes: Any) -> dict[str, Any]:
    return drift.drift(gaussian_layers(variant, **changes), variant, formats, CYCLES)[0]


def test_subtraction_is_nearly_flat_for_lora_and_grows_for_rotations():
    lora = drifted(moved("lora", rank=4), scale=0.005)["bfloat16"]["subtraction"]
    rotation = drifted(moved("oft", block=8), scale=0.05)["bfloat16"]["subtraction"]
    assert 1e-4 < lora["1"] < 1e-3
    assert lora["1"] <= lora["10"] < 1.02 * lora["1"]
    assert lora["10"] <= lora["100"] < 1.4 * lora["1"]
    assert 1e-4 < rotation["1"] < 1e-2
    assert 1.25 * rotation["1"] < rotation["10"] < rotation["100"]


def test_an_update_in_the_storage_format_does_not_drift_further():
    """Round to nearest even: (x + y) - y is reached after one cycle and stays (Knuth, TAOCP 2, 4.2.2)."""
    variant = moved("full")
    (layer,) = gaussian_layers(variant, scale=0.002)
    rounded = Changed(layer.layer, layer.W, Rounding("bfloat16")(layer.D))
    found = drift.drift([rounded], variant, ("bfloat16",), CYCLES)[0]["bfloat16"]["subtraction"]
    assert found["1"] == found["10"] == found["100"] > 0


def test_subtraction_in_the_storage_dtype_itself():
    (layer,) = layers = gaussian_layers(moved("lora", rank=4), scale=0.01)
    t = layer.layer.carried("default").tensors()  # type: ignore[operator]
    D = (t["B"].double() @ t["A"].double()).detach()
    for format in ("bfloat16", "float16", "float32"):
        dtype = getattr(torch, format)
        before = W = layer.W.to(dtype)
        found = drift.drift(layers, moved("lora", rank=4), (format,), (1, 3))[0][format]["subtraction"]
        for cycle in (1, 2, 3):
            W = (W.double() + D).to(dtype) - D.to(dtype)
            if cycle in (1, 3):
                want = float((W.double() - before.double()).norm() / before.double().norm())
                assert found[str(cycle)] == pytest.approx(want, rel=1e-6), (format, cycle)


@pytest.mark.parametrize("name", ["lora", "pissa", "dora", "oft", "ia3", "svf", "full", "mixed"])
def test_restoring_does_not_drift(name):
    sizes = {"lora": {"rank": 2}, "pissa": {"rank": 2}, "oft": {"block": 8}}
    variant = WithWeights(rank=2) if name == "mixed" else create(name, sizes.get(name, {}))
    model, variant, stock = merge_case(variant)
    before = toy.bits(model)
    for host in hosts(model.encoder).values():
        host.unrebase()
    layers = updates.changed_layers(model.encoder, stock)
    found, count = drift.drift(layers, variant, FORMATS, (1, 2))
    assert found.keys() == {"float32", "bfloat16", "float16"}
    for distances in found.values():
        assert distances["restoring"] == {"1": 0.0, "2": 0.0}
        assert 0 < distances["subtraction"]["1"] < 0.01
    assert count == 1
    assert found == drift.drift(layers[-1:], variant, FORMATS, (1, 2))[0], "not the last layer"
    assert toy.same(before, toy.bits(model)) or name == "pissa"


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_leaky_restore_is_seen(monkeypatch, name):
    @contextmanager
    def leaky(model: nn.Module, *rest: Any) -> Iterator[None]:
        with merged(model, *rest):
            yield
        for host in hosts(model).values():
            host.weight.data.mul_(1 + 2**-20)  # in place, as arithmetic that undoes a merge would

    @contextmanager
    def never_back(values: dict[nn.Parameter, Tensor]) -> Iterator[None]:
        for parameter, value in values.items():
            parameter.data = value
        yield

    monkeypatch.setattr(drift, "merged", leaky)
    monkeypatch.setattr(drift, "swapped", never_back)
    model, variant, stock = merge_case(name)
    found, _ = drift.drift(updates.changed_layers(model.encoder, stock), variant, ("bfloat16",), (1, 10))
    lost = found["bfloat16"]["restoring"]
    assert lost["1"] > 0
    if name == "lora":
        assert lost["10"] == pytest.approx(10 * lost["1"], rel=0.01)


def test_a_distance_that_is_no_number_is_none():
    W = torch.ones(2, 2)
    assert drift._distance([W], [W * torch.inf]) is None
    assert drift._distance([W], [2 * W]) == pytest.approx(1.0)


# ---- factors --------------------------------------------------------------------------------------------------------


def check_factors() -> dict[str, Any]:
    variant = moved("stiefel", rank=4)
    model = gaussian(variant, shapes=TALL, scale=0.02)
    layers = gaussian_layers(variant, shapes=TALL, scale=0.02)
    before = {key: tensor.clone() for key, tensor in adapter_state(model).items()}
    found = factors.factors(model, layers, FORMATS)
    assert found is not None
    assert (found["rank"], found["defect_before"]) == (4, found["defect_after"])
    U = [t for key, t in before.items() if key.endswith((".U", ".V"))]
    assert found["defect_before"] == pytest.approx(max(float((X.T @ X - torch.eye(4)).norm()) for X in U), rel=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter_state(model).items())
    for format, values in found["recovered"].items():
        off, size, smallest = 0.0, 0.0, 1.0
        for layer in layers:
            Q, D, S = layer.stored(Rounding(format))
            true, seen = (np.linalg.svd(M.double().numpy()) for M in (D, S - Q))
            off, size = off + ((true[1][:4] - seen[1][:4]) ** 2).sum(), size + (true[1][:4] ** 2).sum()
            for a, b in ((true[0][:, :4], seen[0][:, :4]), (true[2][:4].T, seen[2][:4].T)):
                smallest = min(smallest, np.linalg.svd(a.T @ b)[1].min())
        assert values["singular_values"] == pytest.approx((off / size) ** 0.5, rel=1e-2, abs=1e-5), format
        assert values["subspace"] == pytest.approx(smallest, abs=1e-3), format
    return found["recovered"]


def test_factors_are_untouched_and_can_be_recovered():
    found = check_factors()
    assert found["float32"]["singular_values"] < 1e-4
    assert found["float32"]["subspace"] > 0.999
    assert found["bfloat16"]["singular_values"] > 10 * found["float32"]["singular_values"]
    assert found["nf4"]["subspace"] < found["bfloat16"]["subspace"]


def test_a_merge_that_touches_the_factors_is_seen(monkeypatch):
    @contextmanager
    def scaling(model: nn.Module) -> Iterator[None]:
        with merged(model):
            yield
        with torch.no_grad():
            next(iter(hosts(model).values())).carried("default").U.mul_(2)

    monkeypatch.setattr(factors, "merged", scaling)
    with pytest.raises(AssertionError):
        check_factors()


@pytest.mark.parametrize("name", ["oft", "dora", "svf", "full"])
def test_there_are_no_factors_without_a_pair_of_low_rank(name):
    variant = create(name, {"block": 8} if name == "oft" else {})
    model = gaussian(variant)
    assert factors.factors(model, gaussian_layers(variant), ("float32",)) is None


@pytest.mark.parametrize(
    ("name", "hyperparameters", "has"),
    [
        ("lora", {}, False),
        ("polar", {}, True),
        ("usv_penalty", {}, True),
        ("stiefel", {}, True),
        ("usv_parametrized", {}, True),
        ("hra", {}, True),
        ("lora_xs", {}, True),
        ("psoft", {}, True),
        ("delora", {}, False),
        ("adalora", {}, True),
    ],
)
def test_which_methods_have_orthonormal_factors(name, hyperparameters, has):
    assert (factors.worst_defect(gaussian(create(name, hyperparameters))) is not None) == has


def test_the_defect_of_wide_factors_is_that_of_their_rows():
    model = gaussian(moved("adalora", rank=4))
    t = {key: X.detach() for key, X in next(iter(hosts(model).values())).carried("default").tensors().items()}
    want = max(float((X.mT @ X - torch.eye(X.shape[1])).norm()) for X in (t["A"].mT, t["B"]))
    assert factors.worst_defect(model) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("promise", ["U", "B", "U^T U = I", "H^T H = I"])
def test_a_promise_of_orthonormality_is_known(promise):
    assert factors.PROMISE.fullmatch(promise)


@pytest.mark.parametrize("promise", ["spectrum", "W W^T", "rank of the update", "norms of the rows"])
def test_another_promise_is_not_taken_for_one(promise):
    assert not factors.PROMISE.fullmatch(promise)


def test_directions_which_are_rounding_are_left_out():
    rng = torch.Generator().manual_seed(0)
    A, B = torch.randn(4, 30, generator=rng), torch.randn(20, 4, generator=rng)
    pair = factors.LoRAPair(torch.cat([A, A]), torch.cat([B, B], dim=1))
    U, s, Vh = factors.factored(pair)
    assert len(s) == 4
    assert torch.allclose((U * s) @ Vh, pair.delta().double(), atol=1e-4)


# ---- cost -----------------------------------------------------------------------------------------------------------


def cost_of(model: nn.Module) -> dict[str, float]:
    found = cost.cost(model, CPU)
    assert found is not None
    return found


def test_cost_is_of_all_layers_and_holds_the_new_weights():
    one, two = (gaussian(moved("lora", rank=4), shapes=shapes) for shapes in (((256, 192),), TALL))
    found = cost_of(two)
    bytes_ = 4 * 2 * 256 * 192
    assert bytes_ <= found["extra_bytes"] <= 4 * bytes_
    assert found["extra_bytes"] > cost_of(one)["extra_bytes"]
    assert 0 < found["seconds"] < 1
    for name in ("full", "probe"):
        assert cost.cost(merge_case(name)[0].encoder, CPU) is None


@pytest.mark.parametrize("name", ["lora", "pissa", "dora"])
def test_the_cost_is_of_a_merge_for_good_which_the_model_does_not_feel(monkeypatch, name):
    model, *_ = merge_case(name)
    before, merge, seen = toy.bits(model), cost.once, []

    def watched(encoder: nn.Module) -> None:
        merge(encoder)
        seen.append((hosts(encoder), encoder.get_parameter("embeddings.word_embeddings.weight")))

    monkeypatch.setattr(cost, "once", watched)
    trains = [p.requires_grad for p in model.parameters()]
    cost.cost(model.encoder, CPU)
    shared = model.encoder.get_parameter("embeddings.word_embeddings.weight")
    assert [(len(adapted), weight is shared) for adapted, weight in seen] == [(0, True)] * (1 + cost.ROUNDS)
    assert toy.same(before, toy.bits(model))
    assert [p.requires_grad for p in model.parameters()] == trains
    assert len(hosts(model.encoder)) == 4


def test_a_slow_merge_is_seen(monkeypatch):
    model = gaussian(moved("lora", rank=4))
    monkeypatch.setattr(cost, "once", lambda _: time.sleep(0.02))
    assert 0.02 <= cost_of(model)["seconds"] < 0.2


# ---- all of it ------------------------------------------------------------------------------------------------------


def test_depth_decides_what_is_there():
    case = merge_case("stiefel")
    plain = merging(*case, toy.data().test, Merging(items=4), Clock())
    full = merging(*case, toy.data().test, Merging(items=4, depth="full", cycles=(1,)), Clock())
    more = {"survival", "survival_layers", "drift", "drift_layers", "factors"}
    assert plain.keys() == {"items", "mergeable", "relative_size", "formats", "cost"}
    assert full.keys() - plain.keys() == more
    assert full["drift"]["float32"].keys() == {"restoring", "subtraction"}
    assert plain["relative_size"] == full["relative_size"] > 0
    assert list(plain["formats"]) == list(FORMATS)
