"""On what the conformance suite tries a method: small layers, their inputs, made-up statistics, a short training.

Shapes follow ``variants.core.interface``: a weight is (out, in), an input (*lead, in).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from variants.core.attach import attach
from variants.core.host import Adapter, Host, hosts
from variants.core.interface import Refused, Tensors, Variant
from variants.core.switching import layer_states, trainable_parameters

Layer = Callable[[int, int, bool], nn.Module]


def linear(out: int, in_: int, bias: bool) -> nn.Module:
    return nn.Linear(in_, out, bias=bias)


def conv1d(out: int, in_: int, bias: bool) -> nn.Module:
    """transformers' Conv1D always has a bias; without one it is all zeros."""
    from transformers.pytorch_utils import Conv1D  # only a model that has one needs transformers

    layer: nn.Module = Conv1D(out, in_)
    nn.init.normal_(layer.bias, std=float(bias))  # type: ignore[arg-type]
    return layer


@dataclass(frozen=True)
class Case:
    """One layer and the shape of its input."""

    out: int
    in_: int
    bias: bool = True
    lead: tuple[int, ...] = (3,)
    layer: Layer = linear

    def __str__(self) -> str:
        return f"{self.layer.__name__}-{self.out}x{self.in_}-{'bias' if self.bias else 'plain'}-{list(self.lead)}"


CASES = (  # tall, wide, square, none a power of two; empty batches and leading dimensions; both hosts
    Case(8, 6),
    Case(6, 10, bias=False, lead=(2, 3)),
    Case(6, 6, lead=(0,)),
    Case(5, 8, lead=(2, 3), layer=conv1d),
)


class One(nn.Module):
    """A model with one layer, so that there is a path to name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:  # shape: (*lead, out)
        return self.layer(x)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(case: Case, dtype: torch.dtype = torch.float64) -> One:
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
        torch.manual_seed(case.out * 100 + case.in_)
        return One(case.layer(case.out, case.in_, case.bias)).to(dtype)


def input_of(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:  # shape: (*lead, in)
    return torch.randn(*case.lead, case.in_, generator=generator(1), dtype=torch.float64).to(dtype)


class Chain(nn.Module):
    """A layer of the case's shape and, where the method takes it, one of the transposed shape after it: what a method
    does to a whole model shows only where layers differ."""

    def __init__(self, variant: Variant, case: Case) -> None:
        super().__init__()
        self.layers = nn.ModuleList([case.layer(case.out, case.in_, case.bias)])
        with contextlib.suppress(Refused):
            variant.check(case.in_, case.out)
            self.layers.append(case.layer(case.in_, case.out, case.bias))

    def forward(self, x: Tensor) -> Tensor:  # shape: (*lead, in or out)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def chain_of(variant: Variant, case: Case) -> Chain:
    """Adapted, in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.out * 100 + case.in_)
        model = Chain(variant, case)
    turned = replace(case, out=case.in_, in_=case.out)
    shapes = dict(zip(("layers.0", "layers.1")[: len(model.layers)], (case, turned), strict=False))
    attach(model, variant, list(shapes), stats={path: statistics(variant, made) for path, made in shapes.items()})
    return model


def stats_of(variant: Variant, case: Case) -> dict[str, Tensors]:
    """Made-up statistics of the case's layer, of the kinds which the method needs."""
    return {"layer": statistics(variant, case)}


def statistics(variant: Variant, case: Case) -> dict[str, Tensor]:
    x = torch.randn(50, case.in_, generator=generator(6), dtype=torch.float64) + 0.3
    gradient = torch.randn(case.out, case.in_, generator=generator(7), dtype=torch.float64)
    known = {"gradient": gradient, "covariance": x.T @ x / len(x), "mean": x.mean(0)}
    return {need: known[need] for need in variant.needs}


def adapted(variant: Variant, case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> One:
    model = model_of(case, dtype)
    attach(model, variant, "layer", seed, stats=stats_of(variant, case))
    return model


def move(model: nn.Module, scale: float = 0.3, seed: int = 2) -> None:
    """Takes every trainable tensor off its starting point, where most mistakes are invisible (B = 0)."""
    rng = generator(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter.add_((scale * noise).to(parameter.dtype))


def train(model: nn.Module, variant: Variant, case: Case, steps: int, lr: float = 1e-2) -> list[float]:
    """Optimiser steps with weight decay and the method's own hooks, towards a random target; the task loss of each."""
    states = layer_states(model)
    groups = variant.param_groups(states, lr) if states else [{"params": list(trainable_parameters(model).values())}]
    some: list[Any] = [group for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(some or [torch.zeros(1)], lr, weight_decay=0.01)
    dtype = next(model.parameters()).dtype
    x = torch.randn(16, case.in_, generator=generator(3), dtype=torch.float64).to(dtype)
    with torch.no_grad():
        target = torch.tanh(torch.randn(model(x).shape, generator=generator(4), dtype=torch.float64)).to(dtype)
    losses = []
    for step in range(steps):
        loss = (model(x) - target).square().mean()
        losses.append(loss.item())
        penalty = variant.penalty(states)
        if penalty is not None:
            loss = loss + penalty
        if loss.requires_grad:  # a method may train nothing of the model
            loss.backward()
        variant.before_step(states)
        optimiser.step()
        variant.after_step(states, step + 1, steps)
        optimiser.zero_grad()
    return losses


def carried_by(model: nn.Module) -> list[tuple[Host, Adapter]]:
    """The layer and its adapter; empty for methods that put nothing on layers."""
    return [(host, host.carried("default")) for host in hosts(model).values()]


def close(got: Tensor, want: Tensor, tol: float, what: str) -> None:
    """Raises AssertionError unless the difference is below tol relative to the largest entry (at least 1)."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if want.numel() == 0:
        return
    size = max(float(want.detach().abs().max()), 1.0)
    error = gap(got, want)
    assert error <= tol * size, f"{what}: off by {error:.3g}, allowed {tol * size:.3g}"


def gap(got: Tensor, want: Tensor) -> float:
    """The largest difference of two tensors of one shape."""
    return float((got.detach().double() - want.detach().double()).abs().max())


def same_bits(got: Tensor, want: Tensor) -> bool:
    return got.dtype == want.dtype and got.shape == want.shape and bool(torch.equal(got, want))
