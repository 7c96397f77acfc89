"""Which layers a pattern means, and which of them can carry an adapter."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from variants.core.host import HOSTS, host_class, hosts
from variants.core.interface import Refused

# Layers that read the weight of a child themselves: an adapter on the child would be silently ignored.
READERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MultiheadAttention: ("out_proj",),
    nn.TransformerEncoderLayer: ("linear1", "linear2"),  # its fused inference path
}


def matching_layers(model: nn.Module, where: str | Sequence[str]) -> list[str]:
    """The paths of the layers that ``where`` selects, each with a host.

    Raises:
        Refused: a pattern matches nothing, or a matched module cannot carry an adapter.
    """
    patterns = [where] if isinstance(where, str) else list(where)
    if not patterns:
        raise Refused("no pattern says where the adapter goes: write 'all' for every layer that has a host")
    modules = _modules(model)
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        hit = {p: m for p, m in modules.items() if _selects(pattern, p, m)}
        if not hit:
            raise Refused(f"{pattern!r} matches no layer; layers of this model: {', '.join(_layer_names(modules))}")
        chosen |= hit
    return hostable_layers(model, chosen)


def hostable_layers(model: nn.Module, paths: Collection[str]) -> list[str]:
    """The given paths in model order.

    Raises:
        Refused: the model has no such module, or it cannot carry an adapter.
    """
    modules = _modules(model)
    if absent := [path for path in paths if path not in modules]:
        raise Refused(f"the model has no layer {absent[0]!r}; layers of it: {', '.join(_layer_names(modules))}")
    for path in paths:
        _check_hostable(modules | {"": model}, path, modules[path])
    return [path for path in modules if path in paths]


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module but the model itself and what belongs to adapters."""
    inside = tuple(f"{path}." for path in hosts(model))  # adapters on adapters: no
    return {path: module for path, module in model.named_modules() if path and not path.startswith(inside)}


def _selects(pattern: str, path: str, module: nn.Module) -> bool:
    if pattern == "all":
        return host_class(type(module)) is not None or isinstance(module, nn.Linear)
    return matches(pattern, path)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern means this dotted path: the whole of it, or its end."""
    return fnmatch.fnmatchcase(f".{path}", f"*.{pattern}")


def _layer_names(modules: Mapping[str, nn.Module]) -> list[str]:
    found = [path for path, module in modules.items() if host_class(type(module)) is not None]
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", f".{path}").lstrip(".") for path in found)) or ["none"]


def _check_hostable(modules: Mapping[str, nn.Module], path: str, module: nn.Module) -> None:
    parent_path, _, child = path.rpartition(".")
    for reader, children in READERS.items():
        if isinstance(modules[parent_path], reader) and child in children:
            raise Refused(f"{path} cannot carry an adapter: {reader.__name__} reads its weight itself; leave it out")
    if host_class(type(module)) is None:
        known = ", ".join(cls.__name__ for cls in HOSTS)
        raise Refused(f"{path} is a {type(module).__name__}, which has no host (exact types: {known}); leave it out")
    weight = module._parameters.get("weight")
    if weight is None or "forward" in module.__dict__:
        made = "a weight that something else computes" if weight is None else "a forward of its own on the instance"
        raise Refused(f"{path} has {made} (a hook, pruning, offloading): attach before that, or leave it out")
    others = (p for p, m in modules.items() if m is not module and any(q is weight for q in m._parameters.values()))
    if sharers := ", ".join(others):
        raise Refused(f"{path} shares its weight with {sharers}, which would not see the adapter; leave it out")
