"""Training compiled block by block: how many graphs, that it changes the time alone, and that it leaves nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import cpp_builder, exc
from transformers import BertConfig, BertModel

from evaluation import compiling
from evaluation.bench.running import bench as measure
from evaluation.bench.settings import Settings
from evaluation.clock import Clock
from evaluation.compiling import blocks, compile_blocks, compiled
from evaluation.data import Batch, extremes
from evaluation.execute import Workbench, execute
from evaluation.models import Base
from evaluation.mounting import mounted
from evaluation.spec import Curve, Suite, Training, Unusable, key
from evaluation.training import Classifier, Trainer
from reports.bench import sentences
from reports.bench_tables import costs_table
from tests.evaluation import toy
from variants.core import Refused, Variant, create, method, names

CPU = torch.device("cpu")
# Dynamo itself looks at .grad of a block's input, which is the output of the block before.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is compiled, in place of compiling it."""
    found: list[Any] = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", counting)
    yield found
    torch._dynamo.reset()


# ---- how many graphs ------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.up(x))


class Stack(nn.Module):
    """The least that is an encoder: tracing it takes a fraction of what tracing BERT takes."""

    def __init__(self, layers: int, width: int = 8) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=toy.VOCAB)
        self.words = nn.Embedding(toy.VOCAB, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x = self.words(input_ids)
        for layer in self.layers:
            x = layer(x)
        return SimpleNamespace(last_hidden_state=x)


LENGTHS = (4, 7, 8)  # one as the number of rows, one as the width: both by chance


def rows_of(tokens: int) -> Batch:
    ids = torch.arange(4 * tokens).reshape(4, tokens) % toy.VOCAB
    return Batch(ids, torch.ones_like(ids), torch.tensor([0, 1, 1, 0]))


def training_losses(variant: Variant, layers: int, wanted: bool) -> list[float]:
    """Of six steps, two with each of three lengths."""
    training = Training(steps=6, compile=wanted, adapter_dropout=0.25)
    with mounted(Stack(layers), variant, ["up"], dropout=0.25) as encoder:
        trainer = Trainer(Classifier(encoder, 8, 2, seed=0), variant, training, 1e-2, Clock())
        torch.manual_seed(1)
        with compiled(encoder, wanted, CPU):
            return [trainer.step(rows_of(tokens)) for tokens in 2 * LENGTHS]


LAYERWISE = [n for n in names() if method(n).trains == "layers" and not method(n).needs]


@pytest.mark.parametrize("name", LAYERWISE)
def test_a_whole_run_takes_one_graph_for_the_first_block_and_one_for_all_others(graphs: list[Any], name: str) -> None:
    """The first block's input needs no gradient. Neither layers, nor steps, nor lengths add a graph."""
    variant = create(name, {method(name).size: 2} if method(name).size else {})
    torch.manual_seed(0)
    plain = training_losses(variant, 3, wanted=False)
    assert not graphs
    torch.manual_seed(0)
    assert training_losses(variant, 3, wanted=True) == pytest.approx(plain, rel=1e-4)
    assert 1 <= len(graphs) <= 2


def run(name: str = "lora", **changes: Any) -> Any:
    return toy.run(name, training={"steps": 8, "compile": True, **changes.pop("training", {})}, **changes)


@pytest.mark.parametrize("layers", [2, 5])
def test_graphs_of_a_run_do_not_grow_with_the_layers(
    monkeypatch: pytest.MonkeyPatch, graphs: list[Any], layers: int
) -> None:
    sizes = {"hidden_size": toy.HIDDEN, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": toy.VOCAB}
    encoder = BertModel(BertConfig(num_hidden_layers=layers, **sizes), add_pooling_layer=False).eval()
    assert execute(run(curve=Curve(points=2), merging=None), toy.bench(monkeypatch, encoder)).status == "done"
    assert len(graphs) == 2, "nor does evaluation add one"


# ---- what it changes ------------------------------------------------------------------------------------------------

DROPOUT = {"adapter_dropout": 0.3, "base_dropout": True}


@pytest.mark.parametrize(("name", "more"), [("lora", DROPOUT), ("full", {})])
def test_a_compiled_run_is_the_run(monkeypatch: pytest.MonkeyPatch, name: str, more: dict[str, Any]) -> None:
    """Also through autograd's own compiler, and with the same dropout."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    bench = toy.bench(monkeypatch)
    with_it, without = (execute(toy.run(name, training={"compile": on, **more}), bench) for on in (True, False))
    assert with_it.measures["training"]["loss"] == pytest.approx(without.measures["training"]["loss"], rel=1e-4)
    assert with_it.measures["score"]["accuracy"] == without.measures["score"]["accuracy"]
    assert with_it.seconds.keys() - without.seconds.keys() == {"compile"}


def test_nothing_is_compiled_while_a_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[str] = []
    enter = Clock.__call__
    monkeypatch.setattr(Clock, "__call__", lambda clock, phase: (phases.append(phase), enter(clock, phase))[1])
    seen: list[str] = []
    monkeypatch.setattr(compiling, "BACKEND", lambda graph, _: (seen.append(phases[-1]), graph.forward)[1])
    execute(run(merging=None), toy.bench(monkeypatch))
    assert seen == ["compile", "compile"]


def test_compiling_is_in_the_key_only_of_runs_that_do() -> None:
    assert "compile" not in Training().model_dump()
    assert key(toy.run("lora", training={"compile": False})) == key(toy.run("lora"))
    assert key(toy.run("lora", training={"compile": True})) != key(toy.run("lora"))
    assert Training.model_validate_json(Training(compile=True).model_dump_json()).compile


def test_the_rehearsal_sees_the_shortest_and_the_longest_batch_of_the_run() -> None:
    split = toy.split(12, 0)
    width = lambda rows: max(len(split.tokens[i]) for i in rows)  # noqa: E731
    batches = [[i, i + 1] for i in range(0, 12, 2)]
    short, long = extremes(split, batches)
    assert (width(short), width(long)) == (min(map(width, batches)), max(map(width, batches)))
    assert extremes(split, batches[:1] * 3) == (batches[0],)


# ---- what it leaves -------------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(graphs: list[Any]) -> None:
    encoder = toy.bert()
    before, kept = [set(m.__dict__) for m in encoder.modules()], toy.bits(encoder)

    def goes_wrong() -> None:
        with compiled(encoder, True, CPU):
            encoder(torch.ones(2, 3, dtype=torch.long)).last_hidden_state.sum().backward()
            assert not any(m._compiled_call_impl for m in copy.deepcopy(encoder).modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        goes_wrong()
    assert len(graphs) == 1
    assert not any(m._compiled_call_impl for m in encoder.modules())
    assert [set(m.__dict__) - {"_compiled_call_impl"} for m in encoder.modules()] == before
    assert toy.same(kept, toy.bits(encoder))


def test_a_rehearsal_leaves_nothing(graphs: list[Any]) -> None:
    variant = create("lora", {"rank": 2})
    with mounted(Stack(2), variant, ["up"], dropout=0.5) as encoder:
        trainer = Trainer(Classifier(encoder, 8, 2, seed=0), variant, Training(compile=True), 1e-2, Clock())
        before = toy.bits(trainer.model)
        state = torch.get_rng_state()
        with compiled(encoder, True, CPU):
            trainer.rehearse([rows_of(3)])
        assert toy.same(before, toy.bits(trainer.model))
    assert graphs
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.done == 0
    assert all(p.grad is None for p in trainer.model.parameters())


# ---- which blocks ---------------------------------------------------------------------------------------------------


def test_blocks_are_the_outermost_lists_of_one_class() -> None:
    nested = nn.ModuleList(nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(1, 1)])}) for _ in range(2))
    mixed = nn.ModuleList([nn.Linear(1, 1), nn.Tanh()])
    assert blocks(nn.ModuleDict({"a": nested, "b": mixed})) == list(nested)
    model = toy.gpt2()
    assert blocks(model) == list(model.h)
    with pytest.raises(Refused, match="no list of equal blocks"):
        blocks(mixed)


# ---- the bench and the speed run ------------------------------------------------------------------------------------


def test_a_bench_compiles_ours_peers_and_the_floor(graphs: list[Any]) -> None:
    base = Base("toy", toy.bert(), toy.Words(), "toy", toy.HIDDEN)
    settings = Settings(("dora",), ((2, 5), (3, 4)), threads=1, rounds=6, rank=2, where=("query",), compile=True)
    found = measure(base, settings)
    assert found.compile
    assert list(found.costs) == ["lora", "peft:lora", "dora"]
    assert all(once.compile and once.compile > 0 for once in found.costs.values())
    assert found.left_out["peft:dora"].startswith("peft:lora cannot be compiled in one graph (Dynamo does not know")
    assert len(graphs) == 2 * 4 - 1, "the floor's blocks both see an input that needs a gradient"
    assert not any(m._compiled_call_impl for m in base.encoder.modules())
    made = found.model_dump(mode="json")
    assert "blocks compiled" in sentences(made)[0]
    assert [column.key for column in costs_table(made).columns][-1] == "compile_seconds"


def test_a_speed_run_says_what_compiling_took(monkeypatch: pytest.MonkeyPatch, graphs: list[Any]) -> None:
    record = execute(toy.speed_run(("lora", "probe"), training=Training(compile=True)), toy.bench(monkeypatch))
    each = [method["compile_seconds"] for method in record.measures["speed"]["methods"].values()]
    assert record.seconds["compile"] == sum(each) > 0
    assert graphs


# ---- where it cannot be ---------------------------------------------------------------------------------------------


def suite(*methods: dict[str, Any]) -> Suite:
    fields = {"name": "t", "model": "toy", "benchmark": "toy", "where": ("query",), "training": {"compile": True}}
    return Suite(**fields, methods=({"name": "lora", "rank": 2}, *methods))


def test_without_a_compiler_a_suite_is_refused_before_any_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(Unusable, match=r"^compile needs a C\+\+ compiler, and found none: install g\+\+"):
        toy.bench(monkeypatch).check(suite())


def test_a_method_whose_graph_breaks_is_refused_before_any_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    bench: Workbench = toy.bench(monkeypatch)
    bench.check(suite({"name": "dora", "rank": 2}))
    broken = suite({"name": "peft:lora", "label": "theirs", "use_dora": True})
    with pytest.raises(Unusable, match=r"^theirs: peft:lora cannot be compiled in one graph \(.*\): leave") as refused:
        bench.check(broken)
    assert "\n" not in str(refused.value)
    assert not any(m._compiled_call_impl for m in bench.base.encoder.modules())


def test_every_model_has_graphs_of_its_own(graphs: list[Any]) -> None:
    """Dynamo keeps at most a few for one function: a bench of many methods has more."""
    with compiled(Stack(2), True, CPU):
        for width in range(2, 14):
            model = Stack(2, width)
            compile_blocks(model, CPU)
            model(*[torch.ones(2, 3, dtype=torch.long)] * 2).last_hidden_state.sum().backward()
    assert len(graphs) == 12
