"""Updates of low rank, as several methods share them: what they have in common, and nothing of how they start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from variants.core.fields import Count, Positive
from variants.core.interface import Init, LoRAPair, Refused, States, Tensors, Variant
from variants.core.linalg import orthogonality_defect, random_orthonormal, rank_defect
from variants.core.products import with_product
from variants.core.thin import Thin


@dataclass(frozen=True, kw_only=True)
class Ranked(Variant):
    """A method with a rank of at most min(out, in)."""

    size: ClassVar[str] = "rank"
    rank: Count = 8

    def least_rank(self) -> int:
        """The smallest rank at which the method has something to train."""
        return 1

    def check(self, out: int, in_: int) -> None:
        least, most = self.least_rank(), min(out, in_)
        if not least <= self.rank <= most:
            fits = f"write a rank from {least} to {most}" if least <= most else "leave the layer out"
            raise Refused(f"rank {self.rank} does not fit a {out} x {in_} layer: {fits}")


@dataclass(frozen=True, kw_only=True)
class LowRank(Ranked):
    """A rank and ``scale = alpha / rank``; ``alpha = None`` means alpha = rank, that is scale 1."""

    alpha: Positive | None = None

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class Additive(Variant):
    """``W + B A`` with the pair of ``as_lora``, which is all that a method then defines."""

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        raise NotImplementedError

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + self.as_lora(W, t).delta()

    def thin(self, W: Tensor, t: Tensors) -> Thin | None:
        return Thin(*self.as_lora(W, t))


@dataclass(frozen=True, kw_only=True)
class Pair(LowRank):
    """``W + s B A`` with A (rank, in) and B (out, rank)."""

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + self.scale * t["B"] @ t["A"]

    def thin(self, W: Tensor, t: Tensors) -> Thin | None:
        return Thin(t["A"], t["B"], scale=self.scale)

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (out + in_)

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return LoRAPair(t["A"], self.scale * t["B"])


def zero_pair(rank: int, W: Tensor, rng: torch.Generator) -> LoRAPair:
    """LoRA's start: A uniform within +-1/sqrt(in), B zero."""
    out, in_ = W.shape
    A = torch.empty(rank, in_, dtype=W.dtype).uniform_(-1, 1, generator=rng) / in_**0.5
    return LoRAPair(A, torch.zeros(out, rank, dtype=W.dtype))


@dataclass(frozen=True, kw_only=True)
class Rebased(Pair):
    """LoRA from a start other than zero on the base less that start: ``W - s B0 A0 + s B A``.

    The starting factors are kept as A0 and B0, so that an adapter file restores the function on the stock base, where
    the update is a pair of rank 2 * rank.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("A", "B")  # decay would take a part of the pretrained weight away

    def starting_pair(self, W: Tensor, rng: torch.Generator, stats: Tensors | None) -> LoRAPair:
        """The starting factors A0 (rank, in) and B0 (out, rank), not scaled."""
        raise NotImplementedError

    def split(self, U: Tensor, S: Tensor, Vh: Tensor) -> LoRAPair:
        """The pair with ``s B A = U diag(S) V^T``, each factor with half of every singular value."""
        root = (S / self.scale).sqrt()
        return LoRAPair(root[:, None] * Vh, U * root)

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        A, B = self.starting_pair(W, rng, stats)
        return Init(train={"A": A, "B": B}, frozen={"A0": A, "B0": B}, base=with_product(W, B, A, -self.scale))

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return LoRAPair(torch.cat([t["A"], t["A0"]]), self.scale * torch.cat([t["B"], -t["B0"]], dim=1))


@dataclass(frozen=True, kw_only=True)
class DiagonalPair(Pair):
    """``s B diag(E) A`` in place of ``s B A``, with a trained diagonal E (rank,)."""

    def with_diagonal(self, t: Tensors) -> Tensors:
        """The tensors with ``B diag(E)`` in place of B."""
        return {**t, "B": t["B"] * t["E"]}

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return super().weight(W, self.with_diagonal(t))

    def thin(self, W: Tensor, t: Tensors) -> Thin | None:
        return Thin(t["A"], t["B"], t["E"], self.scale)

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return super().as_lora(W, self.with_diagonal(t))

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        return {"rank of B diag(E) A": rank_defect(self.weight(W, t) - W, self.rank) / (1 + W.norm())}

    def parameter_count(self, out: int, in_: int) -> int:
        return super().parameter_count(out, in_) + self.rank


def orthogonality_defects(states: States, factors: Sequence[str]) -> Tensor:  # shape: (layers * factors,)
    """``||X^T X - I||_F`` of the named factors in every layer; of the rows where a factor is wide."""
    named = [state.t[name] for state in states for name in factors]
    return torch.stack([orthogonality_defect(X if X.shape[0] > X.shape[1] else X.mT) for X in named])


@dataclass(frozen=True, kw_only=True)
class FrozenBases(Additive, LowRank):
    """``W + s B R A``: only the core R (rank, rank) trains, between frozen A (rank, in) and B (out, rank).

    The bases travel in the adapter file: recomputed ones may differ in sign or rotation.
    """

    exact_init = False

    def thin(self, W: Tensor, t: Tensors) -> Thin | None:
        return Thin(t["A"], t["B"], t["R"], self.scale)

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank**2

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        return LoRAPair(t["A"], self.scale * t["B"] @ t["R"])

    def defects(self, W: Tensor, t: Tensors) -> dict[str, Tensor]:
        beyond = rank_defect(self.weight(W, t) - W, self.rank) / (1 + W.norm())
        return {"rank of the update": beyond, "B": orthogonality_defect(t["B"])}


@dataclass(frozen=True, kw_only=True)
class USV(Additive, LowRank):
    """``W + c U s V^T``, ``c = alpha / rank``: U (out, rank) and V (in, rank) start orthonormal, s starts at zero.

    ``middle``: s is the diagonal of the middle factor, or the whole of it; both reach every update of this rank.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("U", "V")  # it would pull against the constraint

    middle: Literal["diagonal", "full"] = "diagonal"

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        del stats
        U, V = (random_orthonormal(n, self.rank, rng, W.dtype) for n in W.shape)
        s = torch.zeros((self.rank,) if self.middle == "diagonal" else (self.rank, self.rank), dtype=W.dtype)
        return Init(train={"U": U, "s": s, "V": V})

    def factors(self, t: Tensors) -> tuple[Tensor, Tensor]:  # shapes: (out, rank), (in, rank)
        """U and V."""
        return t["U"], t["V"]

    def thin(self, W: Tensor, t: Tensors) -> Thin | None:
        U, V = self.factors(t)
        return Thin(V.T, U, t["s"], self.scale)

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        U, V = self.factors(t)
        return LoRAPair(V.T, self.scale * (U * t["s"] if self.middle == "diagonal" else U @ t["s"]))

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (out + in_ + (1 if self.middle == "diagonal" else self.rank))
