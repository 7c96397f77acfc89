"""Numbers instead of classes: from the benchmark to the record and its report, on the toy model; and pairs of texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
import torch

from evaluation.benchmarks import Benchmark, Example
from evaluation.data import task_loss, tokenise
from evaluation.execute import execute
from evaluation.measures.score import matthews, pearson, primary, score
from evaluation.search import Setting, best_setting, outcomes
from evaluation.spec import Calibration, Merging, key
from reports import write_report
from tests.evaluation import toy


def regression() -> Benchmark:
    """The toy's texts; their number is 100 more than ten times their class, which can be read off the tokens."""
    made = toy.benchmark()
    parts = [
        tuple(Example(e.id, e.text, 100 + 10 * e.label) for e in part)
        for part in (made.train, made.validation, made.test)
    ]
    return Benchmark("toy", (), *parts, metric="spearman")


@pytest.fixture
def bench(monkeypatch):
    found = toy.bench(monkeypatch)
    found._data["toy", 128] = tokenise(regression(), toy.Words(), 128)
    return found


def test_targets_are_standardised_over_the_training_split(bench):
    data = bench.data(128, None)
    targets = data.train.targets()
    assert data.classes == 1
    assert targets.mean().abs() < 1e-6
    assert targets.var(correction=0) == pytest.approx(1, abs=1e-5)
    few = data.train.drawn(4, 0)
    assert few.scale == data.train.scale, "a subset is standardised as the whole"
    mean, deviation = data.test.scale
    assert data.test.head(3).batch([1]).labels.item() == pytest.approx(
        (data.test.labels[1] - mean) / deviation, abs=1e-6
    )
    assert mean == pytest.approx(np.mean(data.train.labels))


def test_a_run_learns_the_order_and_keeps_every_item(bench):
    run = toy.run("full", lr=3e-3, training={"steps": 120, "max_length": 128}, merging=None)
    found = execute(run, bench).measures["score"]
    assert found["metric"] == "spearman"
    assert primary(found) == found["spearman"] > 0.7  # classes of three, so below one
    gold, predicted = found["items"]["gold"], found["items"]["predicted"]
    assert set(gold) <= {100.0, 110.0, 120.0}
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(gold, predicted).statistic)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(gold, predicted).statistic)
    deviation = bench.data(128, None).test.scale[1]
    assert found["loss"] == pytest.approx(np.mean((np.array(gold) - predicted) ** 2) / deviation**2, rel=1e-4)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", ["lora", "lora_ga", "full", "probe"])
def test_merging_and_start_measure_outputs_and_count_nothing(name, bench):
    calibration = Calibration(batches=1) if name == "lora_ga" else None
    merging = Merging(items=10, formats=("float32", "int8"), cycles=(1,), depth="full")
    found = execute(toy.run(name, calibration=calibration, merging=merging), bench).measures
    assert np.isfinite(found["start"]["loss_start"])
    for values in found["merging"]["formats"].values():
        counted = ("accuracy_adapted", "accuracy_merged", "flipped", "gained", "lost")
        assert [values[kind] for kind in counted] == [None] * 5
        assert values["error"] is None or values["error"] >= 0
        assert values["max_logit_change"] >= 0
    json.dumps(found, allow_nan=False)


def test_speed_has_a_gradient(monkeypatch):
    bench = toy.bench(monkeypatch)
    bench._data[128] = tokenise(regression(), toy.Words(), 128)
    assert execute(toy.speed_run(("lora", "probe")), bench).status == "done"


def test_rates_are_chosen_by_the_primary_measure(bench):
    runs = [toy.run("lora", lr=lr, stage="search", split="validation", merging=None) for lr in (1e-3, 1e-2)]
    records = {key(run): execute(run, bench) for run in runs}
    for run, value in zip(runs, (0.9, 0.2), strict=True):
        found = records[key(run)].measures["score"]
        found |= {"spearman": value, "pearson": 1 - value, "accuracy": 1 - value}
    tried = [(Setting(run.lr), [run]) for run in runs]

    def chosen() -> float | None:
        setting = best_setting(outcomes(tried, records) or ())
        return None if setting is None else setting.lr

    assert chosen() == 1e-3
    for record in records.values():
        record.measures["score"]["metric"] = "pearson"
    assert chosen() == 1e-2


def test_a_report_is_about_the_correlation(bench, tmp_path):
    merging = Merging(items=10, formats=("float32", "int8"), cycles=(1,), depth="full")
    finals = [
        toy.run(name, seed=seed, merging=merging if seed == 1 else None) for name in ("lora", "full") for seed in (1, 2)
    ]
    searches = [
        toy.run(name, lr=lr, seed=0, stage="search", split="validation", merging=None)
        for name in ("lora", "full")
        for lr in (3e-3, 1e-2)
    ]
    records = [execute(run, bench).model_dump(mode="json") for run in searches + finals]
    methods = [{"label": run.method.name, "method": run.method.model_dump()} for run in finals[::2]]
    suite = {
        "name": "toy",
        "model": "toy",
        "benchmark": "toy",
        "baseline": "lora",
        "where": list(toy.WHERE),
        "methods": methods,
        "protocol": {"points": 2, "seeds": 2},
        "training": {"steps": 3, "batch_size": 8},
    }
    (tmp_path / "suite.json").write_text(json.dumps({"suite": suite, "command": "", "versions": {}}))
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Spearman correlation" in page
    assert "Pearson correlation" in page
    assert "macro-F1" not in page
    assert "accuracy merged" not in page
    assert "hundredths of one" in page


def test_matthews_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    tp, tn = ((gold == c) & (predicted == c) for c in (1, 0))
    fp, fn = ((gold == 1 - c) & (predicted == c) for c in (1, 0))
    tp, tn, fp, fn = (int(x.sum()) for x in (tp, tn, fp, fn))
    expected = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert matthews(gold, predicted) == pytest.approx(expected)
    assert matthews(gold, gold) == pytest.approx(1)
    assert matthews(gold, 1 - gold) == pytest.approx(-1)
    assert matthews(gold, np.zeros(50, dtype=int)) == 0


def test_matthews_of_several_classes_is_gorodkins():
    rng = np.random.default_rng(1)
    gold, predicted = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
    C = np.zeros((4, 4))
    for g, p in zip(gold, predicted, strict=True):
        C[g, p] += 1
    t, p, c, s = C.sum(1), C.sum(0), C.trace(), C.sum()
    assert matthews(gold, predicted) == pytest.approx((c * s - t @ p) / np.sqrt((s**2 - p @ p) * (s**2 - t @ t)))


def test_correlations_with_a_constant_are_zero():
    assert pearson(np.array([1.0, 2.0, 4.0]), np.full(3, 0.1)) == 0.0
    data = tokenise(regression(), toy.Words(), 128)
    found = score(torch.full((len(data.test), 1), 0.1), data.test)
    assert (found["spearman"], found["pearson"]) == (0.0, 0.0)


def test_classes_are_scored_by_matthews_only_where_asked():
    split = toy.split(12, 3)
    outputs = torch.eye(3)[torch.tensor(split.labels)]
    assert "matthews" not in score(outputs, split)
    asked = tokenise(Benchmark("x", *_parts(), metric="matthews"), toy.Words(), 8).test
    found = score(torch.eye(2)[torch.tensor(asked.labels)], asked)
    assert (found["metric"], primary(found), found["accuracy"]) == ("matthews", pytest.approx(1), 1.0)


def _parts():
    part = [tuple(Example(f"{s}{i}", str(i + 1), i % 2) for i in range(4)) for s in "abc"]
    return ("k", "l"), *part


def test_loss_knows_numbers_by_their_type():
    outputs = torch.tensor([[1.0], [3.0]])
    assert task_loss(outputs, torch.tensor([0.0, 1.0])) == 2.5
    assert task_loss(outputs, torch.tensor([0, 0])) == 0


class Pairs(toy.Words):
    """Cuts the second text only."""

    def __call__(self, texts, pairs=None, *, truncation, max_length):
        if pairs is None:
            return super().__call__(texts, truncation=truncation, max_length=max_length)
        both = zip(texts, pairs, strict=True)
        return {"input_ids": [[int(w) for w in a.split()] + [9] + [int(w) for w in b.split()] for a, b in both]}


def test_pairs_and_single_texts_are_encoded_each_in_its_place():
    part = [(Example(f"{s}1", "1 2", 0, "3 4"), Example(f"{s}2", "5", 0), Example(f"{s}3", "6", 0, "7")) for s in "abc"]
    data = tokenise(Benchmark("x", ("k",), *part), Pairs(), 8)
    assert data.train.tokens == ((1, 2, 9, 3, 4), (5,), (6, 9, 7))


@pytest.mark.assets
def test_the_longer_text_of_a_pair_is_cut():
    from transformers import AutoTokenizer

    from evaluation.assets import fetch

    tokenizer = AutoTokenizer.from_pretrained(fetch("minilm"))
    part = [(Example(s, "is it so", 0, "word " * 50),) for s in "abc"]
    (row,) = tokenise(Benchmark("x", ("k",), *part), tokenizer, 16).train.tokens
    assert len(row) == 16
    assert tokenizer.decode(row).startswith("[CLS] is it so [SEP] word word")
