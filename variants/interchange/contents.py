"""What an adapter's folder says, between PEFT's words and ours: options with their types, tensors with their shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from variants.core.interface import Init, Refused, Tensors, Variant
from variants.core.registry import UnknownHyperparameter, create
from variants.interchange.targets import exactly, numeric


class Unfit(Exception):
    """A native format cannot hold this adapter; the message says why."""


@dataclass(frozen=True)
class Carried:
    """One layer with an adapter of ours.

    ``W`` is the original weight, shape (out, in); ``transposed`` says that the layer stores it as (in, out).
    """

    variant: Variant
    W: Tensor
    t: Tensors
    bias: Tensor | None
    transposed: bool


@dataclass(frozen=True)
class Contents:
    """What is written: settings beside those that every adapter has, and tensors by path and by name within the layer.

    ``shared`` are tensors of the model as a whole. ``ranks`` has one entry a layer, where the method has ranks.
    """

    config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)


@dataclass
class Found:
    """One layer of a file: its tensors by name, and the weight (out, in) they are meant for."""

    path: str
    W: Tensor
    transposed: bool
    tensors: dict[str, Tensor]

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of that name, which is then accounted for.

        Raises:
            Refused: it is not there, or has another shape than this.
        """
        tensor = self.peek(name)
        if tuple(tensor.shape) != shape:
            raise Refused(f"{name} of {self.path} has shape {tuple(tensor.shape)}, expected {shape}")
        return self.tensors.pop(name)

    def peek(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise Refused(f"the file holds no {name} of {self.path}: it is incomplete, or not what its settings say")
        return self.tensors[name]


@dataclass
class Restored:
    """What is read: the method as it is on every layer, with its tensors.

    ``replaces_base`` as in ``variants.core.restoring.restore``; ``notes`` say what is not as it was in PEFT.
    """

    layers: dict[str, tuple[Variant, Init]]
    shared: dict[str, Tensor] = field(default_factory=dict)
    replaces_base: bool = False
    notes: list[str] = field(default_factory=list)

    def variant(self) -> Variant:
        """The method as most layers have it."""
        return Counter(local for local, _ in self.layers.values()).most_common(1)[0][0]


class Options:
    """A configuration from a file, read by name and type; what nobody asked for can be told."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._asked: set[str] = set()

    def get(self, key: str, otherwise: Any = None) -> Any:
        self._asked.add(key)
        return self._config.get(key, otherwise)

    def flag(self, key: str, otherwise: bool = False) -> bool:
        return self._typed(key, otherwise, bool, "true or false")

    def number(self, key: str, otherwise: float) -> float:
        return numeric(key, self.get(key, otherwise))

    def count(self, key: str, otherwise: int) -> int:
        return int(numeric(key, self._typed(key, otherwise, int, "a whole number")))

    def table(self, key: str) -> dict[str, Any]:
        return self._typed(key, None, (dict, type(None)), "a table") or {}

    def _typed(self, key: str, otherwise: Any, kind: Any, words: str) -> Any:
        value = self.get(key, otherwise)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise Refused(f"{key} is {words}, not {str(value)[:80]!r}")
        return value

    def left(self) -> dict[str, Any]:
        """What nobody asked for."""
        return {key: value for key, value in self._config.items() if key not in self._asked}


class Format:
    """A format of PEFT's, in both directions: one method there, some of ours here."""

    peft_type: ClassVar[str]
    methods: ClassVar[frozenset[str]]  # of ours, which it holds as they are
    names: ClassVar[tuple[str, ...]]  # of a layer's tensors
    shared_names: ClassVar[tuple[str, ...]] = ()
    harmless: ClassVar[frozenset[str]] = frozenset()  # its options which act in training alone
    absent: ClassVar[frozenset[str]] = frozenset()  # options that its configuration inherits and cannot have

    def write(self, layers: Mapping[str, Carried]) -> Contents:
        """What to write for these layers.

        Raises:
            Unfit: the format cannot hold them.
        """
        raise NotImplementedError

    def read(self, options: Options, layers: list[Found], shared: dict[str, Tensor]) -> Restored:
        """Our method for what was found. Takes from ``layers`` and ``shared`` what it uses.

        Raises:
            Refused: tensors are missing or have the wrong shape, or an option has no meaning here.
        """
        raise NotImplementedError


def made(method: str, path: str, **hyperparameters: Any) -> Variant:
    """A method of ours for one layer of a file.

    Raises:
        Refused: it cannot have these hyperparameters.
    """
    try:
        return create(method, hyperparameters)
    except UnknownHyperparameter as error:
        raise Refused(f"{path}: {error}") from error


def patterned(values: Mapping[str, float]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and the others by the exact path."""
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {exactly(path): value for path, value in values.items() if value != common}


def only(values: Iterable[Any], what: str) -> Any:
    """The one value which all layers have.

    Raises:
        Unfit: they differ.
    """
    found = set(values)
    if len(found) > 1:
        raise Unfit(f"the layers differ in {what}, and the format has one for all")
    return found.pop()
