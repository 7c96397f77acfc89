"""What putting adapters onto a model has in common, whether they are started or come from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from variants.core.attachment import Attachment, attachment_of, required_unmerged, start
from variants.core.host import Adapter, Host, Switch, host_class, hosts
from variants.core.interface import Refused, Variant
from variants.core.linalg import raised


def place(
    model: nn.Module, variant: Variant, adapters: Mapping[str, Adapter], bases: Mapping[str, Tensor | None], name: str
) -> list[str]:
    """Puts adapters onto their layers and switches to them; the paths. Refuses nothing: what can be refused was."""
    record = attachment_of(model) or start(model)
    for path, adapter in adapters.items():
        host = _as_host(model.get_submodule(path), record.switch)
        host.unrebase()
        base = bases.get(path)
        if base is not None and not adapter.pair_form:
            host.rebase(base, adapter)
        host.adapter[name] = adapter.train(host.training)
    for path, parameter in model.named_parameters():
        if path in record.requires_grad and variant.trains_base(path):
            record.trained_base[path] = parameter.detach().clone()
            parameter.requires_grad_(True)
    record.variants[name] = variant
    record.switch.active = {name: 1.0}
    return list(adapters)


def _stands_alone(variant: Variant, record: Attachment) -> bool:
    """Whether a method cannot share the base: it has no tensors to switch, or changes the base for all the others."""
    return variant.trains != "layers" or any(variant.trains_base(path) for path in record.requires_grad)


def check_name(model: nn.Module, variant: Variant, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or hasattr(nn.ModuleDict(), name):
        raise Refused(f"{name!r} cannot name an adapter: use letters, digits, - and _, and no name of a dict method")
    record = attachment_of(model)
    switch = None if record is None else record.switch
    if any(host.switch is not switch for host in hosts(model).values()) or any(
        attachment_of(module) for module in model.modules() if module is not model
    ):
        raise Refused("adapters were attached to another module above or below this one: pass that module")
    if record is None:
        return
    required_unmerged(model)
    if name in record.variants:
        raise Refused(f"an adapter called {name!r} is attached already: detach it, or choose another name")
    loners = [v for v in (variant, *record.variants.values()) if _stands_alone(v, record)]
    if loners:
        raise Refused(f"{loners[0].name} trains the model itself, or nothing of it: it cannot live beside an adapter")


def check_company(path: str, module: nn.Module) -> None:
    """Raises Refused if a newcomer would take the residual base from a method that cannot do without it."""
    if isinstance(module, Host) and module.is_rebased:
        for name in module.adapter:
            check_pair(module.carried(name), f"{path} carries {name!r}", module.original_dense())


def check_pair(adapter: Adapter, where: str, W: Tensor) -> None:
    if adapter.variant.as_lora(raised(W.detach()), adapter.tensors()) is None:
        raise Refused(
            f"{adapter.variant.name} replaces the base and has no exact low-rank form: attach it alone, without "
            f"dropout ({where})"
        )


def device_of(model: nn.Module, path: str) -> torch.device:
    return cast(Tensor, model.get_submodule(path).weight).device


def _as_host(module: nn.Module, switch: Switch) -> Host:
    if not isinstance(module, Host):
        module.__class__ = host_class(type(module))  # type: ignore[assignment]
        host = cast(Host, module)
        host.adapter = nn.ModuleDict().train(host.training)
        host.switch = switch
    return cast(Host, module)
