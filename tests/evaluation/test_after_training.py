"""Kept adapters, and the verbs that use them: merge, export, import, combine."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import tasks
from commands import shared
from evaluation import kept as kept_module
from evaluation.benchmarks import load_benchmark
from evaluation.clock import Clock
from evaluation.comparison import export, make_plan
from evaluation.data import tokenise
from evaluation.engines.local import Account
from evaluation.exchange import source
from evaluation.execute import Workbench, execute
from evaluation.kept import HEAD, base_of, classifier, find, mount
from evaluation.models import load_base
from evaluation.spec import Unusable, key
from evaluation.store import Store, look
from evaluation.training import logits
from tests.evaluation.tiny import make_model, make_suite
from variants.core import Refused

pytestmark = [
    pytest.mark.assets,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]
CPU = torch.device("cpu")


def trained(folder: Path, suite: Path, model: Path, benchmark: str) -> Path:
    """Every method of the tiny suite, trained once on a benchmark."""
    changes = {"benchmark": benchmark, "protocol.points": "1", "protocol.seeds": "1", "speed": "false"}
    plan = make_plan(str(suite), changes, "cpu", [])
    store, bench = Store(folder), Workbench(str(model), benchmark, CPU)
    for run in plan.runs({}):
        store.put(execute(run, bench, store.begin(key(run))))
    export(plan, store, [], "a test", Account(), 1)
    store.close()
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    """Results folders by benchmark."""
    folder = tmp_path_factory.mktemp("results")
    suite = make_suite(folder, model)
    return {name: trained(folder / name, suite, model, name) for name in ("trec50", "polarity")}


Verb = Callable[..., str]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Runs a verb in this process; what it printed. Unusable input raises SystemExit, with the line in ``code``."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["svdbench", *map(str, arguments)])
        monkeypatch.setattr(shared.console, "width", 200)
        code: object = 0
        try:
            tasks.main()
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        if code:
            raise AssertionError(f"{code}: {said.err}")
        return said.out

    return run


def some_tokens() -> Tensor:
    return torch.randint(1000, 2000, (3, 7), generator=torch.Generator().manual_seed(0))


def states(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=some_tokens()).last_hidden_state


def adapted(name: Path) -> Tensor:
    return states(source(str(name), None).base.encoder)


# ---- kept and found -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["lora", "pissa", "probe"])
def test_a_kept_adapter_predicts_what_its_run_did(results: dict[str, Path], label: str) -> None:
    kept = find(str(results["trec50"] / label))
    base = base_of(kept)
    mount(kept, base.encoder)
    test = tokenise(load_benchmark("trec50"), base.tokenizer, kept.run.training.max_length).test.head(kept.run.limit)
    predicted = logits(classifier(kept, base), test, Clock(), CPU).argmax(1).tolist()
    assert predicted == kept.record.measures["score"]["items"]["predicted"]


def test_a_run_is_found_by_its_folder_too(results: dict[str, Path]) -> None:
    by_label = find(str(results["trec50"] / "lora"))
    assert find(str(by_label.folder)).record == by_label.record


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trec50/lroa", "has no method 'lroa': did you mean lora"),
        ("nowhere/lora", "is no trained adapter: write RESULTS/METHOD"),
    ],
)
def test_a_run_that_is_not_there(results: dict[str, Path], name: str, message: str) -> None:
    with pytest.raises(Unusable, match=message):
        find(str(results["trec50"].parent / name))


def test_an_earlier_form_of_the_suite_is_not_taken(model: Path, tmp_path: Path) -> None:
    suite = make_suite(tmp_path, model)
    trained(tmp_path / "results", suite, model, "trec50")
    old = find(str(tmp_path / "results" / "lora"))
    suite.write_text(suite.read_text().replace("steps = 3", "steps = 4"))
    trained(tmp_path / "results", suite, model, "trec50")
    new = find(str(tmp_path / "results" / "lora"))
    assert (old.run.training.steps, new.run.training.steps) == (3, 4)


def test_a_method_that_cannot_be_a_file_keeps_its_results(
    results: dict[str, Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del results

    def refused(*_: object) -> None:
        raise Refused("its places are whole numbers")

    monkeypatch.setattr(kept_module, "save", refused)
    folder = trained(tmp_path / "results", make_suite(tmp_path, model), model, "trec50")
    assert {record.status for record in look(folder).values()} == {"done"}
    with pytest.raises(Unusable, match="kept no adapter: its places are whole numbers"):
        find(str(folder / "lora"))


def test_a_probe_has_no_adapter(results: dict[str, Path]) -> None:
    with pytest.raises(Unusable, match="trains the task head alone"):
        source(str(results["trec50"] / "probe"), None)


def copied(results: Path, to: Path) -> Path:
    return Path(shutil.copytree(results, to / "results"))


def test_damage_is_named(results: dict[str, Path], tmp_path: Path) -> None:
    copy = copied(results["trec50"], tmp_path)
    kept = find(str(copy / "lora"))
    head, tensors = kept.folder / HEAD, kept.folder / "adapter" / "adapter.safetensors"
    head.write_bytes(head.read_bytes()[:-4])
    with pytest.raises(Unusable, match=r"head\.safetensors is damaged"):
        classifier(kept, base_of(kept))
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(Unusable, match="adapter"):
        source(str(copy / "lora"), None)
    head.unlink()
    with pytest.raises(Unusable, match="kept no adapter"):
        find(str(copy / "lora"))


def test_a_base_that_is_no_longer_the_same_is_refused(model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "model"))
    folder = trained(tmp_path / "results", make_suite(tmp_path, other), other, "trec50")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    with pytest.raises(Unusable, match="is not, or no longer, the model"):
        source(str(folder / "lora"), None)


# ---- merge and export -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["lora", "pissa"])
def test_what_is_exported_for_peft_gives_our_outputs(
    results: dict[str, Path], model: Path, tmp_path: Path, verb: Verb, label: str
) -> None:
    name = results["trec50"] / label
    said = verb("export", name, "--to", "peft", "--out", tmp_path / "out")
    assert f"{label} on trec50: PEFT's LORA, {'native' if label == 'lora' else 'exact pair'}" in said
    assert (tmp_path / "out" / HEAD).is_file()
    assert verb("export", name, "--to", "peft", "--out", tmp_path / "out") == said, "over the earlier export"
    base = AutoModel.from_pretrained(model, add_pooling_layer=False)
    before = states(base)
    theirs = states(peft.PeftModel.from_pretrained(base, tmp_path / "out"))
    torch.testing.assert_close(theirs, adapted(name), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs, before, rtol=1e-5, atol=1e-5), "the adapter does something"


@pytest.mark.parametrize(("format", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_a_merged_model_is_a_plain_one(
    results: dict[str, Path], tmp_path: Path, verb: Verb, format: str, tolerance: float
) -> None:
    name, out = results["trec50"] / "pissa", tmp_path / "out"
    verb("merge", name, "--out", out, "--format", format, "--items", 4)
    plain = AutoModel.from_pretrained(out, add_pooling_layer=False)
    assert plain.dtype == getattr(torch, format)
    torch.testing.assert_close(states(plain).float(), adapted(name), rtol=tolerance, atol=tolerance)
    assert AutoTokenizer.from_pretrained(out).encode("which city?") == load_base(str(out)).tokenizer.encode(
        "which city?"
    )


def test_rounding_by_chance_is_decided_by_its_seed(results: dict[str, Path], tmp_path: Path, verb: Verb) -> None:
    made = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        chance = ("--format", "bfloat16", "--stochastic", "--seed", seed, "--items", 2)
        verb("merge", results["trec50"] / "lora", "--out", tmp_path / name, *chance)
        made[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert made["a"] == made["b"] != made["c"]


def test_merge_measures_every_format(results: dict[str, Path], verb: Verb) -> None:
    said = verb("merge", results["trec50"] / "lora", "--items", 6)
    assert all(said.count(format) >= 1 for format in ("float32", "bfloat16", "float16", "int8", "nf4"))
    found = json.loads(verb("merge", results["trec50"] / "lora", "--items", 6, "--json"))
    assert found["items"] == 6
    assert found["formats"]["float32"]["error"] < 1e-3 < found["formats"]["nf4"]["error"]


def test_nothing_foreign_is_overwritten(results: dict[str, Path], tmp_path: Path, verb: Verb) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(AssertionError, match="2:"):
        verb("export", results["trec50"] / "lora", "--to", "peft", "--out", tmp_path)
    with pytest.raises(AssertionError, match="2:"):
        verb("merge", results["trec50"] / "lora", "--out", tmp_path, "--items", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_an_adapter_goes_to_peft_and_back(results: dict[str, Path], model: Path, tmp_path: Path, verb: Verb) -> None:
    name = results["trec50"] / "pissa"
    verb("export", name, "--to", "peft", "--out", tmp_path / "theirs")
    said = verb("import", tmp_path / "theirs", "--model", model, "--out", tmp_path / "ours")
    assert "PEFT's LORA is our lora on 4 layers" in said
    with pytest.raises(AssertionError, match="say with --model"):
        verb("merge", tmp_path / "ours", "--out", tmp_path / "plain")
    with pytest.raises(AssertionError, match="say with --out where to write"):
        verb("merge", tmp_path / "ours", "--model", model)
    verb("merge", tmp_path / "ours", "--model", model, "--out", tmp_path / "plain")
    plain = AutoModel.from_pretrained(tmp_path / "plain", add_pooling_layer=False)
    torch.testing.assert_close(states(plain), adapted(name), rtol=1e-5, atol=1e-5)


# ---- combine --------------------------------------------------------------------------------------------------------


def test_every_way_is_scored_on_every_task(results: dict[str, Path], verb: Verb) -> None:
    runs = [results["trec50"] / "lora", results["polarity"] / "pissa"]
    rows = json.loads(verb("combine", *runs, "--items", 20, "--rank", 2, "--json"))
    titles = [row["adapter"] for row in rows]
    ways = ["linear", "svd", "ties", "dare", "dare_ties", "knots", "knots_ties"]
    assert titles == ["none: the base", "lora on trec50", "pissa on polarity", *(f"all, {way}" for way in ways)]
    assert all(0 <= row[title] <= 1 for row in rows for title in titles[1:3])
    kept = find(str(runs[0]))
    items = kept.record.measures["score"]["items"]
    hits = [p == g for p, g in zip(items["predicted"][:20], items["gold"][:20], strict=True)]
    assert rows[1]["lora on trec50"] == pytest.approx(sum(hits) / 20), (
        "alone, with its own head, it is what the run was"
    )
    assert [row["attached"] for row in rows if row["adapter"] == "all, linear"] == ["lora of rank 6"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trec50/lora"], "give two runs or more"),
        (["trec50/lora", "polarity/probe"], "puts no adapter on layers"),
        (["trec50/lora", "trec50/lora"], "one run was given twice"),
        (["trec50/lora", "polarity/lora", "--density", "0"], "above 0 and at most 1, not 0"),
        (["trec50/lora", "polarity/lora", "--how", "tise"], "no way 'tise' to combine: did you mean ties"),
    ],
)
def test_what_cannot_be_combined(results: dict[str, Path], verb: Verb, arguments: list[str], message: str) -> None:
    folder = results["trec50"].parent
    with pytest.raises(AssertionError, match=f"2: .*{message}"):
        verb("combine", *(folder / a if "/" in a else a for a in arguments))
