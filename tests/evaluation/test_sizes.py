"""What methods train and store, from shapes alone, against the tensors of real adapters; and the verb ``params``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

import tasks
import variants as _  # noqa: F401  registers the methods
from commands import shared
from evaluation.architectures import Architecture, architecture, layers
from evaluation.listing import in_bytes
from evaluation.sizes import size_of, sizes
from evaluation.stored import Unknown, stored_bytes
from variants.core import (
    STATISTICS,
    Init,
    Refused,
    Tensors,
    Variant,
    adapter_state,
    attach,
    create,
    method,
    names,
    trainable_parameters,
)

CONFIG = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=9)
WHERE = ["query", "*[0-9].output.dense"]


@pytest.fixture(scope="module")
def tiny() -> Architecture:
    with torch.device("meta"):
        model = BertModel(CONFIG, add_pooling_layer=False)
    return Architecture("tiny", model, model)


def stats_of(variant: Variant, found: dict[str, tuple[int, int]]) -> dict[str, dict[str, Tensor]]:
    def known(out: int, in_: int) -> dict[str, Tensor]:
        x = torch.randn(200, in_)
        return {"gradient": torch.randn(out, in_), "covariance": x.T @ x / len(x), "mean": x.mean(0)}

    return {path: {need: known(*shape)[need] for need in variant.needs} for path, shape in found.items()}


@pytest.mark.parametrize("name", [n for n in names() if method(n).allocate is Variant.allocate])
def test_trainable_parameters_and_bytes_are_those_of_the_tensors(tiny: Architecture, name: str) -> None:
    shapes = layers(tiny, WHERE)
    size = size_of(tiny, name, shapes, rank=4)
    variant = create(name, {"rank": 4} if size.size.startswith("rank") else {})
    model = BertModel(CONFIG, add_pooling_layer=False)
    attach(model, variant, WHERE, stats=stats_of(variant, shapes))
    trained = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    assert (size.trainable, size.share) == (trained, trained / tiny.parameters)
    assert (size.optimiser_bytes, size.gradient_bytes) == (8 * trained, 4 * trained)
    assert size.file_bytes == sum(t.numel() * t.element_size() for t in adapter_state(model).values())


@pytest.mark.parametrize("name", names())
def test_file_sizes_are_known_on_large_layers(name: str) -> None:
    variant = create(name)
    if variant.trains == "layers":
        assert stored_bytes(variant, 4096, 4096) >= 4 * variant.parameter_count(4096, 4096)


@dataclass(frozen=True, kw_only=True)
class Asking(Variant):
    """A start which looks at its weight in one of several ways."""

    name: ClassVar[str] = "asking"
    way: str = "scale"

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        a = torch.zeros(W.shape[0], dtype=W.dtype)
        match self.way:
            case "scale":
                a = a * float(W.norm())
            case "finite" if not bool(W.isfinite().all()):
                raise Refused("not finite")
            case "zero" if bool((W == 0).all()):
                raise Refused("all zero")
            case "entries":
                a = W[W > 0]
            case "rank":
                a = torch.zeros(int((W > 0).sum()) + 7)
            case "forever":
                while float(W.norm()) >= 0:
                    pass
            case "outside":
                a = torch.from_numpy(W.numpy().sum(1))
        return Init(train={"a": a}, frozen={"index": torch.zeros(3, dtype=torch.int64)})

    def parameter_count(self, out: int, in_: int) -> int:
        return out


@pytest.mark.parametrize("way", ["scale", "finite", "zero"])
def test_questions_about_the_weight_are_answered_somehow(way: str) -> None:
    assert stored_bytes(Asking(way=way), 10, 6) == 4 * 10 + 8 * 3


@pytest.mark.parametrize("way", ["entries", "rank", "forever", "outside"])
def test_shapes_that_depend_on_the_weight_are_unknown(way: str) -> None:
    with pytest.raises(Unknown, match="it cannot be told from shapes alone"):
        stored_bytes(Asking(way=way), 10, 6)


def test_no_numbers_are_touched() -> None:
    before = torch.random.get_rng_state()
    assert stored_bytes(create("pissa", {"rank": 16}), 100_000, 100_000) == 4 * 4 * 16 * 100_000  # W would be 40 GB
    assert torch.equal(before, torch.random.get_rng_state())


@dataclass(frozen=True, kw_only=True)
class Needing(Variant):
    """Looks at every statistic there is."""

    needs = frozenset(STATISTICS)

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        assert stats is not None
        assert stats["gradient"].shape == W.shape
        a = stats["covariance"] @ stats["mean"]
        return Init(train={"a": a})

    def parameter_count(self, out: int, in_: int) -> int:
        return in_


def test_all_statistics_have_a_shape() -> None:
    assert stored_bytes(Needing(), 10, 6) == 4 * 6


def test_shared_tensors_are_stored_once() -> None:
    found = architecture("minilm")
    one, both = (size_of(found, "vera", layers(found, targets), rank=5) for targets in (["q"], ["q", "v"]))
    assert one.file_bytes == 4 * (6 * (384 + 5) + 2 * 384 * 5)
    assert both.file_bytes == 4 * (12 * (384 + 5) + 2 * 384 * 5)


def test_a_budget_decides_the_size() -> None:
    counted = sizes("roberta-base", ["lora", "lora_xs", "ia3"], ["q", "v"], rank=3, budget="0.1%")
    lora, xs, ia3 = counted.methods
    assert counted.budget == 124_055
    assert (lora.size, lora.trainable) == ("rank 3", 110_592)
    assert (xs.size, xs.trainable) == ("rank 71", 24 * 71**2)
    assert (ia3.size, ia3.trainable, ia3.note) == ("-", 24 * 768, "has no size to choose")


def test_refusals_take_the_place_of_numbers() -> None:
    (lora,) = sizes("minilm", ["lora"], ["q"], rank=400).methods
    assert lora.trainable is lora.share is lora.file_bytes is lora.optimiser_bytes is lora.gradient_bytes is None
    assert lora.note == "rank 400 does not fit a 384 x 384 layer: write a rank from 1 to 384"
    (lora,) = sizes("minilm", ["lora"], ["q"], budget="9").methods
    assert lora.note.startswith("no rank of lora stays within 9 parameters")
    (bitfit,) = sizes("llama-7b", ["bitfit"], ["q"]).methods
    assert bitfit.note == "finds nothing in this model which it could train"


# ---- the verb -------------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["svdbench", "params", *arguments])
        monkeypatch.setattr(shared.console, "width", 120)
        with pytest.raises(SystemExit) as stopped:
            tasks.main()
        return Said(int(stopped.value.code or 0), *capsys.readouterr())

    return run


def test_the_table_shows_counts_bytes_and_reasons(params: Callable[..., Said]) -> None:
    said = params("--model", "gpt3-175b", "--variants", "lora,full,lora_xs", "--rank", "8", "--targets", "q,v")
    assert said.code == 0, said.err
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in said.out.splitlines() if line.strip()}
    assert rows["lora"] == "rank 8 37,748,736 0.0216 % 151 MB 302 MB 151 MB"
    assert rows["full"] == "- 174,604,259,328 100 % 698 GB 1.4 TB 698 GB"
    assert rows["lora_xs"] == "rank 8 12,288 < 0.001 % 151 MB 98.3 kB 49.2 kB"
    assert rows["gpt3-175b:"] == "174,604,259,328 parameters, 192 layers adapted (q,v)"
    said = params("--model", "minilm", "--variants", "lora", "--rank", "400")
    assert said.code == 0
    assert "lora: rank 400 does not fit a 384 x 384 layer" in said.out


def test_json_holds_the_same(params: Callable[..., Said]) -> None:
    said = params("--model", "gpt3-175b", "--variants", "lora", "--budget", "0.1%", "--json")
    counted = json.loads(said.out)
    assert (counted["model"], counted["parameters"], counted["layers"]) == ("gpt3-175b", 174_604_259_328, 192)
    (lora,) = counted["methods"]
    assert (lora["size"], lora["trainable"], counted["budget"]) == ("rank 37", 174_587_904, 174_604_259)


def test_all_methods_can_be_counted_on_gpt3(params: Callable[..., Said]) -> None:
    said = params("--model", "gpt3-175b", "--variants", "all", "--json")
    assert {row["method"] for row in json.loads(said.out)["methods"]} == set(names())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "gpt3"], "unknown model 'gpt3'"),
        (["--model", "minilm", "--variants", "lorra"], "did you mean lora"),
        (["--model", "minilm", "--targets", "qurey"], "'qurey' matches no layer"),
        (["--model", "minilm", "--budget", "lots"], "budget 'lots': write a number of parameters"),
        (["--model", "minilm", "--rank", "0"], "--rank"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    params: Callable[..., Said], arguments: list[str], expected: str
) -> None:
    said = params(*arguments)
    assert said.code == 2
    assert expected in said.err
    problem = said.err.strip().splitlines()
    assert len(problem) == 1 or problem[0].startswith("Usage:")


def test_the_help_has_an_example(params: Callable[..., Said]) -> None:
    assert "Example: python3 tasks.py params" in params("--help").out


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_234_567, "1.23 MB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_396_834_074_624, "1.4 TB"),
        (10**16, "10,000 TB"),
    ],
)
def test_bytes_in_words(number: int | None, text: str) -> None:
    assert in_bytes(number) == text


def test_methods_that_need_no_layers_ignore_them() -> None:
    assert method("full").trains == "base"
    found = architecture("minilm")
    assert size_of(found, "full", {}).trainable == found.parameters
    assert size_of(found, "probe", {}).trainable == 0
