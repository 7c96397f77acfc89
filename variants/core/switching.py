"""Using what is attached: which adapters act, on which rows, folded into the weights or beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from variants.core.attachment import check_known, required_unmerged
from variants.core.host import Host, hosts
from variants.core.interface import LayerState, Refused
from variants.core.rounding import EXACT, Rounding


@contextmanager
def merged(model: nn.Module, rounding: Rounding = EXACT) -> Iterator[None]:
    """Inside, the active adapters are merged into the weights; afterwards these are what they were, bit for bit.

    Args:
        rounding: what the merged weights go through on the way, as in a checkpoint of another precision.

    Raises:
        Refused: an active method cannot be merged, or the model is inside ``merged`` already.
    """
    record = required_unmerged(model)

    effective = [(h, *rounding.of_layer(h.effective_weight(), h.effective_bias())) for h in hosts(model).values()]
    kept: list[tuple[Host, nn.Parameter, nn.Parameter | None]] = []
    try:
        for host, W, b in effective:
            kept.append((host, host.replace_weight(W), host.bias))
            if b is not None:
                host.bias = nn.Parameter(b.to(host.bias.dtype), requires_grad=False)
        record.switch.merged = True
        yield
    finally:
        record.switch.merged = False
        for host, weight, bias in kept:
            host.weight = weight
            if bias is not None:
                host.bias = bias


def activate(model: nn.Module, names: str | Iterable[str] | Mapping[str, float] | None) -> None:
    """Switches to the named adapters, in time independent of the model's size.

    Args:
        names: one name, several (their contributions are added), a mapping of names to weights, or None for the base.
    """
    record = required_unmerged(model)
    if names is None:
        weights: dict[str, float] = {}
    elif isinstance(names, str):
        weights = {names: 1.0}
    else:
        weights = {n: float(w) for n, w in names.items()} if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
    check_known(record, weights)
    if record.trained_base and set(weights.values()) != {1.0}:
        raise Refused("a method that trains the base itself cannot be switched off or scaled: detach it")
    record.switch.active = weights


@contextmanager
def rows(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Inside, row i of every batch goes through the adapter ``names[i]``, through the base alone where that is None.

    Raises:
        Refused: an unknown name, or a method that trains the base itself, which no row could do without.
    """
    record = required_unmerged(model)
    check_known(record, [n for n in names if n is not None])
    if record.trained_base and None in names:
        raise Refused("a method that trains the base itself cannot be switched off for a row: detach it")
    before, record.switch.rows = record.switch.rows, tuple(names)
    try:
        yield
    finally:
        record.switch.rows = before


def layer_states(model: nn.Module, name: str = "default") -> list[LayerState]:
    """One LayerState for each layer that carries the adapter, for the model-level methods of a variant."""
    found = [(path, host) for path, host in hosts(model).items() if name in host.adapter]
    return [LayerState(path, host.dense().detach(), host.carried(name).tensors()) for path, host in found]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters which training changes, by path."""
    return {path: parameter for path, parameter in model.named_parameters() if parameter.requires_grad}
