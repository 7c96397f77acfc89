"""Putting an adapter onto a model whose tensors are there already: out of a file, or made from other adapters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from variants.core.host import Adapter, Shared, original_weight, own
from variants.core.interface import Init, Refused, Tensors, Variant, project
from variants.core.linalg import full_precision, raised
from variants.core.placing import check_company, check_name, device_of, place
from variants.core.targets import hostable_layers


def restore(
    model: nn.Module,
    variant: Variant,
    layers: Mapping[str, tuple[Variant, Init]],
    shared: Tensors | None = None,
    *,
    name: str = "default",
    replaces_base: bool = False,
) -> list[str]:
    """Puts an adapter with the given tensors onto the model and makes it the active one. Nothing is decomposed again.

    Args:
        layers: path -> the method as it is on that layer, and its tensors, of which copies are taken. ``Init.base`` is
            not used.
        shared: the tensors which all layers have in common.
        replaces_base: the method trained on a base of its own (PiSSA's residual). It is then used in its exact low-rank
            form, on the base as it is.

    Returns:
        The paths of the adapted layers, in model order.

    Raises:
        Refused: a path is no layer that has a host, tensors do not fit the method on a layer of that shape, or a number
            is not finite. The model is then as it was.
    """
    check_name(model, variant, name)
    if variant.trains != "layers":
        raise Refused(f"{variant.name} has no tensors on layers: there is nothing to put onto a model")
    paths = hostable_layers(model, list(layers))
    if not paths:
        raise Refused("there is no layer to put the adapter on")
    weights = {path: original_weight(model.get_submodule(path)).detach() for path in paths}
    device = device_of(model, paths[0])
    common = Shared({key: own(tensor, device) for key, tensor in _precise(shared or {}, weights[paths[0]]).items()})
    adapters: dict[str, Adapter] = {}
    for path, W in weights.items():
        local, init = layers[path]
        fitting = Init(train=_precise(init.train, W), frozen=_precise(init.frozen, W))
        adapter = adapters[path] = Adapter(local, fitting, common, 0.0, device_of(model, path))
        adapter.pair_form = replaces_base
        _check_fit(path, W, adapter)
        check_company(path, model.get_submodule(path))
    return place(model, variant, adapters, {}, name)


def _precise(tensors: Tensors, W: Tensor) -> dict[str, Tensor]:
    """Tensors as adapters on W hold them: numbers in float32 or above, indices as they are."""
    dtype = raised(W[:0]).dtype
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@torch.no_grad()
@full_precision
def _check_fit(path: str, W: Tensor, adapter: Adapter) -> None:
    """Raises Refused unless the tensors obey the method's laws on a layer with this weight."""
    variant, t, W = adapter.variant, adapter.tensors(), raised(W)
    try:
        variant.check(*W.shape)
        held, wanted = sum(p.numel() for p in adapter.parameters(recurse=False)), variant.parameter_count(*W.shape)
        if held != wanted:
            raise Refused(f"trains {wanted} numbers on a {W.shape[0]} x {W.shape[1]} layer, the tensors hold {held}")
        if not all(bool(tensor.isfinite().all()) for tensor in t.values()):
            raise Refused("a number is not finite: the file is damaged, or its training diverged")
        given, expected = _result(adapter, W, t)
        if given.shape != expected or not bool(given.isfinite().all()):
            raise Refused(f"the tensors give a result of shape {tuple(given.shape)}, not {tuple(expected)}")
    except Refused as error:
        raise Refused(f"{variant.name} on {path}: {error}") from error
    except (
        RuntimeError,
        LookupError,
        ValueError,
        TypeError,
        AssertionError,
    ) as error:  # a method's code on odd tensors
        reason = " ".join(str(error).split())
        raise Refused(
            f"{variant.name} on {path}: the tensors do not fit it ({type(error).__name__}: {reason})"
        ) from error


def _result(adapter: Adapter, W: Tensor, t: Tensors) -> tuple[Tensor, torch.Size]:
    """What the method makes of the tensors, and the shape that must have."""
    variant = adapter.variant
    if adapter.pair_form:
        pair = variant.as_lora(W, t)
        if pair is None:
            raise Refused("it replaces the base and has no exact low-rank form")
        return pair.delta(), W.shape
    if variant.mergeable:
        return variant.weight(W, t), W.shape
    x = W.new_zeros(2, W.shape[1])
    return variant.output(variant.forward(x, lambda z: project(z, W), W, t), t), torch.Size((2, W.shape[0]))
