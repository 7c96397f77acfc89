"""What methods would train, store and keep in memory on a model, known from shapes alone.

Trainable parameters come from each method's closed form. What is stored besides (frozen bases, indices) has none: it is
read off a start in which tensors have shapes and no data, so that no matrix is decomposed, whatever its size. Counts
assume the same method on every layer: one that divides itself by need (``Variant.allocate``) is counted before it does.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from evaluation.architectures import Architecture, architecture, layers
from evaluation.peers import Peer
from evaluation.spec import Unusable
from variants.core import Refused, UnknownMethod, Variant, create, method
from variants.core.attach import layer_rng
from variants.core.budget import Shape, largest, total_count
from variants.core.linalg import decomposed_in_full

ADAM_BYTES = 8  # two float32 moments a trained number
GRADIENT_BYTES = 4  # float32, as the adapter
_FLOAT_BYTES = 4
_SMALL = 2**24  # numbers in a tensor that is computed after all, if it follows from sizes alone


class Unknown(Exception):
    """Shapes alone do not tell what a method stores: it depends on the weight's numbers, or is computed elsewhere."""


@dataclass(frozen=True)
class Size:
    """One method on one model. Bytes are those of the tensors; a file has a header of about 100 bytes a tensor more.

    ``note`` says why numbers are missing, or cannot be chosen.
    """

    method: str
    size: str  # such as "rank 8"
    trainable: int | None = None
    share: float | None = None  # of the model's parameters
    file_bytes: int | None = None
    optimiser_bytes: int | None = None
    gradient_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Sizes:
    """Methods side by side on the same layers of one model."""

    model: str
    parameters: int
    layers: int
    budget: int | None
    methods: list[Size]


def sizes(
    name: str, methods: Sequence[str], targets: Sequence[str], rank: int | None = None, budget: str | None = None
) -> Sizes:
    """What each method comes to on the layers which the targets mean (``evaluation.architectures.layers``).

    Args:
        rank: for methods that have one; others keep their defaults.
        budget: trainable parameters, as a number or as a share of the model such as ``0.1%``; each method that has a
            size then gets the largest within it.

    Raises:
        Unusable: an unknown model, method or target, or a budget that is none.
    """
    for wanted in methods:
        try:
            method(wanted)
        except UnknownMethod as error:
            raise Unusable(str(error)) from error
    model = architecture(name)
    shapes = layers(model, targets)
    most = None if budget is None else parsed_budget(budget, model.parameters)
    counted = [size_of(model, wanted, shapes, rank, most) for wanted in methods]
    return Sizes(name, model.parameters, len(shapes), most, counted)


def parsed_budget(text: str, parameters: int) -> int:
    """A budget as a number of trainable parameters.

    Raises:
        Unusable: it is neither a whole number from 1 nor a share above 0 and up to 100 %.
    """
    if share := re.fullmatch(r"(\d+\.?\d*|\.\d+) ?%", text):
        budget = int(parameters * Fraction(share[1]) / 100)
        if 0 < budget <= parameters:
            return budget
    elif re.fullmatch(r"[\d_,]*\d", text) and int(re.sub("[_,]", "", text)) > 0:
        return int(re.sub("[_,]", "", text))
    raise Unusable(f"budget {text!r}: write a number of parameters (1000000) or a share of the model (0.1%)")


def size_of(
    model: Architecture, name: str, shapes: Mapping[str, Shape], rank: int | None = None, budget: int | None = None
) -> Size:
    """What the method called ``name`` comes to.

    Args:
        shapes: the layers it goes onto, path -> (out, in).
        rank: for methods that have one; others keep their defaults.
        budget: trainable parameters; the size is then the largest within it, and ``rank`` matters only where it is not
            the size.
    """
    cls = method(name)
    if issubclass(cls, Peer):
        return Size(name, "-", note="another library's method: its parameters are counted when it runs")
    hyperparameters = {"rank": rank} if rank is not None and "rank" in {f.name for f in dataclasses.fields(cls)} else {}
    adjustable = cls.trains == "layers" and bool(cls.size)
    try:
        if budget is None or not adjustable:
            variant = create(name, hyperparameters)
        else:
            free = {key: value for key, value in hyperparameters.items() if key != cls.size}
            variant = largest(cls, free, shapes.values(), budget)
        size = f"{cls.size} {getattr(variant, cls.size)}" if adjustable else "-"
        trained = _trained(model, variant, shapes)
    except ValueError as error:  # a layer or a hyperparameter that is refused
        return Size(name, "-", note=str(error))
    notes = ["has no size to choose"] if budget is not None and not adjustable else []
    try:
        stored: int | None = _stored(model, variant, shapes)
    except Unknown as error:
        stored, notes = None, [*notes, f"no file size: {error}"]
    return Size(
        method=name,
        size=size,
        trainable=trained,
        share=trained / model.parameters,
        file_bytes=stored,
        optimiser_bytes=ADAM_BYTES * trained,
        gradient_bytes=GRADIENT_BYTES * trained,
        note="; ".join(notes),
    )


def _trained(model: Architecture, variant: Variant, shapes: Mapping[str, Shape]) -> int:
    base = _trained_base(model, variant)
    if variant.trains == "base" and not base:
        raise Refused("finds nothing in this model which it could train")
    if variant.trains != "layers":
        return base
    for shape in dict.fromkeys(shapes.values()):
        variant.check(*shape)
    return base + total_count(variant, shapes.values())


def _trained_base(model: Architecture, variant: Variant) -> int:
    return sum(p.numel() for path, p in model.whole.named_parameters() if variant.trains_base(path))


def _stored(model: Architecture, variant: Variant, shapes: Mapping[str, Shape]) -> int:
    """Bytes of the tensors in an adapter file."""
    base = _FLOAT_BYTES * _trained_base(model, variant)
    if variant.trains != "layers":
        return base
    shared = _without_numbers(lambda _: list(variant.shared(list(shapes.values()), layer_rng(0, "")).values()))
    base += _FLOAT_BYTES * sum(tensor.numel() for tensor in shared)  # drawn in any precision, kept in the adapter's
    alike = Counter(shapes.values())
    return base + sum(n * stored_bytes(variant, *shape) for shape, n in alike.items())


def stored_bytes(variant: Variant, out: int, in_: int) -> int:
    """Bytes of the adapter tensors of one layer, trained and frozen, for a base in float32.

    Raises:
        Unknown: they depend on the weight's numbers, or are computed outside torch.
    """

    def start(mode: _WithoutData) -> list[Tensor]:
        W, C, m = (mode.empty(shape) for shape in ((out, in_), (in_, in_), (in_,)))
        stats = {k: v for k, v in {"gradient": W, "covariance": C, "mean": m}.items() if k in variant.needs}
        init = variant.init(W, layer_rng(0, ""), stats)
        if sum(tensor.numel() for tensor in init.train.values()) != variant.parameter_count(out, in_):
            raise Unknown("the number of trained parameters depends on the weight's numbers")
        return [*init.train.values(), *init.frozen.values()]

    return sum(tensor.numel() * tensor.element_size() for tensor in _without_numbers(start))


def _without_numbers(work: Callable[[_WithoutData], list[Tensor]]) -> list[Tensor]:
    problem: Exception | None = None
    for small, answer in itertools.product((0, _SMALL), (1, 0)):
        with decomposed_in_full(), _WithoutData(answer, small) as mode:
            try:
                return work(mode)
            except Exception as error:  # whatever comes of numbers that are none
                problem = error
    raise Unknown("it cannot be told from shapes alone") from problem


class _WithoutData(FakeTensorMode):
    """Inside, tensors have a shape and no data, but for those up to ``small`` numbers which follow from sizes alone: a
    method may work out from them which places it trains.

    Where a program asks for a number which is not there, it gets ``answer``, a limited number of times: a loop may wait
    for another.
    """

    def __init__(self, answer: int, small: int) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.answer, self.small, self.patience = answer, small, 1000

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor without data."""
        return FakeTensor(self, torch.empty(shape, device="meta"), torch.device("cpu"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        here = not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs)))
        if func is torch.ops.aten._local_scalar_dense.default and not here:
            self.patience -= 1
            if self.patience < 0:
                raise Unknown("a loop that does not end")
            dtype = args[0].dtype
            return bool(self.answer) if dtype == torch.bool else self.answer * (1.0 if dtype.is_floating_point else 1)
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        except DynamicOutputShapeException:
            if not (here and self.small):
                raise
            return func(*args, **kwargs)
        large = any(isinstance(leaf, Tensor) and leaf.numel() > self.small for leaf in tree_leaves(result))
        return func(*args, **kwargs) if here and not large else result
