"""Putting a method on a base model the way a run uses it, whether it is one of ours or a peer from another library."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from evaluation.peers import Peer
from variants.core import Tensors, Variant, attach, decelerate, detach


def mount(
    encoder: nn.Module,
    variant: Variant,
    where: Iterable[str],
    seed: int = 0,
    dropout: float = 0.0,
    stats: Mapping[str, Tensors] | None = None,
) -> nn.Module:
    """The model that trains: ``encoder`` with our method on it, or what a peer makes of it.

    Raises:
        Refused: the method cannot work here.
    """
    if isinstance(variant, Peer):
        return variant.wrap(encoder, list(where), seed, dropout)
    attach(encoder, variant, list(where), seed, dropout=dropout, stats=stats)
    return encoder


def peer_base(encoder: nn.Module) -> nn.Module:
    """What a peer is given: a copy, as its library may write into it, on layers of torch, as its users have them."""
    return decelerate(copy.deepcopy(encoder))


@contextmanager
def mounted(
    encoder: nn.Module,
    variant: Variant,
    where: Iterable[str],
    seed: int = 0,
    dropout: float = 0.0,
    stats: Mapping[str, Tensors] | None = None,
) -> Iterator[nn.Module]:
    """Inside, the yielded encoder carries the method; afterwards the base is what it was, bit for bit.

    Our methods go onto the encoder itself, a peer's onto ``peer_base``.

    Raises:
        Refused: the method cannot work here.
    """
    if isinstance(variant, Peer):
        yield mount(peer_base(encoder), variant, where, seed, dropout)
        return
    mount(encoder, variant, where, seed, dropout, stats)
    try:
        yield encoder
    finally:
        detach(encoder, merge=False)
        encoder.zero_grad()  # whatever happened: the next run trains on the same parameters
        encoder.eval()  # base dropout, after a divergence
