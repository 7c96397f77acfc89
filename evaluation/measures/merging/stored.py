"""The encoder as a checkpoint in some storage format would have it: the base alone, with the adapter, merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from evaluation.known import Remembered
from variants.core import merged, trainable_parameters
from variants.core.host import host_class, hosts, oriented
from variants.core.rounding import Rounding


@contextmanager
def swapped(values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Inside, the parameters hold other values; afterwards their own storage is back, bit for bit."""
    kept = {parameter: parameter.data for parameter in values}
    try:
        for parameter, value in values.items():
            parameter.data = value
        yield
    finally:
        for parameter, data in kept.items():
            parameter.data = data


def linear_layers(encoder: nn.Module) -> dict[str, nn.Module]:
    """The layers that have a host, by path: those whose weights a quantised checkpoint quantises."""
    return {path: module for path, module in encoder.named_modules() if host_class(type(module)) is not None}


def as_stored(
    encoder: nn.Module, tensors: Mapping[str, Tensor], rounding: Rounding, known: Remembered | None = None
) -> dict[str, Tensor]:
    """Base parameters by path, as a checkpoint holds them. A half precision rounds them all; int8 and NF4 the weights
    of linear layers alone, not embeddings, norms and biases.

    Args:
        known: quantised weights of these tensors, by format and path.
    """
    known = known or Remembered(0)
    held = {path: tensor.detach() for path, tensor in tensors.items()}
    if not rounding.quantises:
        return {path: rounding(tensor) for path, tensor in held.items()}
    layers = {f"{path}.weight": layer for path, layer in linear_layers(encoder).items()}
    quantised = {path: (layer, held[path]) for path, layer in layers.items() if path in held}

    def stored(path: str) -> Tensor:
        layer, W = quantised[path]
        return oriented(layer, rounding(oriented(layer, W)))

    return held | {path: known.of((rounding.format, path), partial(stored, path)) for path in quantised}


@contextmanager
def rounded_base(
    encoder: nn.Module, base: Mapping[str, Tensor], rounding: Rounding, known: Remembered | None = None
) -> Iterator[None]:
    """Inside, the frozen parameters of the base are as stored, rounded to nearest. ``known`` as in ``as_stored``."""
    frozen = {path: p for path, p in encoder.named_parameters() if path in base and not p.requires_grad}
    values = as_stored(encoder, frozen, rounding, known)
    with torch.no_grad(), swapped({p: values[path] for path, p in frozen.items()}):
        yield


@contextmanager
def switched_off(encoder: nn.Module) -> Iterator[None]:
    """Inside, no adapter is active."""
    # Not activate(): it refuses where trained base parameters would stay, which callers swap out.
    switches = [(host.switch, host.switch.active) for host in hosts(encoder).values()]
    for switch, _ in switches:
        switch.active = {}
    try:
        yield
    finally:
        for switch, active in switches:
            switch.active = active


@contextmanager
def without_adaptation(encoder: nn.Module, base: Mapping[str, Tensor], rounding: Rounding) -> Iterator[None]:
    """Inside, inside ``rounded_base``, the encoder is the rounded base alone."""
    trained = {path: p for path, p in trainable_parameters(encoder).items() if path in base}
    values = as_stored(encoder, {path: base[path] for path in trained}, rounding)
    with swapped({p: values[path] for path, p in trained.items()}), switched_off(encoder):
        yield


@contextmanager
def stored_merged(encoder: nn.Module, base: Mapping[str, Tensor], rounding: Rounding) -> Iterator[None]:
    """Inside, the encoder is what a merged checkpoint would hold; int8 and NF4 scale the merged weight anew."""
    trained = {path: p for path, p in trainable_parameters(encoder).items() if path in base}
    values = as_stored(encoder, trained, rounding)
    with merged(encoder, rounding), swapped({p: values[path] for path, p in trained.items()}):
        yield
