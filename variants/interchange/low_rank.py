"""PEFT's formats of low-rank updates: LoRA with its relatives, AdaLoRA and VeRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from variants.core.interface import Init, Refused, Variant
from variants.interchange.contents import (
    Carried,
    Contents,
    Format,
    Found,
    Options,
    Restored,
    Unfit,
    made,
    only,
    patterned,
)
from variants.interchange.targets import Patterns

_CONVERT = "path_initial_model_for_weight_conversion"
# Starts which leave the base as it is: the file's factors are then all there is.
_PLAIN = (True, False, "gaussian", "orthogonal", "mica", "eva")
_REBASED = ("pissa", "olora")  # a start that follows from the base weight alone, and is taken from it


def pairs(ranks: Mapping[str, int], alphas: Mapping[str, float], **flags: Any) -> dict[str, Any]:
    """The settings of LoRA with these ranks and alphas."""
    (r, rank_pattern), (alpha, alpha_pattern) = patterned(ranks), patterned(alphas)
    patterns = {"rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
    return {"r": r, "lora_alpha": alpha, "init_lora_weights": True, **patterns, **flags}


class LoRA(Format):
    """``W + s B A`` with A (r, in), B (out, r), s = alpha / r or alpha / sqrt(r); with ``use_dora`` also the magnitudes
    (out,), whose name alone has no ``.weight`` behind it."""

    peft_type = "LORA"
    methods = frozenset({"lora", "rslora", "dora"})
    names = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")

    def write(self, layers: Mapping[str, Carried]) -> Contents:
        name = only((layer.variant.name for layer in layers.values()), "the method")
        hyper: dict[str, Any] = {path: layer.variant for path, layer in layers.items()}
        ranks = {path: v.rank for path, v in hyper.items()}
        alphas = {path: v.rank if v.alpha is None else v.alpha for path, v in hyper.items()}
        tensors = {path: {self.names[0]: c.t["A"], self.names[1]: c.t["B"]} for path, c in layers.items()}
        if name == "dora":
            for path, layer in layers.items():
                if not bool((layer.W + hyper[path].scale * layer.t["B"] @ layer.t["A"]).any(dim=1).all()):
                    raise Unfit(f"a row of {path} is all zeros, which PEFT's DoRA divides by its length")
                tensors[path][self.names[2]] = layer.t["m"]
        config = pairs(ranks, alphas, use_rslora=name == "rslora", use_dora=name == "dora")
        return Contents(config, tensors, ranks=ranks)

    def read(self, options: Options, layers: list[Found], shared: dict[str, Tensor]) -> Restored:
        start, dora = options.get("init_lora_weights", True), options.flag("use_dora")
        _check_start(start, dora)
        r, alpha = options.count("r", 8), options.number("lora_alpha", 8)
        ranks, alphas = (Patterns(options.table(key)) for key in ("rank_pattern", "alpha_pattern"))
        root = options.flag("use_rslora")
        method = start if start in _REBASED else "dora" if dora else "rslora" if root else "lora"
        restored = Restored({}, replaces_base=start in _REBASED)
        for layer in layers:
            rank, own_alpha = ranks.number(layer.path, r), alphas.number(layer.path, alpha)
            if root and method != "rslora":  # ours divide by the rank
                own_alpha = own_alpha * rank**0.5
            variant = made(method, layer.path, rank=rank, alpha=own_alpha)
            restored.layers[layer.path] = variant, self._init(layer, variant, rank, dora, restored.replaces_base)
        return restored

    def _init(self, layer: Found, variant: Variant, rank: int, dora: bool, rebased: bool) -> Init:
        out, in_ = layer.W.shape
        train = {"A": layer.take(self.names[0], rank, in_), "B": layer.take(self.names[1], out, rank)}
        if dora:
            train["m"] = layer.take(self.names[2], out)
        if not rebased:
            return Init(train=train)
        if variant.name == "olora" and layer.transposed:
            raise Refused(f"{layer.path} stores its weight as (in, out), which PEFT's OLoRA decomposes the wrong way")
        # The product of the starting factors does not depend on their signs, which is all that PEFT's have otherwise.
        variant.check(out, in_)
        return Init(train=train, frozen=variant.init(layer.W, torch.Generator().manual_seed(0)).frozen)


def _check_start(start: Any, dora: bool) -> None:
    """Raises Refused unless the base under the adapter is known."""
    if isinstance(start, bool) or start in _PLAIN:
        return
    if start in _REBASED:
        if dora:
            raise Refused(
                f"use_dora with init_lora_weights={start!r} rescales a base without the start: no method here"
            )
        return
    why = "replaces the base by one that cannot be known from this file"
    if isinstance(start, str) and start.startswith("pissa_niter_"):
        why = "starts from a randomised decomposition without a seed, which PEFT itself does not find again"
    again = f"save it in PEFT with save_pretrained(..., {_CONVERT}=...), which makes a plain LoRA of it"
    raise Refused(f"init_lora_weights={str(start)[:80]!r} {why}: {again}")


class AdaLoRA(Format):
    """``W + B (A E) alpha / (r + 1e-5)`` with A (k, in), B (out, k), E (k, 1): the k triplets that were kept of r, by a
    mask for every layer."""

    peft_type = "ADALORA"
    methods = frozenset({"adalora"})
    names = ("lora_A", "lora_B", "lora_E")
    # Its schedule and penalty, and LoRA's rank, which it does not use.
    harmless = frozenset(
        ("r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step")
    )
    absent = frozenset(("alpha_pattern", "use_rslora", "use_dora"))

    def write(self, layers: Mapping[str, Carried]) -> Contents:
        hyper: list[Any] = [layer.variant for layer in layers.values()]
        r, scale = (only((getattr(v, key) for v in hyper), key) for key in ("rank", "scale"))
        tensors, masks, ranks = {}, {}, {}
        for path, layer in layers.items():
            A, B, E = (layer.t[key] for key in ("A", "B", "E"))
            kept = E != 0
            kept[0] |= not bool(kept.any())  # one of no effect, rather than empty tensors
            tensors[path] = {"lora_A": A[kept], "lora_B": B[:, kept], "lora_E": E[kept, None]}
            ranks[path] = int(kept.sum())
            if ranks[path] < r:
                masks[f"{path}.lora_E"] = kept.tolist()
        # PEFT divides by r + 1e-5, also what was pruned, and asks for a schedule.
        config = {
            "init_r": r,
            "target_r": r,
            "lora_alpha": scale * (r + 1e-5),
            "total_step": 1,
            "rank_pattern": masks or None,
        }
        return Contents(config, tensors, ranks=ranks)

    def read(self, options: Options, layers: list[Found], shared: dict[str, Tensor]) -> Restored:
        r, alpha, masks = options.count("init_r", 12), options.number("lora_alpha", 8), options.table("rank_pattern")
        _check_start(options.get("init_lora_weights", True), False)
        restored = Restored({})
        for layer in layers:
            variant, mask = (
                made("adalora", layer.path, rank=r, alpha=alpha, faithful="code"),
                masks.get(f"{layer.path}.lora_E"),
            )
            (out, in_), k = layer.W.shape, r if mask is None else _kept(mask, r, layer.path)
            A, B, E = layer.take("lora_A", k, in_), layer.take("lora_B", out, k), layer.take("lora_E", k, 1).flatten()
            if mask is not None:  # pruned triplets are there, with E = 0
                kept = torch.tensor(mask).nonzero().flatten()
                A, E = (X.new_zeros(r, *X.shape[1:]).index_copy(0, kept, X) for X in (A, E))
                B = B.new_zeros(out, r).index_copy(1, kept, B)
            restored.layers[layer.path] = variant, Init(train={"A": A, "B": B, "E": E})
        return restored


def _kept(mask: Any, r: int, path: str) -> int:
    """How many triplets a mask keeps."""
    if not isinstance(mask, list) or len(mask) != r or not all(isinstance(kept, bool) for kept in mask):
        raise Refused(f"rank_pattern of {path} is a list of {r} truth values, not {str(mask)[:80]}")
    return sum(mask)


class VeRA(Format):
    """``W + (b B) (d A)`` with b (out,), d (r,), and the first rows of one B and columns of one A for all layers."""

    peft_type = "VERA"
    methods = frozenset({"vera"})
    names = ("vera_lambda_b", "vera_lambda_d")
    shared_names = ("vera_A", "vera_B")

    def write(self, layers: Mapping[str, Carried]) -> Contents:
        hyper: list[Any] = [layer.variant for layer in layers.values()]
        shapes = [layer.W.shape for layer in layers.values()]
        t = next(iter(layers.values())).t
        most_out, most_in = (max(sides) for sides in zip(*shapes, strict=True))
        shared = {"vera_A": t["A"][:, :most_in], "vera_B": t["B"][:most_out]}
        r = only((v.rank for v in hyper), "rank")
        config = {"r": r, "d_initial": hyper[0].d_init, "save_projection": True, "projection_prng_key": 0}
        tensors = {path: {"vera_lambda_b": c.t["b"], "vera_lambda_d": c.t["d"]} for path, c in layers.items()}
        return Contents(config, tensors, shared, ranks=dict.fromkeys(layers, r))

    def read(self, options: Options, layers: list[Found], shared: dict[str, Tensor]) -> Restored:
        r = options.count("r", 256)
        options.flag("save_projection", True)
        if missing := [name for name in self.shared_names if name not in shared]:
            again = "save it in PEFT with save_projection=True"
            raise Refused(
                f"the file holds no {missing[0]}, which only the machine that drew it has for certain: {again}"
            )
        A, B = (shared.pop(name) for name in self.shared_names)
        most_out, most_in = (max(layer.W.shape[i] for layer in layers) for i in range(2))
        matching = A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1] == r
        if not (matching and A.shape[1] >= most_in and B.shape[0] >= most_out):
            shapes = f"vera_A {tuple(A.shape)} and vera_B {tuple(B.shape)}"
            raise Refused(f"{shapes} do not fit: expected ({r}, {most_in}) and ({most_out}, {r}), or larger")
        restored = Restored({}, shared={"A": A, "B": B})
        for layer in layers:
            b, d = layer.take("vera_lambda_b", layer.W.shape[0]), layer.take("vera_lambda_d", r)
            restored.layers[layer.path] = made("vera", layer.path, rank=r), Init(train={"b": b, "d": d})
        return restored
