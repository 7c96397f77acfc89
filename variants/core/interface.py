"""What a method is: a frozen set of hyperparameters and pure functions of tensors.

One alphabet for the whole project: ``W`` is the base weight, shape ``(out, in)``; ``t`` maps a tensor's name to the
tensor and holds a layer's trainable and frozen adapter tensors together; ``x`` is an input, shape ``(..., in)``.
A method knows neither modules nor layers: hosts (``variants.core.host``) hand it matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from variants.core import products
from variants.core.contraction import described
from variants.core.fields import check_bounds
from variants.core.thin import Thin, project as project

Tensors = Mapping[str, Tensor]
# What a calibration pass measures for each layer, over its input vectors x (in,) and the task loss L:
STATISTICS = {
    "gradient": "dL/dW averaged over the calibration batches, shape (out, in)",
    "covariance": "mean of x x^T, not centred, shape (in, in)",
    "mean": "mean of x, shape (in,)",
}
FrozenProduct = Callable[[Tensor], Tensor]


class Refused(ValueError):
    """The method cannot work here; the message says why and what to write instead."""


@dataclass(frozen=True)
class Init:
    """What one layer gets when a method is attached to it.

    ``train`` and ``frozen`` are the adapter's tensors; together they must determine the adapter, so that a file which
    holds them restores it without repeating a decomposition. ``base``, shape (out, in), replaces the base weight while
    the adapter is alone on its layer (PiSSA's residual); ``None`` leaves the base weight as it is.
    """

    train: dict[str, Tensor]
    frozen: dict[str, Tensor] = field(default_factory=dict)
    base: Tensor | None = None


class LoRAPair(NamedTuple):
    """A low-rank update ``B @ A``, already scaled: A has shape (rank, in), B has shape (out, rank)."""

    A: Tensor
    B: Tensor

    def delta(self) -> Tensor:  # shape: (out, in)
        return self.B @ self.A


@dataclass
class LayerState:
    """One adapted layer, as the model-level methods of a variant see it.

    ``scratch`` outlives a step: what ``before_step`` leaves there, ``after_step`` finds.
    """

    path: str
    W: Tensor
    t: dict[str, Tensor]
    scratch: dict[str, Any] = field(default_factory=dict)


States = Sequence[LayerState]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method. Fields are hyperparameters, held to the bounds in their annotations (``variants.core.fields``); methods
    are pure functions of tensors.

    To define one: ``init``, ``weight`` and ``parameter_count``. Everything else has a default that follows from
    ``weight``; override ``forward`` only to be faster, never to be different. What a method declares of itself, and
    the laws below, are held by ``variants.core.conformance`` (``python3 tasks.py check NAME``):

        ``forward(x, linear, W, t) == linear(x) - x @ W.T + x @ weight(W, t).T``  in value and in every gradient
        ``sum(t.numel() for t in init(W, ...).train.values()) == parameter_count(*W.shape)``
        ``weight(base or W, t) == W``                                             at the start, if ``exact_init``
        ``weight(W, t) == diag(gain) (W + scale B C A)``                          if ``thin`` gives the factors
        ``weight(base or W, t) == W + as_lora(W, t).delta()``                     if ``as_lora`` gives a pair
    """

    # ---- what a method declares ------------------------------------------------------------------------------------
    name: ClassVar[str] = ""  # the name it was registered under
    paper: ClassVar[str] = ""
    trains: ClassVar[Literal["layers", "base", "head"]] = "layers"  # tensors on layers, the base itself, the task head
    mergeable: ClassVar[bool] = True  # False: not linear in x, so weight() may be left out
    needs: ClassVar[frozenset[str]] = frozenset()  # statistics handed to init; the names are those of STATISTICS
    size: ClassVar[str] = ""  # the field (rank, block, band ...) that a parameter budget is met with
    # Learning rate divided by LoRA's: what was published, 1 where nothing is known; centres the search.
    lr_ratio: ClassVar[float] = 1.0
    constraint: ClassVar[str] = ""  # what training holds, or draws towards, in a few words for people
    orthonormal: ClassVar[tuple[str, ...]] = ()  # trained factors whose columns (rows, if wide) training draws
    no_weight_decay: ClassVar[tuple[str, ...]] = ()  # trained tensors which decay would pull off what they mean
    indices: ClassVar[tuple[str, ...]] = ()  # frozen tensors of whole numbers, such as places; all others hold floats
    tolerance: ClassVar[float] = 1.0  # factor on the tolerances of the conformance suite
    expected_failures: ClassVar[Mapping[str, str]] = {}  # check of the conformance suite -> why it does not hold

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def exact_init(self) -> bool:
        """Whether the adapted model starts equal to the base model; a class says no by ``exact_init = False``."""
        return True

    # ---- to define -------------------------------------------------------------------------------------------------
    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        """The adapter's tensors for one layer. Called for several layers at once, each in a thread of its own.

        Args:
            W: base weight, shape (out, in), in the adapter's precision (float32 or float64).
            rng: the only source of randomness.
            stats: what ``needs`` asked for, by name.

        Raises:
            Refused: the method cannot work with these numbers.
        """
        raise NotImplementedError

    def weight(self, W: Tensor, t: Tensors) -> Tensor:  # shape: (out, in)
        """The effective weight on ``W``: the definition of the method, from which everything else follows."""
        raise NotImplementedError

    def parameter_count(self, out: int, in_: int) -> int:
        """Trainable parameters for one layer of this shape, in closed form."""
        raise NotImplementedError

    # ---- may be overridden for speed or because the method has more to say ------------------------------------------
    def check(self, out: int, in_: int) -> None:
        """Raises Refused unless the method can work on a layer of this shape. Asked before ``init``."""

    def thin(self, W: Tensor, t: Tensors) -> Thin | None:
        """The factors, if ``weight`` is ``diag(gain) (W + scale B C A)``. Layers then find the fastest product by
        themselves, unless the method has a ``forward`` of its own."""
        del W, t
        return None

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:  # shape: (..., out)
        """The adapted product without bias, in x's dtype. ``linear`` is the frozen product, possibly quantised."""
        thin = self.thin(W, t)
        if thin is not None:
            return thin.product(x, linear(x))
        turned, V = self.operands(x, W, t)
        return linear(turned) if V is W else products.linear(turned, V.to(x.dtype))

    def operands(self, x: Tensor, W: Tensor, t: Tensors) -> tuple[Tensor, Tensor]:  # shapes: (..., in), (out, in)
        """An input and a weight whose product is the adapted one; W itself stands for the frozen product."""
        return x, self.weight(W, t)

    def explain(self, W: Tensor, t: Tensors, tokens: int) -> str:
        """How a layer with these tensors multiplies this many inputs, in one line for people."""
        thin = self.thin(W, t)
        if thin is not None:
            return described(tokens, W, thin)
        cls = type(self)
        own = cls.forward is not Variant.forward or cls.operands is not Variant.operands
        return "a product of its own" if own else "the weight formed"

    def initial_weight(self, W: Tensor, stats: Tensors | None) -> Tensor | None:  # shape: (out, in)
        """The effective weight at the start, in closed form; None where chance decides it."""
        del stats
        return W if self.exact_init else None

    def bias(self, b: Tensor, t: Tensors) -> Tensor:  # shape: (out,)
        """The effective bias of a layer that has one."""
        del t
        return b

    def output(self, y: Tensor, t: Tensors) -> Tensor:  # shape: (..., out)
        """What follows the layer: a function of its whole output, bias included. Only where ``mergeable`` is False."""
        del t
        return y

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        """The exact low-rank pair on the original ``W``, or None where there is none."""
        del W, t
        return None

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        """What holds at any time in training, each as a distance which is zero: orthonormality, ranks, spectra.

        ``W`` is the original weight. An empty mapping promises nothing.
        """
        del W, t
        return {}

    def shared(self, shapes: Sequence[tuple[int, int]], rng: torch.Generator) -> dict[str, Tensor]:
        """Frozen tensors which all layers of the model use, drawn once; every layer finds them in its ``t``."""
        del shapes, rng
        return {}

    def allocate(
        self, shapes: Mapping[str, tuple[int, int]], stats: Mapping[str, Tensors]
    ) -> Mapping[str, Variant]:  # path -> the method as it is on that layer
        """How the method divides itself among the layers: alike, unless it says otherwise (ranks by need). A path left
        out gets no adapter. ``shapes`` holds each layer's (out, in)."""
        del stats
        return dict.fromkeys(shapes, self)

    def penalty(self, states: States) -> Tensor | None:
        """A term added to the loss, for the whole model."""
        del states
        return None

    def before_step(self, states: States) -> None:
        """Called between backward (after clipping) and the optimiser's step; may change gradients."""

    def after_step(self, states: States, step: int, total: int) -> None:
        """Called after the optimiser's step, while the gradients are still there: projections, retractions, budgets."""

    def param_groups(self, states: States, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups, those of ``no_weight_decay`` last. Every trainable tensor appears exactly once."""
        trained = [(name, p) for state in states for name, p in state.t.items() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [p for n, p in trained if n not in self.no_weight_decay], "lr": lr}]
        if self.no_weight_decay:
            others = [p for name, p in trained if name in self.no_weight_decay]
            groups.append({"params": others, "lr": lr, "weight_decay": 0.0})
        return groups

    def trains_base(self, path: str) -> bool:
        """Whether the base model's own parameter at ``path`` is trained in place (full fine-tuning, BitFit)."""
        del path
        return False
