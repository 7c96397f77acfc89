"""Files that are damaged, hostile or made for another model: one clear line, and the model is as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings as drawn, strategies as st
from torch import Tensor

from tests.variants.adapter_files import saved, state_of
from tests.variants.models import Rebased, net
from variants.core import (
    Refused,
    attach,
    create,
    load,
)
from variants.core.files import MANIFEST, TENSORS, base_digest
from variants.lora import LoRA
from variants.pissa import PiSSA
from variants.svft import SVFT

Json = dict[str, Any]


def rewrite(folder: Path, manifest: Callable[[Json], object] | None, tensors: bytes | None = None) -> None:
    """Changes the two files so that they agree about the digest."""
    content = json.loads((folder / MANIFEST).read_text())
    if tensors is not None:
        (folder / TENSORS).write_bytes(tensors)
        content["tensors"] = sha256(tensors).hexdigest()
    if manifest is not None:
        manifest(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def assert_refused(folder: Path, message: str) -> None:
    """By a plain model and by one that has an adapter, neither of which changes."""
    plain, carrying = net(), net()
    attach(carrying, PiSSA(rank=1), "blocks.0.up", name="p")
    for model in (plain, carrying):
        before = state_of(model)
        with pytest.raises(Refused, match=message) as caught:
            load(model, folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
        assert state_of(model) == before


def put(key: str, value: Any) -> Callable[[Json], None]:
    return lambda content: content.__setitem__(key, value)


def in_layer(key: str, value: Any) -> Callable[[Json], None]:
    return lambda content: content["layers"]["blocks.0.up"].__setitem__(key, value)


def renamed(path: str) -> Callable[[Json], None]:
    """A layer under another path, with tensors to match it (which the test renames alike)."""
    return lambda content: content["layers"].__setitem__(path, content["layers"].pop("blocks.0.up"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", 2), "written by a newer svdbench .format 2, this one reads up to 1.: update svdbench"),
        (put("format", 10**9), "written by a newer svdbench"),
        (put("format", 0), "no JSON object with a format number"),
        (put("format", True), "no JSON object with a format number"),
        (put("format", "1"), "no JSON object with a format number"),
        (put("method", "pisa"), "unknown method 'pisa': did you mean pissa"),
        (put("method", "peft:LoraConfig"), "'peft:LoraConfig' is not of this toolkit"),
        (put("method", "os:system"), "'os:system' is not of this toolkit"),
        (put("method", ["pissa"]), "method is a text, not a list"),
        (put("method", "x\ny" * 1000), "unknown method"),
        (lambda content: content.update(method="probe", hyperparameters={}), "probe puts nothing on layers, but"),
        (
            lambda content: content.update(method="full", hyperparameters={}),
            "full puts nothing on layers, but",
        ),
        (put("hyperparameters", {"rnk": 2}), "pissa has no hyperparameter 'rnk': did you mean rank"),
        (put("hyperparameters", {"rank": "2"}), "rank is a whole number, not '2'"),
        (put("hyperparameters", {"rank": 10**14}), "rank 1000+ does not fit a 10 x 6 layer"),
        (put("hyperparameters", {"rank": 10**400}), "a whole number has 401 digits"),
        (put("hyperparameters", {"rank": -1}), "rank is a whole number from 1"),
        (put("hyperparameters", {"rank": 2, "alpha": float("nan")}), "NaN is no number of JSON"),
        (put("hyperparameters", {"rank": 2, "alpha": float("-inf")}), "-Infinity is no number of JSON"),
        (put("hyperparameters", {"rank": 3}), "trains 48 numbers on a 10 x 6 layer, the tensors hold 32"),
        (put("hyperparameters", [2]), "hyperparameters is an object, not a list"),
        (put("replaces_base", 1), "replaces_base is true or false, not a int"),
        (put("layers", []), "layers is an object, not a list"),
        (put("layers", {}), "tensors are in one of"),
        (put("shared", ["A"]), "'A' occurs twice"),
        (put("shared", ["C"]), "'adapter.shared.C' only in adapter.json"),
        (put("shared", [3]), "shared tensors is a list of texts"),
        (put("trained_base", ["head.weight"]), "'head.weight' only in adapter.json"),
        (put("base", "0" * 64), "trained on another base"),
        (put("tensors", "0" * 64), "not the file that adapter.json describes"),
        (put("surprise", 1), "field 'surprise' is unknown"),
        (lambda content: content.pop("base"), "field 'base' is missing"),
        (in_layer("shape", [10, 7]), "blocks.0.up is 10 x 6 here, the adapter is for 10 x 7"),
        (in_layer("shape", [10, -6]), "two positive whole numbers"),
        (in_layer("shape", [10, 6, 1]), "two positive whole numbers"),
        (in_layer("train", ["A"]), "'blocks.0.up.adapter.B' only in adapter.safetensors"),
        (in_layer("train", ["A", "B", "C"]), "'blocks.0.up.adapter.C' only in adapter.json"),
        (in_layer("train", ["A", "B", "A0"]), "'A0' occurs twice"),
        (in_layer("train", ["A", "B", "../x"]), "'../x' cannot name a tensor"),
        (in_layer("train", ["A", "B", "a.b"]), "'a.b' cannot name a tensor"),
        (in_layer("hyperparameters", {"rank": 1}), "trains 16 numbers on a 10 x 6 layer, the tensors hold 32"),
        (in_layer("hyperparameters", {"rank": True}), "rank is a whole number"),
        (in_layer("surprise", 1), "field 'surprise' is unknown"),
        (lambda content: content["layers"].__setitem__("blocks.0.up", 7), "layer 'blocks.0.up' is not an object"),
    ],
)
def test_a_manifest_that_is_wrong(change: Callable[[Json], object], message: str, tmp_path: Path) -> None:
    rewrite(saved(tmp_path / "a"), change)
    assert_refused(tmp_path / "a", message)


@pytest.mark.parametrize(
    "path",
    [
        *("../up", "/etc/passwd", "blocks.0", "", "blocks", "blocks.*.up", "*", "all", "blocks.0.up.adapter.p"),
        *("blocks.0.up.adapter", "adapter.shared", "blocks.0.UP", "blocks.0.up.", "blocks.0.up\n", "__class__"),
        *("blocks.0.up.weight", "\ud800", "blocks.00.up"),
    ],
)
def test_a_layer_that_is_none(path: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    tensors = safetensors.torch.load_file(folder / TENSORS)
    moved = {key.replace("blocks.0.up.", f"{path}."): tensor for key, tensor in tensors.items()}
    if path == "\ud800":  # no text that the tensor file could hold
        rewrite(folder, renamed(path))
        assert_refused(folder, "tensors are in one of")
        return
    rewrite(folder, renamed(path), safetensors.torch.save(moved))
    assert_refused(folder, "the model has no layer|has no host")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[1, 2]", "no JSON object with a format number"),
        (b"null", "no JSON object with a format number"),
        (b'{"format": 1}', "field 'base' is missing"),
        (b'{"format": 1, "format": 1}', "'format' occurs twice"),
        ("{}".encode("utf-16"), "is not UTF-8 text .byte 0."),
        (b'{"format": "\xff"}', "is not UTF-8 text .byte 12."),
        (b"[" * 100_000 + b"]" * 100_000, "is nested too deeply"),
        (b'{"a":' * 100_000, "is nested too deeply"),
        (b" " * (16 * 2**20 + 1), "is larger than 16 MB"),
        (b"\x80\x04\x95\x00\x00", "is not UTF-8 text"),
    ],
    ids=lambda part: None if isinstance(part, str) else f"{len(part)}-{part[:8]!r}",
)
def test_a_manifest_that_is_none(raw: bytes, message: str, tmp_path: Path) -> None:
    (saved(tmp_path / "a") / MANIFEST).write_bytes(raw)
    assert_refused(tmp_path / "a", message)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "there is no adapter.json: give the folder that save.. wrote")
    (saved(tmp_path / "a") / TENSORS).unlink()
    assert_refused(tmp_path / "a", "there is no adapter.safetensors")
    (tmp_path / "a" / MANIFEST).unlink()
    os.mkfifo(tmp_path / "a" / MANIFEST)  # reading it would wait for ever
    assert_refused(tmp_path / "a", "there is no adapter.json")


Tamper = Callable[[bytes], bytes]


def header(raw: bytes, **changes: Any) -> bytes:
    """The tensor file with fields of its first tensor changed."""
    size = int.from_bytes(raw[:8], "little")
    content = json.loads(raw[8 : 8 + size])
    content[min(content)] |= changes
    made = json.dumps(content).encode()
    return len(made).to_bytes(8, "little") + made + raw[8 + size :]


DAMAGE: Mapping[str, Tamper] = {
    "empty": lambda _: b"",
    "cut in the length": lambda raw: raw[:5],
    "cut in the header": lambda raw: raw[:40],
    "cut in the numbers": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"\0",
    "huge header": lambda raw: (2**63).to_bytes(8, "little") + raw[8:],
    "header as long as the largest": lambda raw: (10**8).to_bytes(8, "little") + raw[8:],
    "negative header": lambda raw: b"\xff" * 8 + raw[8:],
    "header which is no JSON": lambda raw: raw[:8] + b"x" + raw[9:],
    "a pickle": lambda _: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "huge shape": lambda raw: header(raw, shape=[2**40, 2**40]),
    "shape that overflows": lambda raw: header(raw, shape=[2**63, 2**63]),
    "offsets outside": lambda raw: header(raw, data_offsets=[0, 2**50]),
    "offsets that overlap": lambda raw: header(raw, data_offsets=[8, 168]),
    "unknown dtype": lambda raw: header(raw, dtype="F65"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_tensor_file_that_is_damaged(damage: str, tmp_path: Path) -> None:
    """Noticed by its digest; and, if somebody made that fit, by what is in it."""
    folder = saved(tmp_path / "a")
    raw = DAMAGE[damage]((folder / TENSORS).read_bytes())
    (folder / TENSORS).write_bytes(raw)
    assert_refused(folder, "another sha256.: copy the folder again")
    rewrite(folder, None, raw)
    assert_refused(folder, "adapter.safetensors is damaged")


KEY = "blocks.0.up.adapter."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"B": None}, "1 tensors are in one of .*'blocks.0.up.adapter.B' only in adapter.json"),
        ({"C": torch.ones(2)}, "1 tensors are in one of .*'blocks.0.up.adapter.C' only in adapter.safetensors"),
        ({"A": torch.ones(2, 7)}, "the tensors hold 34"),
        ({"A": torch.ones(3, 4)}, "the tensors do not fit it"),
        ({"A": torch.ones(2, 6, 1)}, "the tensors do not fit it"),
        ({"A": torch.ones(10, 2), "B": torch.ones(2, 6)}, "the tensors do not fit it"),
        ({"A0": torch.ones(2, 7)}, "the tensors do not fit it"),
        ({"A0": torch.ones(3, 6)}, "the tensors do not fit it"),
        ({"A": torch.ones(2, 6, dtype=torch.int64)}, "A is torch.int64, expected torch.float64 or"),
        ({"A0": torch.ones(2, 6, dtype=torch.int64)}, "A0 is torch.int64, expected torch.float64 or"),
        ({"A0": torch.ones(2, 6, dtype=torch.int8)}, "'blocks.0.up.adapter.A0' is torch.int8, expected one of"),
        ({"A": torch.ones(2, 6).to(torch.float8_e4m3fn)}, "is torch.float8_e4m3fn, expected one of"),
        ({"A": torch.ones(2, 6, dtype=torch.complex64)}, "is torch.complex64, expected one of"),
        ({"A0": torch.ones(2, 6, dtype=torch.bool)}, "is torch.bool, expected one of"),
        ({"A": torch.full((2, 6), float("nan"))}, "'blocks.0.up.adapter.A' holds numbers that are not finite"),
        ({"B0": torch.full((10, 2), float("inf"))}, "'blocks.0.up.adapter.B0' holds numbers that are not finite"),
        ({"A": torch.ones(2, 6).double() * 1e200, "B": torch.ones(10, 2).double() * 1e200}, "not finite"),
    ],
)
def test_tensors_that_do_not_fit(changes: Mapping[str, Tensor | None], message: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    state = safetensors.torch.load_file(folder / TENSORS)
    for name, tensor in changes.items():
        state.pop(KEY + name, None)
        if tensor is not None:
            state[KEY + name] = tensor
    rewrite(folder, None, safetensors.torch.save(state))
    assert_refused(folder, message)


def test_numbers_beyond_the_precision_of_the_base(tmp_path: Path) -> None:
    """Finite in the file and not in the model."""
    for i, variant in enumerate((LoRA(rank=2), create("full"))):
        folder = saved(tmp_path / str(i), variant)
        state = safetensors.torch.load_file(folder / TENSORS)
        first = min(state)
        state[first] = torch.full_like(state[first], 1e60)
        rewrite(folder, None, safetensors.torch.save(state))
        model = net(dtype=torch.float32)
        before = state_of(model)
        with pytest.raises(Refused, match="not finite"):
            load(model, folder, other_base=True)
        assert state_of(model) == before


@pytest.mark.parametrize("name", ["forward", "variant", "shared", "training", "weight", "__class__", "_parameters"])
@pytest.mark.parametrize("kind", ["train", "frozen"])
def test_tensors_named_after_parts_of_a_module(kind: str, name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", LoRA(rank=2))
    state = safetensors.torch.load_file(folder / TENSORS)
    state[KEY + name] = torch.ones(0)
    content = json.loads((folder / MANIFEST).read_text())["layers"]["blocks.0.up"]
    rewrite(folder, in_layer(kind, [*content[kind], name]), safetensors.torch.save(state))
    if name == "weight":  # an adapter has no such attribute; the method does not read it
        load(net(), folder)
    else:
        assert_refused(folder, "the tensors do not fit it .KeyError")


@pytest.mark.parametrize("place", [-1, 36, 2**62])
def test_places_outside(place: int, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", SVFT(band=2))
    state = safetensors.torch.load_file(folder / TENSORS)
    state[KEY + "places"][0, 0] = place
    rewrite(folder, None, safetensors.torch.save(state))
    assert_refused(folder, "the tensors do not fit it .IndexError")
    state[KEY + "places"] = torch.zeros(state[KEY + "places"].shape)
    rewrite(folder, None, safetensors.torch.save(state))
    assert_refused(folder, "places is torch.float32, expected torch.int64 or torch.int32")


def test_a_file_of_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    for method, message in (("lora", "no layer to put the adapter on"), ("probe", "probe has no tensors on layers")):
        rewrite(
            folder,
            lambda content, m=method: content.update(method=m, hyperparameters={}, layers={}),
            b"\2\0\0\0\0\0\0\0{}",
        )
        rewrite(folder, put("base", base_digest(net(), [], {})))
        model = net()
        before = state_of(model)
        with pytest.raises(Refused, match=message):
            load(model, folder)
        assert state_of(model) == before


@pytest.mark.parametrize("name", ["full", "bitfit"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tensor: tensor[:1].clone(), r"has shape \(1,.*expected"),
        (lambda tensor: tensor.to(torch.int64), "is torch.int64, expected torch.float64"),
        (lambda tensor: tensor * float("inf"), "not finite"),
        (lambda _: None, "keys differ, first 'blocks.1.up.bias'"),
    ],
)
def test_trained_base_tensors_that_do_not_fit(
    make: Callable[[Tensor], Tensor | None], message: str, name: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "a", create(name))
    state = safetensors.torch.load_file(folder / TENSORS)
    changed = make(state.pop("blocks.1.up.bias"))
    if changed is not None:
        state["blocks.1.up.bias"] = changed
    rewrite(folder, put("trained_base", sorted(state)), safetensors.torch.save(state))
    model = net()
    before = state_of(model)
    with pytest.raises(Refused, match=message):
        load(model, folder)
    assert state_of(model) == before


def test_a_base_parameter_which_the_method_does_not_train(tmp_path: Path) -> None:
    """A LoRA file cannot overwrite the head on the side."""
    folder = saved(tmp_path / "a")
    state = safetensors.torch.load_file(folder / TENSORS) | {"head.weight": torch.zeros(3, 6, dtype=torch.float64)}
    rewrite(folder, put("trained_base", ["head.weight"]), safetensors.torch.save(state))
    assert_refused(folder, "1 keys differ, first 'head.weight'")


def test_a_name_that_is_taken_or_none(tmp_path: Path) -> None:
    folder, model = saved(tmp_path / "a"), net()
    load(model, folder)
    before = state_of(model)
    with pytest.raises(Refused, match="an adapter called 'default' is attached already"):
        load(model, folder)
    with pytest.raises(Refused, match="cannot name an adapter"):
        load(model, folder, "../x")
    with pytest.raises(Refused, match="full trains the model itself"):
        load(model, saved(tmp_path / "f", create("full")), "f")
    assert state_of(model) == before


def test_a_file_that_would_take_the_base_from_a_method_without_a_pair(tmp_path: Path) -> None:
    folder, model = saved(tmp_path / "a"), net()
    attach(model, Rebased(rank=2), name="r")
    before = state_of(model)
    with pytest.raises(Refused, match=r"blocks.0.up carries 'r'"):
        load(model, folder)
    assert state_of(model) == before


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(value=ANY, data=st.data())
@drawn(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_anywhere_in_a_manifest(value: Any, data: st.DataObject, tmp_path: Path) -> None:
    """Loaded or refused, and nothing else; a refusal changes nothing."""
    folder, untouched = tmp_path / "a", tmp_path / "manifest"
    if not untouched.exists():  # the folder is that of the first example too
        untouched.write_text((saved(folder) / MANIFEST).read_text())
    content = json.loads(untouched.read_text())
    place: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    (folder / MANIFEST).write_text(json.dumps(content))
    model = net()
    before = state_of(model)
    try:
        load(model, folder)
    except Refused:
        assert state_of(model) == before
