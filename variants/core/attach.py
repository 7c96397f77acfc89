"""Putting a method onto a model, and taking it off again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import nn

from variants.core.attachment import (
    Attachment,
    check_known,
    forget,
    required_unmerged,
)
from variants.core.cache import not_kept
from variants.core.host import Adapter, Host, Shared, hosts, original_weight, own, shape_of
from variants.core.interface import Init, Refused, Tensors, Variant
from variants.core.linalg import full_precision, raised
from variants.core.placing import check_company, check_name, check_pair, device_of, place
from variants.core.rounding import EXACT, Rounding
from variants.core.targets import matching_layers
from variants.core.workers import over_layers


def attach(
    model: nn.Module,
    variant: Variant,
    where: str | Sequence[str] = "all",
    seed: int = 0,
    *,
    name: str = "default",
    dropout: float = 0.0,
    stats: Mapping[str, Tensors] | None = None,
) -> list[str]:
    """Puts ``variant`` on the layers that ``where`` matches, freezes the base, and makes it the active adapter.

    Args:
        where: patterns; each matches a module's whole dotted path or its end (``query``, ``attention.*.dense``).
            ``"all"`` means every layer that has a host.
        seed: decides the initialisation, for each layer separately (by its path); no global generator is touched.
        dropout: probability with which an input of the adapter branch is dropped in training; the frozen product
            always sees the whole input.
        stats: per path, the statistics which ``variant.needs``.

    Returns:
        The paths of the adapted layers, in model order; empty for methods that put nothing on layers.

    Raises:
        Refused: a pattern matches nothing, a layer has no host or is read by somebody else, a statistic is missing, or
            the method cannot work on a layer. The model is then as it was.
    """
    check_name(model, variant, name)
    if not 0.0 <= dropout < 1.0:
        raise Refused(f"dropout is a probability from 0 to below 1, not {dropout}")
    chosen = _chosen(model, variant, where, stats or {})
    inits = _inits(model, variant, chosen, seed, stats or {})
    shared = _shared(model, variant, list(chosen), seed)
    adapters = {
        path: Adapter(chosen[path], init, shared, dropout, device_of(model, path)) for path, init in inits.items()
    }
    for path, adapter in adapters.items():
        module = model.get_submodule(path)
        check_company(path, module)
        adapter.pair_form = inits[path].base is not None and _needs_pair_form(module, adapter)
    return place(model, variant, adapters, {path: init.base for path, init in inits.items()}, name)


def detach(model: nn.Module, *, merge: bool, name: str | None = None, rounding: Rounding = EXACT) -> None:
    """Takes adapters off: merged into the base, or leaving the base bit for bit as it was.

    Args:
        merge: writes the effective weight of the active adapters into the base, rounded once to its dtype. All
            adapters are then removed.
        name: with ``merge=False``, the one adapter to remove; None removes all.
        rounding: what the merged weights go through before they are stored.

    Raises:
        Refused: nothing is attached under that name, or an active method cannot be merged; nothing changes then.
    """
    record = required_unmerged(model)
    if merge and name is not None:
        raise Refused("merging removes all adapters: activate() what should be merged, then detach(merge=True)")
    if name is not None:
        check_known(record, [name])
    if merge:
        merged = {path: rounding.of_layer(h.effective_weight(), h.effective_bias()) for path, h in hosts(model).items()}
    last = name is None or set(record.variants) == {name}
    for path, host in hosts(model).items():
        if merge or last or _carries(host, name):
            host.unrebase()
        if merge:
            host.store(*merged[path])
        if name is not None and _carries(host, name):
            del host.adapter[name]
        if last or not len(host.adapter):
            _swap_back(host)
    if last:
        _restore_base(model, record, keep_trained=merge)
        return
    assert name is not None
    del record.variants[name]
    record.switch.active.pop(name, None)


def _chosen(
    model: nn.Module, variant: Variant, where: str | Sequence[str], stats: Mapping[str, Tensors]
) -> dict[str, Variant]:
    """The layers that get an adapter, in model order, each with the method as it is there."""
    if variant.trains == "base" and not any(variant.trains_base(path) for path, _ in model.named_parameters()):
        raise Refused(f"{variant.name} finds nothing in this model which it could train")
    paths = matching_layers(model, where) if variant.trains == "layers" else []
    missing = [f"{need} of {path}" for path in paths for need in variant.needs if need not in stats.get(path, {})]
    if missing:
        raise Refused(f"{variant.name} needs statistics that were not given: {', '.join(missing[:3])}")
    shapes = {path: shape_of(model.get_submodule(path)) for path in paths}
    with not_kept() if variant.needs else nullcontext():
        allotted = variant.allocate(shapes, {path: stats[path] for path in paths if path in stats})
    chosen = {path: allotted[path] for path in paths if path in allotted}
    if paths and not chosen:
        raise Refused(f"{variant.name} leaves out every layer that was chosen: nothing would be trained")
    for path, local in chosen.items():
        try:
            local.check(*shapes[path])
        except Refused as error:
            raise Refused(f"{variant.name} on {path}: {error}") from error
    return chosen


def _inits(
    model: nn.Module, variant: Variant, chosen: Mapping[str, Variant], seed: int, stats: Mapping[str, Tensors]
) -> dict[str, Init]:
    def start(path: str) -> Init:
        return _init(model, chosen[path], path, seed, stats.get(path))

    with not_kept() if variant.needs else nullcontext():  # what depends on data is not asked for again
        return dict(zip(chosen, over_layers(start, chosen), strict=True))


@full_precision
def _init(model: nn.Module, variant: Variant, path: str, seed: int, stats: Tensors | None) -> Init:
    # On the CPU whatever the device, so that one seed means the same start everywhere. Cloned: init owns its input.
    W = raised(original_weight(model.get_submodule(path)).detach()).to("cpu", copy=True)
    own_stats = None if stats is None else {need: stats[need].to("cpu", W.dtype, copy=True) for need in variant.needs}
    try:
        return variant.init(W, layer_rng(seed, path), own_stats)
    except Refused as error:
        raise Refused(f"{variant.name} on {path}: {error}") from error


def _shared(model: nn.Module, variant: Variant, paths: list[str], seed: int) -> Shared:
    """The tensors which the adapter's layers have in common, drawn from the seed alone."""
    if not paths:
        return Shared({})
    dtype = raised(original_weight(model.get_submodule(paths[0]))).dtype
    drawn = variant.shared([shape_of(model.get_submodule(path)) for path in paths], layer_rng(seed, ""))
    return Shared({name: own(tensor.to(dtype), device_of(model, paths[0])) for name, tensor in drawn.items()})


def layer_rng(seed: int, path: str) -> torch.Generator:
    """A generator for one layer, independent of which other layers are adapted."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _needs_pair_form(module: nn.Module, adapter: Adapter) -> bool:
    """Whether a method that replaces the base must leave it alone here: it has company, or part of its input drops out
    (which would drop part of the pretrained function)."""
    if not isinstance(module, Host) and not adapter.dropout:
        return False
    check_pair(adapter, "here it has company or dropout", original_weight(module))
    return True


def _carries(host: Host, name: str | None) -> bool:
    return name is not None and name in host.adapter


def _swap_back(host: Host) -> None:
    del host.adapter
    del host.switch
    host.__class__ = host.plain  # type: ignore[assignment]


def _restore_base(model: nn.Module, record: Attachment, keep_trained: bool) -> None:
    for path, parameter in model.named_parameters():
        if path in record.trained_base and not keep_trained:
            with torch.no_grad():
                parameter.copy_(record.trained_base[path])
        if path in record.requires_grad:  # not one that was added since, such as a new head
            parameter.requires_grad_(record.requires_grad[path])
    forget(model)
