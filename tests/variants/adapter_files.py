"""What the tests of adapter files share."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tests.variants.models import fingerprint, net
from variants.core import Variant, attach, create, method, save
from variants.core.attachment import attachment_of
from variants.core.cases import move
from variants.pissa import PiSSA


def state_of(model: nn.Module) -> tuple[object, ...]:
    """Everything that a refusal may not change."""
    record = attachment_of(model)
    known = None if record is None else (list(record.variants), list(record.trained_base), list(record.requires_grad))
    return fingerprint(model), known


def small(name: str) -> Variant:
    return create(name, {method(name).size: 2} if method(name).size else {})


def saved(folder: Path, variant: Variant | None = None) -> Path:
    """A file of a small model's adapter."""
    model = net()
    attach(model, variant or PiSSA(rank=2), "all" if variant and variant.trains == "base" else "up")
    move(model)
    save(model, folder)
    return folder
