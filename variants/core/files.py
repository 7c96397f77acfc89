"""Adapters as files: ``adapter.safetensors`` with the tensors and ``adapter.json`` with what they mean.

Nothing is ever unpickled or run: a file names a registered method, numbers, and layers that the model has. Every file
is read as if somebody hostile had written it, and what is wrong with it is found before the model is touched.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from variants.core.attach import attach
from variants.core.attachment import required_unmerged
from variants.core.folders import replaced
from variants.core.host import Host, hosts, original_weight, own, shape_of
from variants.core.interface import Init, Refused, Variant
from variants.core.linalg import full_precision, raised
from variants.core.manifest import MANIFEST, Layer, Manifest, changed, parse
from variants.core.placing import check_name
from variants.core.restoring import check_kinds, restore
from variants.core.storage import adapter_state, check_like, check_numbers
from variants.core.targets import hostable_layers

TENSORS = "adapter.safetensors"
_LARGEST_MANIFEST = 16 * 2**20  # bytes


def save(model: nn.Module, folder: Path, name: str = "default") -> None:
    """Writes an adapter into a folder: whole, or not at all. The same adapter gives the same bytes.

    Dropout, optimiser states and a task head are not part of an adapter.

    Args:
        folder: made if it is missing; an adapter that is there already is replaced.

    Raises:
        Refused: the adapter has no tensors, a number in it is not finite, its method could not be made again from a
            file or not be used on the stock base, or the folder holds something else.
    """
    variant = required_unmerged(model).variants.get(name)
    state = {key: own(tensor, torch.device("cpu")) for key, tensor in adapter_state(model, name).items()}
    assert variant is not None, "adapter_state knows the name"
    if not state:
        raise Refused(f"{variant.name} has no tensors of its own: there is nothing to save but the task head it trains")
    for key, tensor in state.items():
        check_numbers(key, tensor)
    contents = safetensors.torch.save(state)
    manifest = _described(model, variant, name, _digest(contents))
    text = _text(manifest, model, variant, name)
    with replaced(Path(folder), frozenset({TENSORS, MANIFEST})) as new:
        (new / TENSORS).write_bytes(contents)
        (new / MANIFEST).write_bytes(text.encode())


def load(model: nn.Module, folder: Path, name: str = "default", *, other_base: bool = False) -> Variant:
    """Puts a saved adapter onto the model under a name and makes it the active one; the method it was saved with.

    Nothing is decomposed again. A method that trained on a base of its own (PiSSA) comes back in its exact low-rank
    form, on the base as it is.

    Args:
        other_base: also onto a base whose numbers are not those which the adapter was trained on.

    Raises:
        Refused: the folder holds no such adapter, it was changed or damaged, or it does not fit the model. The model is
            then as it was.
    """
    try:
        manifest, tensors = _read(Path(folder).expanduser())
        return _put(model, manifest, tensors, name, other_base)
    except Refused as error:  # parts of the message may come from the file: one line, and not all of a long name
        line = " ".join(str(error).split())
        raise Refused(f"{folder}: {line if len(line) <= 400 else line[:400] + '...'}") from error


def base_digest(model: nn.Module, layers: Iterable[str], trained: Mapping[str, Tensor]) -> str:
    """The sha256 over path, dtype, shape and bytes of what an adapter stands on.

    Args:
        layers: paths of the adapted layers, whose original weights (out, in) and biases count.
        trained: path -> the base's own parameter before the method trained it.
    """
    values: dict[str, Tensor] = {}
    for path in layers:
        layer = model.get_submodule(path)
        bias = getattr(layer, "bias", None)
        values |= {f"{path}.weight": original_weight(layer)} | ({} if bias is None else {f"{path}.bias": bias})
    digest = hashlib.sha256()
    for path, tensor in sorted((values | dict(trained)).items()):
        digest.update(json.dumps([path, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- writing --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@full_precision
def _described(model: nn.Module, variant: Variant, name: str, digest: str) -> Manifest:
    carrying = {path: host for path, host in hosts(model).items() if name in host.adapter}
    replaces_base = any(h.carried(name).rebased or h.carried(name).pair_form for h in carrying.values())
    for path, host in carrying.items() if replaces_base else ():
        if host.carried(name).variant.as_lora(raised(host.original_dense()), host.carried(name).tensors()) is None:
            raise Refused(
                f"{variant.name} on {path} replaces the base and has no exact low-rank form: a file could not be used "
                "on the stock base; merge it instead, detach(model, merge=True)"
            )
    trained = required_unmerged(model).trained_base
    first = next(iter(carrying.values()), None)
    return Manifest(
        method=variant.name,
        hyperparameters=dataclasses.asdict(variant),
        replaces_base=replaces_base,
        layers={path: _layer(host, variant, name) for path, host in carrying.items()},
        shared=() if first is None else tuple(key for key, _ in first.carried(name).shared.named_buffers()),
        trained_base=tuple(trained),
        base=base_digest(model, carrying, trained),
        tensors=digest,
    )


def _layer(host: Host, variant: Variant, name: str) -> Layer:
    adapter = host.carried(name)
    check_kinds(adapter.variant, adapter.tensors())
    trained = dict(adapter.named_parameters(recurse=False))
    frozen = tuple(key for key in adapter.own_tensors() if key not in trained)
    return Layer(shape_of(host), tuple(trained), frozen, changed(adapter.variant, variant))


def _text(manifest: Manifest, model: nn.Module, variant: Variant, name: str) -> str:
    """The manifest as text, from which the method was made again to see that it can be."""
    on_layers = {path: h.carried(name).variant for path, h in hosts(model).items() if name in h.adapter}
    try:
        text = manifest.to_json()
        same = parse(text.encode()).methods() == (variant, on_layers)
    except (TypeError, ValueError) as error:
        raise Refused(f"a file cannot name this method: {error}") from error
    if not same:
        raise Refused(
            f"{type(variant).__name__} cannot be made again from the name {variant.name!r} and its hyperparameters: "
            "register the class, and let its fields be numbers, texts and truth values"
        )
    return text


# ---- reading --------------------------------------------------------------------------------------------------------


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def _bytes(path: Path, limit: int | None = None) -> bytes:
    if not path.is_file():  # also not a pipe, on which reading would wait
        raise Refused(f"there is no {path.name}: give the folder that save() wrote")
    try:
        with path.open("rb") as file:
            contents = file.read(-1 if limit is None else limit + 1)
    except OSError as error:
        raise Refused(f"{path.name} cannot be read: {error.strerror or error}") from error
    if limit is not None and len(contents) > limit:
        raise Refused(f"{path.name} is larger than {limit >> 20} MB, which no adapter needs")
    return contents


def _read(folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """What the files hold, consistent in itself."""
    manifest = parse(_bytes(folder / MANIFEST, _LARGEST_MANIFEST))
    contents = _bytes(folder / TENSORS)
    if _digest(contents) != manifest.tensors:
        raise Refused(f"{TENSORS} is not the file that {MANIFEST} describes (another sha256): copy the folder again")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(contents)
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise Refused(f"{TENSORS} is damaged: {error}") from error
    if odd := sorted(manifest.tensor_keys() ^ set(tensors)):
        only = TENSORS if odd[0] in tensors else MANIFEST
        raise Refused(f"{len(odd)} tensors are in one of {TENSORS} and {MANIFEST}: {odd[0]!r} only in {only}")
    for key, tensor in tensors.items():
        check_numbers(key, tensor)
    return manifest, tensors


@torch.no_grad()
def _put(model: nn.Module, manifest: Manifest, tensors: dict[str, Tensor], name: str, other_base: bool) -> Variant:
    variant, local = manifest.methods()
    check_name(model, variant, name)
    _check_layers(model, manifest)
    theirs = {path: parameter for path, parameter in model.named_parameters() if variant.trains_base(path)}
    check_like(theirs, {path: tensors[path] for path in manifest.trained_base})
    trained = {path: tensors[path].to(parameter.dtype) for path, parameter in theirs.items()}
    for path, tensor in trained.items():
        check_numbers(path, tensor)  # again: the base may be of a narrower kind than the file
    if not other_base and base_digest(model, manifest.layers, theirs) != manifest.base:
        raise Refused("it was trained on another base: load that one, or write other_base=True if this is meant")
    if variant.trains == "base":
        attach(model, variant, name=name)
    else:
        layers = {path: (local[path], _init(path, layer, tensors)) for path, layer in manifest.layers.items()}
        shared = {key: tensors[f"adapter.shared.{key}"] for key in manifest.shared}
        restore(model, variant, layers, shared, name=name, replaces_base=manifest.replaces_base)
    for path, tensor in trained.items():
        theirs[path].copy_(tensor)
    return variant


def _check_layers(model: nn.Module, manifest: Manifest) -> None:
    for path in hostable_layers(model, list(manifest.layers)):
        found, wanted = shape_of(model.get_submodule(path)), manifest.layers[path].shape
        if found != wanted:
            raise Refused(f"{path} is {found[0]} x {found[1]} here, the adapter is for {wanted[0]} x {wanted[1]}")


def _init(path: str, layer: Layer, tensors: Mapping[str, Tensor]) -> Init:
    train, frozen = ({key: tensors[f"{path}.adapter.{key}"] for key in keys} for keys in (layer.train, layer.frozen))
    return Init(train=train, frozen=frozen)
