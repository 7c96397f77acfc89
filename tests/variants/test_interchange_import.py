"""Adapters of PEFT 0.21.2 here: the same outputs, the same weights after a round trip, and files that are refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.boft import layer as boft_layer
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from tests.variants.peft_files import adapted, assert_as_before, base, moved, output, peft_layers, small, snapshot
from variants.core import Refused, Variant, activate, detach, trainable_parameters
from variants.core.cases import close, gap
from variants.core.host import hosts
from variants.interchange import Imported, export_peft, import_peft
from variants.interchange.targets import Patterns, is_target

pytestmark = [
    # PEFT asks transformers in an old way whether gradients are checkpointed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # It takes AdaLoRA's masks for LoRA's ranks, and says that it does not use them, though it does.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
]
TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "minilm": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
}


@pytest.fixture(autouse=True)
def _without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: None)


def saved(kind: str, config: Any, folder: Path, scale: float = 0.3) -> Any:
    """An adapter of PEFT's, moved off its start and saved; the model."""
    model = moved(get_peft_model(base(kind), config), scale).eval()
    model.save_pretrained(folder)
    return model


def imported(kind: str, folder: Path) -> tuple[Any, Imported]:
    model = base(kind)
    return model, import_peft(model, folder)


def assert_same_here(kind: str, config: Any, folder: Path, scale: float = 0.3) -> tuple[Any, Imported]:
    theirs = saved(kind, config, folder, scale)
    model, result = imported(kind, folder)
    assert set(result.layers) == set(hosts(model)) == peft_layers(theirs)
    close(output(model), output(theirs), 1e-5, "output")
    assert gap(output(model), output(base(kind))) > 1e-3, "the control: the adapter does something"
    return model, result


def lora(kind: str, **options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS[kind]} | options)


OPTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "lora": (LoraConfig, {"r": 4, "lora_alpha": 6, "lora_dropout": 0.1}, "lora"),
    "rslora": (LoraConfig, {"r": 4, "lora_alpha": 6, "use_rslora": True}, "rslora"),
    "dora": (LoraConfig, {"r": 4, "lora_alpha": 6, "use_dora": True}, "dora"),
    "dora-rslora": (LoraConfig, {"r": 4, "lora_alpha": 6, "use_dora": True, "use_rslora": True}, "dora"),
    "gaussian": (LoraConfig, {"r": 4, "init_lora_weights": "gaussian"}, "lora"),
    "orthogonal": (LoraConfig, {"r": 4, "init_lora_weights": "orthogonal"}, "lora"),
    "mica": (LoraConfig, {"r": 4, "init_lora_weights": "mica"}, "lora"),
    "pissa": (LoraConfig, {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa"}, "pissa"),
    "pissa-rslora": (
        LoraConfig,
        {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa", "use_rslora": True},
        "pissa",
    ),
    "olora": (LoraConfig, {"r": 4, "lora_alpha": 6, "init_lora_weights": "olora"}, "olora"),
    "adalora": (AdaLoraConfig, {"init_r": 4, "lora_alpha": 6, "total_step": 10}, "adalora"),
    "vera": (VeraConfig, {"r": 5}, "vera"),
    "oft-neumann": (OFTConfig, {"oft_block_size": 4}, "oft"),
    "oft-terms": (OFTConfig, {"oft_block_size": 4, "num_cayley_neumann_terms": 3}, "oft"),
    "oft-exact": (OFTConfig, {"oft_block_size": 4, "use_cayley_neumann": False}, "oft"),
    "oft-shared": (OFTConfig, {"oft_block_size": 4, "block_share": True}, "oft"),
    "oft-number": (OFTConfig, {"r": 4, "oft_block_size": 0}, "oft"),
    "boft": (BOFTConfig, {"boft_block_size": 4}, "boft"),
    "boft-number": (BOFTConfig, {"boft_block_size": 0, "boft_block_num": 4}, "boft"),
    "hra": (HRAConfig, {"r": 4}, "hra"),
    "hra-orthonormal": (HRAConfig, {"r": 4, "apply_GS": True}, "hra"),
    "ia3": (IA3Config, {"feedforward_modules": []}, "ia3"),
}


def test_the_version_that_was_read() -> None:
    assert peft.__version__ == "0.21.2"


@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("kind", ["bert", "llama", pytest.param("minilm", marks=pytest.mark.assets)])
def test_pefts_adapters_give_pefts_outputs(kind: str, what: str, tmp_path: Path) -> None:
    make, options, method = OPTIONS[what]
    scale = 0.01 if kind == "minilm" else 0.1  # wider layers move more
    model, result = assert_same_here(kind, make(target_modules=TARGETS[kind], **options), tmp_path, scale)
    assert result.method == result.variant.name == method
    assert result.unknown == ()
    if method == "adalora":  # PEFT adds 1e-5 to the rank, which no output in single precision shows
        assert result.variant.scale == pytest.approx(6 / (4 + 1e-5), rel=1e-12)
    assert bool(result.notes) is (what in ("oft-shared", "hra-orthonormal"))
    before = output(model)
    assert trainable_parameters(model), "it can be trained on"
    detach(model, merge=True)
    close(output(model), before, 1e-5, "merged")


@pytest.mark.parametrize("r", [5, 6, 7, 9])
@pytest.mark.filterwarnings("ignore:Invalid `r`:UserWarning")
def test_a_number_of_oft_blocks_that_does_not_divide_the_width(r: int, tmp_path: Path) -> None:
    assert_same_here("llama", OFTConfig(r=r, oft_block_size=0, target_modules=TARGETS["llama"]), tmp_path, 0.1)


@pytest.mark.parametrize("what", ["lora", "dora", "pissa", "adalora", "vera", "ia3"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_layers_that_store_their_weight_the_other_way_round(what: str, tmp_path: Path) -> None:
    make, options, _ = OPTIONS[what]
    assert_same_here("gpt2", make(target_modules=TARGETS["gpt2"], fan_in_fan_out=True, **options), tmp_path, 0.1)


def test_inner_layers_of_ia3(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])
    model, _ = assert_same_here("llama", config, tmp_path)
    sides = {path.rpartition(".")[2]: host.carried("default").variant.side for path, host in hosts(model).items()}
    assert sides == {"q_proj": "output", "down_proj": "input"}


@pytest.mark.parametrize("start", [True, "pissa"])
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern:UserWarning")
def test_ranks_and_scales_by_pattern(start: bool | str, root: bool, tmp_path: Path) -> None:
    """The first pattern that means a layer, as the whole of its path or as its end after a dot."""
    ranks = {r"layer\.1\..*query": 2, "^encoder.layer.1.attention.self.value": 3, "value": 5}
    alphas = {"query": 3, "0.intermediate.dense": 9}
    config = lora("bert", rank_pattern=ranks, alpha_pattern=alphas, use_rslora=root, init_lora_weights=start)
    model, _ = assert_same_here("bert", config, tmp_path)
    held = {path.removeprefix("encoder.layer."): h.carried("default").variant.rank for path, h in hosts(model).items()}
    assert held == {
        "0.attention.self.query": 4,
        "0.attention.self.value": 5,
        "0.intermediate.dense": 4,
        "1.attention.self.query": 2,
        "1.attention.self.value": 3,
        "1.intermediate.dense": 4,
    }


@pytest.mark.filterwarnings("ignore:Adapter 'default'. 2 LoRA tensor:peft.utils.warning.PeftWarning")
def test_pruned_triplets_of_adalora_stay_pruned(tmp_path: Path) -> None:
    theirs = moved(get_peft_model(base("bert"), AdaLoraConfig(init_r=4, total_step=10, target_modules=["query"])))
    masks = {0: [True, False, True, True], 1: [False] * 4}
    config, paths = theirs.peft_config["default"], sorted(peft_layers(theirs))
    config.rank_pattern = {f"{path}.lora_E.default": masks[i] for i, path in enumerate(paths)}
    with torch.no_grad():
        for i, path in enumerate(paths):
            E = theirs.get_submodule(f"base_model.model.{path}").lora_E["default"]
            E.mul_(torch.tensor(masks[i])[:, None])
    theirs.save_pretrained(tmp_path)
    model, _ = imported("bert", tmp_path)
    close(output(model), output(theirs.eval()), 1e-5, "output")
    E = [host.carried("default").get_parameter("E") for host in hosts(model).values()]
    assert [(e != 0).tolist() for e in E] == list(masks.values())
    assert gap(output(model), output(base("bert"))) > 1e-3


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.filterwarnings("ignore:.* changes the base weights of the model:UserWarning")
def test_what_peft_converts_is_a_plain_lora_of_twice_the_rank(start: str, tmp_path: Path) -> None:
    theirs = get_peft_model(base("llama"), lora("llama", init_lora_weights=start))
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    wanted = output(theirs.eval())
    theirs.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    model, result = imported("llama", tmp_path / "end")
    assert (result.method, result.variant.rank) == ("lora", 8)
    close(output(model), wanted, 1e-5, "output")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("what", ["lora", "boft"])
def test_half_precision_is_raised(what: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Before anything is computed from it."""
    make, options, _ = OPTIONS[what]
    saved("llama", make(target_modules=TARGETS["llama"], **options), tmp_path)
    rewrite(tmp_path, lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()})
    model, _ = imported("llama", tmp_path)
    assert {p.dtype for p in trainable_parameters(model).values()} == {torch.float32}
    close(output(model), output(PeftModel.from_pretrained(base("llama"), tmp_path).eval()), 1e-5, "output")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r"encoder\.layer\.(0|1)\.attention\.self\.(query|key)"},
        {"target_modules": ["query", "key"], "layers_to_transform": [1]},
        {"target_modules": ["query", "key"], "layers_to_transform": 1, "layers_pattern": "layer"},
        {"target_modules": ["query", "key", "value"], "exclude_modules": ["0.attention.self.key"]},
        {"target_modules": ["query", "key"], "exclude_modules": r".*\.0\..*key"},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_layers_are_chosen_as_peft_chooses_them(options: dict[str, Any], tmp_path: Path) -> None:
    assert_same_here("bert", LoraConfig(r=2, **options), tmp_path)
    key = next(key for key in safetensors.torch.load_file(tmp_path / "adapter_model.safetensors"))
    layer = key.rpartition(".lora_")[0]
    rewrite(tmp_path, lambda tensors: {k: t for k, t in tensors.items() if not k.startswith(layer)})
    if options["target_modules"] == "all-linear":
        with_settings(tmp_path, **options)  # PEFT writes which layers these were
        imported("bert", tmp_path)  # which those are depends on what stands around the encoder
    else:
        with pytest.raises(Refused, match="holds nothing for it"):
            imported("bert", tmp_path)


PATHS = [
    *("query", "block.query", "block.xquery", "layers.0.q", "model.layers.1.q", "model.layers.11.q"),
    *("model.layers.1.experts.0.q", "model.layers.0.experts.1.q", "vision.blocks.1.q", "model.q", "layers.1"),
]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["query"]},
        {"target_modules": ["block.query", "q"]},
        {"target_modules": r".*\.(0|1)\..*q"},
        {"target_modules": ["q"], "layers_to_transform": [1]},
        {"target_modules": ["q"], "layers_to_transform": 11},
        {"target_modules": ["q"], "layers_to_transform": []},
        {"target_modules": ["q", "query"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": ["experts", "blocks"]},
        {"target_modules": ["q", "layers.1"], "exclude_modules": ["1.q", "layers.1"]},
        {"target_modules": ["q", "query"], "exclude_modules": r"model\..*"},
    ],
    ids=str,
)
def test_targets_are_pefts(options: dict[str, Any]) -> None:
    config = LoraConfig(**options)
    theirs = [bool(check_target_module_exists(config, path)) for path in PATHS]
    excluded = [isinstance(check_target_module_exists(config, path), _ExcludedModule) for path in PATHS]
    wanted = [found and not out for found, out in zip(theirs, excluded, strict=True)]
    assert [is_target(options, path) for path in PATHS] == wanted
    assert 0 < sum(wanted) < len(PATHS)


def test_patterns_are_pefts() -> None:
    table = {"^query": 1, "query": 2, r"layers\.1.*": 3, "layers.0.q": 4, "q": 5}
    wanted = [table.get(get_pattern_key(table, path), 0) for path in PATHS]
    assert [Patterns(table).number(path, 0) for path in PATHS] == wanted
    assert set(wanted) == {0, 1, 2, 3, 4, 5}


def test_an_adapter_of_a_model_with_a_head_goes_onto_its_encoder(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}

    def classifier() -> Any:
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(**sizes, vocab_size=20)).eval()

    theirs = moved(get_peft_model(classifier(), LoraConfig(r=2, target_modules=["query"]))).eval()
    theirs.save_pretrained(tmp_path)
    ours, tokens = classifier(), torch.arange(10).view(2, 5)
    with pytest.raises(Refused, match="write prefix='bert'"):
        import_peft(ours.bert, tmp_path)
    import_peft(ours.bert, tmp_path, prefix="bert")
    close(ours(tokens).logits, theirs(tokens).logits, 1e-5, "logits")


def test_a_head_that_was_trained_with_the_adapter_is_left_behind(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}
    plain = BertForSequenceClassification(BertConfig(**sizes, vocab_size=20)).eval()
    config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    theirs = moved(get_peft_model(copy.deepcopy(plain), config)).eval()
    theirs.save_pretrained(tmp_path)
    assert any("classifier" in key for key in safetensors.torch.load_file(weights(tmp_path)))
    ours, tokens = copy.deepcopy(plain), torch.arange(10).view(2, 5)
    with pytest.raises(Refused, match="write prefix='bert'"):
        import_peft(ours.bert, tmp_path)
    result = import_peft(ours.bert, tmp_path, prefix="bert")
    assert result.notes == tuple(
        f"{name!r} was trained whole and is no part of this model" for name in ("classifier", "score")
    )
    wanted = theirs.base_model.model.bert(tokens).last_hidden_state
    close(ours.bert(tokens).last_hidden_state, wanted, 1e-5, "output")
    with pytest.raises(Refused, match="modules_to_save"):
        import_peft(copy.deepcopy(plain), tmp_path)
    for saved_whole in ("bert", "pooler", "0.output"):
        with_settings(tmp_path, modules_to_save=["classifier", saved_whole])
        with pytest.raises(Refused, match="modules_to_save"):
            import_peft(copy.deepcopy(plain).bert, tmp_path, prefix="bert")
    with_settings(tmp_path, modules_to_save=["classifier", "extra"])
    rewrite(tmp_path, lambda tensors: tensors | {"base_model.model.bert.extra.weight": torch.ones(2)})
    with pytest.raises(Refused, match=r"bert\.extra\.weight"):
        import_peft(copy.deepcopy(plain).bert, tmp_path, prefix="bert")


def test_several_adapters_live_side_by_side(tmp_path: Path) -> None:
    wanted = {}
    model = base("llama")
    for name, options in {"a": {}, "b": {"init_lora_weights": "pissa"}}.items():
        wanted[name] = output(saved("llama", lora("llama", **options), tmp_path / name))
        import_peft(model, tmp_path / name, name)
    for name, expected in wanted.items():
        activate(model, name)
        close(output(model), expected, 1e-5, name)


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        small("lora", alpha=7.0),
        small("rslora"),
        small("dora"),
        small("adalora", alpha=3.0),
        small("vera"),
        small("oft"),
        small("oft", inverse="neumann", terms=6),
        small("boft", butterflies=1),
        small("hra"),
        small("ia3", feedforward="down_proj"),
    ],
    ids=str,
)
def test_there_and_back(variant: Variant, tmp_path: Path) -> None:
    """Ours, in PEFT, saved by PEFT, ours again: the same method, tensors and weights."""
    first = adapted("llama", variant, scale=0.1)
    export_peft(first, tmp_path / "ours")
    PeftModel.from_pretrained(base("llama"), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    second, result = imported("llama", tmp_path / "theirs")
    assert result.method == variant.name
    assert list(hosts(second)) == list(hosts(first))
    for path, host in hosts(first).items():
        again = hosts(second)[path]
        for name, tensor in host.carried("default").tensors().items():
            close(again.carried("default").tensors()[name], tensor, 1e-6, f"{name} of {path}")
        close(again.effective_weight(), host.effective_weight(), 1e-6, f"weight of {path}")


@pytest.mark.parametrize("name", ["pissa", "sorsa", "lora_xs", "stiefel", "hra", "corda"])
def test_pairs_come_back_as_lora_of_the_same_weights(name: str, tmp_path: Path) -> None:
    first = adapted("llama", small(name, **({"gram_schmidt": True} if name == "hra" else {})))
    export_peft(first, tmp_path)
    second, _ = imported("llama", tmp_path)
    for path, host in hosts(first).items():
        close(hosts(second)[path].effective_weight(), host.effective_weight(), 1e-5, f"weight of {path}")


# ---- options that are refused ---------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = change(safetensors.torch.load_file(file))
    safetensors.torch.save_file({key: tensor.clone() for key, tensor in tensors.items()}, file)


def with_settings(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.fixture(scope="module")
def _lora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    export_peft(adapted("bert", small("lora")), folder)
    return folder


@pytest.fixture
def folder(_lora_folder: Path, tmp_path: Path) -> Path:
    """A good adapter, to be spoilt."""
    return Path(shutil.copytree(_lora_folder, tmp_path / "adapter"))


def assert_refused(folder: Path, match: str, **arguments: Any) -> None:
    model = base("bert")
    before = snapshot(model)
    with pytest.raises(Refused, match=match) as refused:
        import_peft(model, folder, **arguments)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700
    assert_as_before(model, before)
    assert "_svdbench" not in model.__dict__


def test_the_adapter_that_is_spoilt_below_is_good(folder: Path) -> None:
    imported("bert", folder)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["pooler", "intermediate"]}, "modules_to_save"),
        ({"modules_to_save": "classifier"}, "modules_to_save"),
        ({"modules_to_save": [""]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"target_parameters": ["a.weight"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"monteclora_config": {"num_samples": 2}}, "monteclora_config"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config"),
        ({"something_new": 3}, "'something_new=3' is not known"),
        ({"coft": True}, "'coft=True' is not known for LORA"),
        ({"init_lora_weights": "pissa_niter_16"}, "without a seed.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": ["pissa"]}, "cannot be known"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "no method here"),
        ({"use_dora": True}, "no lora_magnitude_vector"),
        ({"peft_type": "LOHA"}, "'LOHA' is not read: LORA, ADALORA"),
        ({"peft_type": ["LORA"]}, "is not read"),
        ({"peft_type": "OFT"}, "no tensor of OFT"),
        ({"r": 5}, r"shape \(4, 16\), expected \(5, 16\)"),
        ({"r": "4"}, "r is a whole number, not '4'"),
        ({"r": True}, "r is a whole number"),
        ({"r": -4}, "rank is a whole number from 1"),
        ({"r": 10**12}, "expected"),
        ({"lora_alpha": 0}, "alpha is a positive number"),
        ({"lora_alpha": float("nan")}, "finite number, not 'nan'"),
        ({"lora_alpha": 10**400, "use_rslora": True}, "finite number"),
        ({"r": 10**400, "use_rslora": True}, "finite number"),
        ({"rank_pattern": {"query": 10**400}, "use_dora": True, "use_rslora": True}, "finite number"),
        ({"use_rslora": 1}, "true or false"),
        ({"rank_pattern": {"query": "4"}}, "stands for a finite number, not '4'"),
        ({"rank_pattern": {"query": 2.5}}, "whole number"),
        ({"rank_pattern": [3]}, "rank_pattern is a table"),
        ({"rank_pattern": {"(a+)+$": 3}}, "for ever"),
        ({"rank_pattern": {"((": 3}}, "no regular expression"),
        ({"rank_pattern": {"(a|.)" * 40: 3}}, "for ever"),
        ({"rank_pattern": {".?" * 40: 3}}, "for ever"),
        ({"rank_pattern": {".*" * 40: 3}}, "for ever"),
        ({"rank_pattern": {f"a{i}": 3 for i in range(10_001)}}, "10001 patterns"),
        ({"target_modules": ["query", 3]}, "target_modules is a text or a list"),
        ({"target_modules": "(.*.*)*x"}, "for ever"),
        ({"target_modules": r"[\][](.*)*x]"}, "for ever"),  # a class of two brackets
        ({"target_modules": "(?x)#[\n(.*)*x#]"}, r"holds '\(\?x'"),  # in verbose mode the class is in comments
        ({"target_modules": "(?x:#[\n(.*)*x#]\n)"}, r"holds '\(\?x'"),
        ({"target_modules": "(?x)#" + "[" * 99_000 + "\\"}, r"holds '\(\?x'"),
        ({"rank_pattern": {"(?i)query": 3}}, r"holds '\(\?i'"),
        ({"rank_pattern": {"a)|(b": 3}}, "no regular expression"),
        ({"target_modules": ["query"], "layers_to_transform": 1, "layers_pattern": "(?i)layer"}, r"holds '\(\?i'"),
        (
            {"target_modules": ["query"], "layers_to_transform": 1, "layers_pattern": "(?P<index>layer)"},
            r"holds '\(\?P'",
        ),
        ({"target_modules": ["query", "key"]}, "holds nothing for it"),
        ({"target_modules": ["query"], "layers_to_transform": "all"}, "layers_to_transform is a number"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_options_that_mean_something_else_are_refused(folder: Path, settings: dict[str, Any], match: str) -> None:
    with_settings(folder, **settings)
    assert_refused(folder, match)


def test_unknown_options_that_are_switched_off_are_listed(folder: Path) -> None:
    with_settings(folder, something_new=None, other=False, loftq_config={}, eva_config={"rho": 2.0})
    assert imported("bert", folder)[1].unknown == ("other", "something_new")


def test_eva_needs_nothing_but_its_factors(folder: Path) -> None:
    """It chooses A and the ranks, which the file holds, and leaves the base as it is."""
    wanted = output(imported("bert", folder)[0])
    with_settings(folder, init_lora_weights="eva", eva_config={"rho": 2.0})
    close(output(imported("bert", folder)[0]), wanted, 0.0, "output")
    close(output(PeftModel.from_pretrained(base("bert"), folder).eval()), wanted, 1e-5, "output in PEFT")


def test_formats_which_lack_what_they_need(tmp_path: Path) -> None:
    for i, (config, match) in enumerate(
        [
            (OFTConfig(oft_block_size=4, coft=True, target_modules=["query"]), "coft"),
            (OFTConfig(oft_block_size=4, num_cayley_neumann_terms=2, target_modules=["query"]), "no rotation"),
        ]
    ):
        saved("bert", config, tmp_path / str(i))
        assert_refused(tmp_path / str(i), match)
    saved("bert", OFTConfig(oft_block_size=4, target_modules=["query"]), tmp_path / "old")
    with_settings(tmp_path / "old", num_cayley_neumann_terms=10**9)
    assert_refused(tmp_path / "old", "terms is a whole number from 4 to 64")
    for version in ("0.17.1", None, "x"):
        with_settings(tmp_path / "old", peft_version=version)
        assert_refused(tmp_path / "old", "before PEFT 0.18")
    saved("bert", BOFTConfig(boft_block_size=4, target_modules=["query"]), tmp_path / "boft")
    rewrite(tmp_path / "boft", lambda ts: {k: t.repeat(2, 1, 1, 1) if "boft_R" in k else t for k, t in ts.items()})
    assert_refused(tmp_path / "boft", "several butterflies")
    saved("bert", VeraConfig(r=3, target_modules=["query"]), tmp_path / "vera")
    rewrite(tmp_path / "vera", lambda tensors: {key: t for key, t in tensors.items() if "vera_A" not in key})
    assert_refused(tmp_path / "vera", "save_projection=True")
    saved("bert", AdaLoraConfig(init_r=3, total_step=5, target_modules=["query"]), tmp_path / "adalora")
    with_settings(tmp_path / "adalora", rank_pattern={"encoder.layer.0.attention.self.query.lora_E": [1, 0, 1]})
    assert_refused(tmp_path / "adalora", "3 truth values")
    with_settings(tmp_path / "adalora", rank_pattern=None, init_r=10**12)
    assert_refused(tmp_path / "adalora", "expected")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_embeddings_are_refused(tmp_path: Path) -> None:
    saved("bert", LoraConfig(r=2, target_modules=["word_embeddings"]), tmp_path)
    assert_refused(tmp_path, "embedding")


# ---- hostile files --------------------------------------------------------------------------------------------------


def weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


def test_damaged_weights_are_refused(folder: Path) -> None:
    whole = weights(folder).read_bytes()
    for damaged in (b"", whole[:5], whole[:200], whole[:-4], whole + b"more", b"\xff" * 8 + whole[8:], b"PK" + whole):
        weights(folder).write_bytes(damaged)
        assert_refused(folder, "cannot be read|announces a header")


def test_a_header_that_announces_terabytes(folder: Path) -> None:
    entry = b'{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}'
    header = b'{"base_model.model.a.lora_A.weight":' + entry + b"}"
    weights(folder).write_bytes(len(header).to_bytes(8, "little") + header)
    assert_refused(folder, "cannot be read")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[1]", "holds a list"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"a": "' + b"x" * (5 << 20) + b'"}', "this is no configuration"),
    ],
    ids=range(6),
)
def test_damaged_settings_are_refused(folder: Path, settings: bytes, match: str) -> None:
    (folder / "adapter_config.json").write_bytes(settings)
    assert_refused(folder, match)


def test_what_is_not_there_or_only_pickled(folder: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing", "holds no adapter_config.json")
    weights(folder).unlink()
    assert_refused(folder, "holds no adapter_model.safetensors")
    torch.save({}, folder / "adapter_model.bin")
    assert_refused(folder, "could run any code.*save_pretrained")
    os.mkfifo(weights(folder))
    assert_refused(folder, "could run any code")


A = "base_model.model.encoder.layer.0.attention.self.value.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: {k: v for k, v in t.items() if k != A}, "holds no lora_A.weight of encoder.layer.0"),
        (lambda t: {k: v for k, v in t.items() if "value" not in k}, "holds nothing for it"),
        (lambda t: t | {A: t[A][:, :-1]}, "expected"),
        (lambda t: t | {A: t[A][0]}, "expected"),
        (lambda t: t | {A: t[A].to(torch.int32)}, "expected floating-point"),
        (lambda t: t | {A: t[A] * torch.nan}, "not finite"),
        (lambda t: t | {A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(16)}, "do not account for"),
        (lambda t: t | {A.replace("lora_A.weight", "lora_B.bias"): torch.ones(16)}, "is no tensor of LORA"),
        (lambda t: t | {"base_model.model.../../etc/passwd.lora_A.weight": t[A]}, "no such layer"),
        (lambda t: t | {"base_model.model..lora_A.weight": t[A]}, "no such layer|is no tensor"),
        (lambda t: t | {"base_model.model.encoder.lora_A.weight": t[A]}, "BertEncoder there, which has no host"),
        (lambda t: t | {"encoder.lora_A.weight": t[A]}, "is no tensor of LORA"),
        (lambda t: t | {"base_model.model." + "x" * 10_000 + ".lora_A.weight": t[A]}, "no such layer"),
        (lambda _: {}, "no tensor of an adapted layer"),
    ],
    ids=range(14),
)
def test_tensors_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], match: str
) -> None:
    rewrite(folder, change)
    assert_refused(folder, match)


@pytest.mark.parametrize("name", ["../up", "a.b", "keys", ""])
def test_names_that_are_none(folder: Path, name: str) -> None:
    assert_refused(folder, "cannot name an adapter", name=name)


ESCAPE = "\x1b[2J"


@pytest.mark.parametrize(
    "settings",
    [
        {ESCAPE: 3},
        {"new": ESCAPE},
        {"kasa_config": ESCAPE},
        {"peft_type": ESCAPE},
        {"r": ESCAPE},
        {"init_lora_weights": ESCAPE},
        {"rank_pattern": {ESCAPE: "x"}},
        {"rank_pattern": {f"[b-{ESCAPE}]": 1}},
        {"target_modules": f"({ESCAPE}"},
        {"modules_to_save": [ESCAPE, "query"]},
    ],
    ids=str,
)
def test_no_control_character_of_the_settings_is_printed(folder: Path, settings: dict[str, Any]) -> None:
    with_settings(folder, **settings)
    with pytest.raises(Refused) as refused:
        import_peft(base("bert"), folder)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
@pytest.mark.parametrize("name", [ESCAPE, f"base_model.model.{ESCAPE}.lora_A.weight"])
def test_no_control_character_of_the_weights_is_printed(folder: Path, name: str, dtype: torch.dtype) -> None:
    rewrite(folder, lambda tensors: tensors | {name: torch.ones(2, 2, dtype=dtype)})
    with pytest.raises(Refused) as refused:
        import_peft(base("bert"), folder)
    assert str(refused.value).isprintable()


def test_no_control_character_of_a_header_is_printed(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": ESCAPE, "shape": [1], "data_offsets": [0, 4]}}).encode()
    weights(folder).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(Refused, match="cannot be read") as refused:
        import_peft(base("bert"), folder)
    assert str(refused.value).isprintable()


def test_an_adapter_with_a_name_is_found_in_its_folder(tmp_path: Path) -> None:
    theirs = get_peft_model(base("bert"), lora("bert"), adapter_name="mine")
    theirs.save_pretrained(tmp_path)
    assert_refused(tmp_path, "holds no adapter_config.json: give '.*mine'$")
    imported("bert", tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    assert_refused(tmp_path, "mine', or another of its 2 adapters$")
