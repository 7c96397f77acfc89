"""Layers that carry adapters. How they get onto a model is ``attach``'s business.

A *host* is a layer class that offers the frozen product and the dense weight, in the (out, in) orientation, whatever
the layer stores. Hosts and methods know nothing of each other, so they add up instead of multiplying. A plain layer
becomes a host by swapping its class in place, which keeps every key of the base ``state_dict``, keeps ``isinstance``
true, and can be pickled, copied and compiled (docs/decisions/001).

Several adapters live on one layer under names. Each contributes ``weight_i(W) - W``; contributions are scaled, added
and chosen per row without touching a base tensor. A method that replaces the base (PiSSA) does so only while it is
alone and undiluted; otherwise the host uses its exact low-rank pair on the untouched base (docs/decisions/002).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from variants.core.contraction import computed_in, order
from variants.core.fused import fused
from variants.core.interface import Init, LoRAPair, Refused, Variant
from variants.core.linalg import full_precision, raised
from variants.core.products import FastLinear, linear, reverse_mode_only
from variants.core.thin import Thin


@dataclass
class Switch:
    """What all hosts of one model share; changing it switches every layer at once."""

    active: dict[str, float] = field(default_factory=dict)  # adapter name -> weight of its contribution
    rows: tuple[str | None, ...] | None = None  # adapter name for each row of the batch
    merged: bool = False


class Shared(nn.Module):
    """Frozen tensors which an adapter's layers have in common: one module, a child of each, so that they are moved,
    copied and stored once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().contiguous())


class Adapter(nn.Module):
    """The tensors of one adapter on one layer, and how they enter the product."""

    shared: Shared

    def __init__(self, variant: Variant, init: Init, shared: Shared, dropout: float, device: torch.device) -> None:
        super().__init__()
        self.variant = variant
        self.shared = shared
        self.dropout = dropout
        self.rebased = False  # True: the layer's weight is init.base, and weight() is meant on it
        self.pair_form = False  # True: used as the exact low-rank pair on the original weight
        self.own_forward = type(variant).forward is not Variant.forward
        for name, tensor in init.train.items():
            self.register_parameter(name, nn.Parameter(own(tensor, device)))
        for name, tensor in init.frozen.items():
            self.register_buffer(name, own(tensor, device))

    def own_tensors(self) -> dict[str, Tensor]:
        """The tensors of this layer alone, trained and frozen."""
        both: dict[str, Tensor | None] = {**self._parameters, **self._buffers}
        return {name: tensor for name, tensor in both.items() if tensor is not None}

    def tensors(self) -> dict[str, Tensor]:
        """What the method calls ``t``: the layer's own tensors and those which it shares."""
        return {**self.own_tensors(), **cast(dict[str, Tensor], self.shared._buffers)}

    def whole(self, x: Tensor, host: Host) -> Tensor:
        """The layer's whole output, for the adapter alone on it."""
        t = self.tensors()
        bias = None if host.bias is None else self.variant.bias(host.bias, t)
        return self.variant.output(self.product(x, host, t, bias), t)

    def product(self, x: Tensor, host: Host, t: dict[str, Tensor], bias: Tensor | None) -> Tensor:
        """The whole adapted product, for the adapter alone on its layer."""
        thin = self.thin(host, t)
        if thin is not None:
            return host.thin_product(x, thin, bias)
        W = host.dense()
        if not self.own_forward and host.transparent:  # the bias in the same product
            turned, V = self.variant.operands(x, W, t)
            return linear(turned, V.to(x.dtype), None if bias is None else bias.to(x.dtype))
        y = self.variant.forward(x, host.frozen, W, t)
        return y if bias is None else y + bias.to(y.dtype)  # under autocast y may be narrower than the bias

    def thin(self, host: Host, t: dict[str, Tensor]) -> Thin | None:
        """The factors of the adapted weight on the stored one, if the layer is to multiply with them by itself."""
        if self.pair_form:
            return Thin(*self._pair(host))
        return None if self.own_forward else self.variant.thin(host.dense(), t)

    def contribution(self, x: Tensor, y: Tensor, host: Host) -> Tensor:
        """What the adapter adds to the layer's output, where ``y`` is the product of ``x`` with the original weight.
        Sees dropped-out input."""
        seen = F.dropout(x, self.dropout, training=True) if self.training and self.dropout else x
        thin = None if self.rebased else self.thin(host, self.tensors())
        if thin is not None and thin.gain is None and self.variant.mergeable:
            return self._shifted(thin.change(seen), host)
        frozen = y if seen is x else host.original_product(seen)
        change = self._shifted(self._change(seen, frozen, host), host)
        if self.variant.mergeable:
            return change
        base = frozen if host.bias is None else frozen + host.bias.to(frozen.dtype)
        return self.variant.output(base + change, self.tensors()) - base

    def _shifted(self, change: Tensor, host: Host) -> Tensor:
        """With what the adapter adds to the bias."""
        if host.bias is None:
            return change
        bias = self.variant.bias(host.bias, self.tensors())
        return change if bias is host.bias else change + (bias - host.bias).to(change.dtype)

    def _change(self, seen: Tensor, frozen: Tensor, host: Host) -> Tensor:
        """Of the product, without bias."""
        if self.rebased:
            return self.product(seen, host, self.tensors(), None) - frozen

        def known(z: Tensor) -> Tensor:  # one frozen product, not two
            return frozen if z is seen else host.frozen(z)

        return self.variant.forward(seen, known, host.dense(), self.tensors()) - frozen

    def effective(self, host: Host) -> Tensor:  # shape: (out, in)
        """The effective weight, in full precision."""
        W = raised(host.dense())
        if not self.variant.mergeable:
            raise Refused(f"{self.variant.name} depends on the input and has no effective weight: it cannot be merged")
        if self.pair_form:
            return W + self._pair(host).delta()
        return self.variant.weight(W, self.tensors())

    def _pair(self, host: Host) -> LoRAPair:
        pair = self.variant.as_lora(raised(host.original_dense()), self.tensors())
        assert pair is not None, "pair_form is only chosen when there is a pair"
        return pair


def own(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy which shares memory with nothing and which a file format can write as it lies."""
    return tensor.detach().to(device, copy=True, memory_format=torch.contiguous_format)


class Host(nn.Module):
    """A layer that carries adapters. Subclasses name the layer they host as their second base class."""

    adapter: nn.ModuleDict
    switch: Switch
    weight: Any  # nn.Parameter; layer classes declare theirs in ways which a shared base class cannot repeat
    bias: Any  # nn.Parameter | None
    _original: Tensor

    # ---- what a host class defines ----------------------------------------------------------------------------------
    plain: type[nn.Module]  # the class to swap back to
    # Whether frozen(x) is ``x @ dense().T`` and no more, so that a fast path may compute it together with something
    # else. Said by the class which defines ``frozen``: a subclass with another ``frozen`` has to say it anew.
    transparent: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "frozen" in cls.__dict__ and "transparent" not in cls.__dict__:
            cls.transparent = False

    def frozen(self, x: Tensor) -> Tensor:  # shape: (..., out)
        """The product with the stored weight, without bias."""
        raise NotImplementedError

    def base(self, x: Tensor, stored: Tensor) -> Tensor:  # shape: (..., out)
        """What the plain layer computes from a weight in its stored layout, with bias and in the same operations: a
        product and a bias added afterwards round twice where the layer rounds once."""
        raise NotImplementedError

    @staticmethod
    def oriented(stored: Tensor) -> Tensor:
        """Stored layout to (out, in), and back: an involution."""
        raise NotImplementedError

    # ---- derived ----------------------------------------------------------------------------------------------------
    def dense(self) -> Tensor:  # shape: (out, in)
        """The stored weight; the residual while an adapter has replaced the base."""
        return self.oriented(self.weight)

    def original_dense(self) -> Tensor:  # shape: (out, in)
        """The base weight as it was before anything was attached."""
        return self.oriented(self._original) if self.is_rebased else self.dense()

    @property
    def is_rebased(self) -> bool:
        return self._buffers.get("_original") is not None

    def original_product(self, x: Tensor) -> Tensor:
        return linear(x, self.original_dense()) if self.is_rebased else self.frozen(x)

    def thin_product(self, x: Tensor, thin: Thin, bias: Tensor | None) -> Tensor:  # shape: (..., out)
        """The product with the stored weight changed by these factors, and a bias."""
        W = self.dense()
        if self.transparent and order(x.numel() // x.shape[-1], W, thin, computed_in(x)) == "dense":
            return linear(x, thin.weight(W), bias)
        if self.transparent and reverse_mode_only():
            return fused(x, W, bias, thin)
        y = thin.product(x, self.frozen(x))
        return y if bias is None else y + bias.to(y.dtype)

    def carried(self, name: str) -> Adapter:
        """The adapter called ``name`` on this layer."""
        return cast(Adapter, self.adapter[name])

    def active_adapters(self) -> list[tuple[Adapter, float]]:
        return [(self.carried(n), w) for n, w in self.switch.active.items() if n in self.adapter]

    def alone(self) -> Adapter | None:
        """The only active adapter, if it counts in full: the layer is then what the adapter makes of it."""
        return self._alone(self.active_adapters())

    @staticmethod
    def _alone(active: list[tuple[Adapter, float]]) -> Adapter | None:
        return active[0][0] if len(active) == 1 and active[0][1] == 1.0 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.switch.merged:
            return self.base(x, self.weight)
        if self.switch.rows is not None:
            y = self._row_product(x, self.switch.rows)
        elif active := self.active_adapters():
            only = self._alone(active)
            if only is not None and not (self.training and only.dropout):
                return only.whole(x, self)
            y = self._mixed_product(x, active)
        else:
            return self.base(x, self._original if self.is_rebased else self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _mixed_product(self, x: Tensor, active: list[tuple[Adapter, float]]) -> Tensor:
        y = self.original_product(x)
        total = y
        for adapter, weight in active:
            total = total + weight * adapter.contribution(x, y, self)
        return total

    def _row_product(self, x: Tensor, names: tuple[str | None, ...]) -> Tensor:
        if x.shape[0] != len(names):
            raise ValueError(f"rows() was given {len(names)} names, the batch has {x.shape[0]} rows")
        y = self.original_product(x)
        total = y.clone()
        for name in dict.fromkeys(n for n in names if n is not None and n in self.adapter):
            index = torch.tensor([i for i, n in enumerate(names) if n == name], device=x.device)
            xi, yi = x.index_select(0, index), y.index_select(0, index)
            total = total.index_add(0, index, self.carried(name).contribution(xi, yi, self))
        return total

    @torch.no_grad()
    @full_precision
    def effective_weight(self) -> Tensor:  # shape: (out, in)
        """The weight which the active adapters amount to, in full precision."""
        if (only := self.alone()) is not None:
            return only.effective(self)
        W = raised(self.original_dense())
        changes = (w * (a.effective(self) - W) for a, w in self.active_adapters())
        return W + sum(changes, start=torch.zeros_like(W))

    @torch.no_grad()
    @full_precision
    def effective_bias(self) -> Tensor | None:  # shape: (out,)
        """The bias which the active adapters amount to, in full precision; None where the layer has none."""
        if self.bias is None:
            return None
        b = raised(self.bias)
        if (only := self.alone()) is not None:
            return only.variant.bias(b, only.tensors())
        changes = (w * (a.variant.bias(b, a.tensors()) - b) for a, w in self.active_adapters())
        return b + sum(changes, start=torch.zeros_like(b))

    @torch.no_grad()
    def store(self, W: Tensor, b: Tensor | None) -> None:
        """Writes an (out, in) weight and a bias into the layer, rounded once to the layer's dtype."""
        self.weight.copy_(self.oriented(W))
        if b is not None:
            self.bias.copy_(b)

    def replace_weight(self, W: Tensor) -> nn.Parameter:
        """Puts a new parameter in the place of the weight, never writing into the old one, which is returned."""
        old: nn.Parameter = self.weight
        stored = own(self.oriented(W).to(old.dtype), old.device)
        self.weight = nn.Parameter(stored, requires_grad=False)
        return old

    def rebase(self, base: Tensor, adapter: Adapter) -> None:
        """Replaces the weight by ``base`` and keeps the original, as a buffer so that it follows to another device."""
        self.register_buffer("_original", self.replace_weight(base), persistent=False)
        adapter.rebased = True

    def unrebase(self) -> None:
        """Puts the original weight back, bit for bit; the adapter that replaced it goes on in its exact form."""
        if not self.is_rebased:
            return
        original = self._original
        del self._original
        self.weight = original if isinstance(original, nn.Parameter) else nn.Parameter(original, requires_grad=False)
        for adapter in map(self.carried, self.adapter):
            if adapter.rebased:
                adapter.rebased, adapter.pair_form = False, True

    # ---- the layer's keys mean the base weight, also while the residual stands in its place --------------------------
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_rebased and not self.switch.merged:
            destination[f"{prefix}weight"] = self._original if keep_vars else self._original.detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if self.switch.merged:
            raise Refused("inside merged() the weights stand for the adapters: leave it first")
        self.unrebase()  # a residual belongs to the weight and the factors it was made with
        super()._load_from_state_dict(state_dict, prefix, *args)


class HostLinear(Host, nn.Linear):
    """Hosts ``torch.nn.Linear``: weight stored as (out, in)."""

    plain = nn.Linear
    transparent = True

    def frozen(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def base(self, x: Tensor, stored: Tensor) -> Tensor:
        return F.linear(x, stored, self.bias)

    @staticmethod
    def oriented(stored: Tensor) -> Tensor:
        return stored


class HostFastLinear(HostLinear, FastLinear):
    """Hosts ``FastLinear``."""

    plain = FastLinear
    transparent = True

    def frozen(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)

    def base(self, x: Tensor, stored: Tensor) -> Tensor:
        return linear(x, stored, self.bias)


HOSTS: dict[type[nn.Module], type[Host]] = {
    nn.Linear: HostLinear,
    FastLinear: HostFastLinear,
}  # looked up by exact type


def host_class(cls: type[nn.Module]) -> type[Host] | None:
    """The host class for layers of exactly this type, or None."""
    if issubclass(cls, Host):
        return cls
    if cls.__module__ == "transformers.pytorch_utils" and cls.__name__ == "Conv1D":
        import variants.core.conv1d  # noqa: F401  registers itself; only a model that has one needs transformers
    return HOSTS.get(cls)


def oriented(layer: nn.Module, stored: Tensor) -> Tensor:  # shape: (out, in)
    """A tensor in the stored layout of a layer that is a host, or could be one; and back."""
    cls = host_class(type(layer))
    assert cls is not None, f"{type(layer).__name__} has no host"
    return cls.oriented(stored)


def original_weight(layer: nn.Module) -> Tensor:  # shape: (out, in)
    """The base weight of a layer that is a host, or could be one, whatever is attached to it."""
    return layer.original_dense() if isinstance(layer, Host) else oriented(layer, cast(Tensor, layer.weight))


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a layer that is a host, or could be one."""
    out, in_ = original_weight(layer).shape
    return out, in_


def hosts(model: nn.Module) -> dict[str, Host]:
    """The adapted layers by path, in model order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Host)}
