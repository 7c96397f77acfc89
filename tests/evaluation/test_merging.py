"""What merging is said to do to outputs, against dense weights and one item at a time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from evaluation import training
from evaluation.clock import Clock
from evaluation.data import Split, evaluation_batches
from evaluation.known import KnownBase, Remembered
from evaluation.measures.merging import merging, outputs, stored
from evaluation.spec import Merging
from evaluation.training import Classifier
from tests.evaluation import toy
from tests.evaluation.merge_cases import MODELS, Gated, WithBiases, WithWeights, merge_case
from variants.core import Variant, detach, layer_states
from variants.core.host import HostLinear, hosts
from variants.core.rounding import FORMATS, NF4_LEVELS, Format

ITEMS = 8


def change(name: str, W: Tensor, t: dict[str, Tensor], s: float) -> Tensor:
    """What a method adds to a stock weight, densely and from its paper."""
    if name == "dora":
        V = W + s * t["B"] @ t["A"]
        return t["m"][:, None] * V / (V**2).sum(1, keepdim=True).sqrt() - W
    return {
        "lora": lambda: s * t["B"] @ t["A"],
        "pissa": lambda: s * (t["B"] @ t["A"] - t["B0"] @ t["A0"]),
        "milora": lambda: s * (t["B"] @ t["A"] - t["B0"] @ t["A0"]),
        "lora_xs": lambda: s * t["B"] @ t["R"] @ t["A"],
        "stiefel": lambda: s * t["U"] @ torch.diag(t["s"]) @ t["V"].T,
    }[name]()


class Slow:
    """Merging by hand: dense weights put into a copy of the stock encoder, one item at a time."""

    def __init__(self, name: str, model: str, encoder: nn.Module, head: nn.Linear, split: Split) -> None:
        self.name, self.stock, self.head, self.split = name, MODELS[model][0](), head, split
        self.states = {s.path: {k: v.detach().clone() for k, v in s.t.items()} for s in layer_states(encoder)}
        self.full = {path: p.detach().clone() for path, p in encoder.named_parameters()} if name == "full" else {}
        self.scale = 2.0 if "alpha" in toy.METHODS[name] else 1.0

    def outputs(self, weights: dict[str, Tensor]) -> Tensor:
        rows = []
        for tokens in self.split.tokens:
            hidden = functional_call(self.stock, weights, (torch.tensor([tokens]),)).last_hidden_state[0]
            rows.append(F.linear(hidden.mean(0), self.head.weight, self.head.bias).detach())
        return torch.stack(rows)

    def rounded(self, weights: dict[str, Tensor], format: Format) -> dict[str, Tensor]:
        if format not in ("int8", "nf4"):
            return {path: W.to(getattr(torch, format)).float() for path, W in weights.items()}
        return {path: by_rows(W, format, self.turned(path)) if self.linear(path) else W for path, W in weights.items()}

    def linear(self, path: str) -> bool:
        kind = type(self.stock.get_submodule(path.rpartition(".")[0])).__name__
        return path.endswith("weight") and kind in ("Linear", "Conv1D")

    def turned(self, path: str) -> bool:
        return type(self.stock.get_submodule(path.rpartition(".")[0])).__name__ == "Conv1D"

    def adapted(self, base: dict[str, Tensor], rest: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Dense weights of the adapted model on a base; layers without an adapter may be those of another."""
        new = dict(self.full) or dict(rest or base)
        for path, t in self.states.items():
            W, turned = base[f"{path}.weight"], self.turned(f"{path}.weight")
            delta = change(self.name, W.T if turned else W, t, self.scale)
            new[f"{path}.weight"] = W + (delta.T if turned else delta)
        return new

    def measured(self, format: Format) -> dict[str, Any]:
        original = {path: p.detach() for path, p in self.stock.named_parameters()}
        base = self.rounded(original, format)
        new = self.adapted(base)
        merged = self.rounded(new, format)
        stock, out, rounded = self.outputs(base), self.outputs(new), self.outputs(merged)
        gold = torch.tensor(self.split.labels)
        right, kept_right = out.argmax(1) == gold, rounded.argmax(1) == gold
        D, S = (
            torch.cat([(w[path] - old[path]).flatten() for path in base if self.linear(path)]).double()
            for w, old in ((new, original if self.full else base), (merged, base))
        )
        found = {
            "effect": float((out - stock).norm() / stock.norm()),
            "change": float((rounded - out).norm()),
            "error": float((rounded - out).norm() / (out - stock).norm()),
            "max_logit_change": float((rounded - out).abs().max()),
            "flipped": float((rounded.argmax(1) != out.argmax(1)).sum()) / len(gold),
            "accuracy_adapted": float(right.sum()) / len(gold),
            "accuracy_merged": float(kept_right.sum()) / len(gold),
            "gained": int(sum(a and not b for a, b in zip(kept_right, right, strict=True))),
            "lost": int(sum(b and not a for a, b in zip(kept_right, right, strict=True))),
            "kept": float(S @ D / (D @ D)),
            "update_error": float((S - D).norm() / D.norm()),
        }
        quantised = format in ("int8", "nf4")
        ways = quantised and not self.full
        return found | {"deployments": self.deployed(original, base, new, merged) if ways else None}

    def deployed(self, original: dict[str, Tensor], *models: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        base, beside, requantised = models
        best, gold = self.adapted(original), torch.tensor(self.split.labels)
        wanted, size = self.outputs(best), (self.outputs(best) - self.outputs(original)).norm()

        def half(new: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
            """The layers that changed, stored in bfloat16."""
            changed = {path.rpartition(".")[0] for path, W in new.items() if not torch.equal(W, old[path])}
            return {p: W.bfloat16().float() if p.rpartition(".")[0] in changed else W for p, W in new.items()}

        ways = {"beside": beside, "bfloat16": half(beside, base)}
        ways |= {"original": half(self.adapted(original, rest=base), base), "requantised": requantised}
        results = {name: self.outputs(weights) for name, weights in ways.items()}
        return {
            name: {
                "accuracy": float((out.argmax(1) == gold).sum()) / len(gold),
                "error": float((out - wanted).norm() / size),
            }
            for name, out in results.items()
        }


def by_rows(W: Tensor, format: Format, turned: bool) -> Tensor:
    """The nearest of all levels for every number, one row (int8) or block of 64 in a row (NF4) after the other."""
    levels = np.arange(-127, 128) / 127 if format == "int8" else np.array(NF4_LEVELS)
    A = (W.T if turned else W).double().numpy()
    made = np.zeros_like(A)
    step = A.shape[1] if format == "int8" else 64
    for i, row in enumerate(A):
        for start in range(0, len(row), step):
            block = row[start : start + step]
            scale = np.abs(block).max()
            nearest = np.abs(block[:, None] / scale - levels).argmin(1)
            made[i, start : start + step] = levels[nearest] * scale
    rounded = torch.from_numpy(made).float()
    return rounded.T if turned else rounded


def measure(case: tuple[Classifier, Variant, dict[str, Tensor]], depth: str = "outputs") -> dict[str, Any]:
    model, variant, stock = case
    spec = Merging(items=ITEMS, depth=depth, cycles=(1, 2))
    return merging(model, variant, stock, toy.data().test, spec, Clock())


def check_merging(name: str, model: str) -> None:
    case = merge_case(name, model)
    slow = Slow(name, model, case[0].encoder, case[0].head, toy.data().test.head(ITEMS))
    found = measure(case, "full")
    assert (found["items"], found["mergeable"]) == (ITEMS, True)
    for format, got in found["formats"].items():
        want = slow.measured(format)
        assert got["effect"] == pytest.approx(want["effect"], rel=1e-4)
        assert got["effect"] > 0.01
        for kind in ("error", "max_logit_change", "kept", "update_error"):
            if format == "float32" and kind != "kept":  # what is left is the rounding of the arithmetic itself
                assert got[kind] < 1e-4
            else:
                assert got[kind] == pytest.approx(want[kind], rel=0.02), (name, format, kind)
        for kind in ("flipped", "accuracy_adapted", "accuracy_merged", "gained", "lost"):
            assert got[kind] == want[kind], (name, format, kind)
        assert (got["deployments"] is None) == (want["deployments"] is None)
        for way, figures in (got["deployments"] or {}).items():
            assert figures == pytest.approx(want["deployments"][way], rel=0.02, abs=1e-4), (name, format, way)
    errors = [found["formats"][format]["error"] for format in FORMATS]
    assert errors[0] * 10 < errors[2]
    assert errors[2] * 3 < errors[1] < errors[3] * 3 < errors[4] * 3  # bits: 11, 8, about 7, 4 levels
    json.dumps(found, allow_nan=False)


CASES = [(name, "bert") for name in sorted(set(toy.METHODS) - {"probe"})]
CASES += [("lora", "gpt2"), ("dora", "gpt2"), ("full", "gpt2")]  # whose layers store their weight transposed


@pytest.mark.parametrize(("name", "model"), CASES)
def test_merging_against_dense_weights(name, model):
    check_merging(name, model)


BROKEN = {  # what stands for the merged weight, from the weight that carries the adapter and the merged one
    "the delta is rounded first": lambda base, merged: base + (merged - base).bfloat16().float(),
    "the adapter is left out": lambda base, _: base,
    "rounded down": lambda _, merged: merged * (1 - 2**-8),
}


def rounded_wherever_there_is_a_matrix(_: nn.Module, tensors: Any, rounding: Any, *_known: Any) -> dict[str, Tensor]:
    return {path: rounding(W.detach()) if W.ndim == 2 else W.detach() for path, W in tensors.items()}


def into_float32(case: outputs.Case, rounding: Any, base: Any) -> Tensor:
    named = case.model.encoder.named_parameters()
    with stored.swapped({p: case.base[path] for path, p in named if path in case.base}):
        return case.merged(rounding, base)[0]


ORIGINALS = ("not original", "rest not quantised")


@pytest.mark.parametrize("case", [*BROKEN, "base not rounded", "embeddings quantised", "no bfloat16", *ORIGINALS])
def test_a_broken_merge_is_caught(monkeypatch, case):
    if case == "base not rounded":
        monkeypatch.setattr(outputs, "rounded_base", lambda *_: stored.swapped({}))
    elif case == "embeddings quantised":
        monkeypatch.setattr(stored, "as_stored", rounded_wherever_there_is_a_matrix)
    elif case == "no bfloat16":
        monkeypatch.setattr(outputs, "Rounding", lambda f: outputs.EXACT if f == "bfloat16" else stored.Rounding(f))
    elif case == "not original":
        monkeypatch.setattr(outputs.Case, "merged_into_original", lambda self, *both: self.merged(*both)[0])
    elif case == "rest not quantised":
        monkeypatch.setattr(outputs.Case, "merged_into_original", into_float32)
    else:
        effective = HostLinear.effective_weight
        broken = BROKEN[case]
        monkeypatch.setattr(HostLinear, "effective_weight", lambda self: broken(self.dense(), effective(self)))
    with pytest.raises(AssertionError):
        check_merging("lora", "bert")


def test_merging_a_method_that_leaves_the_base_alone():
    found = measure(merge_case("probe"), "full")
    assert (found["relative_size"], found["survival"], found["drift"], found["factors"]) == (None, [], {}, None)
    for values in found["formats"].values():
        assert (values["kept"], values["gained"], values["lost"]) == (None, 0, 0)
        assert (values["effect"], values["error"], values["flipped"], values["max_logit_change"]) == (0, None, 0, 0)
        assert values["accuracy_adapted"] == values["accuracy_merged"]


def test_merging_a_method_which_cannot_be_merged():
    found = measure(merge_case(Gated(rank=2)))
    assert found == {"items": ITEMS, "mergeable": False, "formats": {}}


@pytest.mark.parametrize(
    ("variant", "path"),
    [
        (WithBiases(rank=2), "encoder.layer.0.output.dense.bias"),
        (WithWeights(rank=2), "encoder.layer.1.attention.self.query.weight"),
    ],
)
def test_merging_where_adapters_and_the_base_train_together(variant, path):
    model, variant, stock = merge_case(variant)
    assert not torch.equal(model.encoder.get_parameter(path), stock[path])
    found = measure((model, variant, stock))
    assert found["formats"]["float32"]["error"] < 1e-4
    assert found["formats"]["bfloat16"]["effect"] > 0.01


def test_a_dtype_too_narrow_for_the_weights_is_said_and_not_scored():
    model, variant, stock = merge_case("lora")
    with torch.no_grad():
        layer_states(model.encoder)[0].t["B"].mul_(1e6)
    found = measure((model, variant, stock))["formats"]
    assert [found[format]["overflow"] for format in FORMATS] == [False, False, True, False, False]
    assert {value for kind, value in found["float16"].items() if kind != "overflow"} == {None}
    assert found["float32"]["accuracy_merged"] is not None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", ["lora", "pissa", "full", "probe"])
@pytest.mark.parametrize("fail_at", [None, 0, 1, 2, 6, 14])
def test_merging_leaves_the_model_as_it_was(monkeypatch, name, fail_at):
    model, variant, stock = merge_case(name)
    before, calls = toy.bits(model), []
    passes = 5 if name == "probe" else 19  # what stays the base has one output in each of the five formats

    def failing(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) - 1 == fail_at:
            raise MemoryError
        return evaluation_batches(*arguments)

    monkeypatch.setattr(training, "evaluation_batches", failing)
    if fail_at is None or fail_at >= passes:
        measure((model, variant, stock))
    else:
        with pytest.raises(MemoryError):
            measure((model, variant, stock))
    assert len(calls) == passes if fail_at is None or fail_at >= passes else fail_at + 1
    assert toy.same(before, toy.bits(model))
    for host in hosts(model.encoder).values():
        assert (host.switch.active, host.switch.merged) == ({"default": 1.0}, False)
    detach(model.encoder, merge=False)
    assert toy.same(toy.bits(MODELS["bert"][0]()), toy.bits(model.encoder))


@pytest.mark.parametrize("name", ["lora", "pissa", "full", "probe"])
def test_what_is_known_of_the_base_changes_nothing_and_spares_its_passes(monkeypatch, name):
    passes = []
    monkeypatch.setattr(training, "evaluation_batches", lambda *a: passes.append(None) or evaluation_batches(*a))
    known, split = KnownBase(), toy.data().test

    def found(head: int) -> tuple[dict[str, Any], int]:
        model, variant, stock = merge_case(name)
        with torch.no_grad():
            model.head.weight.add_(head)
        begun = len(passes)
        made = merging(model, variant, stock, split, Merging(items=ITEMS, depth="full"), Clock(), 3, known)
        return {key: value for key, value in made.items() if key != "cost"}, len(passes) - begun

    (first, before), (again, after), (other, _) = found(0), found(0), found(1)
    assert first == again
    assert before - after == 5, "the base in each of the formats"
    known = KnownBase()
    assert found(1)[0] == other, "heads are not remembered"


def test_features_are_told_apart_by_texts_and_state() -> None:
    one, two = toy.data().test.head(3), toy.data().test.head(4)
    known, rows = KnownBase(), torch.zeros(2, 4)
    found = [known.features(split, state, rows.clone) for split in (one, two) for state in ("a", "b")]
    assert len({id(tensor) for tensor in found}) == 4
    assert known.features(two, "a", rows.clone) is found[2]


def test_no_more_is_remembered_than_fits() -> None:
    known, rows = Remembered(most=2 * 8 * 4), torch.zeros(2, 4)
    found = [known.of(place, rows.clone) for place in "abc"]
    again = [known.of(place, rows.clone) for place in "abc"]
    assert [a is b for a, b in zip(found, again, strict=True)] == [True, True, False]
