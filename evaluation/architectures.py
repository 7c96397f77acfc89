"""Models without weights, from their configurations alone: enough to count what a method would train on them.

A model is built on torch's meta device, where a tensor has a shape and no data, so 175 billion parameters cost no more
than their names. GPT-3 was never released and GPT-2 fuses q, k and v into one matrix, where the published counts of
adapters treat them as three; both are therefore built in the shape of OPT, which has the same parameters and keeps them
apart. The released GPT-2 is there under its hub name (``openai-community/gpt2-medium``), fused.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from torch import nn

from evaluation import models
from evaluation.hub import from_hub, one_line, quiet
from evaluation.spec import Unusable
from variants.core.host import host_class, shape_of
from variants.core.interface import Refused
from variants.core.registry import suggestion
from variants.core.targets import matches, matching_layers

# ---- models by name -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """A model on the meta device.

    ``body`` is what adapters go onto. ``whole`` is what a share of the model refers to: of decoders with their language
    head (which most share with the embedding), of encoders without pooling layer and head, as they are trained here.
    """

    name: str
    whole: nn.Module
    body: nn.Module

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.whole.parameters())


def _encoder(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": 4 * hidden, **more}


def _deberta(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    same: dict[str, Any] = {"vocab_size": 128100, "type_vocab_size": 0, "position_biased_input": False}
    attention = {"relative_attention": True, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"]}
    norm = {"norm_rel_ebd": "layer_norm", "share_att_key": True}
    return _encoder(hidden, layers, heads, **same, **attention, **norm, **more)


def _opt_shaped(hidden: int, layers: int, heads: int, positions: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "word_embed_proj_dim": hidden, "num_hidden_layers": layers}
    # OPT's table of positions has two rows more than its configuration says.
    return {
        **sizes,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "vocab_size": 50257,
        "max_position_embeddings": positions - 2,
    }


def _llama(
    hidden: int, layers: int, heads: int, inner: int, vocabulary: int, kv: int | None = None, **more: Any
) -> dict[str, Any]:
    sizes = _encoder(hidden, layers, heads, vocab_size=vocabulary, num_key_value_heads=kv or heads)
    return {**sizes, "intermediate_size": inner, **more}


_UNTIED = {"tie_word_embeddings": False}
# name -> (class of the configuration, its sizes); where a language head has weights of its own, its class comes third
_TABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "minilm": ("BertConfig", _encoder(384, 6, 12, vocab_size=30522), ""),
    "smollm2": ("LlamaConfig", _llama(576, 30, 9, 1536, 49152, kv=3, tie_word_embeddings=True), ""),
    "roberta-base": (
        "RobertaConfig",
        _encoder(768, 12, 12, vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
        "",
    ),
    "roberta-large": (
        "RobertaConfig",
        _encoder(1024, 24, 16, vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
        "",
    ),
    "deberta-v3-base": ("DebertaV2Config", _deberta(768, 12, 12), ""),
    "deberta-v2-xxlarge": ("DebertaV2Config", _deberta(1536, 48, 24, conv_kernel_size=3, conv_act="gelu"), ""),
    "vit-base": ("ViTConfig", _encoder(768, 12, 12), ""),
    "vit-large": ("ViTConfig", _encoder(1024, 24, 16), ""),
    "gpt2-medium": ("OPTConfig", _opt_shaped(1024, 24, 16, 1024), ""),
    "gpt2-large": ("OPTConfig", _opt_shaped(1280, 36, 20, 1024), ""),
    "gpt3-175b": ("OPTConfig", _opt_shaped(12288, 96, 96, 2048), ""),
    "llama-7b": ("LlamaConfig", _llama(4096, 32, 32, 11008, 32000, **_UNTIED), "LlamaForCausalLM"),
    "llama-13b": ("LlamaConfig", _llama(5120, 40, 40, 13824, 32000, **_UNTIED), "LlamaForCausalLM"),
    "llama-2-7b": ("LlamaConfig", _llama(4096, 32, 32, 11008, 32000, **_UNTIED), "LlamaForCausalLM"),
    "llama-3-8b": ("LlamaConfig", _llama(4096, 32, 32, 14336, 128256, kv=8, **_UNTIED), "LlamaForCausalLM"),
    "llama-3.2-3b": ("LlamaConfig", _llama(3072, 28, 24, 8192, 128256, kv=8, tie_word_embeddings=True), ""),
    "mistral-7b": ("MistralConfig", _llama(4096, 32, 32, 14336, 32000, kv=8, **_UNTIED), "MistralForCausalLM"),
    "gemma-2b": ("GemmaConfig", _llama(2048, 18, 8, 16384, 256000, kv=1, head_dim=256), ""),
    "gemma-7b": ("GemmaConfig", _llama(3072, 28, 16, 24576, 256000, kv=16, head_dim=256), ""),
    "gemma-2-9b": ("Gemma2Config", _llama(3584, 42, 16, 14336, 256000, kv=8, head_dim=256), ""),
}


def names() -> list[str]:
    """The models of the table."""
    return list(_TABLE)


def architecture(name: str) -> Architecture:
    """The model called ``name``: of the table, a folder with a config.json, or ``org/name`` on the hub. No weights are
    read, and of a hub model nothing but its configuration is downloaded.

    Raises:
        Unusable: unknown name, no network, or a configuration of no model that transformers knows; in one line.
    """
    import transformers  # here and below: slow to import

    try:
        with quiet(), torch.device("meta"):
            whole = _built(_config(name))
    except Unusable:
        raise
    except Exception as error:  # what is read may be anything
        raise Unusable(f"no model can be made from the configuration of {name!r}: {one_line(error)}") from error
    assert isinstance(whole, transformers.PreTrainedModel)
    return Architecture(name, whole, whole.base_model)


def _config(name: str) -> Any:
    import transformers

    if name in _TABLE and (name in models.names() or not Path(name).is_dir()):  # a folder goes first, as in a run
        kind, sizes, head = _TABLE[name]
        return getattr(transformers, kind)(**sizes, architectures=[head] if head else None)
    return transformers.AutoConfig.from_pretrained(_folder(name), local_files_only=True, trust_remote_code=False)


def _folder(name: str) -> Path:
    """Where the configuration lies."""
    if name in models.names():
        return models.folder_of(name)
    local = Path(name).expanduser()
    if name and local.is_dir():
        if not (local / "config.json").is_file():
            raise Unusable(f"{local} holds no config.json")
        return local
    if name.count("/") != 1 or not all(name.split("/")):
        near = suggestion(name, names())
        raise Unusable(f"unknown model {name!r}: {near} (or give a folder, or org/name on the hub)")
    return from_hub(name, lambda cached: Path(hf_hub_download(name, "config.json", local_files_only=cached)).parent)


def _built(config: Any) -> nn.Module:
    import transformers

    heads = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if "ForCausalLM" in (config.architectures or [""])[0] and type(config) in heads:
        return cast(nn.Module, heads[type(config)](config))
    kind = transformers.MODEL_MAPPING[type(config)]
    pooling = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return cast(nn.Module, kind(config, **({"add_pooling_layer": False} if pooling else {})))


# ---- layers by their role -------------------------------------------------------------------------------------------

# role -> patterns, as in `attach`, for the layer's name in the families of transformers
ROLES = {
    "q": ("q_proj", "query", "query_proj", "q_lin", "SelfAttention.q", "EncDecAttention.q"),
    "k": ("k_proj", "key", "key_proj", "k_lin", "SelfAttention.k", "EncDecAttention.k"),
    "v": ("v_proj", "value", "value_proj", "v_lin", "SelfAttention.v", "EncDecAttention.v"),
    "o": (
        "o_proj",
        "out_proj",
        "attention.output.dense",
        "out_lin",
        "attn.c_proj",
        "SelfAttention.o",
        "EncDecAttention.o",
    ),
    "gate": ("gate_proj", "wi_0"),
    "up": ("up_proj", "intermediate.dense", "fc1", "lin1", "mlp.c_fc", "wi", "wi_1"),
    # The digit is the block's: BERT's attention has an output.dense of its own.
    "down": ("down_proj", "*[0-9].output.dense", "fc2", "lin2", "mlp.c_proj", "wo"),
}
_FUSED_QKV = ("c_attn", "query_key_value", "qkv_proj", "qkv", "Wqkv")
_FUSED = {"q": _FUSED_QKV, "k": _FUSED_QKV, "v": _FUSED_QKV, "gate": ("gate_up_proj",), "up": ("gate_up_proj",)}


def layers(model: Architecture, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The layers which the targets mean: path -> (out, in).

    Args:
        targets: roles (the keys of ``ROLES``), ``all``, or patterns, the last two as in ``variants.core.attach``.

    Raises:
        Unusable: a target matches nothing, or a layer that cannot carry an adapter.
    """
    try:
        paths = matching_layers(model.body, [p for target in targets for p in _patterns(model, target)])
    except Refused as error:
        raise Unusable(f"{model.name}: {error}") from error
    return {path: shape_of(model.body.get_submodule(path)) for path in paths}


def _patterns(model: Architecture, target: str) -> list[str]:
    if target not in ROLES:
        return [target]
    paths = [path for path, module in model.body.named_modules() if host_class(type(module)) is not None]
    present = [p for p in ROLES[target] if any(matches(p, path) for path in paths)]
    if present:
        return present
    fused = sorted({path.rpartition(".")[2] for path in paths} & set(_FUSED.get(target, ())))
    if fused:
        raise Unusable(f"{model.name} has no {target} of its own, it is a part of {fused[0]}: name that instead")
    known = ", ".join(sorted({".".join(path.split(".")[-2:]) for path in paths}))
    raise Unusable(f"{model.name} has no layer known as {target}: name it by a pattern; its layers are {known}")
