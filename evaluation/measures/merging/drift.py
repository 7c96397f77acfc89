"""What merging and unmerging over and over does to the base: put back as it was, or the update subtracted again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from evaluation.measures.merging.stored import swapped
from evaluation.measures.merging.updates import Changed
from variants.core import Init, Variant, merged
from variants.core.host import Adapter, Host
from variants.core.restoring import restore
from variants.core.rounding import Format, Rounding

LAYERS = 1  # the last ones, the same for every method: hundreds of merges take long where the update is dense
Distances = dict[str, float | None]  # number of cycles -> ||W_after - W_before|| / ||W_before||, None if not finite


class Sample:
    """A few layers of a model as a model of their own, in float64 and with copies of the adapters: what cycles cost is
    then not decided by the size of the model, and an update is not rounded before the format rounds it. Layers whose
    weight itself trains are merged by storing it."""

    def __init__(self, layers: Sequence[Changed], variant: Variant) -> None:
        self.layers = layers
        self.model = nn.ModuleDict({str(i): _plain(layer) for i, layer in enumerate(layers)})
        adapters = {str(i): alone for i, layer in enumerate(layers) if (alone := _adapter(layer)) is not None}
        self.adapted = bool(adapters)
        if adapters:
            first = next(iter(adapters.values()))
            restore(
                self.model,
                variant,
                {path: (adapter.variant, _init(adapter)) for path, adapter in adapters.items()},
                dict(first.shared.named_buffers()),
                replaces_base=first.pair_form,
            )

    def weight(self, i: int) -> nn.Parameter:
        return self.model[str(i)].get_parameter("weight")

    def load(self, rounding: Rounding) -> None:
        """Puts the rounded base weights in."""
        for i, layer in enumerate(self.layers):
            self.weight(i).data = rounding(layer.W.double()).clone()

    @contextmanager
    def merged(self, rounding: Rounding) -> Iterator[None]:
        trained = {self.weight(i): rounding(one.W + one.D).double() for i, one in enumerate(self.layers) if one.trained}
        with swapped(trained):
            if not self.adapted:
                yield
                return
            with merged(self.model, rounding):
                yield

    def update(self, i: int, W: Tensor) -> Tensor:  # shape: (out, in)
        """What the method adds to a weight as it finds it."""
        host, one = self.model[str(i)], self.layers[i]
        if one.trained or not isinstance(host, Host):
            return one.D.double()
        host.weight.data = W
        return host.effective_weight() - W


@torch.no_grad()
def drift(
    layers: Sequence[Changed], variant: Variant, formats: Iterable[Format], cycles: Sequence[int]
) -> tuple[dict[str, dict[str, Distances]], int]:
    """How far the base is from where it was after so many cycles of merging and unmerging, in a storage format.

    Returns:
        Per format that is no quantised one ``restoring``, where ``merged`` is entered and left, and ``subtraction``,
        as PEFT 0.21 unmerges LoRA kept in float32: the base holds ``round(W + D)`` and then ``round(that - round(D))``,
        with D the update on the W which the cycle finds. And the number of layers this was measured on: the last of
        those which change, whatever the method, so that methods differ in the update and not in the layer.
    """
    chosen = layers[-LAYERS:]
    if not chosen:
        return {}, 0
    sample = Sample(chosen, variant)
    found: dict[str, dict[str, Distances]] = {}
    for format in formats:
        rounding = Rounding(format)
        if not rounding.quantises:
            found[format] = {
                "restoring": restoring(sample, rounding, cycles),
                "subtraction": subtraction(sample, rounding, cycles),
            }
    return found, len(chosen)


def restoring(sample: Sample, rounding: Rounding, cycles: Sequence[int]) -> Distances:
    """Our way: what was there is put back."""
    sample.load(rounding)
    numbers = range(len(sample.layers))
    before = [sample.weight(i).detach().clone() for i in numbers]
    found: Distances = {}
    for cycle in range(1, max(cycles) + 1):
        with sample.merged(rounding):
            pass
        if cycle in cycles:
            found[str(cycle)] = _distance(before, [sample.weight(i).detach() for i in numbers])
    return found


def subtraction(sample: Sample, rounding: Rounding, cycles: Sequence[int]) -> Distances:
    """The other way: the update is taken off again, in the precision of the storage."""
    before = [rounding(layer.W.double()) for layer in sample.layers]
    now, found = list(before), dict[str, float | None]()
    for cycle in range(1, max(cycles) + 1):
        for i, W in enumerate(now):
            D = sample.update(i, W)
            now[i] = rounding(rounding(W + D) - rounding(D))
        if cycle in cycles:
            found[str(cycle)] = _distance(before, now)
    return found


def _distance(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    far = sum(float((b - a).square().sum(dtype=torch.float64)) for b, a in zip(before, after, strict=True))
    size = sum(float(b.square().sum(dtype=torch.float64)) for b in before)
    return math.sqrt(far / size) if math.isfinite(far) and size else None


def _plain(layer: Changed) -> nn.Module:
    """A linear layer of the same shape, whatever class the model has for it."""
    out, in_ = layer.W.shape
    bias = getattr(layer.layer, "bias", None)
    plain = nn.Linear(in_, out, bias=bias is not None, device="meta").to_empty(device=layer.W.device)
    plain.weight.data = layer.W.double()
    if bias is not None:
        plain.bias.data = bias.detach().double()
    return plain


def _adapter(layer: Changed) -> Adapter | None:
    return layer.layer.alone() if isinstance(layer.layer, Host) and not layer.trained else None


def _init(adapter: Adapter) -> Init:
    return Init(dict(adapter.named_parameters(recurse=False)), dict(adapter.named_buffers(recurse=False)))
