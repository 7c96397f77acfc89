"""A base model that comes in another format, turned into a folder of configuration, safetensors and tokenizer.

The files are a function of the source alone: the configurations are written out here, tensors are sorted by name, so
their digests can be, and are, part of the table (``evaluation.wheels``).
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from evaluation.hub import quiet
from evaluation.spec import Unusable

READER = "gguf==0.19.0"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
_TOKENIZER = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "model_max_length": 8192,
    "pad_token": "<|im_end|>",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<|endoftext|>",
}


def smollm2(source: Path, target: Path) -> None:
    """Writes SmolLM2-135M out of its GGUF file in ``source`` into the empty folder ``target``, in float32.

    Raises:
        Unusable: the package that reads GGUF is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        remedy = f"{sys.executable} -m pip install {READER}"
        raise Unusable(f"smollm2 comes as GGUF, which takes the package gguf to read, once: {remedy}")
    import transformers
    from safetensors.torch import save_file

    file: dict[str, Any] = {"gguf_file": SMOLLM2, "local_files_only": True}
    # Without being told, transformers would leave the layers packed wherever it has kernels for that.
    dense = transformers.GgufConfig(dequantize=True)
    with quiet(), warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):  # a bar of its own
        model = transformers.LlamaForCausalLM.from_pretrained(source, quantization_config=dense, **file)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **file)
    tensors = {name: tensor.contiguous() for name, tensor in sorted(model.model.state_dict().items())}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    for name, settings in (("config.json", _CONFIG), ("tokenizer_config.json", _TOKENIZER)):
        (target / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
