"""A made-up model and made-up data, so small that a run of any method takes a few milliseconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from evaluation import execute
from evaluation.benchmarks import Benchmark, Example
from evaluation.data import Data, Split
from evaluation.execute import Workbench
from evaluation.models import Base
from evaluation.spec import Identity, Merging, Method, Quantised, QuantisedRun, ScoreRun, Speed, SpeedRun, Training

HIDDEN, VOCAB, CLASSES = 16, 64, 3
WHERE = ("query", "value")
METHODS: dict[str, dict[str, Any]] = {  # the methods of `quick`, small, with a scale other than 1 where there is one
    "lora": {"rank": 2, "alpha": 4},
    "dora": {"rank": 2, "alpha": 4},
    "pissa": {"rank": 2, "alpha": 4},
    "milora": {"rank": 2, "alpha": 4},
    "lora_xs": {"rank": 3},
    "stiefel": {"rank": 2, "alpha": 4},
    "full": {},
    "probe": {},
}
IDENTITY = Identity(model="toy", data="toy", methods={})


def bert(seed: int = 0) -> nn.Module:
    """Two layers of random weights. Biases and norms are moved off their start, where mistakes would be invisible."""
    config = BertConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=VOCAB,
        max_position_embeddings=40,
    )
    return _moved(lambda: BertModel(config, add_pooling_layer=False), seed)


def linear_layers(width: int) -> nn.Module:
    """One layer of random weights: hardly a parameter outside its linear layers."""
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4 * width,
        vocab_size=8,
        max_position_embeddings=8,
    )
    return _moved(lambda: BertModel(config, add_pooling_layer=False), 0)


def gpt2(seed: int = 0) -> nn.Module:
    """Two layers of a decoder whose linear layers are Conv1D, which store their weight transposed."""
    config = GPT2Config(n_embd=HIDDEN, n_layer=2, n_head=2, vocab_size=VOCAB, n_positions=40)
    return _moved(lambda: GPT2Model(config), seed)


def _moved(build: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: nn.Module = build()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def split(n: int, seed: int, longest: int = 12) -> Split:
    """Rows of 2 to ``longest`` tokens; the class can be read off the tokens, so that something can be learnt."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    rows = [rng.integers(1, VOCAB // 2, rng.integers(2, longest + 1)) + 10 * label for label in labels]
    tokens = tuple(tuple(int(token) for token in row) for row in rows)
    return Split(tuple(f"{seed}-{i}" for i in range(n)), tokens, tuple(labels.tolist()), pad=0)


def data(seed: int = 1) -> Data:
    return Data(split(40, seed), split(20, seed + 1), split(24, seed + 2), CLASSES)


class Words:
    """A tokenizer for texts which are numbers already."""

    pad_token_id = 0

    def __call__(self, texts: list[str], truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        assert truncation
        return {"input_ids": [[int(word) for word in text.split()][:max_length] for text in texts]}


def benchmark(name: str = "toy", seed: int = 1) -> Benchmark:
    """Its digest is its name."""
    made = data(seed)

    def examples(part: Split) -> tuple[Example, ...]:
        texts = [" ".join(map(str, row)) for row in part.tokens]
        return tuple(Example(*fields) for fields in zip(part.ids, texts, part.labels, strict=True))

    labels = tuple(f"class {c}" for c in range(CLASSES))
    found = Benchmark(name, labels, examples(made.train), examples(made.validation), examples(made.test))
    found.__dict__["digest"] = name  # the cached property
    return found


def bench(monkeypatch: pytest.MonkeyPatch, encoder: nn.Module | None = None) -> Workbench:
    """A workbench with the made-up model and data, which needs no files."""
    base = Base("toy", encoder or bert(), Words(), "toy", HIDDEN)
    made = benchmark()
    monkeypatch.setattr(execute, "load_base", lambda _: base)
    monkeypatch.setattr(execute, "load_benchmark", lambda _: made)
    return Workbench("toy", "toy", torch.device("cpu"))


def run(name: str, lr: float = 1e-2, seed: int = 1, **changes: Any) -> ScoreRun:
    """A final run of a method, with merging measured."""
    training = Training(**{"steps": 3, "batch_size": 8, **changes.pop("training", {})})
    fields = {
        "stage": "final",
        "model": "toy",
        "benchmark": "toy",
        "where": WHERE,
        "method": Method(name=name, hyperparameters=METHODS.get(name, {})),
        "lr": lr,
        "seed": seed,
        "split": "test",
        "limit": None,
        "training": training,
        "merging": Merging(items=10),
        "device": "cpu",
        "identity": IDENTITY,
    }
    return ScoreRun(**{**fields, **changes})


def speed_run(names: tuple[str, ...] = ("lora", "pissa", "full", "probe"), **changes: Any) -> SpeedRun:
    fields = {
        "model": "toy",
        "benchmark": "toy",
        "where": WHERE,
        "methods": {name: Method(name=name, hyperparameters=METHODS[name]) for name in names},
        "baseline": names[0],
        "limit": None,
        "training": Training(steps=3, batch_size=8),
        "speed": Speed(batch_size=2, tokens=5, warmup=1, rounds=6),
        "threads": 1,
        "device": "cpu",
        "identity": IDENTITY,
    }
    return SpeedRun(**{**fields, **changes})


def quantised_run(**changes: Any) -> QuantisedRun:
    fields = {
        "model": "toy",
        "benchmark": "toy",
        "where": WHERE,
        "quantised": Quantised(ranks=(1, 2), items=6),
        "limit": None,
        "training": Training(steps=3, batch_size=8),
        "device": "cpu",
        "identity": IDENTITY,
    }
    return QuantisedRun(**{**fields, **changes})


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything a model holds."""
    return {path: tensor.detach().clone() for path, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit, NaN included."""
    return a.keys() == b.keys() and all(_raw(a[k]) == _raw(b[k]) for k in a)


def _raw(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""
