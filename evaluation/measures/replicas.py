"""Copies of a model that share what they do not change."""

from __future__ import annotations

import copy

from torch import nn

from variants.core.host import hosts


def sharing(encoder: nn.Module) -> nn.Module:
    """A copy with the same parameters, also when one is written into."""
    return copy.deepcopy(encoder, memo={id(p): p for p in encoder.parameters()})


def mergeable_copy(encoder: nn.Module) -> nn.Module:
    """A copy that can be merged for good: layers with adapters have their own parameters, all others share them."""
    own = {id(p) for host in hosts(encoder).values() for p in host.parameters()}
    return copy.deepcopy(encoder, memo={id(p): p for p in encoder.parameters() if id(p) not in own})
