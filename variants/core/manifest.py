"""``adapter.json``: what the tensors beside it mean. Read as if somebody hostile had written it.

Format 1 is one JSON object: ``format``, ``method``, ``hyperparameters``, ``replaces_base``, ``layers`` (path ->
``shape`` (out, in), names of the ``train`` and ``frozen`` tensors, and those ``hyperparameters`` which are not the
model's), ``shared`` (names of the tensors which all layers use), ``trained_base`` (paths of the base's own parameters),
``base`` and ``tensors`` (sha256 of the base weights and of the tensor file).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from variants.core.interface import Refused, Variant
from variants.core.registry import create

FORMAT = 1  # raise when a reader of the old format would misread a file, and add a stored fixture of the new one
MANIFEST = "adapter.json"
_LAYER = {"shape": list, "train": list, "frozen": list, "hyperparameters": dict}
_WHOLE = {
    "format": int,
    "method": str,
    "hyperparameters": dict,
    "replaces_base": bool,
    "layers": dict,
    "shared": list,
    "trained_base": list,
    "base": str,
    "tensors": str,
}
_IN_WORDS = {int: "a whole number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Layer:
    """One adapted layer."""

    shape: tuple[int, int]  # out, in
    train: tuple[str, ...]
    frozen: tuple[str, ...]
    hyperparameters: dict[str, Any]  # those which are not the model's


@dataclass(frozen=True)
class Manifest:
    """The contents of ``adapter.json``."""

    method: str
    hyperparameters: dict[str, Any]
    replaces_base: bool
    layers: dict[str, Layer]
    shared: tuple[str, ...]
    trained_base: tuple[str, ...]
    base: str
    tensors: str

    def tensor_keys(self) -> set[str]:
        """The keys of the tensor file."""
        own = {f"{p}.adapter.{name}" for p, layer in self.layers.items() for name in (*layer.train, *layer.frozen)}
        return own | {f"adapter.shared.{name}" for name in self.shared} | set(self.trained_base)

    def to_json(self) -> str:
        """Always the same text for the same adapter.

        Raises:
            TypeError, ValueError: a hyperparameter has no form in JSON.
        """
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, allow_nan=False) + "\n"

    def methods(self) -> tuple[Variant, dict[str, Variant]]:
        """The method, and what it is on each layer.

        Raises:
            Refused: it is none of ours, does not have such hyperparameters, or has nothing on layers.
        """
        if ":" in self.method:
            raise Refused(f"method {self.method!r} is not of this toolkit: a file may only name a registered method")
        try:
            variant = create(self.method, self.hyperparameters)
            local = {
                path: create(self.method, self.hyperparameters | layer.hyperparameters)
                for path, layer in self.layers.items()
            }
        except ValueError as error:
            raise Refused(str(error)) from error
        if variant.trains != "layers" and local:
            raise Refused(f"{variant.name} puts nothing on layers, but {MANIFEST} names {next(iter(local))!r}")
        return variant, local


def changed(local: Variant, whole: Variant) -> dict[str, Any]:
    """The hyperparameters in which the method on a layer is not what it is on the model."""
    model = dataclasses.asdict(whole)
    return {key: value for key, value in dataclasses.asdict(local).items() if model.get(key) != value}


def parse(raw: bytes) -> Manifest:
    """The manifest in the bytes of a file.

    Raises:
        Refused: they are no manifest of a format that this version reads.
    """
    content = _json(raw)
    version = content.get("format") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise Refused(f"{MANIFEST} is not an adapter's: it is no JSON object with a format number")
    if version > FORMAT:
        raise Refused(f"written by a newer svdbench (format {version}, this one reads up to {FORMAT}): update svdbench")
    fields = _fields(content, _WHOLE, MANIFEST)
    del fields["format"]
    fields["layers"] = {path: _layer(path, layer) for path, layer in fields["layers"].items()}
    fields["shared"] = _names(fields["shared"], "shared tensors")
    fields["trained_base"] = _texts(fields["trained_base"], "trained_base")
    made = Manifest(**fields)
    for path, layer in made.layers.items():
        _unique((*layer.train, *layer.frozen, *made.shared), f"the tensors of {path!r}")
    return made


def _json(raw: bytes) -> Any:
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_whole_number
        )
    except UnicodeDecodeError as error:
        raise Refused(f"{MANIFEST} is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise Refused(f"{MANIFEST} is nested too deeply to be an adapter's") from error
    except ValueError as error:
        raise Refused(f"{MANIFEST} is not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _unique([key for key, _ in pairs], "an object")
    return dict(pairs)


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > 15:  # beyond what a float holds; arithmetic with thousands of digits fails in its own ways
        raise ValueError(f"a whole number has {len(digits)} digits")
    return int(digits)


def _layer(path: str, content: object) -> Layer:
    fields = _fields(content, _LAYER, f"layer {path!r}")
    shape = fields["shape"]
    if len(shape) != 2 or not all(type(side) is int and side > 0 for side in shape):
        raise Refused(f"layer {path!r}: shape is two positive whole numbers, out and in")
    names = {key: _names(fields[key], f"layer {path!r}: {key}") for key in ("train", "frozen")}
    return Layer((shape[0], shape[1]), names["train"], names["frozen"], fields["hyperparameters"])


def _fields(content: object, wanted: Mapping[str, type], where: str) -> dict[str, Any]:
    """A copy of an object with exactly the wanted fields."""
    if not isinstance(content, dict):
        raise Refused(f"{where} is not an object")
    if odd := sorted(set(wanted) ^ set(content)):
        raise Refused(f"{where}: field {odd[0]!r} is {'missing' if odd[0] in wanted else 'unknown'}")
    for key, kind in wanted.items():
        if type(content[key]) is not kind:
            raise Refused(f"{where}: {key} is {_IN_WORDS[kind]}, not a {type(content[key]).__name__}")
    return dict(content)


def _texts(values: list[Any], where: str) -> tuple[str, ...]:
    if not all(type(value) is str for value in values):
        raise Refused(f"{where} is a list of texts")
    return tuple(_unique(values, where))


def _names(values: list[Any], where: str) -> tuple[str, ...]:
    """Names of tensors, which become attributes of a module."""
    for name in _texts(values, where):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise Refused(f"{where}: {name!r} cannot name a tensor: use letters, digits and _")
    return tuple(values)


def _unique(values: Iterable[str], where: str) -> Iterable[str]:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise Refused(f"{where}: {value!r} occurs twice")
        seen.add(value)
    return values
