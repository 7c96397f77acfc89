"""Adapters as files: every method comes back as it was, and files of every format stay readable."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.variants.adapter_files import saved, small, state_of
from tests.variants.models import BiasToo, Rebased, batch, net
from variants.core import (
    Init,
    Refused,
    Tensors,
    Variant,
    activate,
    adapter_state,
    attach,
    create,
    detach,
    load,
    merged,
    method,
    names,
    register,
    registry,
    save,
    trainable_parameters,
)
from variants.core.cases import CASES, Case, adapted, chain_of, close, generator, model_of, move, same_bits
from variants.core.conformance import fitted, settings
from variants.core.files import MANIFEST, TENSORS
from variants.core.host import hosts
from variants.core.manifest import FORMAT
from variants.eva import EVA
from variants.lora import LoRA
from variants.pissa import PiSSA
from variants.vera import VeRA

FIXTURES = Path(__file__).parent / "fixtures"
SAVED = [name for name in names() if method(name).trains != "head"]
PRECISIONS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.05}


@contextmanager
def no_start(cls: type[Variant]) -> Iterator[None]:
    """Inside, the method can neither draw nor decompose anything."""

    def forbidden(*_: object) -> Any:
        raise AssertionError("a start was made")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("init", "shared", "allocate"):
            patch.setattr(cls, name, forbidden)
        yield


def come_back(model: nn.Module, plain: nn.Module, folder: Path, x: Tensor, variant: Variant) -> None:
    """The saved adapter gives the plain model the same function; bit for bit, unless the base was replaced."""
    save(model, folder)
    before = state_of(plain)
    if variant.trains == "base":
        loaded = load(plain, folder)
    else:
        with no_start(type(variant)):
            loaded = load(plain, folder)
    assert loaded == variant
    got, want = plain(x), model(x)
    if any(host.is_rebased for host in hosts(model).values()):
        close(got, want, variant.tolerance * PRECISIONS[x.dtype], "in its exact form")
    else:
        assert same_bits(got, want)
    assert set(trainable_parameters(plain)) == set(trainable_parameters(model))
    detach(plain, merge=False)
    assert state_of(plain)[0] == before[0]


# ---- every method comes back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAVED)
def test_every_method_comes_back_in_every_setting(name: str, tmp_path: Path) -> None:
    found = 0
    for i, setting in enumerate(settings(method(name))):
        for k, (case, dtype) in enumerate(zip(CASES, (torch.float64, torch.bfloat16, torch.float32), strict=False)):
            variant = fitted(setting, case) if i == 0 or k == 0 else None
            if variant is not None:
                model = adapted(variant, case, dtype)
                move(model)
                x = torch.randn(4, case.in_, generator=generator(1), dtype=torch.float64).to(dtype)
                come_back(model, model_of(case, dtype), tmp_path / f"{i}-{k}", x, variant)
                found += 1
    assert found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SAVED)
def test_every_method_comes_back_on_conv1d(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    case = CASES[3]
    variant = fitted(settings(method(name))[0], case)
    if variant is None:
        pytest.skip("refuses that layer")
    model = adapted(variant, case, dtype)
    move(model)
    x = torch.randn(4, case.in_, generator=generator(1)).to(dtype)
    come_back(model, model_of(case, dtype), tmp_path / "a", x, variant)


@pytest.mark.parametrize("name", SAVED)
def test_every_method_comes_back_on_layers_that_differ(name: str, tmp_path: Path) -> None:
    case = Case(8, 6)
    variant = fitted(settings(method(name))[0], case)
    assert variant is not None
    model = chain_of(variant, case)
    plain = copy.deepcopy(model)
    detach(plain, merge=False)
    move(model)
    come_back(model, plain, tmp_path / "a", torch.randn(4, 6, generator=generator(1)), variant)


def test_uneven_ranks_come_back(tmp_path: Path) -> None:
    """EVA gives each layer a rank of its own, and an alpha which keeps the scale."""
    model = net()
    stats = {}
    for i, path in enumerate(("blocks.0.up", "blocks.1.up", "blocks.1.down")):
        n = model.get_submodule(path).weight.shape[1]
        C = torch.diag((0.2 + 0.35 * i) ** torch.arange(n, dtype=torch.float64))
        stats[path] = {"covariance": C, "mean": torch.zeros(n, dtype=torch.float64)}
    attach(model, EVA(rank=2, alpha=3.0), list(stats), stats=stats)
    local = {path: host.carried("default").variant for path, host in hosts(model).items()}
    assert len({variant.rank for variant in local.values()}) > 1, "the control"
    move(model)
    save(model, tmp_path / "a")
    other = net()
    assert load(other, tmp_path / "a") == EVA(rank=2, alpha=3.0)
    assert {path: host.carried("default").variant for path, host in hosts(other).items()} == local
    assert same_bits(other(batch(4)), model(batch(4)))


def test_several_adapters_come_back_side_by_side(tmp_path: Path) -> None:
    model, other, x = net(), net(), batch(4)
    before = state_of(other)
    attach(model, PiSSA(rank=2), "up", name="p")
    move(model)
    attach(model, LoRA(rank=2, alpha=3.0), name="l")
    attach(model, VeRA(rank=3), name="v")
    move(model)
    for name in ("p", "l", "v"):
        save(model, tmp_path / name, name)
    for name in ("l", "p", "v"):
        load(other, tmp_path / name, f"my-{name}")
    assert len({id(host.carried("my-v").shared) for host in hosts(other).values()}) == 1, "shared tensors are shared"
    for chosen in ("p", "l", "v"):
        activate(model, chosen)
        activate(other, f"my-{chosen}")
        close(other(x), model(x), 1e-12, chosen)
    activate(model, {"p": 0.5, "l": 1.0})
    activate(other, {"my-p": 0.5, "my-l": 1.0})
    close(other(x), model(x), 1e-12, "together")
    detach(other, merge=False)
    assert state_of(other) == before


def test_an_adapter_comes_beside_one_that_replaced_the_base(tmp_path: Path) -> None:
    """The digest is that of the original base, not of the residual which stands in its place."""
    model, other = net(), net()
    attach(model, LoRA(rank=2))
    move(model)
    save(model, tmp_path / "a")
    attach(other, PiSSA(rank=2), name="p")
    load(other, tmp_path / "a", "l")
    close(other(batch(4)), model(batch(4)), 1e-12, "beside")
    activate(other, "p")
    close(other(batch(4)), net()(batch(4)), 1e-12, "the first one starts at the base")


def test_a_method_with_layers_and_trained_base_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    register("bias_too")(BiasToo)
    monkeypatch.setattr(BiasToo, "name", "bias_too")
    model, other = net(), net()
    before = state_of(other)
    attach(model, BiasToo(rank=2))
    move(model)
    save(model, tmp_path / "a")
    load(other, tmp_path / "a")
    assert same_bits(other(batch(4)), model(batch(4)))
    detach(other, merge=False)
    assert state_of(other) == before


@pytest.mark.parametrize("name", ["lora", "pissa", "full"])
def test_onto_another_base_only_if_meant(name: str, tmp_path: Path) -> None:
    model = net(dtype=torch.float32)
    attach(model, small(name))
    move(model)
    save(model, tmp_path / "a")
    for wrong in (net(), net(dtype=torch.bfloat16), net(dtype=torch.float32)):
        with torch.no_grad():
            wrong.blocks[1].down.bias[3] += 0.125
        before = state_of(wrong)
        with pytest.raises(Refused, match="trained on another base"):
            load(wrong, tmp_path / "a")
        assert state_of(wrong) == before
        load(wrong, tmp_path / "a", other_base=True)
        detach(wrong, merge=False)
        assert state_of(wrong) == before


def test_what_is_not_adapted_may_differ(tmp_path: Path) -> None:
    model, other = net(), net()
    attach(model, LoRA(rank=2), "up")
    save(model, tmp_path / "a")
    with torch.no_grad():
        other.head.weight.zero_()
    load(other, tmp_path / "a")
    assert adapter_state(other).keys() == adapter_state(model).keys()
    assert not bool(other.head.weight.any())


# ---- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pissa", "vera", "full"])
def test_the_same_adapter_gives_the_same_bytes_wherever_it_is_written(name: str, tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one", small(name)), saved(tmp_path / "deep" / "er" / "other", small(name))
    for file in (MANIFEST, TENSORS):
        contents = (one / file).read_bytes()
        assert contents == (other / file).read_bytes()
        assert not any(part.encode() in contents for part in tmp_path.parts[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "one"], "nothing else is left"
    again = net()
    load(again, one)
    save(again, tmp_path / "again")
    assert (tmp_path / "again" / TENSORS).read_bytes() == (one / TENSORS).read_bytes()
    assert (tmp_path / "again" / MANIFEST).read_bytes() == (one / MANIFEST).read_bytes()


def test_saving_replaces_an_adapter_and_nothing_else(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", LoRA(rank=1))
    saved(folder, PiSSA(rank=2))
    assert load(net(), folder) == PiSSA(rank=2)
    (tmp_path / "link").symlink_to(folder)
    saved(tmp_path / "link", LoRA(rank=1))
    assert load(net(), folder) == load(net(), tmp_path / "link") == LoRA(rank=1)
    (tmp_path / "empty").mkdir()
    saved(tmp_path / "empty")
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / MANIFEST).write_text("{}")
    saved(tmp_path / "other", LoRA(rank=1))
    for place, match in (("a", r"a holds 'notes\.txt', which is not replaced"), ("file", "file is a file")):
        with pytest.raises(Refused, match=match):
            saved(tmp_path / place)
    assert (folder / "notes.txt").read_text() == "mine"
    assert load(net(), folder) == LoRA(rank=1)


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_a_failed_save_leaves_the_old_adapter(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "a", LoRA(rank=1))
    calls: list[int] = []

    def full_disk(patched: Callable[..., Any]) -> Callable[..., Any]:
        def second_fails(*args: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise OSError("no space left")
            return patched(*args)

        return second_fails

    owner: Any = Path if fails == "write_bytes" else os
    monkeypatch.setattr(owner, fails, full_disk(getattr(owner, fails)))
    with pytest.raises(OSError, match="no space left"):
        saved(folder, PiSSA(rank=2))
    monkeypatch.undo()
    assert load(net(), folder) == LoRA(rank=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@dataclass(frozen=True, kw_only=True)
class Unregistered(LoRA):
    """Would come back as its parent."""


@dataclass(frozen=True, kw_only=True)
class Odd(LoRA):
    """With a field that JSON does not keep as it is."""

    places: Any = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Undeclared(LoRA):
    """With a tensor of whole numbers which it does not declare."""

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        return replace(super().init(W, rng, stats), frozen={"places": torch.arange(3)})


def diverged(model: nn.Module) -> None:
    with torch.no_grad():
        next(iter(trainable_parameters(model).values())).fill_(float("nan"))


@pytest.mark.parametrize(
    ("variant", "spoil", "message"),
    [
        (create("probe"), lambda _: None, "probe has no tensors of its own: there is nothing to save"),
        (Rebased(rank=2), lambda _: None, "replaces the base and has no exact low-rank form.*merge it instead"),
        (LoRA(rank=2), diverged, "numbers that are not finite.*diverged"),
        (Unregistered(rank=2), lambda _: None, "Unregistered cannot be made again from the name 'lora'.*register"),
        (Undeclared(rank=2), lambda _: None, "places is torch.int64, expected .*names in `indices`"),
        (Odd(rank=2), lambda _: None, "a file cannot name this method: lora has no hyperparameter 'places'"),
        (Odd(rank=2, places={1, 2}), lambda _: None, "a file cannot name this method: .*not JSON serializable"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, Variant) else "",
)
def test_what_could_not_be_read_is_not_saved(
    variant: Variant, spoil: Callable[[nn.Module], None], message: str, tmp_path: Path
) -> None:
    model = net()
    attach(model, variant)
    spoil(model)
    before = state_of(model)
    with pytest.raises(Refused, match=message):
        save(model, tmp_path / "a")
    assert state_of(model) == before
    assert not list(tmp_path.iterdir())


def test_saving_needs_an_attached_adapter_that_is_not_merged(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(Refused, match="no adapter is attached"):
        save(model, tmp_path / "a")
    attach(model, LoRA(rank=2))
    with pytest.raises(Refused, match="no adapter called 'other'"):
        save(model, tmp_path / "a", "other")
    with merged(model), pytest.raises(Refused, match="inside merged"):
        save(model, tmp_path / "a")


# ---- older formats --------------------------------------------------------------------------------------------------


def fixture_model(base: Mapping[str, list[Any]]) -> nn.Module:
    layer = nn.Linear(4, 3)
    model = nn.ModuleDict({"layer": layer})
    model.load_state_dict({key: torch.tensor(value) for key, value in base.items()})
    return model


def write_fixtures() -> None:
    """Writes what a new format needs: files of it, with the effective weights which every later version must find.

    Run by hand after FORMAT was raised, never again for a format that was released:
    ``python3 -c "from tests.variants.test_adapter_files import write_fixtures; write_fixtures()"``.
    """
    for variant in (PiSSA(rank=1, alpha=2.0), VeRA(rank=2), create("bitfit")):
        folder = FIXTURES / f"adapter-format-{FORMAT}" / variant.name
        base = {
            "layer.weight": (torch.randn(3, 4, generator=generator(1)) * 8).round() / 8,
            "layer.bias": torch.tensor([0.5, -1.0, 0.25]),
        }
        model = fixture_model({key: tensor.tolist() for key, tensor in base.items()})
        attach(model, variant)
        move(model)
        save(model, folder)
        result = {key: tensor.tolist() for key, tensor in effective(model).items()}
        expected = {"base": {key: tensor.tolist() for key, tensor in base.items()}, "effective": result}
        (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def effective(model: nn.Module) -> dict[str, Tensor]:
    """The weight and the bias which the layer amounts to, read off its outputs: exact up to one rounding."""
    with torch.no_grad():
        bias = model["layer"](torch.zeros(1, 4))[0]
        return {"weight": (model["layer"](torch.eye(4)) - bias).T, "bias": bias}


STORED = sorted(FIXTURES.glob("adapter-format-*/*"))


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_files_of_every_format_stay_readable(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    model = fixture_model(expected["base"])
    base = effective(model)
    load(model, folder)
    for key, tensor in effective(model).items():
        close(tensor, torch.tensor(expected["effective"][key]), 1e-6, key)
    assert any(not torch.allclose(effective(model)[key], base[key]) for key in base), "the control: it does something"


def test_every_format_has_its_fixtures() -> None:
    """Raising FORMAT without stored files of the new format fails here; see ``write_fixtures``."""
    found = {int(folder.parent.name.removeprefix("adapter-format-")) for folder in STORED}
    assert found == set(range(1, FORMAT + 1))
    for folder in STORED:
        content = json.loads((folder / MANIFEST).read_text())
        assert content["format"] == int(folder.parent.name.removeprefix("adapter-format-"))
