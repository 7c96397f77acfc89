"""Models with an adapter that has moved, as training would have moved it, and methods made to be measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.measures.merging.updates import Changed, changed_layers
from evaluation.training import Classifier
from tests.evaluation import toy
from variants.core import Variant, attach, create
from variants.core.host import hosts
from variants.lora import LoRA

MODELS = {"bert": (toy.bert, ("query", "value")), "gpt2": (toy.gpt2, ("c_attn", "mlp.c_proj"))}


@dataclass(frozen=True, kw_only=True)
class WithBiases(LoRA):
    """LoRA which trains the base's biases as well."""

    def trains_base(self, path: str) -> bool:
        return path.endswith("bias")


@dataclass(frozen=True, kw_only=True)
class WithWeights(LoRA):
    """LoRA which trains the very weights that it adapts as well."""

    def trains_base(self, path: str) -> bool:
        return path.endswith("query.weight")


@dataclass(frozen=True, kw_only=True)
class Gated(LoRA):
    """LoRA behind a gate that depends on the input: it cannot be merged."""

    mergeable = False

    def forward(self, x, linear, W, t):
        return linear(x) + torch.sigmoid(x.mean(-1, keepdim=True)) * F.linear(F.linear(x, t["A"]), t["B"])


def stir(encoder: nn.Module, scale: float = 0.1) -> None:
    """Moves what trains, as training would."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=rng))


def merge_case(name: str | Variant, model: str = "bert") -> tuple[Classifier, Variant, dict[str, Tensor]]:
    """A classifier with the method on it and moved, and its base's parameters as they were."""
    encoder = MODELS[model][0]()
    stock = {path: p.detach().clone() for path, p in encoder.named_parameters()}
    variant = create(name, toy.METHODS[name]) if isinstance(name, str) else name
    attach(encoder, variant, MODELS[model][1], seed=1)
    stir(encoder)
    return Classifier(encoder, toy.HIDDEN, toy.CLASSES, 0), variant, stock


def gaussian(variant: Variant, shapes: tuple[tuple[int, int], ...] = ((96, 128),), scale: float = 0.05) -> nn.Module:
    """Linear layers (out, in) of Gaussian weights, as pretrained ones have them, that carry a moved adapter."""
    rng = torch.Generator().manual_seed(3)
    model = nn.ModuleDict({str(i): nn.Linear(in_, out, device="meta") for i, (out, in_) in enumerate(shapes)})
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=rng))
    attach(model, variant, "all", seed=1)
    stir(model, scale)
    for host in hosts(model).values():
        host.unrebase()
    return model


def gaussian_layers(variant: Variant, **changes: object) -> list[Changed]:
    """The changed layers of ``gaussian``, made twice so that its base is known."""
    model = gaussian(variant, **changes)
    base = gaussian(create("probe"), **changes)
    return changed_layers(model, {path: p.detach().clone() for path, p in base.named_parameters()})
