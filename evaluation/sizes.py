"""What methods would train, store and keep in memory on a model, known from shapes alone.

Trainable parameters come from each method's closed form, bytes from ``evaluation.stored``. Counts assume the same
method on every layer: one that divides itself by need (``Variant.allocate``) is counted before it does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.architectures import Architecture, architecture, layers
from evaluation.budgets import Budget, Unit, largest_within, parsed_budget
from evaluation.peers import Peer
from evaluation.spec import Unusable
from evaluation.stored import Unknown, file_bytes, trained_base
from variants.core import Refused, UnknownMethod, Variant, create, method
from variants.core.budget import Shape, total_count

ADAM_BYTES = 8  # two float32 moments a trained number
GRADIENT_BYTES = 4  # float32, as the adapter


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
    budget_unit: Unit | None
    methods: list[Size]


def sizes(
    name: str, methods: Sequence[str], targets: Sequence[str], rank: int | None = None, budget: str | None = None
) -> Sizes:
    """What each method comes to on the layers which the targets mean (``evaluation.architectures.layers``).

    Args:
        rank: for methods that have one; others keep their defaults.
        budget: as ``parsed_budget`` reads it; each method that has a size then gets the largest within it.

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
    amount, unit = (None, None) if most is None else (most.amount, most.unit)
    return Sizes(name, model.parameters, len(shapes), amount, unit, counted)


def size_of(
    model: Architecture, name: str, shapes: Mapping[str, Shape], rank: int | None = None, budget: Budget | None = None
) -> Size:
    """What the method called ``name`` comes to.

    Args:
        shapes: the layers it goes onto, path -> (out, in).
        rank: for methods that have one; others keep their defaults.
        budget: the size is then the largest within it, and ``rank`` matters only where it is not the size.
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
            variant = largest_within(budget, cls, free, model, shapes)
        size = f"{cls.size} {getattr(variant, cls.size)}" if adjustable else "-"
        trained = _trained(model, variant, shapes)
    except ValueError as error:  # a layer or a hyperparameter that is refused
        return Size(name, "-", note=str(error))
    notes = ["has no size to choose"] if budget is not None and not adjustable else []
    try:
        stored: int | None = file_bytes(model, variant, shapes.values())
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
    base = trained_base(model, variant)
    if variant.trains == "base" and not base:
        raise Refused("finds nothing in this model which it could train")
    if variant.trains != "layers":
        return base
    for shape in dict.fromkeys(shapes.values()):
        variant.check(*shape)
    return base + total_count(variant, shapes.values())
