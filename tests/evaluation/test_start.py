"""How a method starts, against the outputs of a model that never had it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from evaluation.clock import Clock
from evaluation.measures import start as module
from evaluation.measures.start import start
from evaluation.mounting import mounted
from evaluation.spec import Merging
from evaluation.training import Classifier, logits
from tests.evaluation import toy
from tests.evaluation.merge_cases import Gated
from variants.core import Variant, create
from variants.core.host import hosts

CPU = torch.device("cpu")
SPEC = Merging(items=9)


def started(variant: Variant) -> tuple[dict[str, Any], Classifier]:
    with mounted(toy.bert(), variant, toy.WHERE, seed=3) as encoder:
        model = Classifier(encoder, toy.HIDDEN, toy.CLASSES, 5)
        before = toy.bits(model)
        found = start(model, variant, toy.data().test, SPEC, Clock())
        assert toy.same(before, toy.bits(model))
        assert all(host.switch.active == {"default": 1.0} for host in hosts(encoder).values())
        split = toy.data().test.head(9)
        base = logits(Classifier(toy.bert(), toy.HIDDEN, toy.CLASSES, 5), split, Clock(), CPU)
        change = (logits(model, split, Clock(), CPU) - base).abs().max().item()
        gold = torch.tensor(split.labels)
    assert found["max_logit_change"] == pytest.approx(change, rel=1e-3, abs=1e-7)
    assert found["relative_change"] == pytest.approx(change / base.abs().max().item(), rel=1e-3, abs=1e-7)
    assert found["loss_base"] == pytest.approx(F.cross_entropy(base, gold).item(), rel=1e-6)
    json.dumps(found, allow_nan=False)
    return found, model


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "full", "probe"])
def test_exact_starts(name):
    found, _ = started(create(name, toy.METHODS[name]))
    assert found["exact_init"] is True
    assert found["relative_change"] < 1e-5
    assert found["loss_start"] == pytest.approx(found["loss_base"], rel=1e-5)
    if name in ("lora", "full", "probe"):
        assert (found["max_logit_change"], found["loss_start"]) == (0, found["loss_base"])


def test_a_start_off_the_base():
    found, _ = started(create("stella", {"rank": 2}))
    assert found["exact_init"] is False
    assert found["relative_change"] > 1e-3
    assert found["loss_start"] != found["loss_base"]
    assert started(Gated(rank=2))[0]["max_logit_change"] == 0  # B = 0, merged or not


def test_adapters_that_stay_on_are_seen(monkeypatch):
    """If the base were measured with the adapter, nothing would ever have changed."""
    monkeypatch.setattr(module, "switched_off", lambda _: torch.no_grad())
    with pytest.raises(AssertionError):
        started(create("stella", {"rank": 2}))


def test_of_a_peer_only_the_loss_is_known():
    variant = create("peft:lora", {"r": 2})
    with mounted(toy.bert(), variant, toy.WHERE) as encoder:
        model = Classifier(encoder, toy.HIDDEN, toy.CLASSES, 5)
        found = start(model, variant, toy.data().test, SPEC, Clock())
    assert found.pop("loss_start") > 0
    assert found == dict.fromkeys(("max_logit_change", "relative_change", "loss_base", "exact_init"))
