"""The calibration pass against sums written out, and the runs that need one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation import execute as module
from evaluation.calibration import calibrate, digest
from evaluation.data import Batch
from evaluation.execute import execute
from evaluation.spec import Calibration
from evaluation.training import Classifier
from tests.evaluation import toy
from variants.core import STATISTICS, Refused, method, names

EVERYTHING = frozenset(STATISTICS)
NEEDY = [name for name in names() if method(name).needs]


def classifier(build=toy.bert) -> Classifier:
    return Classifier(build(), toy.HIDDEN, toy.CLASSES, seed=3)


def batches(n: int = 3) -> list[Batch]:
    split = toy.data().train
    return [split.batch(range(5 * i, 5 * i + 5)) for i in range(n)]


def inputs_of(model: Classifier, path: str, batch: Batch) -> Tensor:  # shape: (tokens, in)
    """Of the real tokens alone, one row after the other and without padding."""
    found: list[Tensor] = []
    layer = model.encoder.get_submodule(path)
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0][0]))
    with torch.no_grad():
        for ids, mask, label in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            n = int(mask.sum())
            model(Batch(ids[None, :n], mask[None, :n], label[None]))
    handle.remove()
    return torch.cat(found).double()


@pytest.mark.parametrize(("build", "path"), [(toy.bert, "encoder.layer.1.output.dense"), (toy.gpt2, "h.1.mlp.c_proj")])
def test_moments_are_those_of_the_real_tokens(build, path):
    model = classifier(build)
    stats = calibrate(model, [path], frozenset({"covariance", "mean"}), batches())
    x = torch.cat([inputs_of(model, path, batch) for batch in batches()])
    assert stats.keys() == {path}
    torch.testing.assert_close(stats[path]["mean"].double(), x.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats[path]["covariance"].double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_padding_would_show():
    """The test above can fail: with the padded positions counted, the moments are others."""
    model, path = classifier(), "encoder.layer.1.output.dense"
    padded = [Batch(b.input_ids, torch.ones_like(b.attention_mask), b.labels) for b in batches()]
    needs = frozenset({"mean"})
    right, wrong = (calibrate(model, [path], needs, b)[path]["mean"] for b in (batches(), padded))
    assert not torch.allclose(right, wrong, rtol=1e-2)


@pytest.mark.parametrize("build", [toy.bert, toy.gpt2])
def test_gradients_are_the_mean_over_batches_by_the_dense_weight(build):
    model = classifier(build)
    where = ["query"] if build is toy.bert else ["c_attn"]
    stats = calibrate(model, where, frozenset({"gradient"}), batches())
    model.requires_grad_(True).eval()
    for path, found in stats.items():
        layer = model.encoder.get_submodule(path)
        losses = torch.stack([F.cross_entropy(model(b), b.labels) for b in batches()])
        (gradient,) = torch.autograd.grad(losses.mean(), layer.weight)
        dense = gradient if build is toy.bert else gradient.T  # Conv1D stores (in, out)
        torch.testing.assert_close(found["gradient"], dense, rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was():
    model = classifier().train()
    model.encoder.get_parameter("embeddings.word_embeddings.weight").requires_grad_(False)
    before, flags = toy.bits(model), [p.requires_grad for p in model.parameters()]
    calibrate(model, ["query"], EVERYTHING, batches())
    assert toy.same(toy.bits(model), before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_nothing_is_run_where_nothing_is_needed():
    assert calibrate(classifier(), ["query"], frozenset(), iter([])) == {}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(Refused, match="no calibration measures 'hessian': a method may need gradient"):
        calibrate(classifier(), ["query"], frozenset({"hessian"}), batches())
    model = classifier()
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight.fill_(float("inf"))
    with pytest.raises(Refused, match=r"the mean of encoder.layer.0.attention.self.query is not finite"):
        calibrate(model, ["query"], frozenset({"mean"}), batches())


def test_the_digest_sees_every_bit():
    stats = calibrate(classifier(), ["query"], EVERYTHING, batches())
    first = digest(stats)
    assert digest(calibrate(classifier(), ["query"], EVERYTHING, batches())) == first
    for path, found in stats.items():
        for name, tensor in found.items():
            tensor.view(torch.int32).flatten()[-1] ^= 1
            assert digest(stats) != first, f"{name} of {path}"
            tensor.view(torch.int32).flatten()[-1] ^= 1
    assert digest(stats) == first


# ---- in runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDY)
def test_a_run_calibrates_with_its_own_head_and_seed(monkeypatch, name):
    small = {"rank": 2} if name != "lora_ga" else {"rank": 1}
    monkeypatch.setitem(toy.METHODS, name, small)
    bench = toy.bench(monkeypatch)
    spec = Calibration(batches=2, batch_size=4)
    records = [execute(toy.run(name, seed=seed, calibration=spec), bench) for seed in (1, 1, 2)]
    assert {record.status for record in records} == {"done"}
    digests = [record.measures["calibration"]["digest"] for record in records]
    assert digests[0] == digests[1] != digests[2]
    assert records[0].measures["calibration"]["layers"] == 4
    assert records[0].seconds["calibration"] > 0
    assert records[0].measures["merging"]["restored"] is True


@pytest.mark.parametrize("name", NEEDY)
def test_a_calibration_that_is_left_out_is_an_error(monkeypatch, name):
    monkeypatch.setitem(toy.METHODS, name, {"rank": 1})
    with pytest.raises(Refused, match=f"{name} needs statistics that were not given"):
        execute(toy.run(name), toy.bench(monkeypatch))


def test_a_method_that_needs_nothing_has_no_calibration(monkeypatch):
    monkeypatch.delattr(module, "calibrate")
    assert "calibration" not in execute(toy.run("lora"), toy.bench(monkeypatch)).measures
