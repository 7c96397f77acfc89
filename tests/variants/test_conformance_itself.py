"""The guard of the guard: each check is held against a method that breaks it, and must notice.

The broken methods differ from a working one in one line, so that no check can pass by noticing something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from variants.core import (
    Init,
    LoRAPair,
    States,
    Tensors,
    Variant,
    checks as suite,
    conformance,
    project,
)
from variants.core.cases import CASES
from variants.core.checks import Check
from variants.core.host import Host
from variants.core.interface import FrozenProduct
from variants.dora import DoRA
from variants.lora import LoRA
from variants.lora_xs import LoRAXS
from variants.pissa import PiSSA
from variants.stiefel import Stiefel

CASE = CASES[0]


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


class CountedButUnused(UnusedTensor):
    def parameter_count(self, out: int, in_: int) -> int:
        return super().parameter_count(out, in_) + 3


class WrongCount(LoRA):
    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (out + in_ + 1)


class PairOnResidual(PiSSA):
    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return LoRAPair(t["A"], self.scale * t["B"])


class PairWithoutScale(LoRA):
    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return LoRAPair(t["A"], t["B"])


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
        y = super().forward(x, linear, W, t)
        return y.to(torch.promote_types(y.dtype, torch.float32))


class WritesIntoBase(LoRA):
    """``W += BA; linear(x); W -= BA``, as libraries do which merge and unmerge by subtraction."""

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        with torch.no_grad():
            W += t["B"] @ t["A"]
            y = linear(x)
            W -= t["B"] @ t["A"]
        return y + project(self.scale * project(x, t["A"]), t["B"])


class NudgesBase(LoRA):
    """Leaves the last bits of a base in half precision changed."""

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        with torch.no_grad():
            if W.dtype == torch.bfloat16:
                W.mul_(1 + 2**-8)
        return super().forward(x, linear, W, t)


class WrongMerge(LoRA):
    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        return W + t["B"] @ t["A"]


class HiddenGain(LoRA):
    """Keeps a random number on the side instead of in the adapter."""

    hidden: ClassVar[dict[str, float]] = {}

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        self.hidden["gain"] = 1 + float(torch.rand(1, generator=rng))
        return super().init(W, rng, stats)

    @property
    def scale(self) -> float:
        return self.hidden["gain"]


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
                state.t["U"].mul_(0.9 if step == 0 else 1)


class StartsNowhere(LoRA):
    """Says where it starts, and starts somewhere else."""

    exact_init = False

    def initial_weight(self, W: Tensor, stats: Tensors | None) -> Tensor | None:
        return 2 * W


class NotANumber(LoRA):
    def penalty(self, states: States) -> Tensor | None:
        return states[0].t["A"].sum() / 0


class Soft(LoRA):
    """Draws the rows of A towards orthonormal ones, as a correct method would."""

    orthonormal = ("A",)

    def penalty(self, states: States) -> Tensor | None:
        grams = (state.t["A"] @ state.t["A"].T for state in states)
        return torch.stack([(gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum() for gram in grams]).sum()


class Kinked(Soft):
    """The norm itself has no gradient at zero: 0 / 0."""

    def penalty(self, states: States) -> Tensor | None:
        squared = super().penalty(states)
        return None if squared is None else squared.sqrt()


class WrongSide(Soft):
    """Columns of a wide factor cannot be orthonormal."""

    def penalty(self, states: States) -> Tensor | None:
        grams = (state.t["A"].T @ state.t["A"] for state in states)
        return torch.stack([(gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum() for gram in grams]).sum()


class PenalisesNothing(Soft):
    def penalty(self, states: States) -> Tensor | None:
        return 0 * states[0].t["A"].sum()


class Unretracted(Stiefel):
    """Steps off the manifold and stays there."""

    def after_step(self, states: States, step: int, total: int) -> None:
        for state in states:
            state.scratch.clear()


class DriftsLate(Stiefel):
    """Holds the constraint for a while."""

    def after_step(self, states: States, step: int, total: int) -> None:
        super().after_step(states, step, total)
        with torch.no_grad():
            for state in states:
                state.t["U"].mul_(1 if step < 150 else 1 - 1e-3)


class MovesItsBases(LoRAXS):
    """Lets a frozen basis grow."""

    def after_step(self, states: States, step: int, total: int) -> None:
        with torch.no_grad():
            for state in states:
                state.t["A"].mul_(1.01)


class WritesIntoTheBase(LoRA):
    def after_step(self, states: States, step: int, total: int) -> None:
        with torch.no_grad():
            for state in states:
                state.W.mul_(1 + 1e-3 * min(step, 1))


class Climbs(LoRA):
    def before_step(self, states: States) -> None:
        for state in states:
            for tensor in state.t.values():
                if tensor.grad is not None:
                    tensor.grad.neg_()


class Reseeds(LoRA):
    def before_step(self, states: States) -> None:
        torch.manual_seed(0)


class FirstLayerOnly(Stiefel):
    """Retracts one layer's factors, and leaves the others where the optimiser put them."""

    def before_step(self, states: States) -> None:
        super().before_step(states[:1])

    def after_step(self, states: States, step: int, total: int) -> None:
        super().after_step(states[:1], step, total)


class TallOnly(Stiefel):
    """Retracts where there are more outputs than inputs."""

    def before_step(self, states: States) -> None:
        super().before_step([s for s in states if s.W.shape[0] >= s.W.shape[1]])

    def after_step(self, states: States, step: int, total: int) -> None:
        super().after_step([s for s in states if s.W.shape[0] >= s.W.shape[1]], step, total)


class RightAtTwo(LoRA):
    def parameter_count(self, out: int, in_: int) -> int:
        return 2 * (out + in_)


class OwnRate(LoRA):
    def param_groups(self, states: States, lr: float) -> list[dict[str, Any]]:
        return super().param_groups(states, 1e-3)


class MixesRows(LoRA):
    """Sees the mean of the batch, in a way that an effective weight cannot."""

    mergeable = False

    def output(self, y: Tensor, t: Tensors) -> Tensor:
        return y + t["B"].sum().to(y.dtype) * y.mean(dim=0, keepdim=True) if y.ndim > 1 else y

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return None


class DecaysMagnitudes(DoRA):
    no_weight_decay = ()


class WrongBias(LoRA):
    """Adds to the bias what merging does not find."""

    def bias(self, b: Tensor, t: Tensors) -> Tensor:
        return b + t["B"][:, 0] if torch.is_grad_enabled() else b


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


BROKEN: list[tuple[Check, Variant, str]] = [
    (suite.starts_where_it_says, StartsElsewhere(rank=2), "start in torch.float64: off by"),
    (suite.starts_where_it_says, StartsNowhere(rank=2), "start: off by"),
    (suite.forward_is_weight, NoScale(rank=2, alpha=3.0), "value: off by"),
    (suite.forward_is_weight, DetachedA(rank=2), "gradient of A: off by"),
    (suite.forward_is_weight, DetachedInput(rank=2), "gradient of x: off by"),
    (suite.forward_is_weight, WrongMerge(rank=2, alpha=3.0), "value: off by"),
    (suite.merge_equals_adapted, WrongBias(rank=2, alpha=3.0), r"merged\(\) in torch.float64: off by"),
    (suite.detach_restores_bits, WritesIntoBase(rank=2), "bits of layer.weight changed"),
    (suite.detach_restores_bits, NudgesBase(rank=2), "bits of layer.weight changed"),
    (suite.every_tensor_trains, UnusedTensor(rank=2), "no gradient: .*unused"),
    (suite.every_tensor_trains, CountedButUnused(rank=2), "no gradient: .*unused"),
    (suite.every_tensor_trains, DetachedA(rank=2), r"no gradient: \['layer.adapter.default.A'\]"),
    (suite.seed_decides_init, GlobalRandom(rank=2), "torch's global generator was used"),
    (suite.seed_decides_init, OwnSeed(rank=2), "A differs under the same seed"),
    (suite.round_trip, HiddenGain(rank=2), "function after loading: off by"),
    (suite.count_is_closed_form, WrongCount(rank=2), "says 30, the tensors have 28"),
    (suite.count_is_closed_form, UnusedTensor(rank=2), "says 28, the tensors have 31"),
    (suite.pair_is_exact, PairOnResidual(rank=2), "pair on the original weight: off by"),
    (suite.pair_is_exact, PairWithoutScale(rank=2, alpha=3.0), "pair on the original weight: off by"),
    (suite.keeps_dtype, Widens(rank=2), "bfloat16 in, torch.float32 out"),
    (suite.keeps_dtype, NarrowTensors(rank=2), "is kept in torch.bfloat16"),
    (suite.init_is_pure, WritesIntoW(rank=2), "init wrote into W"),
    (suite.init_is_pure, NarrowTensors(rank=2), "is torch.bfloat16 for a torch.float32 weight"),
    (suite.groups_cover_all, ForgetsGroup(rank=2), "param_groups misses"),
    (suite.groups_cover_all, RepeatsGroup(rank=2), "param_groups misses or repeats"),
    (suite.resting_changes_nothing, DriftsAtRest(rank=2), "U after a step of zero length: off by"),
    (suite.penalty_is_zero_on_the_constraint, NotANumber(rank=2), "penalty is a finite number"),
    (suite.penalty_is_zero_on_the_constraint, Kinked(rank=2), "the penalty's gradient is not finite"),
    (suite.penalty_is_zero_on_the_constraint, WrongSide(rank=2), "the penalty is 4 on the constraint, not 0"),
    (suite.penalty_is_zero_on_the_constraint, PenalisesNothing(rank=2), "does not grow off the constraint"),
    (suite.promises_hold_in_training, Unretracted(rank=2), "after 200 steps"),
    (suite.promises_hold_in_training, DriftsLate(rank=2), "after 200 steps"),
    (suite.promises_hold_in_training, FirstLayerOnly(rank=2), "after 200 steps"),
    (suite.promises_hold_in_training, TallOnly(rank=2), "after 200 steps"),
    (suite.training_trains, MovesItsBases(rank=2), "layers.0.adapter.default.A is frozen and has changed"),
    (suite.training_trains, WritesIntoTheBase(rank=2), "layers.0.weight is frozen and has changed"),
    (suite.training_trains, Climbs(rank=2), "the loss went from"),
    (suite.training_trains, Reseeds(rank=2), "used torch's global generator"),
    (suite.count_is_closed_form, RightAtTwo(rank=2), "says 28, the tensors have 42"),
    (suite.groups_cover_all, OwnRate(rank=2), "do not follow lr"),
    (suite.decay_leads_to_the_base, DecaysMagnitudes(rank=2), "after decay alone: off by"),
    (suite.rows_do_not_mix, MixesRows(rank=2), "a row by itself"),
    (suite.can_be_copied, Unpicklable(rank=2), "cannot be pickled"),
    (suite.can_be_copied, SharedState(rank=2), "deepcopy computes something else"),
    (suite.compiles_whole, Branches(rank=2), "the graph breaks"),
]


@pytest.mark.parametrize(
    ("check", "broken", "complaint"), BROKEN, ids=[f"{check.__name__}-{type(v).__name__}" for check, v, _ in BROKEN]
)
def test_the_check_notices(check: Check, broken: Variant, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check(broken, CASE)


def noticed(broken: Variant) -> set[str]:
    return {c.__name__ for c in (*suite.CHECKS, *suite.SLOW_CHECKS) if conformance.complaint(c, broken, CASE)}


@pytest.mark.parametrize("check", [c for c in (*suite.CHECKS, *suite.SLOW_CHECKS) if c is not suite.base_keys_stay])
def test_no_other_check_stands_in_for_it(check: Check) -> None:
    """There is a fault which this check sees and no other one does: left out, or weakened, it would let it through."""
    mine = [broken for guard, broken, _ in BROKEN if guard is check]
    assert {check.__name__} in [noticed(broken) for broken in mine]


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        ("_save_to_state_dict", "a key of the base no longer means the base"),
        ("_load_from_state_dict", "the checkpoint did not arrive"),
    ],
)
def test_the_check_of_keys_notices(monkeypatch: pytest.MonkeyPatch, method: str, complaint: str) -> None:
    """The keys of the base are the host's doing: a host that does not look after them fails under a residual base."""
    monkeypatch.delattr(Host, method)
    with pytest.raises(AssertionError, match=complaint):
        suite.base_keys_stay(PiSSA(rank=2), CASE)


@pytest.mark.parametrize("check", [*suite.CHECKS, *suite.SLOW_CHECKS], ids=lambda check: check.__name__)
def test_the_check_is_guarded(check: Check) -> None:
    assert check in {guarded for guarded, _, _ in BROKEN} | {suite.base_keys_stay}


@pytest.mark.parametrize("variant", [LoRA(rank=2), PiSSA(rank=2), Stiefel(rank=2)], ids=lambda v: v.name)
@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_the_check_accepts_what_the_broken_ones_were_made_from(check: Check, variant: Variant) -> None:
    check(variant, CASE)
