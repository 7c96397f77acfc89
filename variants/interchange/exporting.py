"""Adapters for PEFT, and merged models for everybody."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from variants.core.attach import detach
from variants.core.attachment import check_known, required_unmerged
from variants.core.folders import replaced
from variants.core.host import Host, hosts
from variants.core.interface import LoRAPair, Refused, Variant
from variants.core.linalg import full_precision, raised
from variants.core.pairs import fitted
from variants.core.registry import method, names
from variants.core.rounding import EXACT, Rounding
from variants.core.switching import activate
from variants.interchange.contents import Carried, Contents, Format, Unfit
from variants.interchange.folders import write_adapter
from variants.interchange.low_rank import LoRA, pairs
from variants.interchange.registered import FORMATS
from variants.interchange.targets import target_modules

PEFT_VERSION = "0.21.2"  # whose format is written; without it PEFT takes OFT's rotations for those of an older version


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        form: ``native``: PEFT's own form of the method, which it can go on training; ``exact pair``: a plain LoRA of
            the same function, with scale 1.
        ranks: by path, the rank of what was written; empty where there are none.
        why: the reason why a method which PEFT has was not written natively; empty otherwise.
    """

    folder: Path
    method: str
    peft_type: str
    form: Literal["native", "exact pair"]
    layers: tuple[str, ...]
    ranks: Mapping[str, int] = field(default_factory=dict)
    why: str = ""


@torch.no_grad()
@full_precision
def export_peft(
    model: nn.Module, folder: str | Path, name: str = "default", *, base_model_name: str = "", prefix: str = ""
) -> Exported:
    """Writes an adapter as PEFT reads it: ``adapter_config.json`` and ``adapter_model.safetensors``.

    The file gives the same function on the same base: natively where PEFT has the method with these hyperparameters,
    else as the exact low-rank pair on the original weights. Nothing is approximated.

    Args:
        folder: new, empty, or with an earlier export, which is replaced.
        base_model_name: what PEFT's configuration calls the base model.
        prefix: where this model sits in the one that PEFT will load the adapter into (``bert.`` for a ``BertModel`` in
            a ``BertForSequenceClassification``).

    Raises:
        Refused: no such adapter; a number in it is not finite; it has neither form; or the folder is somebody else's.
    """
    record = required_unmerged(model)
    check_known(record, [name])
    variant = record.variants[name]
    layers = {
        _prefixed(prefix, path): _carried(host, name) for path, host in hosts(model).items() if name in host.adapter
    }
    if record.trained_base or not layers:
        what = "trains the base itself" if record.trained_base else "puts nothing on layers"
        instead = "write the model with export_merged (--to merged)"
        raise Refused(f"{variant.name} {what}, for which PEFT has no adapter: {instead}")
    if odd := [path for path, layer in layers.items() if not all(bool(t.isfinite().all()) for t in layer.t.values())]:
        raise Refused(f"a number of the adapter on {odd[0]} is not finite: its training diverged")
    contents, format_, form, why = _written(variant, layers)
    modules = [_prefixed(prefix, path) for path, _ in model.named_modules() if path]
    config = _common(format_.peft_type, layers, base_model_name) | contents.config
    config["target_modules"] = target_modules(layers, modules)
    tensors = {f"base_model.{key}": tensor for key, tensor in contents.shared.items()}
    for path, own in contents.tensors.items():
        tensors |= {f"base_model.model.{path}.{key}": tensor for key, tensor in own.items()}
    folder = Path(folder).expanduser()
    write_adapter(folder, config, tensors)
    return Exported(folder, variant.name, format_.peft_type, form, tuple(layers), contents.ranks, why)


def export_merged(model: nn.Module, folder: str | Path, name: str = "default", *, rounding: Rounding = EXACT) -> Path:
    """Writes a plain model with an adapter merged into its weights, by its own ``save_pretrained``.

    The model stays as it is: what is merged is a copy of it.

    Args:
        folder: new or empty.
        rounding: what the merged weights go through. To a half precision, the whole model is stored in it; what
            quantises leaves numbers of the model's own dtype.

    Raises:
        Refused: the model has no ``save_pretrained``, no such adapter, one that cannot be merged, or a number that is
            not finite when it is stored.
        OSError: the disk is full, or does not take it for another reason.
    """
    check_known(required_unmerged(model), [name])
    if not callable(getattr(model, "save_pretrained", None)):
        raise Refused(f"a {type(model).__name__} has no save_pretrained: only models of transformers are saved merged")
    plain: Any = copy.deepcopy(model)
    activate(plain, name)
    detach(plain, merge=True, rounding=rounding)
    if rounding.format is not None and not rounding.quantises:
        plain.to(getattr(torch, rounding.format))
    _check_finite(plain, rounding)
    folder = Path(folder).expanduser()
    with replaced(folder, frozenset()) as new:
        try:
            plain.save_pretrained(new)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error
    return folder


def _check_finite(plain: nn.Module, rounding: Rounding) -> None:
    odd = next((key for key, t in plain.named_parameters() if not bool(t.isfinite().all())), None)
    if odd is None:
        return
    if rounding.format == "float16":
        raise Refused(f"{odd} is not finite in float16, which ends at 65504: store it in bfloat16, which has the range")
    raise Refused(f"{odd} is not finite in {rounding.format or 'its own dtype'}: its training diverged")


def _prefixed(prefix: str, path: str) -> str:
    return f"{prefix.rstrip('.')}.{path}" if prefix else path


def _carried(host: Host, name: str) -> Carried:
    adapter = host.carried(name)
    transposed = host.oriented(torch.empty(1, 2)).shape == (2, 1)
    bias = None if host.bias is None else raised(host.bias)
    return Carried(adapter.variant, raised(host.original_dense()), adapter.tensors(), bias, transposed)


def _written(
    variant: Variant, layers: Mapping[str, Carried]
) -> tuple[Contents, Format, Literal["native", "exact pair"], str]:
    # A class which extends a registered method carries its name, and may do something else.
    known = variant.name in names() and type(variant) is method(variant.name)
    native = next((f for f in FORMATS if known and variant.name in f.methods), None)
    why = ""
    if native is not None:
        try:
            return native.write(layers), native, "native", ""
        except Unfit as unfit:
            why = str(unfit)
    ours = {path: _pair(path, layer, why) for path, layer in layers.items()}
    ranks = {path: len(pair.A) for path, pair in ours.items()}
    tensors = {path: dict(zip(LoRA.names[:2], pair, strict=True)) for path, pair in ours.items()}
    return Contents(pairs(ranks, dict(ranks)), tensors, ranks=ranks), LoRA(), "exact pair", why


def _pair(path: str, layer: Carried, why: str) -> LoRAPair:
    """The exact pair on the original weight."""
    variant, W, t = layer.variant, layer.W, layer.t
    biased = layer.bias is not None and not torch.equal(variant.bias(layer.bias, t), layer.bias)
    pair = variant.as_lora(W, t) if variant.mergeable and not biased else None
    if pair is None:
        reason = f" ({why})" if why else ""
        rest = "write the whole model with export_merged (--to merged)"
        if not variant.mergeable:
            rest = "nor can it be merged into the weights, so that export_merged cannot write it either"
        raise Refused(f"{variant.name} on {path} has no native form in PEFT{reason} and no exact low-rank pair: {rest}")
    return fitted(pair)


def _common(peft_type: str, layers: Mapping[str, Carried], base_model_name: str) -> dict[str, Any]:
    """The settings which every adapter has."""
    config: dict[str, Any] = {"peft_type": peft_type, "base_model_name_or_path": base_model_name or None}
    config |= {"task_type": None, "inference_mode": True, "peft_version": PEFT_VERSION}
    transposed = any(layer.transposed for layer in layers.values())
    return config | ({"fan_in_fan_out": True} if transposed else {})
