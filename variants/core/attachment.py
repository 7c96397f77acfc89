"""What a model with adapters remembers of itself: the record on its root module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from variants.core.host import Switch
from variants.core.interface import Refused, Variant

_RECORD = "_svdbench"  # the attribute of the root module


@dataclass
class Attachment:
    """What must be put back at detach."""

    switch: Switch
    requires_grad: dict[str, bool]
    variants: dict[str, Variant] = field(default_factory=dict)
    trained_base: dict[str, Tensor] = field(default_factory=dict)  # path -> value before training


def start(model: nn.Module) -> Attachment:
    """Writes down what detach must put back, and freezes the base."""
    record = Attachment(Switch(), {path: parameter.requires_grad for path, parameter in model.named_parameters()})
    model.__dict__[_RECORD] = record
    model.requires_grad_(False)
    return record


def attachment_of(model: nn.Module) -> Attachment | None:
    return model.__dict__.get(_RECORD)


def forget(model: nn.Module) -> None:
    """Removes the record."""
    del model.__dict__[_RECORD]


def required(model: nn.Module) -> Attachment:
    record = attachment_of(model)
    if record is None:
        raise Refused("no adapter is attached to this module: pass the module that attach() was called on")
    return record


def required_unmerged(model: nn.Module) -> Attachment:
    record = required(model)
    if record.switch.merged:
        raise Refused("inside merged() the weights stand for the adapters: leave it first")
    return record


def check_known(record: Attachment, names: Iterable[str]) -> None:
    unknown = [n for n in names if n not in record.variants]
    if unknown:
        raise Refused(f"no adapter called {unknown[0]!r} is attached; there are: {', '.join(record.variants)}")
