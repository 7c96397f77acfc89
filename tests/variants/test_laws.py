"""The guard of the guard: each law is held against a method that breaks it, and must notice.

The broken methods differ from a working one in one line, so that no law can pass by noticing something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.variants import laws
from tests.variants.laws import Case, Law
from variants.core import Init, LoRAPair, States, Tensors, Variant, project
from variants.core.host import Host
from variants.core.interface import FrozenProduct
from variants.lora import LoRA
from variants.pissa import PiSSA
from variants.stiefel import Stiefel

CASE = Case(7, 5)


class NoScale(LoRA):
    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return linear(x) + project(project(x, t["A"]), t["B"])


class DetachedA(LoRA):
    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return linear(x) + project(self.scale * project(x, t["A"].detach()), t["B"])


class DetachedInput(LoRA):
    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return linear(x) + project(self.scale * project(x.detach(), t["A"]), t["B"])


class StartsElsewhere(LoRA):
    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        start = super().init(W, rng, stats)
        return replace(start, train={**start.train, "B": torch.ones_like(start.train["B"])})


class GlobalRandom(LoRA):
    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        start = super().init(W, rng, stats)
        return replace(start, train={**start.train, "A": torch.rand_like(start.train["A"])})


class OwnSeed(LoRA):
    """Leaves the global generators alone and still answers one seed with two starts."""

    draws: ClassVar[list[int]] = []

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        self.draws.append(len(self.draws))
        return super().init(W, torch.Generator().manual_seed(len(self.draws)), stats)


class UnusedTensor(LoRA):
    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        start = super().init(W, rng, stats)
        return replace(start, train={**start.train, "unused": torch.ones(3, dtype=W.dtype)})


class WrongCount(LoRA):
    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (out + in_ + 1)


class PairOnResidual(PiSSA):
    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return LoRAPair(t["A"], self.scale * t["B"])


class WritesIntoW(LoRA):
    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        start = super().init(W, rng, stats)
        W.mul_(2)
        return start


class NarrowTensors(LoRA):
    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        return Init(train={name: t.bfloat16() for name, t in super().init(W, rng, stats).train.items()})


class Widens(LoRA):
    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return super().forward(x, linear, W, t).float()


class WritesIntoBase(LoRA):
    """``W += BA; linear(x); W -= BA``, as libraries do which merge and unmerge by subtraction."""

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        with torch.no_grad():
            W += t["B"] @ t["A"]
            y = linear(x)
            W -= t["B"] @ t["A"]
        return y + project(self.scale * project(x, t["A"]), t["B"])


class WrongMerge(LoRA):
    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + t["B"] @ t["A"]


class HiddenTensor(LoRA):
    """Keeps a random basis on the side instead of in the adapter."""

    hidden: ClassVar[dict[str, Tensor]] = {}

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        self.hidden["A"] = super().init(W, rng, stats).train["A"]
        return Init(train={"B": torch.zeros(W.shape[0], self.rank, dtype=W.dtype)})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return super().weight(W, {**t, "A": self.hidden["A"]})

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return super().forward(x, linear, W, {**t, "A": self.hidden["A"]})


class ForgetsGroup(Stiefel):
    def param_groups(self, states: States, lr: float) -> list[dict[str, Any]]:
        return super().param_groups(states, lr)[1:]


class RepeatsGroup(Stiefel):
    def param_groups(self, states: States, lr: float) -> list[dict[str, Any]]:
        return super().param_groups(states, lr) * 2


class DriftsAtRest(Stiefel):
    def after_step(self, states: States, step: int, total: int) -> None:
        super().after_step(states, step, total)
        with torch.no_grad():
            for state in states:
                state.t["U"].mul_(0.9)


class NotANumber(LoRA):
    def penalty(self, states: States) -> Tensor | None:
        return torch.zeros(()) / 0


@dataclass(frozen=True, kw_only=True)
class Unpicklable(LoRA):
    activation: Callable[[Tensor], Tensor] = field(default=lambda z: z)


class Branches(LoRA):
    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        return super().forward(x, linear, W, t) if x.sum().item() > -1e9 else x


@dataclass(frozen=True, kw_only=True)
class SharedState(LoRA):
    """A counter that all copies share changes what each of them computes."""

    calls: ClassVar[list[int]] = []

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        self.calls.append(1)
        return super().forward(x, linear, W, t) * len(self.calls)


BROKEN: list[tuple[Law, Variant, str]] = [
    (laws.starts_at_base, StartsElsewhere(rank=2), "start in torch.float64: off by"),
    (laws.forward_is_weight, NoScale(rank=2, alpha=3.0), "value: off by"),
    (laws.forward_is_weight, DetachedA(rank=2), "gradient of A: off by"),
    (laws.forward_is_weight, DetachedInput(rank=2), "gradient of x: off by"),
    (laws.forward_is_weight, WrongMerge(rank=2, alpha=3.0), "value: off by"),
    (laws.merge_equals_adapted, WrongMerge(rank=2, alpha=3.0), r"merged\(\) in torch.float64: off by"),
    (laws.detach_restores_bits, WritesIntoBase(rank=2), "bits of layer.weight changed"),
    (laws.every_tensor_trains, UnusedTensor(rank=2), "no gradient: .*unused"),
    (laws.every_tensor_trains, DetachedA(rank=2), r"no gradient: \['layer.adapter.default.A'\]"),
    (laws.seed_decides_init, GlobalRandom(rank=2), "torch's global generator was used"),
    (laws.seed_decides_init, OwnSeed(rank=2), "A differs under the same seed"),
    (laws.round_trip, HiddenTensor(rank=2), "function after loading: off by"),
    (laws.count_is_closed_form, WrongCount(rank=2), "says 26, the tensors have 24"),
    (laws.count_is_closed_form, UnusedTensor(rank=2), "says 24, the tensors have 27"),
    (laws.pair_is_exact, PairOnResidual(rank=2), "pair on the original weight: off by"),
    (laws.keeps_dtype, Widens(rank=2), "bfloat16 in, torch.float32 out"),
    (laws.keeps_dtype, NarrowTensors(rank=2), "is kept in torch.bfloat16"),
    (laws.init_is_pure, WritesIntoW(rank=2), "init wrote into W"),
    (laws.init_is_pure, NarrowTensors(rank=2), "is torch.bfloat16 for a torch.float32 weight"),
    (laws.groups_cover_all, ForgetsGroup(rank=2), "param_groups misses"),
    (laws.groups_cover_all, RepeatsGroup(rank=2), "param_groups misses or repeats"),
    (laws.resting_changes_nothing, DriftsAtRest(rank=2), "U after a step of zero length: off by"),
    (laws.resting_changes_nothing, NotANumber(rank=2), "penalty is a finite number"),
    (laws.can_be_copied, Unpicklable(rank=2), "cannot be pickled"),
    (laws.can_be_copied, SharedState(rank=2), "deepcopy computes something else"),
    (laws.compiles_whole, Branches(rank=2), "the graph breaks"),
]


@pytest.mark.parametrize(
    ("law", "broken", "complaint"), BROKEN, ids=[f"{law.__name__}-{type(v).__name__}" for law, v, _ in BROKEN]
)
def test_the_law_notices(law: Law, broken: Variant, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        law(broken, CASE)


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        ("_save_to_state_dict", "a key of the base no longer means the base"),
        ("_load_from_state_dict", "the checkpoint did not arrive"),
    ],
)
def test_the_law_of_keys_notices(monkeypatch: pytest.MonkeyPatch, method: str, complaint: str) -> None:
    """The keys of the base are the host's doing: a host that does not look after them fails under a residual base."""
    monkeypatch.delattr(Host, method)
    with pytest.raises(AssertionError, match=complaint):
        laws.base_keys_stay(PiSSA(rank=2), CASE)


@pytest.mark.parametrize("law", [*laws.LAWS, *laws.SLOW_LAWS], ids=lambda law: law.__name__)
def test_the_law_is_guarded(law: Law) -> None:
    assert law in {guarded for guarded, _, _ in BROKEN} | {laws.base_keys_stay}


@pytest.mark.parametrize("variant", [LoRA(rank=2), PiSSA(rank=2), Stiefel(rank=2)], ids=lambda v: v.name)
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_the_law_accepts_what_the_broken_ones_were_made_from(law: Law, variant: Variant) -> None:
    law(variant, CASE)
