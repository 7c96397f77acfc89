"""Base models by name: one of the table, a local folder, or a model on the hub.

Whatever the source, a model is loaded from a local folder, from safetensors only, in float32, without code of its own,
and is identified by the digest of the files that define it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from evaluation import assets
from evaluation.hub import from_hub, one_line, quiet
from evaluation.spec import Unusable
from variants.core import accelerate
from variants.core.registry import suggestion

# name -> (asset, one line about it)
_TABLE = {
    "minilm": ("minilm", "MiniLM-L6-v2 sentence encoder: 6 layers, hidden size 384, 22.7 million parameters (BERT)"),
    "smollm2": (
        "smollm2",
        "SmolLM2-135M-Instruct decoder: 30 layers, hidden size 576, 134.5 million parameters (Llama)",
    ),
}

# What defines a model: its configuration, weights and tokenizer. Nothing else is downloaded or enters the digest.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TOKENIZER = ("tokenizer*.json", "*.model", "vocab.*", "merges.txt", "added_tokens.json", "special_tokens_map.json")
_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", *_TOKENIZER)


@dataclass(frozen=True)
class Base:
    """A pretrained encoder, in float32 and ``eval()`` mode, with what belongs to it.

    ``encoder(input_ids, attention_mask).last_hidden_state`` is (batch, tokens, hidden).
    """

    name: str
    encoder: nn.Module
    tokenizer: Any
    digest: str
    hidden: int


def names() -> dict[str, str]:
    """The models of the table, each with one line about it."""
    return {name: text for name, (_, text) in sorted(_TABLE.items())}


def prefetch(name: str) -> None:
    """Downloads a model of the table if it is not there yet, before workers ask for it at the same time.

    Raises:
        Unusable: as in :func:`load_base`.
    """
    if name in _TABLE:
        assets.fetch(_TABLE[name][0])


def digest_of(name: str) -> str:
    """The sha256 over the sorted (file name, sha256) of configuration, weights and tokenizer. Loads no weights.

    A model of the table is not even downloaded for it: its files' digests are known.

    Raises:
        Unusable: as in :func:`load_base`.
    """
    if name in _TABLE:
        return _combined(assets.asset(_TABLE[name][0]).files)
    return _folder_digest(folder_of(name))


def load_base(name: str) -> Base:
    """The base model called ``name``: of the table, a folder (config.json and safetensors), or ``org/name`` on the hub.

    The pooling layer of BERT's family is left out: it is not part of what is compared, and would be frozen dead weight.
    Never touches the network for the table and for folders, nor for a hub model which is in the hub's cache.

    Raises:
        Unusable: unknown name, no network, or files which do not make a complete model; in one line.
    """
    import transformers  # here and below: slow to import, and those who only ask for a digest do without it

    folder = folder_of(name)
    digest = _folder_digest(folder)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, **local)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
            encoder = _encoder(folder, config, local)
    except Unusable:
        raise
    except Exception as error:  # the loaders raise what they like, and what they read may be anything
        raise Unusable(f"model {name!r} cannot be loaded from {folder}: {one_line(error)}") from error
    if tokenizer.pad_token is None:  # decoders often have none; masked positions may hold anything
        tokenizer.pad_token = tokenizer.eos_token
    return Base(name, encoder, tokenizer, digest, config.hidden_size)


def _encoder(folder: Path, config: Any, local: dict[str, Any]) -> nn.Module:
    import transformers

    kind = transformers.MODEL_MAPPING[type(config)]
    if config.is_encoder_decoder or not isinstance(getattr(config, "hidden_size", None), int):
        raise Unusable(f"{folder} holds a {config.model_type} model: only one text encoder or decoder can be compared")
    pooling = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    extra: dict[str, Any] = {"add_pooling_layer": False} if pooling else {}
    config.use_cache = False  # of keys and values, which serves generation alone
    with torch.random.fork_rng(devices=[]):  # layers draw their initial values before the weights arrive
        encoder, info = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local, **extra
        )
    lacking = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if lacking:  # they would be random, and differ from run to run
        raise Unusable(f"{folder} lacks {len(lacking)} weights of a {config.model_type} model, first {lacking[0]}")
    return accelerate(encoder.eval())


def folder_of(name: str) -> Path:
    """Where the model's files lie, fetched if need be."""
    if name in _TABLE:
        return assets.fetch(_TABLE[name][0])
    local = Path(name).expanduser()
    if name and local.is_dir():
        return _complete(local)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return from_hub(name, lambda cached: _snapshot(name, cached))
    if "/" in name or "\\" in name:
        raise Unusable(f"no model folder {name!r}")
    raise Unusable(
        f"unknown model {name!r}: {suggestion(name, sorted(_TABLE))} (or give a folder, or org/name on the hub)"
    )


def _complete(folder: Path) -> Path:
    if (folder / "adapter_config.json").exists():  # the loader would follow it to another base model
        raise Unusable(f"{folder} holds an adapter, not a base model")
    if not (folder / "config.json").is_file():
        raise Unusable(f"{folder} holds no config.json: give the folder of a model saved with `save_pretrained`")
    index = folder / _WEIGHTS[1]
    if not index.is_file() and not (folder / _WEIGHTS[0]).is_file():
        raise Unusable(f"{folder} holds no model.safetensors (pickled weights are never read): save it as safetensors")
    if index.is_file():
        absent = [shard for shard in _shards(index) if not (folder / shard).is_file()]
        if absent:
            raise Unusable(f"{folder} lacks {absent[0]}, which {index.name} names")
    if not any(fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in _TOKENIZER):
        raise Unusable(f"{folder} holds no tokenizer: save it there with `tokenizer.save_pretrained`")
    return folder


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"{index} is not an index of weights: {one_line(error)}") from error


def _snapshot(name: str, cached: bool) -> Path:
    with quiet():
        folder = snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=["*/*"], local_files_only=cached)
    return _complete(Path(folder))


def _folder_digest(folder: Path) -> str:
    found = [path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in _FILES)]
    return _combined({path.name: assets.file_digest(path) for path in found if path.is_file()})


def _combined(digests: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()
