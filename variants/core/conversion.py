"""What an adapter does to the weights, as low-rank pairs: exact where its method has such a form, else cut to a rank
with what the cut loses; and the same from a model that was fine-tuned in full.

Updates are meant on the ORIGINAL base weight W (out, in): ``dW = effective weight - W``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from variants.core.attachment import check_known, required_unmerged
from variants.core.host import Host, hosts, oriented
from variants.core.interface import Init, LoRAPair, Refused
from variants.core.linalg import full_precision, raised
from variants.core.pairs import Cut, check_rank, fitted, ratio, truncated, truncated_pair
from variants.core.registry import create
from variants.core.restoring import restore
from variants.core.targets import matching_layers


class Conversion(NamedTuple):
    """Updates as pairs, by the path of their layer, and what the pairs do not hold."""

    pairs: dict[str, LoRAPair]  # scaled, in float32 or above
    errors: dict[str, float]  # ||dW - B A||_F / ||dW||_F; 0.0 for an exact pair
    norms: dict[str, float]  # ||dW||_F
    left_out: dict[str, float]  # what else was changed, by tensor: ||new - old|| / ||old||; infinite if one is missing

    @property
    def exact(self) -> bool:
        """Whether the pairs are all that was changed, and nothing was cut off."""
        return not any(self.errors.values()) and not self.left_out

    @property
    def error(self) -> float:
        """``||dW - B A||_F / ||dW||_F`` over all layers together."""
        whole = math.hypot(*self.norms.values())
        return ratio(math.hypot(*(self.errors[path] * self.norms[path] for path in self.errors)), whole)

    @classmethod
    def of(cls, cuts: Mapping[str, Cut], left_out: Mapping[str, float] | None = None) -> Conversion:
        """Cuts by the path of their layer."""
        pairs = {path: cut.pair for path, cut in cuts.items()}
        errors = {path: cut.error for path, cut in cuts.items()}
        return cls(pairs, errors, {path: cut.norm for path, cut in cuts.items()}, dict(left_out or {}))


@torch.no_grad()
@full_precision
def to_pairs(model: nn.Module, name: str = "default", rank: int | None = None) -> Conversion:
    """An adapter as low-rank pairs on the original weights.

    Args:
        rank: None asks for the exact pairs. A number also takes what has none: the best approximation of that rank
            (Eckart and Young), and of exact pairs of a higher rank too. Layers too small for it get their whole rank.

    Returns:
        A bias which the method changes is in no pair; with a ``rank`` it is in ``left_out``. What a base in half
        precision rounds off the residual of a method that replaces it (PiSSA) is not counted as an error.

    Raises:
        Refused: without a rank, where the method has no exact pair or changes a bias; always, where it depends on the
            input, trains the base or the head, or nothing has that name.
    """
    check_rank(rank)
    cuts: dict[str, Cut] = {}
    left_out: dict[str, float] = {}
    for path, host in carriers(model, name).items():
        method, pair = host.carried(name).variant.name, exact_pair(host, name)
        if change := bias_change(host, name):
            left_out[f"{path}.bias"] = change
        if rank is None and change:
            raise Refused(f"{method} changes the bias of {path} too, which no pair holds: give a rank to leave it out")
        if pair is not None:
            cuts[path] = truncated_pair(pair, rank)
        elif rank is not None:
            cuts[path] = truncated(update(host, name), rank)
        else:
            raise Refused(f"{method} has no exact low-rank form on {path}: give a rank for a truncated one")
    return Conversion.of(cuts, left_out)


@torch.no_grad()
@full_precision
def extract(
    base: Mapping[str, Tensor] | nn.Module, tuned: nn.Module, where: str | Sequence[str], rank: int
) -> Conversion:
    """A LoRA from a model that was fine-tuned in full: the update of every matched layer cut to a rank.

    Args:
        base: the model before fine-tuning, or its ``state_dict()``.
        tuned: the model afterwards, without adapters.
        where: patterns of layers, as in ``attach``.
        rank: layers too small for it get their whole rank.

    Returns:
        ``left_out`` has every other tensor in which the models differ: biases, norms, embeddings, heads.

    Raises:
        Refused: a pattern matches nothing, adapters are attached, or a matched layer is not in the base.
    """
    check_rank(rank)
    if hosts(tuned):
        raise Refused("the tuned model carries adapters: take them off by detach(merge=True), or use to_pairs()")
    before = dict(base.state_dict() if isinstance(base, nn.Module) else base)
    after = tuned.state_dict()
    cuts: dict[str, Cut] = {}
    for path in matching_layers(tuned, where):
        key = f"{path}.weight"
        old, new = before.pop(key, None), after.pop(key)
        if old is None or old.shape != new.shape:
            have = "no such tensor" if old is None else f"shape {tuple(old.shape)}"
            raise Refused(f"the tuned model has {key} of shape {tuple(new.shape)}, the base {have}: not the same model")
        change = raised(new) - raised(old).to(new.device)
        cuts[path] = truncated(oriented(tuned.get_submodule(path), change), rank)
    return Conversion.of(cuts, _differences(before, after))


def attach_pairs(model: nn.Module, pairs: Mapping[str, LoRAPair], name: str = "default") -> list[str]:
    """Puts scaled pairs onto a model as the method ``lora``, each layer with its own rank, and switches to them.

    Returns:
        The paths of the adapted layers, in model order.

    Raises:
        Refused: as ``restore``; the model is then as it was.
    """
    fitting = {path: fitted(pair) for path, pair in pairs.items()}
    layers = {
        path: (create("lora", {"rank": len(pair.A)}), Init(train={"A": pair.A, "B": pair.B}))
        for path, pair in fitting.items()
    }
    most = max((len(pair.A) for pair in fitting.values()), default=1)
    return restore(model, create("lora", {"rank": most}), layers, name=name)


# ---- one layer ------------------------------------------------------------------------------------------------------


def carriers(model: nn.Module, name: str) -> dict[str, Host]:
    """The layers that carry an adapter, by path.

    Raises:
        Refused: nothing has that name, or the adapter is more than a change of these layers' weights and biases.
    """
    record = required_unmerged(model)
    check_known(record, [name])
    variant = record.variants[name]
    if variant.trains != "layers" or record.trained_base:
        raise Refused(f"{variant.name} has more than tensors on layers, or none: extract() compares whole models")
    if not variant.mergeable:
        raise Refused(f"{variant.name} depends on the input: it is no change of a weight")
    return {path: host for path, host in hosts(model).items() if name in host.adapter}


def exact_pair(host: Host, name: str) -> LoRAPair | None:
    """The method's exact pair on the original weight, of a rank that LoRA can have there; None if there is none."""
    adapter = host.carried(name)
    pair = adapter.variant.as_lora(raised(host.original_dense()), adapter.tensors())
    return None if pair is None else fitted(LoRAPair(raised(pair.A), raised(pair.B)))


def update(host: Host, name: str) -> Tensor:  # shape: (out, in)
    """dW of the adapter by itself."""
    return host.carried(name).effective(host) - raised(host.original_dense())


def bias_change(host: Host, name: str) -> float:
    """``||new - old|| / ||old||`` of the layer's bias."""
    if host.bias is None:
        return 0.0
    b, adapter = raised(host.bias), host.carried(name)
    return _difference(b, adapter.variant.bias(b, adapter.tensors()))


def _differences(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """The tensors in which two models differ, and by how much."""
    both = {
        key: _difference(before[key], after[key]) if key in before and key in after else math.inf
        for key in {**before, **after}
    }
    return {key: size for key, size in both.items() if size}


def _difference(old: Tensor, new: Tensor) -> float:
    if old.shape != new.shape:
        return math.inf
    old, new = old.double(), new.double().to(old.device)
    return ratio(float((new - old).norm()), float(old.norm()))
