"""The same code on CUDA. Skipped, with the reason, where there is no such device."""

from __future__ import annotations

import pytest
import torch

from evaluation.execute import Workbench, execute
from evaluation.feeding import fed
from tests.evaluation import toy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Workbench:
    toy.bench(monkeypatch)
    return Workbench("toy", "toy", torch.device("cuda"))


@pytest.mark.parametrize("name", toy.METHODS)
def test_a_run_agrees_with_the_cpu(monkeypatch: pytest.MonkeyPatch, cuda: Workbench, name: str) -> None:
    there = execute(toy.run(name, device="cuda"), cuda)
    here = execute(toy.run(name), toy.bench(monkeypatch))
    assert there.status == "done"
    assert there.measures["training"]["loss"] == pytest.approx(here.measures["training"]["loss"], rel=1e-3)
    assert there.measures["parameters"] == here.measures["parameters"]
    assert there.measures["merging"]["restored"]
    assert all(there.seconds[phase] > 0 for phase in ("forward", "backward", "optimiser", "evaluation"))


def test_bfloat16_autocast_stays_near_float32(cuda: Workbench) -> None:
    exact = execute(toy.run("lora", device="cuda"), cuda).measures["training"]["loss"]
    half = execute(toy.run("lora", device="cuda", training={"precision": "bfloat16"}), cuda).measures["training"][
        "loss"
    ]
    assert half == pytest.approx(exact, rel=0.05)
    assert half != exact


def test_speed_uses_events_and_the_allocator(cuda: Workbench) -> None:
    measured = execute(toy.speed_run(device="cuda"), cuda).measures["speed"]
    for method in measured["methods"].values():
        assert 0 < method["forward"]["low"] <= method["forward"]["median"] <= method["forward"]["high"]
        assert method["peak_bytes"] > 0


def test_batches_copied_ahead_are_those_of_the_cpu() -> None:
    split, rows = toy.split(64, 0), [[i, (7 * i) % 64, (i * i) % 64] for i in range(64)]
    for batch, index in zip(fed(split, rows, torch.device("cuda")), rows, strict=True):
        expected = split.batch(index)
        assert batch.input_ids.is_cuda
        assert torch.equal(batch.input_ids.cpu(), expected.input_ids)
        assert torch.equal(batch.attention_mask.cpu(), expected.attention_mask)
        assert torch.equal(batch.labels.cpu(), expected.labels)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", ["lora", "dora", "full"])
def test_a_run_of_cuda_graphs_agrees_with_the_cpu(monkeypatch: pytest.MonkeyPatch, cuda: Workbench, name: str) -> None:
    there = execute(toy.run(name, device="cuda", training={"steps": 8, "compile": True}), cuda)
    here = execute(toy.run(name, training={"steps": 8}), toy.bench(monkeypatch))
    assert there.measures["training"]["loss"] == pytest.approx(here.measures["training"]["loss"], rel=1e-3)
    assert there.measures["merging"]["restored"]
