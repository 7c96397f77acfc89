"""Whether the linear layers of a model are torch's own, or multiply by way of ``variants.core.products``."""

from __future__ import annotations

from torch import nn

from variants.core.host import HostFastLinear, HostLinear
from variants.core.products import FastLinear

_FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FastLinear, HostLinear: HostFastLinear}
_STOCK = {fast: stock for stock, fast in _FAST.items()}


def accelerate(model: nn.Module) -> nn.Module:
    """Makes every ``nn.Linear`` of the model, adapted or not, a ``FastLinear``; in place, and the model again.

    Keys, hooks and parameters stay, and so do classes derived from ``nn.Linear``. Tools which look for exactly
    ``nn.Linear`` (dynamic quantisation, ``torch.fx``, ``torch.jit.script``) want ``decelerate`` before them.
    """
    return _exchanged(model, _FAST)


def decelerate(model: nn.Module) -> nn.Module:
    """Undoes ``accelerate``."""
    return _exchanged(model, _STOCK)


def _exchanged(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
    return model
