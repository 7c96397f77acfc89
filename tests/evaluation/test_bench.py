"""The bench on made-up models: pairs that are equal, groups, what is kept, the command line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from evaluation.bench import running
from evaluation.bench.costs import costs
from evaluation.bench.explain import PLAIN, explained
from evaluation.bench.groups import MOST, grouped, need
from evaluation.bench.pairs import PEFT, Entry, entries, known, pairs, usual
from evaluation.bench.result import Bench, Interval, read, text
from evaluation.bench.running import Progress, bench, hyperparameters
from evaluation.bench.settings import Settings, parsed_shape
from evaluation.bench.starts import EXACT, starts
from evaluation.clock import Clock
from evaluation.measures import contestants
from evaluation.measures.contestants import Contestant, Floor, contestant, random_batch
from evaluation.models import Base
from evaluation.spec import Training, Unusable
from evaluation.training import Classifier
from tests.evaluation import tiny, toy
from variants.core import Tensors, Variant, accelerate, create, names
from variants.core.products import FastLinear
from variants.lora import LoRA

RANK, TOTAL = 2, 20


def base() -> Base:
    return Base("toy", toy.bert(), toy.Words(), "toy", toy.HIDDEN)


def settings(*methods: str, **changes: Any) -> Settings:
    fields = {"methods": methods, "shapes": ((2, 5),), "threads": 1, "rounds": 6, "rank": RANK}
    return Settings(**{**fields, **changes})


# ---- pairs ----------------------------------------------------------------------------------------------------------


def on_toy(variant: Variant) -> Contestant:
    encoder = toy.bert()
    floor = Floor(Classifier(encoder, toy.HIDDEN, 2, seed=0), "float32", Clock())
    return contestant(variant, ["all"], Training(steps=TOTAL), floor, random_batch(8, 8, encoder, 2), TOTAL)


def trained(found: Contestant) -> int:
    return sum(p.numel() for p in found.trainer.model.encoder.parameters() if p.requires_grad)


# PEFT's BOFT trains all b * b entries of each of a layer's in / b blocks; the skew-symmetric part has b (b - 1) / 2.
REDUNDANT = {"boft": sum(in_ // RANK * (RANK * RANK - RANK * (RANK - 1) // 2) for in_ in 2 * [16, 16, 16, 16, 16, 24])}


@pytest.mark.parametrize("label", pairs(RANK, TOTAL))
def test_both_of_a_pair_train_as_many_numbers_and_start_as_the_same_function(label: str) -> None:
    """That they are the same function everywhere is held by the tests against PEFT."""
    *_, entry = entries([label], RANK, TOTAL)
    assert list(entry.contestants()) == [label, PEFT + label]
    ours, theirs = map(on_toy, entry.contestants().values())
    assert trained(ours) == trained(theirs) - REDUNDANT.get(label, 0) > 0
    batch = random_batch(3, 6, toy.bert(), 2)
    with torch.no_grad():
        outputs = [c.trainer.model(batch) for c in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for c in (ours, theirs):
        before = [p.detach().clone() for p in c.trainer.parameters]
        for _ in range(2):
            c.trainer.step(batch)
        assert any(not torch.equal(a, b) for a, b in zip(before, c.trainer.parameters, strict=True))


@pytest.mark.parametrize("label", ["kasa", "adalora"])
def test_a_penalty_that_peft_leaves_to_its_callers_is_part_of_its_step(label: str) -> None:
    *_, entry = entries([label], RANK, TOTAL)
    for c in map(on_toy, entry.contestants().values()):
        loss, objective = c.trainer.losses(random_batch(3, 6, toy.bert(), 2))
        assert float((objective - loss).detach()) > 0


def test_every_method_of_ours_can_be_asked_for() -> None:
    assert set(names()) <= set(known())
    assert set(usual()) <= set(known())
    found = entries(known(), 8, 100)
    assert [entry.label for entry in found] == known()
    assert {entry.variant.name for entry in found} == set(names())
    ranked = [entry for entry in found if hasattr(entry.variant, "rank")]
    assert {entry.variant.rank for entry in ranked} == {8}
    assert entries(["dora"], 8, 100)[0].label == "lora"


@pytest.mark.parametrize(
    ("label", "said"),
    [("lorra", "unknown method 'lorra': did you mean lora"), ("peft:dora", "timed beside ours; name ours, dora")],
)
def test_an_unknown_method_is_one_line(label: str, said: str) -> None:
    with pytest.raises(Unusable, match=said):
        entries([label], 8, 100)


# ---- groups ---------------------------------------------------------------------------------------------------------


@given(st.sets(st.sampled_from(known())), st.integers(1, 40), st.integers(1, MOST))
def test_groups_hold_every_entry_once_under_the_baseline_and_fit(labels: set[str], room: int, most: int) -> None:
    chosen = entries(sorted(labels), 8, 100)
    groups = grouped(chosen, base_bytes=10, memory=10 * room, most=most)
    assert all(group[0].label == "lora" for group in groups)
    assert [entry for group in groups for entry in group[1:]] == [e for e in chosen if e.label != "lora"]
    for group in groups:
        assert len(group) <= most + 1
        assert len(group) <= 2 or sum(need(entry, 10) for entry in group) <= 10 * room


def test_what_trains_all_needs_most_and_a_peer_counts() -> None:
    lora, full = LoRA(rank=2), entries(["full"], 2, 9)[1]
    assert need(full, 100) == 410
    assert need(Entry("lora", lora), 100) == 320
    assert need(entries([], 2, 9)[0], 100) == 470


def held(c: Contestant) -> int:
    """Bytes of what a contestant keeps from step to step."""
    kept = [*c.trainer.model.parameters(), *c.trainer.model.buffers()]
    trained = [p for p in c.trainer.parameters if c.trainer.optimiser.state.get(p)]
    kept += [torch.empty_like(p) for p in trained]  # the gradient
    kept += [c.trainer.optimiser.state[p][moment] for p in trained for moment in ("exp_avg", "exp_avg_sq")]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


@pytest.mark.parametrize("label", ["lora", "pissa", "svf", "svft", "boft", "full", "dense"])
def test_a_contestant_keeps_no_more_than_it_is_given_room_for(label: str) -> None:
    """On a model of hardly more than linear layers, of which methods may keep singular bases."""
    encoder = toy.linear_layers(96)
    floor = Floor(Classifier(encoder, 96, 2, seed=0), "float32", Clock())
    batch = random_batch(8, 8, encoder, 2)
    *_, entry = entries([label], RANK, TOTAL)
    found = 0
    for variant in entry.contestants().values():
        c = contestant(variant, ["all"], Training(), floor, batch, TOTAL, own=True)
        c.trainer.step(batch)
        found += held(c)
    room = need(entry, sum(p.nbytes for p in encoder.parameters()))
    assert room / 3 < found <= room


# ---- the measurement ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> Bench:
    return bench(base(), settings("dora", "full", "probe", "kasa", shapes=((2, 5), (3, 4))))


def test_every_method_has_its_ratios_memory_and_costs(measured: Bench) -> None:
    labels = ["lora", "peft:lora", "dora", "peft:dora", "full", "probe", "kasa", "peft:kasa"]
    assert list(measured.costs) == labels
    for shape in measured.shapes:
        assert list(shape.methods) == labels
        assert shape.floor.phases.keys() == {"forward", "backward", "total"}
        for label, timing in shape.methods.items():
            paired = label in ("lora", "dora", "kasa")
            assert timing.ratios.keys() == {"floor", "lora"} | ({"peft"} if paired else set())
            assert timing.phases.keys() == {"forward", "backward", "optimiser", "hooks", "total"}
            assert timing.saved_bytes > 0
            assert timing.peak_bytes > 0
        assert shape.methods["lora"].ratios["lora"] == Interval(median=1, low=1, high=1)
        assert shape.methods["dora"].saved_bytes > shape.methods["lora"].saved_bytes > shape.floor.saved_bytes
    once = {label: {k for k, v in c.model_dump().items() if v is not None} for label, c in measured.costs.items()}
    assert once["lora"] == {"init", "attach", "merge", "unmerge", "save", "load"}
    assert once["peft:lora"] == {"init", "merge", "unmerge", "save", "load"}
    assert once["full"] == {"init", "save", "load"}
    assert once["probe"] == {"init"}
    assert measured.settings["peft:dora"] == {"r": 2, "lora_alpha": 2, "use_dora": True}
    assert measured.environment["peft"] == "peft 0.21.2"
    assert measured.threads == measured.environment["threads"] == 1


def test_methods_in_several_groups_all_have_the_baseline_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    interleave = running.interleave

    def watched(floor: Floor, trainers: Any, *rest: Any) -> Any:
        seen.append(list(trainers))
        return interleave(floor, trainers, *rest)

    monkeypatch.setattr(running, "interleave", watched)
    monkeypatch.setattr(running, "grouped", lambda chosen, size: grouped(chosen, size, most=1))
    ticks: list[int] = []
    totals: list[int] = []
    progress = Progress(begin=totals.append, tick=lambda: ticks.append(1))
    found = bench(base(), settings("svf", "bitfit", peers=False), progress)
    assert seen == [["lora", "svf"], ["lora", "bitfit"]]
    assert list(found.shapes[0].methods) == ["lora", "svf", "bitfit"]
    assert totals == [len(ticks)]


def shared(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Which contestants have memory in common with another or with the floor."""
    memory: dict[str, set[int]] = {}
    interleave = running.interleave

    def watched(floor: Floor, trainers: Any, *rest: Any) -> Any:
        models = {"floor": floor.model, **{label: trainer.model for label, trainer in trainers.items()}}
        for label, model in models.items():
            memory[label] = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
        return interleave(floor, trainers, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(running, "interleave", watched)
        bench(base(), settings("pissa", "bitfit", "probe"))
    assert list(memory) == ["floor", "lora", "peft:lora", "pissa", "peft:pissa", "bitfit", "probe"]
    return {label for pair in itertools.combinations(memory, 2) if memory[pair[0]] & memory[pair[1]] for label in pair}


def test_every_model_of_a_bench_has_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared ones may be found in the caches, which would favour ours."""
    assert shared(monkeypatch) == set()
    replica = contestants.replica
    monkeypatch.setattr(contestants, "replica", lambda base, variant, _: replica(base, variant, False))
    assert shared(monkeypatch) == {"floor", "lora", "pissa", "bitfit", "probe"}


def test_a_peer_stands_on_layers_of_torch_and_ours_on_those_of_the_base() -> None:
    """What PEFT's users do not have must not make PEFT faster; what ours have, they have in use."""
    encoder = accelerate(toy.bert())
    for variant, expected in ((create("lora", {}), FastLinear), (create(f"{PEFT}lora", {}), nn.Linear)):
        copied = contestants.replica(encoder, variant, own=True)
        assert {type(m) for m in copied.modules() if isinstance(m, nn.Linear)} == {expected}
    assert not any(type(m) is nn.Linear for m in encoder.modules())


def test_a_bench_leaves_the_base_as_it_was() -> None:
    mine = base()
    before, threads = toy.bits(mine.encoder), torch.get_num_threads()
    bench(mine, settings("pissa", "full", "ia3", threads=threads + 1))
    assert toy.same(before, toy.bits(mine.encoder))
    assert all(p.requires_grad and p.grad is None for p in mine.encoder.parameters())
    assert torch.get_num_threads() == threads


def test_a_method_that_does_not_fit_is_left_out_with_its_reason() -> None:
    found = bench(base(), settings("kasa", rank=toy.HIDDEN, peers=False))
    assert list(found.shapes[0].methods) == ["lora"]
    assert "leaves nothing" in found.left_out["kasa"]


def test_costs_of_loading_do_not_touch_the_base(tmp_path: Path) -> None:
    encoder = toy.bert()
    before = toy.bits(encoder)
    floor = Floor(Classifier(encoder, toy.HIDDEN, 2, seed=0), "float32", Clock())
    for label in ("bitfit", "pissa"):
        *_, entry = entries([label], RANK, TOTAL, peers=False)
        c = contestant(entry.variant, ["all"], Training(), floor, random_batch(2, 5, encoder, 2), TOTAL)
        c.trainer.step(random_batch(2, 5, encoder, 2))
        assert costs(c, encoder, ["all"], tmp_path).load is not None
    assert toy.same(before, toy.bits(encoder))


def test_every_timed_merge_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second merge in a row would do nothing, and be quick."""
    *_, entry = entries(["dora"], RANK, TOTAL)
    assert entry.peer is not None
    c = on_toy(entry.peer)
    model: Any = c.trainer.model.encoder
    before, states = toy.bits(model), []
    for name in ("merge_adapter", "unmerge_adapter"):
        done = getattr(model, name)
        monkeypatch.setattr(model, name, lambda d=done, n=name: (d(), states.append((n, _merged(model)))))
    costs(c, toy.bert(), ["all"], tmp_path)
    assert states == 3 * [("merge_adapter", True), ("unmerge_adapter", False)]
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=1e-4, atol=1e-5)


def _merged(model: Any) -> bool:
    return any(getattr(module, "merged", False) for module in model.modules())


def test_starts_of_pissa_agree_and_come_out_of_the_cache(tmp_path: Path) -> None:
    encoder = toy.bert()
    before = toy.bits(encoder)
    found = starts(encoder, RANK, ["all"], tmp_path)
    assert next(iter(found)) == EXACT
    assert found[EXACT].residual == 0
    assert found["ours"].residual == found["ours, from the cache"].residual < 1e-5
    assert found["ours, krylov"].residual < 1e-4
    assert found["ours, randomised"].residual < 0.1
    assert list((tmp_path / "starts").iterdir())
    assert toy.same(before, toy.bits(encoder))


def test_hyperparameters_are_those_that_were_changed() -> None:
    assert hyperparameters(LoRA(rank=8)) == {}
    assert hyperparameters(LoRA(rank=2, alpha=4.0)) == {"rank": 2, "alpha": 4.0}


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_the_numbers_survive_being_written(measured: Bench, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text(measured))
    assert read(tmp_path / "a.json") == measured


DAMAGE = {
    "cut off": (lambda t: t[: len(t) // 2], "Invalid JSON"),
    "another version": (lambda t: t.replace('"format": 1', '"format": 2'), "format: Input should be 1"),
    "no shapes": (lambda t: json.dumps({**json.loads(t), "shapes": []}), "shapes"),
    "not a number": (lambda t: json.dumps({**json.loads(t), "threads": float("nan")}), "threads"),
    "unknown keys": (lambda t: json.dumps({**json.loads(t), "more": 1}), "more: Extra inputs"),
    "something else": (lambda _: "[]", "the file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_line(measured: Bench, tmp_path: Path, damage: str) -> None:
    change, said = DAMAGE[damage]
    (tmp_path / "a.json").write_text(change(text(measured)))
    with pytest.raises(Unusable, match=f"a.json is not a result of bench --json: .*{said}") as refused:
        read(tmp_path / "a.json")
    assert "\n" not in str(refused.value)


# ---- words ----------------------------------------------------------------------------------------------------------


def test_explain_prints_what_a_method_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(_: LoRA, W: Tensor, t: Tensors, tokens: int) -> str:
        return f"{len(W)} by {t['A'].shape[1]} at {tokens}"

    monkeypatch.setattr(LoRA, "explain", said)
    rows = explained(base(), settings("svf", "full", where=("query", "intermediate.dense"), shapes=((2, 5), (3, 4))))
    choices = {label: [row["choice"] for row in rows if row["method"] == label] for label in ("lora", "svf", "full")}
    assert choices["lora"] == [f"{out} by 16 at {tokens}" for tokens in (10, 12) for out in (16, 24)]
    assert len(choices["svf"]) == 4
    assert choices["full"] == [PLAIN]


@pytest.mark.parametrize("written", ["32", "32x", "x8", "0x8", "8x-1", "8 x 8", "8x8x8", "9999999x1"])
def test_a_shape_is_rows_x_tokens(written: str) -> None:
    assert parsed_shape("32x128") == (32, 128)
    with pytest.raises(Unusable, match="rows x tokens of a batch, for example 32x128"):
        parsed_shape(written)


def test_a_shape_longer_than_the_model_reads_is_one_line() -> None:
    with pytest.raises(Unusable, match="shape 2x41: toy reads at most 40 tokens"):
        bench(base(), settings("lora", shapes=((2, 41),)))


@pytest.mark.assets
def test_the_verb(tmp_path: Path) -> None:
    """From the command line to the page, and back as a baseline that is or is not held."""
    model = tiny.make_model(tmp_path / "model")
    asked = ["--model", model, "--methods", "full", "--rank", "2", "--shape", "2x6", "--rounds", "6", "--threads", "1"]
    out, kept = tmp_path / "out", tmp_path / "now.json"
    done = tiny.svdbench("bench", *asked, "--json", kept, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "2 rows of 6 tokens" in done.stdout
    assert read(kept) == read(out / "bench.json")
    assert {"report.html", "table.md", "table.tex", "table_step_2x6.csv"} <= {path.name for path in out.iterdir()}
    faster = json.loads(kept.read_text())
    for timing in faster["shapes"][0]["methods"].values():
        timing["ratios"] = {k: {n: v / 1000 for n, v in r.items()} for k, r in timing["ratios"].items()}
    faster["shapes"][0]["noise"] = 0.0
    faster["environment"]["torch"] = "1.0 [old]"
    faster["shapes"][0]["methods"]["svf"] = faster["shapes"][0]["methods"]["full"]
    (tmp_path / "faster.json").write_text(json.dumps(faster))
    done = tiny.svdbench("bench", *asked, "--baseline", tmp_path / "faster.json")
    assert done.returncode == 1, done.stderr
    assert "worse: 2x6 full / floor" in done.stdout
    assert "/ lora" not in done.stdout
    assert "warning: torch was 1.0 [old] and is" in done.stdout
    assert "not compared: svf, as not asked for now" in done.stdout
    assert "ratios got worse than the baseline's" in done.stdout
    asked[asked.index("2x6")] = "2x7"
    done = tiny.svdbench("bench", *asked, "--baseline", kept)
    assert done.returncode == 2, done.stderr
    assert "the baseline has no batches of 2x7: ask for --shape 2x6" in done.stderr
