"""Spectra of updates, on matrices whose answers are known, and in runs of the toy model."""

from __future__ import annotations

import base64
import importlib
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation import execute as module
from evaluation.benchmarks import load_benchmark
from evaluation.clock import Clock
from evaluation.comparison import make_plan
from evaluation.data import evaluation_batches
from evaluation.execute import execute
from evaluation.measures import spectrum as package
from evaluation.measures.merging.factors import Factored
from evaluation.measures.merging.updates import changed_layers
from evaluation.measures.spectrum import Watch, defects, matrices, packed, update_spectra
from evaluation.measures.spectrum.defects import defect_at, marks, scaled_defect
from evaluation.measures.spectrum.forgetting import features, forgetting
from evaluation.measures.spectrum.matrices import (
    amplification,
    decomposed,
    effective_rank,
    intruders,
    shares,
    stable_rank,
)
from evaluation.mounting import mounted
from evaluation.spec import Merging, Method, ScoreRun, Spectrum, Suite, Unusable
from evaluation.training import Classifier
from tests.evaluation import toy
from tests.evaluation.merge_cases import Gated, merge_case, stir
from variants.core import create
from variants.core.linalg import random_orthonormal, top

forgotten = importlib.import_module("evaluation.measures.spectrum.forgetting")  # its package has a function so called
SPEC = Spectrum(directions=2, intruders=4, layers=2, points=3, forgetting="other", items=8)
N = 40


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(n: int, rank: int, seed: int) -> Tensor:
    return random_orthonormal(n, rank, rng(seed), torch.float64)


def thin(M: Tensor) -> Factored:
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    real = s > 1e-12 * s[0]
    return Factored(U[:, real], s[real], Vh[real])


def base_weight(out: int = 30, in_: int = N) -> Tensor:
    """Singular values well apart, so that each vector is determined."""
    k = min(out, in_)
    s = torch.linspace(10, 1, k, dtype=torch.float64)
    return (orthonormal(out, k, 1) * s) @ orthonormal(in_, k, 2).mT


# ---- ranks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_equal_singular_values_count_in_full(rank):
    s = torch.full((rank,), 0.2, dtype=torch.float64)
    assert effective_rank(s) == pytest.approx(rank, rel=1e-12)
    assert stable_rank(s) == pytest.approx(rank, rel=1e-12)


def test_ranks_by_hand():
    s = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert effective_rank(s) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert stable_rank(s) == pytest.approx(10 / 9)


# ---- against the base's directions ----------------------------------------------------------------------------------


def test_an_update_inside_the_top_subspace():
    W, k = base_weight(), 4
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    D = thin(U[:, :k] @ torch.randn(k, k, generator=rng(3), dtype=torch.float64) @ Vh[:k])
    assert shares(D, U[:, :k], Vh[:k]) == pytest.approx((1, 1), abs=1e-12)
    assert shares(D, U[:, -k:], Vh[-k:]) == pytest.approx((0, 0), abs=1e-12)
    whole = torch.linalg.vector_norm(D.s) / torch.linalg.vector_norm(s[:k])
    assert amplification(D, W, k) == pytest.approx(float(whole))


def test_sides_are_not_mixed_up():
    """Top directions of the outputs, bottom directions of the inputs."""
    W, k = base_weight(), 3
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    D = thin(2 * U[:, :k] @ Vh[-k:])
    assert shares(D, U[:, :k], Vh[:k]) == pytest.approx((1, 0), abs=1e-12)
    assert shares(D, U[:, -k:], Vh[-k:]) == pytest.approx((0, 1), abs=1e-12)


def test_directions_drawn_by_chance_have_the_chance_share():
    W, k = base_weight(), 5
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    found = [
        shares(thin(torch.randn(30, N, generator=rng(s), dtype=torch.float64)), U[:, :k], Vh[:k]) for s in range(60)
    ]
    left, right = np.mean(found, axis=0)
    assert (left, right) == (pytest.approx(k / 30, rel=0.05), pytest.approx(k / N, rel=0.05))
    assert left != pytest.approx(k / N, rel=0.05)


def test_amplification_of_a_direction_by_hand():
    W = base_weight()
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    D = thin(6 * U[:, 3:4] @ Vh[3:4])
    assert amplification(D, W, 1) == pytest.approx(6 / float(s[3]))
    assert amplification(D, W, 8) == pytest.approx(6 / float(s[3])), "no more directions than the update has"
    assert amplification(D, torch.zeros_like(W), 1) is None


# ---- intruders ------------------------------------------------------------------------------------------------------


def planted(scale: float) -> tuple[Tensor, Tensor]:
    """A weight, and one with a further direction that is spread over all of its own."""
    W = base_weight()
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    u, v = U.sum(1) / 30**0.5, Vh.sum(0) / 30**0.5
    return W, W + scale * torch.outer(u, v)


def counted(W: Tensor, changed: Tensor, epsilon: float = 0.5) -> int:
    return intruders(top(changed, 10)[0], top(W, 30)[0], epsilon)


def test_a_planted_intruder_is_the_only_one():
    W, changed = planted(60.0)
    assert counted(W, changed) == 1
    assert counted(W, W) == counted(W, 3 * W) == 0
    assert counted(W, -W) == 0, "the sign of a direction means nothing"
    assert counted(W, changed, epsilon=0.0) == 0
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    assert counted(W, W + 50 * torch.outer(U[:, 20], Vh[20])) == 0, "a direction of W, however it grows"


# ---- the trained update ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "pissa", "dora", "lora_xs", "stiefel", "full"])
def test_the_update_is_taken_apart_as_it_is(name):
    model, _, stock = merge_case(name)
    for host in package.hosts(model.encoder).values():
        host.unrebase()
    for change in changed_layers(model.encoder, stock):
        D = decomposed(change)
        assert torch.allclose((D.U * D.s) @ D.Vh, change.D.double(), atol=1e-6)
        assert len(D.s) == {"lora": 2, "pissa": 4, "lora_xs": 3, "stiefel": 2}.get(name, len(D.s))


def test_rounding_is_no_direction():
    """A weight that trains itself, changed in two directions: in float32 the difference has full rank."""
    layer = nn.Linear(N, N)
    W = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += (0.01 * orthonormal(N, 2, 5) @ orthonormal(N, 2, 6).mT).float()
    change = changed_layers(nn.Sequential(layer), {"0.weight": W})[0]
    assert len(torch.linalg.svdvals(change.D.double())) == torch.linalg.matrix_rank(change.D.double(), rtol=1e-12)
    D = decomposed(change)
    assert len(D.s) == 2
    assert effective_rank(D.s) == pytest.approx(2, rel=1e-4)


def test_a_summary_over_layers():
    model, _, stock = merge_case("lora")
    layers = {str(i): one for i, one in enumerate(changed_layers(model.encoder, stock))}
    found = update_spectra(layers, SPEC)
    assert len(found["layers"]) == 4
    ranks = [row["effective_rank"] for row in found["layers"]]
    assert (found["median"]["effective_rank"], found["max"]["effective_rank"]) == (np.median(ranks), max(ranks))
    assert found["examined"] == 16
    assert found["intruders"] == sum(row["intruders"] for row in found["layers"])
    assert found["median"]["chance_left"] == SPEC.directions / toy.HIDDEN
    assert len(found["values"]) == 2
    assert found["values"][0] == 1 > found["values"][1]
    for row, one in zip(found["layers"], layers.values(), strict=True):
        assert row["relative_size"] == pytest.approx(float(one.D.norm() / one.W.norm()), rel=1e-5)
        assert row["stable_rank"] <= row["rank"] == 2


def test_directions_travel_in_half_precision():
    X = orthonormal(N, 3, 4)
    back = np.frombuffer(base64.b64decode(packed(X)), "<f2").reshape(N, 3)
    assert np.abs(back - X.numpy()).max() < 1e-3
    assert packed(X.mT) != packed(X)


# ---- defects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1.1, 0.5])
def test_the_defect_of_scaled_columns(scale):
    assert scaled_defect(scale * orthonormal(N, 5, 1)) == pytest.approx(abs(scale**2 - 1), abs=1e-12)


def test_marks_are_spread_and_hold_both_ends():
    assert marks(60, 4) == {0, 20, 40, 60}
    assert marks(2, 8) == {0, 1, 2}
    assert len(marks(10**4, 8)) == 8


@pytest.mark.parametrize("name", ["usv_penalty", "stiefel", "usv_parametrized", "oft", "goft", "adalora", "sorsa"])
def test_a_constrained_method_is_seen_to_leave_its_constraint(name):
    fields = {"block": 4} if name == "oft" else {} if name == "goft" else {"rank": 4}
    with mounted(toy.bert(), create(name, fields), toy.WHERE) as encoder:
        before = defect_at(encoder, 0)
        stir(encoder)
        after = defect_at(encoder, 7)
    assert before["largest"] >= before["mean"] >= 0
    assert after["step"] == 7
    if name not in ("usv_parametrized", "oft", "goft"):  # orthonormal whatever is trained
        assert after["largest"] > 0.05
    else:
        assert after["largest"] < 1e-5


@pytest.mark.parametrize("name", ["lora", "lora_xs", "full", "probe", "svdiff", "delora"])
def test_other_methods_have_no_defect(name):
    with mounted(toy.bert(), create(name, toy.METHODS.get(name, {})), toy.WHERE) as encoder:
        assert defect_at(encoder, 0) is None


# ---- forgetting -----------------------------------------------------------------------------------------------------


def test_an_untouched_model_forgets_nothing():
    model = Classifier(toy.bert(), toy.HIDDEN, toy.CLASSES, 0)
    seen = features(model, toy.data().test)
    same = forgetting(seen, features(model, toy.data().test))
    assert (same["cosine_distance"], same["relative_change"]) == (0, 0)
    assert same["similarity_kept"] == pytest.approx(1, abs=1e-12)


def test_forgetting_by_hand():
    X = torch.eye(4, dtype=torch.float64)[:3] + 0.1 * torch.rand(3, 4, generator=rng(), dtype=torch.float64)
    assert forgetting(X, -X)["cosine_distance"] == pytest.approx(2)
    longer = forgetting(X, 3 * X)
    assert longer["cosine_distance"] == pytest.approx(0, abs=1e-15)
    assert longer["relative_change"] == pytest.approx(2)
    turned = forgetting(X, X @ orthonormal(4, 4, 1))
    assert turned["cosine_distance"] > 0.1
    assert turned["similarity_kept"] == pytest.approx(1)
    assert forgetting(torch.eye(3, dtype=torch.float64), X[:, :3])["similarity_kept"] is None
    reversed_order = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]], dtype=torch.float64)
    kept = forgetting(reversed_order, torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 1.0]], dtype=torch.float64))
    assert kept["similarity_kept"] < 0


def test_features_are_in_the_order_of_the_split():
    model, split = Classifier(toy.bert(), toy.HIDDEN, toy.CLASSES, 0), toy.data().test
    seen = features(model, split)
    with torch.no_grad():
        alone = torch.cat([model.features(split.batch([i])) for i in range(len(split))])
    assert torch.allclose(seen, alone.double(), atol=1e-5)


# ---- runs -----------------------------------------------------------------------------------------------------------


def benches(monkeypatch: pytest.MonkeyPatch) -> module.Workbench:
    """The toy workbench, on which a second benchmark is known."""
    bench = toy.bench(monkeypatch)
    own = module.load_benchmark("toy")
    monkeypatch.setattr(module, "load_benchmark", {"toy": own, "other": toy.benchmark("other", 11)}.__getitem__)
    return bench


def run(name: str, **changes: Any) -> ScoreRun:
    identity = toy.IDENTITY.model_copy(update={"forgetting": "other"})
    return toy.run(name, **{"merging": None, "spectrum": SPEC, "identity": identity, **changes})


@pytest.mark.parametrize("name", [*toy.METHODS, "usv_penalty", "oft", "bitfit", "adapter", "peft:lora"])
def test_a_run_of_every_kind_of_method(monkeypatch, name):
    where = ("output.dense",) if name == "adapter" else toy.WHERE
    fields = {"r": 2} if name == "peft:lora" else {"block": 4} if name == "oft" else toy.METHODS.get(name, {})
    made = run(name, where=where, method=Method(name=name, hyperparameters=fields))
    record = execute(made, benches(monkeypatch))
    found = record.measures["spectrum"]
    json.dumps(found, allow_nan=False)
    assert record.seconds["spectrum"] > 0
    assert found["forgetting"]["items"] == 8
    assert (found["forgetting"]["cosine_distance"] == 0) == (name == "probe")
    undefined = name in ("probe", "bitfit", "adapter", "peft:lora")
    assert (found["update"] is None) == (found["directions"] is None) == undefined
    assert [row["step"] for row in found["defects"] or ()] == (
        [0, 2, 3] if name in ("stiefel", "usv_penalty", "oft") else []
    )
    if not undefined:
        assert [one["path"].rpartition(".")[2] for one in found["directions"]] == ["query", "value"]
        assert len(found["update"]["layers"]) == (12 if name == "full" else 4)


def test_measuring_changes_nothing_else(monkeypatch):
    plain = execute(run("stiefel", spectrum=None), benches(monkeypatch)).measures
    watched = execute(run("stiefel"), benches(monkeypatch)).measures
    del watched["spectrum"]
    assert watched == plain
    both = {"training": {"base_dropout": True, "adapter_dropout": 0.2}, "merging": Merging(items=5)}
    plain = execute(run("pissa", spectrum=None, **both), benches(monkeypatch)).measures
    watched = execute(run("pissa", **both), benches(monkeypatch)).measures
    assert watched["score"] == plain["score"]
    assert watched["merging"]["formats"] == plain["merging"]["formats"]
    assert watched["merging"]["restored"] is True


@pytest.mark.assets
def test_a_plan_names_the_texts_of_forgetting_by_their_digest():
    found = make_plan("quick", {"spectrum.items": "5"}, "cpu", []).identity
    assert found.forgetting == load_benchmark("polarity").digest != found.data
    assert make_plan("quick", {}, "cpu", []).identity.forgetting is None


def test_a_run_planned_for_other_texts_is_refused(monkeypatch):
    for digest in ("newer", None):
        identity = toy.IDENTITY.model_copy(update={"forgetting": digest})
        with pytest.raises(ValueError, match="other is not, or no longer, what the run was planned for"):
            execute(run("lora", identity=identity), benches(monkeypatch))
    without = SPEC.model_copy(update={"forgetting": None})
    assert execute(run("lora", spectrum=without, identity=toy.IDENTITY), benches(monkeypatch)).status == "done"


def test_texts_that_are_trained_on_are_left_out(monkeypatch):
    bench = benches(monkeypatch)
    own, other = toy.benchmark(), toy.benchmark("mixed", 11)
    copied = [replace(part[0], id=part[0].id + "!", text=f"{part[0].text} !") for part in (own.train, own.test)]
    mixed = replace(other, validation=(*copied, *other.validation))
    monkeypatch.setattr(module, "load_benchmark", {"toy": own, "mixed": mixed}.__getitem__)
    assert bench._other_texts("mixed") == list(range(2, len(mixed.validation)))


def test_the_record_says_how_many_texts_were_left_out(monkeypatch):
    bench = benches(monkeypatch)
    monkeypatch.setattr(module, "unseen", lambda *_: [0, 2, 4, 5, 7])
    found = execute(run("lora"), bench).measures["spectrum"]["forgetting"]
    assert (found["items"], found["left_out"]) == (5, 15)
    split, _ = bench.text("other", 128, 4)
    assert split.ids == tuple(toy.data(11).validation.ids[i] for i in (0, 2, 4, 5))


def test_too_few_other_texts_are_refused_before_anything_runs(monkeypatch):
    bench = benches(monkeypatch)
    entries = [{"label": "lora", "name": "lora"}]
    suite = Suite(
        name="s", model="toy", benchmark="toy", where=toy.WHERE, baseline="lora", methods=entries, spectrum=SPEC
    )
    bench.check(suite)
    monkeypatch.setattr(module, "load_benchmark", lambda _: toy.benchmark())
    with pytest.raises(Unusable, match="0 of 20 validation texts of 'other' are not in 'toy', expected 3: name"):
        module.Workbench("toy", "toy", bench.device).check(suite)


def test_later_seeds_give_their_directions_alone(monkeypatch):
    monkeypatch.setattr(module, "features", None)  # nothing is embedded
    made = run("usv_penalty", spectrum=SPEC.model_copy(update={"depth": "directions"}))
    found = execute(made, benches(monkeypatch)).measures["spectrum"]
    assert found.keys() == {"directions"}
    assert len(found["directions"]) == 2


def test_what_is_forgotten_is_measured_against_the_true_base(monkeypatch):
    """PiSSA's frozen residual is no base: embeddings are those of the model before anything was attached."""
    bench, seen = benches(monkeypatch), []
    original = module.features

    def noted(model: Classifier, split: Any) -> Tensor:
        assert not package.hosts(model.encoder)
        seen.append(toy.same(toy.bits(model.encoder), toy.bits(toy.bert())))
        return original(model, split)

    monkeypatch.setattr(module, "features", noted)
    execute(run("pissa"), bench)
    assert seen == [True]


def test_an_update_that_is_not_defined_is_left_out():
    model = merge_case(Gated(rank=2))[0]
    watch = Watch(SPEC, {}, toy.WHERE, None, None, 3, Clock())
    assert watch.after(model, Gated(rank=2)) == dict.fromkeys(("directions", "update", "defects", "forgetting"))


def test_defects_are_looked_for_once_where_there_is_no_constraint(monkeypatch):
    asked = []
    monkeypatch.setattr(package, "defect_at", lambda _, step: asked.append(step))
    execute(run("lora"), benches(monkeypatch))
    assert asked == [0]
    assert defects.PROMISE.fullmatch("U^T U = I")
    assert not defects.PROMISE.fullmatch("U^T V = I")


# ---- each check notices what it is there for ------------------------------------------------------------------------


def of_energies(s: Tensor) -> float:
    return matrices.effective_rank(s.square())


def of_values(s: Tensor) -> float:
    return float((s / s[0]).sum())


def sides_swapped(D: Factored, U: Tensor, Vh: Tensor) -> tuple[float, float]:
    return matrices.shares(Factored(D.Vh.mT, D.s, D.U.mT), Vh.mT, U.mT)


def unweighted(D: Factored, U: Tensor, Vh: Tensor) -> tuple[float, float]:
    return float((U.mT @ D.U).square().sum()) / U.shape[1], float((Vh @ D.Vh.mT).square().sum()) / U.shape[1]


def against_all_of_the_base(D: Factored, W: Tensor, count: int) -> float:
    del count
    return float(D.s.norm() / W.norm())


def signed(changed: Tensor, base: Tensor, epsilon: float) -> int:
    return int(((changed.mT @ base).amax(dim=1) < epsilon).sum())


def at_the_same_place(changed: Tensor, base: Tensor, epsilon: float) -> int:
    """Also counts directions of W whose order has changed."""
    return int(((changed * base[:, : changed.shape[1]]).sum(0).abs() < epsilon).sum())


def not_cut(change: Any) -> Factored:
    return Factored(*torch.linalg.svd(change.D.double(), full_matrices=False))


def unscaled(X: Tensor) -> float:
    return defects.scaled_defect(X) * X.shape[1] ** 0.5


def of_lengths_too(before: Tensor, after: Tensor) -> dict[str, Any]:
    found = forgotten.forgetting(before, after)
    return found | {"cosine_distance": found["relative_change"] ** 2 / 2}


def unordered(model: Classifier, split: Any) -> Tensor:
    return forgotten.features(model, split)[torch.tensor([i for batch in evaluation_batches(split, 64) for i in batch])]


@pytest.mark.parametrize(
    ("name", "broken", "check"),
    [
        ("effective_rank", of_energies, test_ranks_by_hand),
        ("stable_rank", of_values, test_ranks_by_hand),
        ("shares", sides_swapped, test_sides_are_not_mixed_up),
        ("shares", sides_swapped, test_directions_drawn_by_chance_have_the_chance_share),
        ("shares", unweighted, test_directions_drawn_by_chance_have_the_chance_share),
        ("amplification", against_all_of_the_base, test_amplification_of_a_direction_by_hand),
        ("intruders", signed, test_a_planted_intruder_is_the_only_one),
        ("intruders", at_the_same_place, test_a_planted_intruder_is_the_only_one),
        ("decomposed", not_cut, test_rounding_is_no_direction),
        ("forgetting", of_lengths_too, test_forgetting_by_hand),
        ("features", unordered, test_features_are_in_the_order_of_the_split),
    ],
)
def test_a_broken_measure_is_caught(monkeypatch, name, broken, check):
    check()
    monkeypatch.setitem(globals(), name, broken)
    with pytest.raises(AssertionError):
        check()


def test_a_broken_defect_is_caught(monkeypatch):
    monkeypatch.setitem(globals(), "scaled_defect", unscaled)
    with pytest.raises(AssertionError):
        test_the_defect_of_scaled_columns(1.1)


def test_a_base_that_has_the_adapter_on_is_caught(monkeypatch):
    """Embedded after the method was attached, PiSSA's residual would pass for the base."""
    original = module.mounted

    def late(_: Any, bench: Any, stock: Any, clock: Any) -> Watch:
        text, _ = bench.text("other", 128, 8)
        with original(bench.base.encoder, create("pissa", {"rank": 2}), toy.WHERE) as encoder:
            return Watch(SPEC, stock, toy.WHERE, text, module.features(Classifier(encoder, 16, 1, 0), text), 3, clock)

    monkeypatch.setattr(module, "_watch", late)
    with pytest.raises(AssertionError):
        test_what_is_forgotten_is_measured_against_the_true_base(monkeypatch)
