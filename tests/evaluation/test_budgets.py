"""Budgets as texts, and sizes solved for stored bytes, against real tensors and real files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from transformers import BertConfig, BertModel

import variants as _  # noqa: F401  registers the methods
from evaluation.architectures import Architecture, layers
from evaluation.budgets import Budget, largest_within, parsed_budget
from evaluation.measures.parameters import parameters
from evaluation.resolving import resolve
from evaluation.sizes import size_of, sizes
from evaluation.spec import Entry, Method, Protocol, Suite, Unusable
from evaluation.stored import file_bytes
from variants.core import Init, Refused, Tensors, Variant, attach, create, method, names, register, registry, save
from variants.core.attach import layer_rng

CONFIG = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=9)
MIXED = ["query", "*[0-9].output.dense"]  # 32 x 32 and 32 x 48
SIZED = [n for n in names() if method(n).trains == "layers" and method(n).size]
Shape = tuple[int, int]


@pytest.fixture(scope="module")
def tiny() -> Architecture:
    return architecture_of()


def architecture_of() -> Architecture:
    with torch.device("meta"):
        model = BertModel(CONFIG, add_pooling_layer=False)
    return Architecture("tiny", model, model)


TINY = architecture_of()


# ---- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("1000000", Budget(1_000_000)),
        ("1_000_000", Budget(1_000_000)),
        ("1,000", Budget(1000)),
        ("0.1%", Budget(124)),
        ("100 %", Budget(124_055)),
        (".3%", Budget(372)),
        ("300 KiB", Budget(307_200, "bytes")),
        ("300KB", Budget(300_000, "bytes")),
        ("300 kB", Budget(300_000, "bytes")),
        ("1.5 MiB", Budget(1_572_864, "bytes")),
        ("2 MB", Budget(2_000_000, "bytes")),
        ("0.1 GiB", Budget(107_374_182, "bytes")),
        ("4096 B", Budget(4096, "bytes")),
        ("4096 bytes", Budget(4096, "bytes")),
    ],
)
def test_budgets_are_numbers_shares_or_sizes(text: str, budget: Budget) -> None:
    assert parsed_budget(text, 124_055) == budget


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-3",
        "1e6",
        "0%",
        "101%",
        "%",
        "much",
        "0.5",
        "0.0000001%",
        "1.2.3%",
        "0 KB",
        "0.1 B",
        "KiB",
        "3 kb",
        "3 XB",
    ],
)
def test_other_budgets_are_unusable(text: str) -> None:
    taught = r"write a number of parameters \(1000000\) or a share .* \(0.1%\), or stored bytes .* \(300 KiB, 2 MB\)"
    with pytest.raises(Unusable, match=taught):
        parsed_budget(text, 124_055)


# ---- the solver -----------------------------------------------------------------------------------------------------


def statistics_of(variant: Variant, out: int, in_: int) -> dict[str, Tensor]:
    x = torch.randn(200, in_)
    known = {"gradient": torch.randn(out, in_), "covariance": x.T @ x / len(x), "mean": x.mean(0)}
    return {need: known[need] for need in variant.needs}


def bytes_of_tensors(variant: Variant, shapes: list[Shape]) -> int:
    """Of a real start on real weights."""
    shared = variant.shared(shapes, layer_rng(0, ""))
    found = [tensor.float() for tensor in shared.values()]
    for out, in_ in shapes:
        init = variant.init(torch.randn(out, in_), layer_rng(0, ""), statistics_of(variant, out, in_))
        found += [*init.train.values(), *init.frozen.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in found)


def accepted(cls: type[Variant], shapes: list[Shape]) -> Iterator[Variant]:
    """The method in every size up to the longest side which these layers can have."""
    for size in range(max(map(max, shapes)) + 1):
        try:
            variant = cls(**{cls.size: size})
            for shape in shapes:
                variant.check(*shape)
        except ValueError:
            continue
        yield variant


@given(
    name=st.sampled_from(SIZED),
    shapes=st.lists(st.tuples(st.sampled_from((4, 6, 8, 12)), st.sampled_from((4, 6, 9))), min_size=1, max_size=3),
    share=st.floats(0.2, 2.0),
)
@settings(max_examples=120)
def test_it_finds_what_trying_all_sizes_on_real_tensors_finds(name: str, shapes: list[Shape], share: float) -> None:
    cls = method(name)
    if cls.allocate is not Variant.allocate:
        shapes = shapes[:1] * len(shapes)
    budget = Budget(int(share * 4 * sum(out * in_ for out, in_ in shapes)), "bytes")
    stored = {variant: bytes_of_tensors(variant, shapes) for variant in accepted(cls, shapes)}
    fitting = [variant for variant, size in stored.items() if size <= budget.amount]
    where = {str(i): shape for i, shape in enumerate(shapes)}
    if fitting and (len(stored) == 1 or len(set(stored.values())) > 1):
        found = largest_within(budget, cls, {}, TINY, where)
        assert found == fitting[-1] or getattr(found, cls.size) > max(map(max, shapes))
    else:
        with pytest.raises(Refused, match=f"no {cls.size} of {name}|whatever the {cls.size}"):
            largest_within(budget, cls, {}, TINY, where)


@pytest.mark.parametrize("name", SIZED)
def test_bytes_grow_with_the_size(name: str) -> None:
    """What the search relies on."""
    found = [file_bytes(TINY, variant, [(32, 24)]) for variant in accepted(method(name), [(32, 24)])]
    assert found == sorted(set(found))
    assert len(found) > 1


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("kib", [6, 40])
def test_saved_files_hold_no_more_than_the_budget(tmp_path: Path, name: str, kib: int) -> None:
    targets = MIXED if method(name).allocate is Variant.allocate else MIXED[:1]
    shapes = layers(TINY, targets)
    try:
        variant = largest_within(Budget(1024 * kib, "bytes"), method(name), {}, TINY, shapes)
    except Refused as refused:
        assert f"{1024 * kib:,} bytes" in str(refused)  # noqa: PT017  which methods are too large is not the point
        return
    model = BertModel(CONFIG, add_pooling_layer=False)
    attach(model, variant, targets, stats={path: statistics_of(variant, *shape) for path, shape in shapes.items()})
    save(model, tmp_path / "saved")
    held = tensor_bytes(tmp_path / "saved" / "adapter.safetensors")
    assert held == file_bytes(TINY, variant, shapes.values()) <= 1024 * kib
    assert parameters(model, variant)["tensor_bytes"] == held
    larger = [v for v in accepted(method(name), [*shapes.values()]) if getattr(v, v.size) > getattr(variant, v.size)]
    assert not larger or file_bytes(TINY, larger[0], shapes.values()) > 1024 * kib


def tensor_bytes(file: Path) -> int:
    """A safetensors file begins with eight bytes that say how long its header is."""
    contents = file.read_bytes()
    return len(contents) - 8 - int.from_bytes(contents[:8], "little")


def test_few_sizes_are_counted_on_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Counter[Shape]] = []

    def counting(model: Architecture, variant: Variant, shapes: Any) -> int:
        counted.append(shapes)
        return file_bytes(model, variant, shapes)

    monkeypatch.setattr("evaluation.budgets.file_bytes", counting)
    (lora,) = sizes("gpt3-175b", ["lora"], ["q", "v"], budget="10 GB").methods
    assert lora.size == "rank 529"
    assert len(counted) < 30


# ---- what is refused ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Unforeseeable(Variant):
    """Stores as many numbers as its weight has positive entries."""

    size: ClassVar[str] = "rank"
    rank: int = 1

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        return Init(train={"a": torch.zeros(W.shape[0])}, frozen={"b": W[W > 0][: self.rank]})

    def parameter_count(self, out: int, in_: int) -> int:
        return out * self.rank


@pytest.fixture
def unforeseeable(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    register("unforeseeable")(Unforeseeable)
    return "unforeseeable"


def test_what_cannot_be_known_is_refused_with_what_to_write_instead(tiny: Architecture, unforeseeable: str) -> None:
    size = size_of(tiny, unforeseeable, {"a": (8, 8)}, budget=Budget(1000, "bytes"))
    assert size.note == (
        "what unforeseeable stores cannot be known before it is made (it cannot be told from shapes alone): give its "
        "rank, or write the budget in parameters"
    )
    assert size_of(tiny, unforeseeable, {"a": (8, 8)}, budget=Budget(16)).size == "rank 2"


def test_ranks_that_move_between_unlike_layers_are_refused() -> None:
    assert largest_within(Budget(8192, "bytes"), method("eva"), {}, TINY, layers(TINY, ["query"])) == create(
        "eva", {"rank": 16}
    )
    with pytest.raises(Refused, match="it divides itself among layers of different shapes by what they need"):
        largest_within(Budget(8192, "bytes"), method("eva"), {}, TINY, layers(TINY, MIXED))


def suite(budget: str, *entries: Entry) -> Suite:
    return Suite(name="s", model="minilm", benchmark="trec6", where=("query",), budget=budget, methods=entries)


def entry(name: str, **hyperparameters: Any) -> Entry:
    return Entry(label=name, method=Method(name=name, hyperparameters=hyperparameters))


def test_a_suite_resolves_to_the_largest_sizes_within_its_bytes() -> None:
    found = resolve(suite("300 KiB", entry("lora"), entry("pissa"), entry("vera"), entry("ia3"), entry("dora", rank=3)))
    ranks = {e.label: e.method.hyperparameters.get("rank") for e in found.methods}
    # 6 layers of 384 x 384; pissa keeps its frozen start besides; vera shares one pair among all layers.
    assert ranks == {"lora": 16, "pissa": 8, "vera": (300 * 256 - 6 * 384) // (2 * 384 + 6), "ia3": None, "dora": 3}


def test_a_suite_that_cannot_meet_its_bytes_is_one_line(unforeseeable: str) -> None:
    with pytest.raises(
        Unusable, match="lora: no rank of lora stays within 100 bytes: the smallest, rank 1, stores 18,432"
    ):
        resolve(suite("100 B", entry("lora")))
    with pytest.raises(Unusable, match="unforeseeable: what unforeseeable stores cannot be known"):
        resolve(suite("300 KiB", entry("lora"), entry(unforeseeable)))


def searching_butterflies(budget: str, *entries: Entry) -> Suite:
    space = {"lr": (1e-3, 1e-1, "log"), "butterflies": (1, 3, "int")}
    return suite(budget, *entries).model_copy(update={"protocol": Protocol(space=space, trials=6)})


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        ("20000", "trains 26,496, more than the budget of 20,000 parameters"),
        ("80 kB", "stores 105,984 bytes, more than the budget of 80,000 bytes"),
    ],
)
def test_what_is_searched_beside_the_size_stays_within_the_budget(budget: str, spent: str) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(Unusable, match=f"boft: with butterflies = 3, it {spent}: give its block, or search less"):
        resolve(searching_butterflies(budget, entry("lora"), entry("boft")))
    resolve(searching_butterflies(budget, entry("lora"), entry("boft", block=8)))  # its own size, beside the budget


def test_the_sizes_of_a_model_by_stored_bytes() -> None:
    counted = sizes("minilm", ["lora", "vera", "ia3"], ["q"], rank=3, budget="300 KiB")
    assert (counted.budget, counted.budget_unit) == (307_200, "bytes")
    lora, vera, ia3 = counted.methods
    assert (lora.size, lora.file_bytes) == ("rank 16", 4 * 6 * 16 * 768)
    assert 303_000 < (vera.file_bytes or 0) <= 307_200
    assert (ia3.size, ia3.note) == ("-", "has no size to choose")
