"""What is timed against what: our methods, and beside each the method of PEFT that computes the same.

Hyperparameters are equal; that the two then are equal functions, in value and in every gradient, is held by
``tests/variants/test_*_against_peft.py``. Left out of the pairs: what PEFT has as an optimiser (LoRA+, scaled LoRA),
and starts which need its own pass over data (EVA, CorDA, LoRA-GA).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import evaluation.peers  # noqa: F401  registers the names peft:NAME
from evaluation.spec import Unusable
from variants.adalora import AdaLoRA
from variants.core import UnknownHyperparameter, UnknownMethod, Variant, create, method, names
from variants.core.registry import suggestion

BASELINE = "lora"
PEFT = "peft:"  # before the label of a method: PEFT's implementation of it


@dataclass(frozen=True)
class Entry:
    """A method of ours as it is timed, and PEFT's own of equal hyperparameters, if it has one."""

    label: str
    variant: Variant
    peer: Variant | None = None

    def contestants(self) -> dict[str, Variant]:
        """label -> what trains under it."""
        return {self.label: self.variant} | ({} if self.peer is None else {PEFT + self.label: self.peer})


@dataclass(frozen=True)
class Pair:
    """Hyperparameters of ours, where they are not the defaults, and of the method ``kind`` of PEFT."""

    ours: dict[str, Any]
    kind: str
    theirs: dict[str, Any]
    name: str = ""  # of our method, where the label is another


def pairs(rank: int, total: int) -> dict[str, Pair]:
    """Label -> the pair, for adapters of this rank in a run of ``total`` steps, which rank budgets depend on.

    Blocks of rotations are 4 * rank wide in OFT, and ``rank`` in BOFT, of which PEFT has one factor where its CUDA
    extension is not built.
    """
    lora, block = {"r": rank, "lora_alpha": rank}, 4 * rank
    exact, series = ({"use_cayley_neumann": cut} for cut in (False, True))
    oft = {"r": 0, "oft_block_size": block}
    return {
        "lora": Pair({}, "lora", lora),
        "rslora": Pair({}, "lora", lora | {"use_rslora": True}),
        "dora": Pair({}, "lora", lora | {"use_dora": True}),
        "pissa": Pair({}, "lora", lora | {"init_lora_weights": "pissa"}),
        "olora": Pair({}, "lora", lora | {"init_lora_weights": "olora"}),
        "kasa": Pair({}, "lora", lora | {"kasa_config": {"beta": 1e-4, "gamma": 1e-3}}),
        "adalora": Pair({"faithful": "code"}, "adalora", _adalora(rank, total)),
        "psoft": Pair({}, "psoft", {"r": rank}),
        "oft": Pair({"block": block}, "oft", oft | exact),
        "oft-neumann": Pair({"block": block, "inverse": "neumann"}, "oft", oft | series, "oft"),
        "boft": Pair({"block": rank, "butterflies": 1}, "boft", {"boft_block_size": rank}),
        "hra": Pair({}, "hra", {"r": rank}),
        "vera": Pair({}, "vera", {"r": rank, "d_initial": 0.1}),
        "delora": Pair({}, "delora", {"r": rank, "delora_lambda": 15.0}),
        "ia3": Pair({}, "ia3", {"feedforward_modules": []}),
    }


def _adalora(rank: int, total: int) -> dict[str, Any]:
    """PEFT counts its phases in steps of a run whose length it must know."""
    ours = AdaLoRA(rank=rank, faithful="code")
    first, last = ours.phases(total)
    phases = {"tinit": first, "tfinal": total - last, "total_step": total, "deltaT": ours.interval}
    smoothing = {"beta1": ours.beta1, "beta2": ours.beta2, "orth_reg_weight": ours.penalty_weight}
    target = max(1, round(rank * 2 / 3))
    return {"init_r": rank, "target_r": target, "lora_alpha": rank, **phases, **smoothing}


def usual() -> list[str]:
    """What is timed unless asked otherwise: what PEFT has too, full fine-tuning, and some that it has not."""
    return [*pairs(8, 100), "full", "svf", "svft", "lora_xs", "stiefel"]


def known() -> list[str]:
    """Every label, with those that have a peer first."""
    paired = list(pairs(8, 100))
    return [*paired, *(name for name in names() if name not in paired)]


def entries(labels: Sequence[str], rank: int, total: int, peers: bool = True) -> list[Entry]:
    """The methods that are timed under these labels, the baseline first.

    Raises:
        Unusable: a label is unknown, or PEFT is not there to be compared with.
    """
    found = pairs(rank, total)
    for label in labels:
        if label not in known() and not label.startswith(PEFT):
            raise Unusable(f"unknown method {label!r}: {suggestion(label, known())}")
        if label.startswith(PEFT):
            raise Unusable(f"{label}: PEFT's own are timed beside ours; name ours, {label.removeprefix(PEFT)}")
    ordered = dict.fromkeys([BASELINE, *labels])
    return [_entry(label, found.get(label), rank, peers) for label in ordered]


def _entry(label: str, pair: Pair | None, rank: int, peers: bool) -> Entry:
    if pair is None:
        return Entry(label, _ours(label, rank, {}))
    peer = create(f"{PEFT}{pair.kind}", pair.theirs) if peers else None
    return Entry(label, _ours(pair.name or label, rank, pair.ours), peer)


def _ours(name: str, rank: int, settings: dict[str, Any]) -> Variant:
    fields = {field.name for field in dataclasses.fields(method(name))}
    ranked = {"rank": rank} if "rank" in fields else {}
    try:
        return create(name, ranked | settings)
    except (UnknownMethod, UnknownHyperparameter, ValueError) as error:
        raise Unusable(f"{name}: {error}") from error
