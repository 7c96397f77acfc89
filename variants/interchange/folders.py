"""Folders with an adapter of PEFT's: written as a whole or not at all, read as something that a stranger wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from variants.core.folders import replaced
from variants.core.interface import Refused

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_MOST_CONFIG = 4 << 20  # bytes; masks of AdaLoRA on a thousand layers take less than one
_MOST_HEADER = 16 << 20  # bytes; a hundred thousand tensors


def write_adapter(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes the two files of an adapter, over those of an earlier one."""
    # Clones: the format wants tensors which lie in memory as they are read and share it with nothing.
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with replaced(folder, frozenset({CONFIG, WEIGHTS})) as new:
        # In memory first: on a full disk save_file raises what is no OSError.
        (new / WEIGHTS).write_bytes(safetensors.torch.save(own, metadata={"format": "pt"}))
        (new / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the adapter in a folder.

    Raises:
        Refused: there is none, it is larger than any could be, or it is no table of settings.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise Refused(f"{folder} holds no {CONFIG}: give {_instead(folder)}")
    if (size := path.stat().st_size) > _MOST_CONFIG:
        raise Refused(f"{path} has {size} bytes, and is read up to {_MOST_CONFIG}: this is no configuration")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise Refused(f"{path} cannot be read: {_line(error)}") from error
    if not isinstance(config, dict):
        raise Refused(f"{path} holds a {type(config).__name__}, expected a table of settings")
    return config


def _instead(folder: Path) -> str:
    """PEFT writes an adapter with a name of its own into a folder of that name."""
    named = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not named:
        return "the folder which PEFT's save_pretrained wrote"
    return f"{str(named[0])!r}" + (f", or another of its {len(named)} adapters" if len(named) > 1 else "")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter in a folder.

    Raises:
        Refused: there is no safetensors file, it is damaged, or something in it is no floating-point tensor.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / _PICKLED).exists():
            hint = "load it where you trust it and save it again with save_pretrained, which writes safetensors"
            raise Refused(f"{folder / _PICKLED} is pickled and could run any code, so it is never read: {hint}")
        raise Refused(f"{folder} holds no {WEIGHTS}: give the folder which PEFT's save_pretrained wrote")
    try:
        with path.open("rb") as file:
            if (header := int.from_bytes(file.read(8), "little")) > min(_MOST_HEADER, path.stat().st_size):
                raise Refused(f"{path} announces a header of {header} bytes: it is damaged, or no safetensors file")
        with safetensors.safe_open(path, framework="pt", device="cpu") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  it is no mapping
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path} cannot be read: {_line(error)}") from error
    if odd := [key for key, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise Refused(f"{odd[0][:200]!r} in {path} is {tensors[odd[0]].dtype}, expected floating-point numbers")
    return tensors


def _line(error: Exception) -> str:
    """What went wrong, which may quote the file."""
    return repr(" ".join(str(error).split())[:400])
