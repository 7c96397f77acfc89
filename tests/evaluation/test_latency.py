"""Latency: the forms in which an adapter is used, each the same function, and ratios that drift cannot touch."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.measures import latency as module
from evaluation.measures.contestants import random_batch
from evaluation.measures.latency import KINDS, latency
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


def test_pooled_models_are_compared_with_as_many_twins_within_a_round() -> None:
    rng, rounds = np.random.default_rng(0), 9
    drift = 2.0 ** np.arange(rounds)
    seconds: dict[Any, Any] = {(f"m{i}", "twin"): drift * (1 + i / 10) for i in range(5)}
    seconds |= {(label, "again"): laps for (label, _), laps in seconds.items()}
    seconds |= {(f"m{i}", "merged"): drift * 3 * (1 + i / 10) for i in rng.permutation(5)}
    merged, noise = module._pooled(seconds, "merged"), module._pooled(seconds, "again")
    assert merged is not None
    assert {name: round(value, 12) for name, value in merged.items()} == {"median": 3, "low": 3, "high": 3}
    assert noise == {"median": 1, "low": 1, "high": 1}


@pytest.mark.parametrize("name", ["lora", "pissa", "dora"])
def test_a_twin_is_the_base_in_memory_of_its_own(name: str) -> None:
    base, model, _ = adapted(name)
    before = toy.bits(model)
    twin = module._twin(model)
    assert torch.equal(output(twin), output(base))
    assert toy.same(before, toy.bits(model))
    merged = module._deployed(model, base, create(name, toy.METHODS.get(name, {})))["merged"]
    own = {path for path, p in twin.encoder.named_parameters() if p is not model.encoder.get_parameter(path)}
    assert own == {path for path, p in merged.encoder.named_parameters() if p is not model.encoder.get_parameter(path)}
    assert own


def test_methods_without_adapters_on_layers_are_not_pooled() -> None:
    assert measured(("full", "probe"), rounds=2)["merged"] == {"token": None, "batch": None}


def test_ratios_are_formed_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower by a factor of 2 a round: the ratios do not notice."""
    begun = 0
    weights = {"HostLinear": 3.0, "Linear": 1.0}

    class Turns(random.Random):
        def sample(self, *args: Any, **kwargs: Any) -> Any:  # drawn once a round
            nonlocal begun
            begun += 1
            return super().sample(*args, **kwargs)

    def timed(forward: Any, *_: object) -> float:
        (model,) = forward.__defaults__
        layer = type(model.encoder.get_submodule("encoder.layer.0.attention.self.query")).__name__
        return weights[layer] * 2.0**begun

    base, model, variant = adapted("dora")
    monkeypatch.setattr(module, "_timed", timed)
    monkeypatch.setattr(module.random, "Random", Turns)
    batch = random_batch(3, 5, base.encoder, toy.CLASSES)
    found = latency({"dora": (model, variant)}, base, batch, 7, "float32", CPU)
    assert begun == 2 * (7 + module.POOLED_ROUNDS * 7)
    for shape in ("token", "batch"):
        assert found["methods"]["dora"][shape]["adapted"]["ratio"] == {"median": 3, "low": 3, "high": 3}
        assert found["methods"]["dora"][shape]["merged"]["ratio"] == {"median": 1, "low": 1, "high": 1}
        assert found["noise"][shape] == found["merged"][shape] == {"median": 1, "low": 1, "high": 1}
