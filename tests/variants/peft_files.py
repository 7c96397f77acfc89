"""Models small enough to be loaded into PEFT many times, and what the tests of its files have in common."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from evaluation.models import load_base
from variants.core import Variant, attach, create, method
from variants.core.cases import Case, move, statistics
from variants.core.host import hosts, shape_of
from variants.core.targets import matching_layers

# Not all layers of a kind, and layers of different sides.
PLACES = {
    "bert": ["layer.1.attention.self.query", "layer.0.attention.self.value", "layer.0.intermediate.dense"],
    "llama": ["0.self_attn.q_proj", "1.self_attn.v_proj", "0.mlp.down_proj"],
    "gpt2": ["h.0.attn.c_attn", "h.1.mlp.c_proj"],
}


def base(kind: str) -> Any:
    """The same weights whenever it is called, in float32; all but ``minilm`` are made up."""
    if kind == "minilm":
        return copy.deepcopy(load_base("minilm").encoder).eval()
    # Larger weights than usual: with the usual ones attention is even, whatever happens to its queries.
    tokens = {"vocab_size": 20, "max_position_embeddings": 16, "initializer_range": 0.2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        if kind == "gpt2":
            return GPT2Model(GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
        if kind in ("bert", "deep"):
            layers = 2 if kind == "bert" else 12
            return BertModel(BertConfig(num_hidden_layers=layers, **sizes, **tokens), add_pooling_layer=False).eval()
        return LlamaModel(LlamaConfig(num_hidden_layers=2, num_key_value_heads=1, **sizes, **tokens)).eval()


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    """Of fixed tokens; shape (2, 5, 16)."""
    return model(torch.arange(10).view(2, 5) % 9 + 3).last_hidden_state


def small(name: str, **hyperparameters: Any) -> Variant:
    """A method of a size that fits the models."""
    size = method(name).size
    return create(name, ({size: 4} if size else {}) | hyperparameters)


def adapted(kind: str, variant: Variant, where: list[str] | None = None, scale: float = 0.3) -> Any:
    """With the method attached and moved off its start."""
    return put(base(kind), variant, where or PLACES[kind], scale)


def put(model: Any, variant: Variant, where: list[str], scale: float) -> Any:
    """The model itself, with the method attached and moved off its start."""
    paths = matching_layers(model, where)
    shapes = {path: shape_of(model.get_submodule(path)) for path in paths}
    stats = {path: statistics(variant, Case(out, in_)) for path, (out, in_) in shapes.items()}
    attach(model, variant, paths, stats=stats)
    move(model, scale)
    return model


def in_peft(kind: str, folder: Path) -> Any:
    return PeftModel.from_pretrained(base(kind), folder).eval()


def peft_layers(model: nn.Module) -> set[str]:
    """The paths in the base model of the layers which PEFT adapts."""
    found = (path for path, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return {path.removeprefix("base_model.model.") for path in found}


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[Any]]:
    """What a model holds: its tensors and what kinds of modules it has."""
    kinds = [(path, type(module), module.training) for path, module in model.named_modules()]
    kinds += [(path, dict(host.switch.active)) for path, host in hosts(model).items()]
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}, kinds


def assert_as_before(model: nn.Module, before: tuple[dict[str, Tensor], list[Any]]) -> None:
    (tensors, kinds), now = before, snapshot(model)
    assert now[1] == kinds
    assert now[0].keys() == tensors.keys()
    assert all(torch.equal(now[0][key], tensor) for key, tensor in tensors.items())


def moved(model: Any, scale: float = 0.3) -> Any:
    """A copy of PEFT's model whose trained tensors are off their start."""
    model, rng = copy.deepcopy(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=rng))
    return model
