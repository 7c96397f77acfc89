"""The validation curve: what it measures, and that the training beneath it stays what it was, bit for bit."""

from __future__ import annotations

import pytest
import torch

from evaluation.clock import Clock
from evaluation.execute import execute
from evaluation.measures.curve import CurveWatch, spaced, undisturbed
from evaluation.spec import Curve, Training, key
from evaluation.training import Classifier, logits
from tests.evaluation import toy

DROPOUT = {"adapter_dropout": 0.3, "base_dropout": True, "steps": 4}
PEER = DROPOUT | {"adapter_dropout": 0.0}  # PEFT's own field
METHODS = [*toy.METHODS, "adalora", "usv_penalty", "polar", "boft", "peft:lora"]


@pytest.mark.parametrize(
    ("steps", "points", "expected"),
    [(100, 4, [25, 50, 75, 100]), (10, 3, [3, 7, 10]), (3, 8, [1, 2, 3]), (7, 1, [7])],
)
def test_moments_are_evenly_spaced_and_end_with_the_last_step(steps, points, expected):
    assert spaced(steps, points) == expected


@pytest.mark.parametrize("name", METHODS)
def test_training_is_the_same_with_and_without(monkeypatch, tmp_path, name):
    peer = ":" in name
    plain = toy.run(name, training=PEER if peer else DROPOUT, keep=not peer)
    watched = plain.model_copy(update={"curve": Curve(points=4, items=7)})
    found = {}
    for run in (plain, watched):
        folder = tmp_path / key(run)
        folder.mkdir()
        state = torch.get_rng_state()
        measures = execute(run, toy.bench(monkeypatch), folder).measures
        assert torch.equal(torch.get_rng_state(), state)
        files = {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}
        found[key(run)] = measures["training"], measures["score"], files
        assert ("curve" in measures) is (run is watched)
    assert len(found) == 2
    without, beside = found.values()
    assert without == beside
    assert without[2] or peer


def test_a_model_left_in_evaluation_would_be_noticed(monkeypatch):
    """The test above can fail: without ``undisturbed`` dropout is off after the first look."""
    import evaluation.measures.curve as module

    plain = toy.run("lora", training=DROPOUT)
    expected = execute(plain, toy.bench(monkeypatch)).measures["training"]
    monkeypatch.setattr(module, "undisturbed", lambda *_: Clock()("nothing"))
    watched = plain.model_copy(update={"curve": Curve(points=4)})
    assert execute(watched, toy.bench(monkeypatch)).measures["training"] != expected


def test_what_a_curve_holds(monkeypatch):
    run = toy.run("lora", lr=5e-2, training={"steps": 40, "head_lr": 5e-2}, curve=Curve(points=4, items=15))
    record = execute(run, toy.bench(monkeypatch))
    curve = record.measures["curve"]
    assert (curve["metric"], curve["items"]) == ("accuracy", 15)
    assert [point["step"] for point in curve["points"]] == [10, 20, 30, 40]
    seconds = [point["seconds"] for point in curve["points"]]
    trained = sum(record.seconds[phase] for phase in ("forward", "backward", "optimiser", "hooks"))
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3] == pytest.approx(trained)
    assert len({point["loss"] for point in curve["points"]}) == 4


def test_the_last_point_is_the_score_of_the_trained_model(monkeypatch):
    """On all validation items, it is what a run of the same training scores on that split."""
    watched = toy.run("pissa", curve=Curve(points=2, items=1000))
    scored = toy.run("pissa", split="validation", merging=None)
    last = execute(watched, toy.bench(monkeypatch)).measures["curve"]["points"][-1]
    found = execute(scored, toy.bench(monkeypatch)).measures["score"]
    assert (last["score"], last["loss"]) == (found["accuracy"], found["loss"])


def test_all_runs_are_scored_on_the_same_items():
    training, part = Training(steps=3), toy.split(40, 2)
    samples = [CurveWatch(Curve(points=1, items=9), training, part, Clock()).sample for _ in range(2)]
    assert samples[0].ids == samples[1].ids
    assert len(samples[0]) == 9
    assert samples[0].ids != part.ids[:9]


def test_outputs_that_are_not_finite_have_no_score():
    model = Classifier(toy.bert(), toy.HIDDEN, toy.CLASSES, seed=0)
    watch = CurveWatch(Curve(points=2, items=9), Training(steps=2), toy.split(9, 2), Clock())
    watch.at(model, 1)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    watch.at(model, 2)
    assert [point["step"] for point in watch.points] == [1]


def test_modes_and_generators_are_put_back():
    model = Classifier(toy.bert(), toy.HIDDEN, toy.CLASSES, seed=0)
    model.head.train()
    model.encoder.eval()
    before = torch.get_rng_state()
    with undisturbed(model, torch.device("cpu")):
        logits(model, toy.split(4, 1), Clock(), torch.device("cpu"))
        torch.rand(3)
    assert model.head.training
    assert not model.encoder.training
    assert torch.equal(torch.get_rng_state(), before)
