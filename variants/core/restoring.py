"""Putting an adapter onto a model whose tensors are there already: out of a file, or made from other adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from variants.core.host import Adapter, Shared, original_weight, own
from variants.core.interface import Init, Refused, Tensors, Variant, project
from variants.core.linalg import full_precision, raised
from variants.core.placing import check_company, check_name, place
from variants.core.storage import FLOATS, INDICES
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
    with _explained(variant, "its layers together"):
        common = Shared(_owned(variant, shared or {}, weights[paths[0]]))
    adapters: dict[str, Adapter] = {}
    for path, W in weights.items():
        local, init = layers[path]
        with _explained(local, path):
            fitting = Init(train=_owned(local, init.train, W), frozen=_owned(local, init.frozen, W))
            adapter = adapters[path] = Adapter(local, fitting, common, 0.0, W.device)
            adapter.pair_form = replaces_base
            _check_fit(W, adapter)
        check_company(path, model.get_submodule(path))
    return place(model, variant, adapters, {}, name)


@contextmanager
def _explained(variant: Variant, where: str) -> Iterator[None]:
    """Turns whatever a method's code says to tensors which are not its own into a refusal."""
    try:
        yield
    except Refused as error:
        raise Refused(f"{variant.name} on {where}: {error}") from error
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AssertionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise Refused(f"{variant.name} on {where}: the tensors do not fit it ({reason})") from error


def check_kinds(variant: Variant, tensors: Tensors) -> None:
    """Raises Refused unless indices are what the method declares as such, and floats are all others."""
    for name, tensor in tensors.items():
        wanted = INDICES if name in variant.indices else FLOATS
        if tensor.dtype not in wanted:
            declared = "a tensor of whole numbers is one that the method names in `indices`"
            raise Refused(f"{name} is {tensor.dtype}, expected {' or '.join(map(str, wanted))}: {declared}")


def _owned(variant: Variant, tensors: Tensors, W: Tensor) -> dict[str, Tensor]:
    """Copies as adapters on W hold them: numbers in float32 or above, indices as they are."""
    check_kinds(variant, tensors)
    dtype = raised(W[:0]).dtype
    return {name: own(t.to(dtype) if t.dtype in FLOATS else t, W.device) for name, t in tensors.items()}


@torch.no_grad()
@full_precision
def _check_fit(W: Tensor, adapter: Adapter) -> None:
    """Raises an error unless the tensors obey the method's laws on a layer with this weight."""
    variant, t, W = adapter.variant, adapter.tensors(), raised(W)
    variant.check(*W.shape)
    held, wanted = sum(p.numel() for p in adapter.parameters(recurse=False)), variant.parameter_count(*W.shape)
    if held != wanted:
        raise Refused(f"trains {wanted} numbers on a {W.shape[0]} x {W.shape[1]} layer, the tensors hold {held}")
    if not all(bool(tensor.isfinite().all()) for tensor in t.values()):
        raise Refused("a number is not finite: the file is damaged, or its training diverged")
    if variant.indices:  # beyond the end they are an error here, and the end of the process on an accelerator
        W, t = W.cpu(), {name: tensor.cpu() for name, tensor in t.items()}
    given, expected = _result(adapter, W, t)
    if given.shape != expected:
        raise Refused(f"the tensors give a result of shape {tuple(given.shape)}, not {tuple(expected)}")
    if not bool(given.isfinite().all()):
        raise Refused("the tensors give a result that is not finite")
    if (b := variant.bias(W.new_zeros(len(W)), t)).shape != W.shape[:1]:
        raise Refused(f"the tensors give a bias of shape {tuple(b.shape)}, not {tuple(W.shape[:1])}")


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
