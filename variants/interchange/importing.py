"""Adapters from PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from variants.core.host import host_class, oriented, original_weight
from variants.core.interface import Refused, Variant
from variants.core.linalg import full_precision, raised
from variants.core.restoring import restore
from variants.interchange.contents import Format, Found, Options
from variants.interchange.folders import read_config, read_tensors
from variants.interchange.registered import FORMATS
from variants.interchange.targets import ALL_LINEAR, check_targets, is_target

# Options which describe, or act in training or at the start only: the function does not depend on them.
HARMLESS = frozenset(
    (
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config", "fan_in_fan_out"),  # the tensors are (out, in) in either layout
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("init_weights", "init_ia3_weights", "d_initial", "projection_prng_key"),
        *("lora_dropout", "vera_dropout", "module_dropout", "boft_dropout"),
        *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # acted at the start
        *("megatron_core", "qalora_group_size", "eps"),  # of options which are refused
    )
)
_START = "base_model.model."  # of every path in a file
# What is known to change the function, and that no method here has.
WITHOUT_COUNTERPART = {
    "bias": "biases of the base were trained",
    "lora_bias": "B has a bias of its own",
    "modules_to_save": "whole modules were trained",
    "trainable_token_indices": "rows of the embedding were trained",
    "layer_replication": "layers are used several times",
    "target_parameters": "parameters outside of linear layers are adapted",
    "alora_invocation_tokens": "the adapter acts after certain tokens only",
    "kasa_config": "the base loses its smallest singular values whenever it is loaded",
    "use_qalora": "inputs are pooled for quantised weights",
    "use_bdlora": "the factors are block diagonal",
    "arrow_config": "several adapters are mixed by a router",
    "monteclora_config": "the factors are random",
    "velora_config": "activations are compressed",
    "megatron_config": "layers are split over machines",
    "ensure_weight_tying": "adapters are shared by tied modules",
}


@dataclass(frozen=True)
class Imported:
    """What was read.

    Attributes:
        method, variant: our method, as most of the layers have it.
        unknown: options nobody here knows; all of them are switched off in the file.
        notes: what does not go on as it was in PEFT, though the function is the same.
    """

    peft_type: str
    method: str
    variant: Variant
    layers: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@torch.no_grad()
@full_precision
def import_peft(model: nn.Module, folder: str | Path, name: str = "default", *, prefix: str = "") -> Imported:
    """Reads an adapter which PEFT saved, and attaches it as our own method of the same function.

    Numbers in half precision are raised to float32, as PEFT does.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``; nothing pickled is read.
        prefix: where this model sits in the one that PEFT's adapter was made for (``bert.`` for a ``BertModel`` in a
            ``BertForSequenceClassification``).

    Raises:
        Refused: the files are damaged or incomplete or do not fit the model, or an option in them changes the function
            in a way that no method here has. The model is then as it was. Modules which were trained as a whole are
            one, unless this model has none of them.
    """
    folder = Path(folder).expanduser()
    config = read_config(folder)
    outside = _saved_outside(config, model, prefix)
    if outside:
        del config["modules_to_save"]
    format_ = _format(config)
    tensors = {key: t for key, t in read_tensors(folder).items() if not _is_of(outside, key, prefix)}
    layers, shared = _sorted(tensors, format_, model, prefix)
    _check_complete(config, model, {layer.path for layer in layers}, prefix)
    options = Options(config)
    restored = format_.read(options, layers, shared)
    if rest := [f"{key} of {layer.path}" for layer in layers for key in layer.tensors] + sorted(shared):
        raise Refused(f"the file holds {rest[0]}, which its settings do not account for")
    unknown = _unknown(options.left(), format_)
    found = {path.removeprefix(_dotted(prefix)): value for path, value in restored.layers.items()}
    variant = restored.variant()
    paths = restore(model, variant, found, restored.shared, name=name, replaces_base=restored.replaces_base)
    notes = [*restored.notes, *(f"{name!r} was trained whole and is no part of this model" for name in outside)]
    return Imported(format_.peft_type, variant.name, variant, tuple(paths), unknown, tuple(notes))


def _dotted(prefix: str) -> str:
    return f"{prefix.rstrip('.')}." if prefix else ""


def _saved_outside(config: Mapping[str, Any], model: nn.Module, prefix: str) -> tuple[str, ...]:
    """The modules which were trained as a whole, if this model has none of them: heads, as a rule."""
    saved = config.get("modules_to_save")
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        return ()
    lead = prefix.rstrip(".").split(".")
    around = [".".join(lead[:i]) for i in range(1, len(lead) + 1)]
    paths = [*around, *(_dotted(prefix) + path for path, _ in model.named_modules() if path)]
    # PEFT takes a name for the end of a path, not even after a dot.
    return () if any(path.endswith(tuple(saved)) for path in paths) else tuple(saved)


def _is_of(outside: tuple[str, ...], key: str, prefix: str) -> bool:
    """Whether a tensor belongs to one of these modules, and lies outside of this model."""
    path = key.removeprefix(_START)
    return any(f"{name}." in path for name in outside) and not (prefix and path.startswith(_dotted(prefix)))


def _is_set(key: str, value: Any) -> bool:
    return value not in (None, False, "", [], {}) and not (key == "bias" and value == "none")


def _format(config: Mapping[str, Any]) -> Format:
    """The format of a configuration that means something here."""
    kind = config.get("peft_type")
    found = next((f for f in FORMATS if f.peft_type == kind), None)
    if found is None:
        known = ", ".join(f.peft_type for f in FORMATS)
        raise Refused(f"peft_type {str(kind)[:80]!r} is not read: {known} are; save the merged model in PEFT instead")
    for key, what in WITHOUT_COUNTERPART.items():
        if _is_set(key, config.get(key)):
            rest = "changes the function and is not read: save the merged model in PEFT instead"
            raise Refused(f"{key}={str(config[key])[:80]!r} ({what}) {rest}")
    return found


def _unknown(left: Mapping[str, Any], format_: Format) -> tuple[str, ...]:
    """Options nobody here knows, none of which may be in use."""
    unheard = sorted(left.keys() - HARMLESS - format_.harmless)
    if used := [key for key in unheard if _is_set(key, left[key])]:
        what = f"{used[0][:80]}={str(left[used[0]])[:80]}"
        rest = "and could change the function: nothing was attached"
        raise Refused(f"{what!r} is not known for {format_.peft_type} {rest}")
    return tuple(key for key in unheard if key not in WITHOUT_COUNTERPART and key not in format_.absent)


def _sorted(
    tensors: Mapping[str, Tensor], format_: Format, model: nn.Module, prefix: str
) -> tuple[list[Found], dict[str, Tensor]]:
    """The file's tensors by layer, in the file's order, and those of the model as a whole."""
    whole = {f"base_model.{name}": name for name in format_.shared_names}
    shared = {whole[key]: _raised(tensor) for key, tensor in tensors.items() if key in whole}
    layers: dict[str, Found] = {}
    for key, tensor in tensors.items():
        if key in whole:
            continue
        path, name = _split(key, format_)
        if path not in layers:
            layers[path] = _found(model, path, prefix)
        layers[path].tensors[name] = _raised(tensor)
    if not layers:
        raise Refused(f"the file holds no tensor of an adapted layer: expected names like ...{format_.names[0]}")
    return list(layers.values()), shared


def _raised(tensor: Tensor) -> Tensor:
    return raised(tensor).clone()


def _split(key: str, format_: Format) -> tuple[str, str]:
    """The path of a layer and the name of a tensor within it."""
    for name in format_.names:
        if key.startswith(_START) and key.endswith(f".{name}"):
            return key[len(_START) : -len(name) - 1], name
    hint = " (an embedding is adapted, which has no host)" if ".lora_embedding_" in key else ""
    raise Refused(f"the file holds {key[:200]!r}, which is no tensor of {format_.peft_type}{hint}")


def _found(model: nn.Module, path: str, prefix: str) -> Found:
    module = _module(model, path.removeprefix(_dotted(prefix))) if path.startswith(_dotted(prefix)) else None
    if module is None or host_class(type(module)) is None:
        what = "no such layer" if module is None else f"a {type(module).__name__} there, which has no host"
        raise Refused(f"the file adapts {path[:200]!r}; the model has {what}{_prefix_hint(model, path, prefix)}")
    W = raised(original_weight(module).detach()).cpu()
    return Found(path, W, oriented(module, torch.empty(1, 2)).shape == (2, 1), {})


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path) if path else None
    except AttributeError:
        return None


def _prefix_hint(model: nn.Module, path: str, prefix: str) -> str:
    ours = {own for own, _ in model.named_modules() if own}
    parts = path.split(".")
    fitting = (".".join(parts[:i]) for i in range(1, len(parts)) if ".".join(parts[i:]) in ours)
    return next((f": write prefix={found!r}" for found in fitting if found != prefix.rstrip(".")), "")


def _check_complete(config: Mapping[str, Any], model: nn.Module, held: set[str], prefix: str) -> None:
    """Raises Refused if the settings mean a layer of this model for which the file holds nothing."""
    check_targets(config)
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return
    for path, module in model.named_modules():
        theirs = _dotted(prefix) + path
        if theirs not in held and host_class(type(module)) is not None and is_target(config, theirs):
            raise Refused(f"the settings adapt {theirs}, the file holds nothing for it: it is incomplete")
