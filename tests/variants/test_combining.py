"""Several adapters made into one: against slow oracles, PEFT where it means the same, and the laws of each operator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings, strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.variants.models import BiasToo, Gated, batch, fingerprint, host_of, net
from variants.core import LoRAPair, Refused, Variant, activate, adapter_state, attach, create, merged
from variants.core.cases import Case, close, generator, model_of, move, same_bits
from variants.core.combining import Combined, How, combine
from variants.core.host import hosts
from variants.core.pairs import concatenated
from variants.core.task_vectors import common_basis, common_basis_of_pairs, dare, elected, knots, ties, total, trimmed
from variants.dora import DoRA
from variants.hra import HRA
from variants.ia3 import IA3
from variants.lora import LoRA
from variants.oft import OFT
from variants.pissa import PiSSA

HOWS: tuple[How, ...] = get_args(How)
Task = dict[str, Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def task(seed: int, shapes: Sequence[tuple[int, int]] = ((4, 3), (2, 5))) -> Task:
    """The layers differ in scale, so that trimming each by itself is something else."""
    return {f"layer{i}": 3**i * random(*shape, seed=10 * seed + i) for i, shape in enumerate(shapes)}


def pair_of(out: int, rank: int, in_: int, seed: int = 0) -> LoRAPair:
    return LoRAPair(random(rank, in_, seed=seed), random(out, rank, seed=seed + 1))


def same(got: Task, want: Task, tol: float = 1e-12) -> None:
    assert got.keys() == want.keys()
    for path in want:
        close(got[path], want[path], tol, path)


# ---- operators on task vectors --------------------------------------------------------------------------------------


def slow_ties(tasks: Sequence[Task], density: float) -> Task:
    """Number by number, as algorithm 1 says."""
    places = [(path, i, j) for path, D in tasks[0].items() for i in range(D.shape[0]) for j in range(D.shape[1])]
    keep = max(1, round(density * len(places)))
    kept: list[dict[tuple[str, int, int], float]] = []
    for one in tasks:
        numbers = {place: float(one[place[0]][place[1], place[2]]) for place in places}
        kept.append({place: numbers[place] for place in sorted(places, key=lambda at: -abs(numbers[at]))[:keep]})
    merged = {path: torch.zeros_like(D) for path, D in tasks[0].items()}
    for place in places:
        values = [numbers[place] for numbers in kept if place in numbers]
        agreeing = [value for value in values if value * sum(values) > 0]
        if agreeing:
            merged[place[0]][place[1], place[2]] = sum(agreeing) / len(agreeing)
    return merged


@given(count=st.integers(1, 4), density=st.floats(0.01, 1.0), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_ties_is_its_algorithm(count: int, density: float, seed: int) -> None:
    tasks = [task(seed + i) for i in range(count)]
    same(ties(tasks, density), slow_ties(tasks, density))


def test_trimming_looks_at_the_whole_task_vector() -> None:
    one = {"small": torch.full((2, 2), 0.1), "large": torch.full((2, 2), -5.0)}
    same(trimmed(one, 0.5), {"small": torch.zeros(2, 2), "large": one["large"]})
    assert sum(int((D != 0).sum()) for D in trimmed(task(0), 0.3).values()) == round(0.3 * 22)


def test_election_by_hand() -> None:
    tasks = [{"layer": torch.tensor([[row]])} for row in (3.0, -1.0, -1.0)]
    same(elected(tasks), {"layer": torch.tensor([[3.0]])})
    assert float(elected([tasks[0], {"layer": torch.tensor([[-3.0]])}])["layer"]) == 0.0
    zero = {"layer": torch.tensor([[0.0]])}
    assert float(elected([tasks[0], zero])["layer"]) == 3.0, "the mean is over those that have the number"


def test_dare_keeps_the_expected_value() -> None:
    one = {"layer": torch.ones(300, 300, dtype=torch.float64)}
    dropped = dare(one, 0.25, generator(0))["layer"]
    assert sorted(set(dropped.flatten().tolist())) == [0.0, 4.0]
    assert float(dropped.mean()) == pytest.approx(1.0, abs=5 * (3 / 90_000) ** 0.5)
    assert same_bits(dropped, dare(one, 0.25, generator(0))["layer"])
    assert not same_bits(dropped, dare(one, 0.25, generator(1))["layer"])
    same(dare(task(1), 1.0, generator(0)), task(1))


def slow_knots(updates: list[Tensor], density: float | None) -> Tensor:
    """One layer, with the m x Kn decomposition and every block written out."""
    U, s, Vh = np.linalg.svd(np.concatenate([D.numpy() for D in updates], axis=1), full_matrices=False)
    n, held = updates[0].shape[1], s > 1e-5 * s[0]
    blocks = [np.diag(s[held]) @ Vh[held][:, i * n : (i + 1) * n] for i in range(len(updates))]
    blocks = [np.where(np.abs(block) > 1e-12 * s[0], block, 0.0) for block in blocks]
    tasks = [{"layer": torch.from_numpy(block)} for block in blocks]
    merged = sum(task["layer"] for task in tasks) if density is None else slow_ties(tasks, density)["layer"]
    return torch.from_numpy(U[:, held]) @ merged


SIZES = st.integers(1, 7)


@given(out=SIZES, in_=SIZES, ranks=st.lists(st.integers(0, 4), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_both_routes_of_knots_agree_and_are_its_definition(out: int, in_: int, ranks: list[int], seed: int) -> None:
    pairs = [pair_of(out, rank, in_, seed + 2 * i) for i, rank in enumerate(ranks)]
    updates = [pair.delta() for pair in pairs]
    bases = [{"layer": common_basis(updates)}, {"layer": common_basis_of_pairs(pairs)}]
    for basis in bases:
        U, blocks = basis["layer"]
        close(U.T @ U, torch.eye(U.shape[1], dtype=U.dtype), 1e-10, "basis")
        for block, D in zip(blocks, updates, strict=True):
            close(U @ block, D, 1e-4, "each task is in the basis")
    for density in (None, 0.3, 1.0):
        got = [knots(basis, density)["layer"].delta() for basis in bases]
        close(got[0], got[1], 1e-8, "the core gives what the whole gives")
        if any(ranks):
            close(got[0], slow_knots(updates, density), 1e-8, "definition")


def test_knots_decomposes_nothing_larger_than_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    svd = torch.linalg.svd

    def watched(W: Tensor, **options: Any) -> Any:
        shapes.append(tuple(W.shape))
        return svd(W, **options)

    monkeypatch.setattr(torch.linalg, "svd", watched)
    common_basis_of_pairs([pair_of(50, 2, 9), pair_of(50, 3, 9, 5)])
    assert shapes == [(5, 18)]


def test_knots_trims_over_all_layers() -> None:
    """A layer whose updates are tiny loses all of them, as in TIES."""
    tasks = [{"small": 1e-3 * random(3, 3, seed=i), "large": random(3, 3, seed=i + 5)} for i in range(2)]
    bases = {path: common_basis([one[path] for one in tasks]) for path in tasks[0]}
    found = knots(bases, 0.5)
    assert float(found["small"].delta().abs().max()) == 0.0
    close(found["large"].delta(), knots({"large": bases["large"]}, 1.0)["large"].delta(), 1e-12, "nothing cut")


@given(order=st.permutations(range(3)), density=st.sampled_from([0.2, 0.7, 1.0]))
@settings(max_examples=20, deadline=None)
def test_the_order_of_tasks_does_not_matter(order: list[int], density: float) -> None:
    tasks = [task(i) for i in range(3)]
    turned = [tasks[i] for i in order]
    same(total(turned), total(tasks))
    same(ties(turned, density), ties(tasks, density))
    bases = [{path: common_basis([one[path] for one in some]) for path in tasks[0]} for some in (tasks, turned)]
    merged = [{path: pair.delta() for path, pair in knots(basis, density).items()} for basis in bases]
    same(merged[1], merged[0], 1e-10)


def test_a_concatenated_pair_is_the_sum() -> None:
    pairs = [pair_of(5, rank, 4, rank) for rank in (0, 1, 3)]
    found = concatenated(pairs)
    close(found.delta(), sum((pair.delta() for pair in pairs), torch.zeros(5, 4)), 1e-12, "sum")
    assert len(found.A) == 4


# ---- on a model -----------------------------------------------------------------------------------------------------

SOURCES: dict[str, Variant] = {"lora": LoRA(rank=2), "pissa": PiSSA(rank=1), "hra": HRA(rank=2), "oft": OFT(block=2)}
PLACES = {"lora": ["up", "head"], "pissa": "up", "hra": ["up", "down"], "oft": "down"}


def several(*names: str, where: str | None = None) -> nn.Module:
    """Different methods on different layers, all moved off their start."""
    model = net()
    for name in names:
        attach(model, SOURCES[name], where or PLACES[name], name=name)
    move(model)
    return model


def updates_of(model: nn.Module, name: str | dict[str, float]) -> Task:
    activate(model, name)
    return {path: host.effective_weight() - host.original_dense() for path, host in hosts(model).items()}


def test_linear_is_what_activating_computes() -> None:
    weights = {"lora": 0.5, "pissa": -2.0, "hra": 1.0}
    model = several(*weights)
    activate(model, weights)
    want = model(batch(4))
    found = combine(model, weights, "sum")
    close(model(batch(4)), want, 1e-10, "outputs")
    assert found.method == "lora"
    # PiSSA's pair has twice its rank, and no layer has more than the smaller of its sides.
    assert found.ranks == {
        "blocks.0.up": 6,
        "blocks.0.down": 2,
        "blocks.1.up": 6,
        "blocks.1.down": 2,
        "head": 2,
    }
    assert set(found.errors.values()) == {0.0}
    assert found.error == 0.0


def test_linear_is_dense_where_a_source_has_no_pair() -> None:
    weights = {"lora": 0.5, "oft": 2.0}
    model = several(*weights)
    activate(model, weights)
    want = model(batch(4))
    assert combine(model, weights, "sum") == Combined("dense", {}, dict.fromkeys(hosts(model), 0.0), 0.0)
    assert {host.carried("sum").variant.name for host in hosts(model).values()} == {"dense"}
    close(model(batch(4)), want, 1e-10, "outputs")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", list(SOURCES))
def test_one_adapter_combines_to_itself(name: str, how: How) -> None:
    model = several(name)
    want = model(batch(4))
    rank = 6 if how == "svd" else None
    found = combine(model, {name: 1.0}, "same", how, rank=rank, density=1.0, rng=generator(0))
    close(model(batch(4)), want, 1e-10, how)
    assert found.error < 1e-12
    assert (found.method == "lora") == (how in ("svd", "knots", "knots_ties") or (how == "linear" and name != "oft"))


@pytest.mark.parametrize("how", HOWS)
def test_sources_stay_as_they_are_and_the_result_is_active(how: How) -> None:
    model = several("lora", "hra", "pissa")
    kept = {name: {key: t.clone() for key, t in adapter_state(model, name).items()} for name in ("lora", "hra")}
    weights = {path: parameter for path, parameter in model.named_parameters() if path.endswith(".weight")}
    before = torch.get_rng_state()
    combine(model, {"lora": 1.0, "hra": 1.0}, "new", how, rank=2 if how == "svd" else None, rng=generator(0))
    assert same_bits(torch.get_rng_state(), before)
    assert next(iter(hosts(model).values())).switch.active == {"new": 1.0}
    assert "head" in hosts(model)
    for name, tensors in kept.items():
        assert all(same_bits(tensor, tensors[key]) for key, tensor in adapter_state(model, name).items())
    for path, parameter in model.named_parameters():
        assert path not in weights or same_bits(parameter, weights[path])


@pytest.mark.parametrize("how", [how for how in HOWS if how != "linear"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_rank_cuts_and_says_what_that_loses(how: How, rank: int) -> None:
    weights = {"lora": 1.0, "hra": -0.5, "oft": 0.7}
    model = several(*weights)
    uncut: How = "linear" if how == "svd" else how
    combine(model, weights, "whole", uncut, rng=generator(0))
    want = updates_of(model, "whole")
    found = combine(model, weights, "cut", how, rank=rank, rng=generator(0))
    got = updates_of(model, "cut")
    lost = sum(float((want[path] - got[path]).square().sum()) for path in want)
    assert found.error == pytest.approx((lost / sum(float(D.square().sum()) for D in want.values())) ** 0.5)
    for path, D in want.items():
        s = np.linalg.svd(D.numpy(), compute_uv=False)
        tail = float(np.sqrt((s[rank:] ** 2).sum()))
        assert found.errors[path] * float(D.norm()) == pytest.approx(tail, abs=1e-9), path
        assert float((D - got[path]).norm()) == pytest.approx(tail, abs=1e-9), path
        assert found.ranks[path] <= rank


@pytest.mark.parametrize("names", [("lora", "hra"), ("lora", "oft")])
def test_ties_and_knots_on_a_model_are_those_of_its_task_vectors(names: tuple[str, ...]) -> None:
    """Weights come first; a layer that only one task has counts for both."""
    weights = dict(zip(names, (2.0, -1.0), strict=True))
    model = several(*names)
    tasks = [{path: w * D for path, D in updates_of(model, name).items()} for name, w in weights.items()]
    combine(model, weights, "ties", "ties", density=0.3)
    same(updates_of(model, "ties"), slow_ties(tasks, 0.3), 1e-10)
    combine(model, weights, "knots", "knots_ties", density=1.0)
    got = updates_of(model, "knots")
    for path in tasks[0]:
        close(got[path], slow_knots([one[path] for one in tasks], 1.0), 1e-8, path)
    combine(model, weights, "drawn", "dare_ties", density=0.4, rng=generator(3))
    rng = generator(3)
    same(updates_of(model, "drawn"), elected([dare(one, 0.4, rng) for one in tasks]), 1e-10)


def test_adapters_that_do_nothing_yet_combine_to_nothing() -> None:
    model = net()
    attach(model, LoRA(rank=1), "up", name="a")
    for how in HOWS:
        combine(model, {"a": 1.0}, how, how, rank=1 if how == "svd" else None, rng=generator(0))
        assert all(float(D.abs().max()) == 0.0 for D in updates_of(model, how).values())


def test_knots_without_ties_is_the_sum() -> None:
    weights = {"lora": 0.5, "hra": 1.0}
    model = several(*weights)
    combine(model, weights, "knots", "knots")
    same(updates_of(model, "knots"), updates_of(model, weights), 1e-10)


def test_tasks_in_different_rows_do_not_meddle() -> None:
    """Updates with disjoint rows stay what they are under a sum, TIES and KnOTS."""
    model = model_of(Case(6, 4, bias=False))
    for i, name in enumerate(("a", "b")):
        attach(model, LoRA(rank=2), "layer", name=name, seed=i)
    move(model)
    with torch.no_grad():
        for i, name in enumerate(("a", "b")):
            host_of(model).carried(name).tensors()["B"][3 * i : 3 * i + 3] = 0.0
    want = updates_of(model, {"a": 1.0, "b": 1.0})
    for how in HOWS:
        if how == "svd":
            continue
        combine(model, {"a": 1.0, "b": 1.0}, how, how, density=1.0, rng=generator(0))
        same(updates_of(model, how), want, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", HOWS)
def test_half_precision_bases(dtype: torch.dtype, how: How) -> None:
    model = net(dtype=dtype)
    for name in ("lora", "hra"):
        attach(model, SOURCES[name], "up", name=name)
    move(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        combine(model, {"lora": 1.0, "hra": 1.0}, "new", how, rank=3 if how == "svd" else None, rng=generator(0))
    assert {tensor.dtype for tensor in adapter_state(model, "new").values()} == {torch.float32}
    assert model(batch(2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("weights", "into", "options", "words"),
    [
        ({"lora": 1.0, "nobody": 1.0}, "new", {}, "no adapter called 'nobody' is attached; there are: lora, other"),
        ({"lora": 1.0}, "other", {}, "an adapter called 'other' is attached already"),
        ({"lora": 1.0}, "a b", {}, "cannot name an adapter"),
        ({}, "new", {}, "a finite weight"),
        ({"lora": float("nan")}, "new", {}, "a finite weight"),
        ({"lora": 1.0}, "new", {"how": "tie"}, "no way 'tie' to combine adapters: there are linear, svd, ties"),
        ({"lora": 1.0}, "new", {"how": "svd"}, "give one to svd"),
        ({"lora": 1.0}, "new", {"rank": 2}, "linear is the exact sum"),
        ({"lora": 1.0}, "new", {"how": "svd", "rank": 0}, "a whole number from 1, not 0"),
        ({"lora": 1.0}, "new", {"how": "ties", "density": 0.0}, "density is the share"),
        ({"lora": 1.0}, "new", {"how": "ties", "density": 20}, "density is the share"),
        ({"lora": 1.0}, "new", {"how": "dare"}, "dare drops numbers by chance: give the generator"),
        ({"lora": 1.0, "other": 1.0}, "new", {}, "'other' changes the bias of blocks.0.up too"),
    ],
)
def test_what_is_refused(weights: dict[str, float], into: str, options: dict[str, Any], words: str) -> None:
    model = net()
    attach(model, LoRA(rank=1), "up", name="lora")
    attach(model, IA3(), "up", name="other")
    move(model)
    before = fingerprint(model)
    with pytest.raises(Refused, match=words):
        combine(model, weights, into, **options)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (Gated(rank=1), "depends on the input"),
        (create("full"), "full trains the model itself"),
        (create("probe"), "probe trains the model itself"),
        (BiasToo(rank=1), "trains the model itself"),
    ],
)
def test_sources_that_are_no_change_of_weights(variant: Variant, words: str) -> None:
    model = net()
    attach(model, variant, "up", name="it")
    with pytest.raises(Refused, match=words):
        combine(model, {"it": 1.0}, "new")


def test_not_inside_merged() -> None:
    model = several("lora")
    with merged(model), pytest.raises(Refused, match="leave it first"):
        combine(model, {"lora": 1.0}, "new")


def test_a_combination_combines_again() -> None:
    """Also a dense one, and DoRA, which has no pair."""
    model = net()
    attach(model, DoRA(rank=1), "up", name="a")
    attach(model, LoRA(rank=1), "up", name="b")
    move(model)
    combine(model, {"a": 1.0, "b": 1.0}, "first")
    combine(model, {"first": 1.0, "b": -1.0}, "second")
    same(updates_of(model, "second"), updates_of(model, "a"), 1e-10)


# ---- PEFT -----------------------------------------------------------------------------------------------------------

LAYER = Case(7, 5, bias=False)


def both(ranks: Sequence[int]) -> tuple[nn.Module, Any, dict[str, float]]:
    """Our model and PEFT's with equal adapters on one layer, and weights of 1."""
    mine, names = model_of(LAYER), [f"task{i}" for i in range(len(ranks))]
    theirs: Any = None
    for i, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        attach(mine, LoRA(rank=rank, alpha=2 * rank), "layer", name=name, seed=i)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["layer"])
        if theirs is None:
            theirs = get_peft_model(model_of(LAYER), config, name)
        else:
            theirs.add_adapter(name, config)
    move(mine)
    layer = theirs.double().base_model.model.layer
    with torch.no_grad():
        for name in names:
            tensors = host_of(mine).carried(name).tensors()
            layer.lora_A[name].weight.copy_(tensors["A"])
            layer.lora_B[name].weight.copy_(tensors["B"])
    return mine, theirs, dict.fromkeys(names, 1.0)


@pytest.mark.parametrize(
    ("how", "theirs", "rank", "density", "weighted"),
    [
        ("linear", "cat", None, 1.0, True),
        ("svd", "svd", 3, 1.0, True),
        ("svd", "svd", 5, 1.0, True),
        ("ties", "ties_svd", 5, 0.4, False),
        ("ties", "ties_svd", 2, 0.4, False),
        ("dare", "dare_linear_svd", 2, 1.0, True),
        ("dare_ties", "dare_ties_svd", 3, 1.0, False),
    ],
)
def test_where_peft_means_the_same(how: How, theirs: str, rank: int | None, density: float, weighted: bool) -> None:
    """On one layer, since PEFT trims each by itself; TIES with equal weights, since PEFT elects before it weighs."""
    assert peft.__version__ == "0.21.2"
    mine, model, weights = both([2, 1, 3])
    if weighted:
        weights = dict(zip(weights, (0.5, 2.0, 1.0), strict=True))
    combine(mine, weights, "new", how, rank=rank, density=density, rng=generator(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks that density 1 prunes nothing
        model.add_weighted_adapter(list(weights), list(weights.values()), "new", theirs, svd_rank=rank, density=density)
    model.set_adapter("new")
    close(mine(random(3, 5)), model(random(3, 5)), 1e-10, how)


def test_peft_linear_is_not_the_sum() -> None:
    mine, model, weights = both([2, 2])
    combine(mine, weights, "new")
    model.add_weighted_adapter(list(weights), [1.0, 1.0], "new", "linear")
    want = updates_of(mine, "new")["layer"]
    got = model.base_model.model.layer.get_delta_weight("new")
    assert float((got - want).norm() / want.norm()) > 0.5
