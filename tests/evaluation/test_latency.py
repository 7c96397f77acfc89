"""Latency: the forms in which an adapter is used, each the same function, and ratios that drift cannot touch."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.measures import latency as module
from evaluation.measures.latency import KINDS, latency
from evaluation.measures.speed import random_batch
from evaluation.training import Classifier
from tests.evaluation import toy
from variants.core import Variant, attach, create
from variants.core.cases import move

CPU = torch.device("cpu")
FORMS = {
    "lora": {"adapted", "folded", "merged"},
    "pissa": {"adapted", "folded", "merged"},
    "dora": {"adapted", "merged"},  # no exact pair
    "ia3": {"adapted", "merged"},
    "svf": {"adapted", "merged"},  # its pair has full rank: products that are not thin
    "full": {"adapted", "merged"},
    "probe": {"adapted", "merged"},
    "adapter": {"adapted"},  # cannot be merged
}


def adapted(name: str) -> tuple[Classifier, Classifier, Variant]:
    """A base, a replica of it that carries a moved adapter, and the method."""
    base = Classifier(toy.bert(), toy.HIDDEN, toy.CLASSES, seed=0)
    model = Classifier(toy.bert(), toy.HIDDEN, toy.CLASSES, seed=0)
    variant = create(name, toy.METHODS.get(name, {}))
    attach(model.encoder, variant, toy.WHERE)
    move(model.encoder)
    return base.eval(), model.eval(), variant


def output(model: Classifier) -> Tensor:
    with torch.no_grad():
        return model(random_batch(3, 5, model.encoder, toy.CLASSES))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_function_and_a_model_of_its_own(name: str) -> None:
    base, model, variant = adapted(name)
    before = toy.bits(base), toy.bits(model)
    forms = module._deployed(model, base, variant)
    assert set(forms) | {"adapted"} == FORMS[name]
    for form in forms.values():
        torch.testing.assert_close(output(form), output(model), rtol=1e-5, atol=1e-5)
    assert toy.same(before[0], toy.bits(base))
    assert toy.same(before[1], toy.bits(model))


def test_a_merge_into_shared_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mergeable_copy", module.sharing)
    with pytest.raises(AssertionError):
        test_every_form_is_the_same_function_and_a_model_of_its_own("lora")


def measured(names: tuple[str, ...], rounds: int = 6) -> dict[str, Any]:
    found = {name: adapted(name) for name in names}
    base = next(iter(found.values()))[0]
    batch = random_batch(3, 5, base.encoder, toy.CLASSES)
    models = {name: (model, variant) for name, (_, model, variant) in found.items()}
    return latency(models, base, batch, rounds, "float32", CPU)


def test_the_result_is_plain_and_whole() -> None:
    found = measured(("lora", "dora", "adapter"))
    json.dumps(found, allow_nan=False)
    assert found["rounds"] == 6
    assert found["base"].keys() == found["noise"].keys() == found["merged"].keys() == {"token", "batch"}
    for name, shapes in found["methods"].items():
        for kinds in shapes.values():
            assert kinds.keys() == set(KINDS)
            assert {kind for kind, entry in kinds.items() if entry} == FORMS[name]
            for entry in filter(None, kinds.values()):
                assert 0 < entry["seconds"]["low"] <= entry["seconds"]["median"] <= entry["seconds"]["high"]


def test_without_a_merged_model_nothing_is_said_of_merging() -> None:
    assert measured(("adapter",), rounds=2)["merged"] == {"token": None, "batch": None}


def test_the_pool_of_merged_models_is_of_those_that_had_adapters_and_as_large_as_the_base() -> None:
    """A skewed time: the median of many draws is not that of a few, so the groups must be as large as the base's."""
    rng, rounds = np.random.default_rng(0), 2000
    turns: dict[Any, Any] = {turn: rng.exponential(size=rounds) ** 3 for turn in module.BASES}
    merged = {(f"m{i}", "merged"): rng.exponential(size=rounds) ** 3 for i in range(4 * len(module.BASES))}
    plain = {("full", "merged"): np.full(rounds, 1e3), ("m0", "adapted"): np.full(rounds, 1e3)}
    labels = {label for label, _ in merged}
    grouped = [np.median(list(merged.values())[i::4], axis=0) for i in range(4)]
    found = module._merged_together(turns | merged | plain, labels)
    assert found is not None
    assert found == module.interval(np.mean(grouped, axis=0) / np.median([turns[t] for t in module.BASES], axis=0))
    few = module._merged_together(turns | dict(list(merged.items())[:1]) | plain, labels)
    assert few == module.interval(merged["m0", "merged"] / turns[module.BASES[0]])
    assert module._merged_together(turns | plain, labels) is None


def test_methods_without_adapters_on_layers_are_not_pooled() -> None:
    assert measured(("full", "probe"), rounds=2)["merged"] == {"token": None, "batch": None}


def test_ratios_are_formed_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower by a factor of 2 a round: the ratios do not notice."""
    passes: Counter[int] = Counter()
    weights = {"HostLinear": 3.0, "Linear": 1.0}

    def timed(forward: Any, *_: object) -> float:
        model = forward.__defaults__[0]
        passes[id(model)] += 1
        turns = len(module.BASES) if model is base else 1
        rounds = -(-passes[id(model)] // turns)
        layer = type(model.encoder.get_submodule("encoder.layer.0.attention.self.query")).__name__
        return weights[layer] * 2.0**rounds

    base, model, variant = adapted("dora")
    monkeypatch.setattr(module, "_timed", timed)
    batch = random_batch(3, 5, base.encoder, toy.CLASSES)
    found = latency({"dora": (model, variant)}, base, batch, 7, "float32", CPU)
    for shape in ("token", "batch"):
        assert found["methods"]["dora"][shape]["adapted"]["ratio"] == {"median": 3, "low": 3, "high": 3}
        assert found["methods"]["dora"][shape]["merged"]["ratio"] == {"median": 1, "low": 1, "high": 1}
        assert found["noise"][shape] == found["merged"][shape] == {"median": 1, "low": 1, "high": 1}
