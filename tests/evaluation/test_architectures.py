"""Models without weights: their sizes as published, and which layers a role means."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers

from evaluation import architectures, assets
from evaluation.architectures import ROLES, Architecture, architecture, layers, names
from evaluation.spec import Unusable

# As the model cards print them, or counted in the released files; encoders without pooling layer and head.
PARAMETERS = {
    "minilm": 22_565_376,
    "smollm2": 134_515_008,
    "roberta-base": 124_055_040,
    "roberta-large": 354_310_144,
    "deberta-v3-base": 183_831_552,
    "deberta-v2-xxlarge": 1_564_549_632,
    "vit-base": 85_798_656,
    "vit-large": 303_301_632,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt3-175b": 174_604_259_328,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-9b": 9_241_705_984,
}
# name -> blocks, and one block's q, k, v, o, up, down as (out, in); gate has the shape of up
BLOCKS = {
    "minilm": (6, [(384, 384)] * 4 + [(1536, 384), (384, 1536)]),
    "smollm2": (30, [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (576, 1536)]),
    "roberta-base": (12, [(768, 768)] * 4 + [(3072, 768), (768, 3072)]),
    "roberta-large": (24, [(1024, 1024)] * 4 + [(4096, 1024), (1024, 4096)]),
    "deberta-v3-base": (12, [(768, 768)] * 4 + [(3072, 768), (768, 3072)]),
    "deberta-v2-xxlarge": (48, [(1536, 1536)] * 4 + [(6144, 1536), (1536, 6144)]),
    "vit-base": (12, [(768, 768)] * 4 + [(3072, 768), (768, 3072)]),
    "vit-large": (24, [(1024, 1024)] * 4 + [(4096, 1024), (1024, 4096)]),
    "gpt2-medium": (24, [(1024, 1024)] * 4 + [(4096, 1024), (1024, 4096)]),
    "gpt2-large": (36, [(1280, 1280)] * 4 + [(5120, 1280), (1280, 5120)]),
    "gpt3-175b": (96, [(12288, 12288)] * 4 + [(49152, 12288), (12288, 49152)]),
    "llama-7b": (32, [(4096, 4096)] * 4 + [(11008, 4096), (4096, 11008)]),
    "llama-13b": (40, [(5120, 5120)] * 4 + [(13824, 5120), (5120, 13824)]),
    "llama-2-7b": (32, [(4096, 4096)] * 4 + [(11008, 4096), (4096, 11008)]),
    "llama-3-8b": (32, [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336)]),
    "llama-3.2-3b": (28, [(3072, 3072), (1024, 3072), (1024, 3072), (3072, 3072), (8192, 3072), (3072, 8192)]),
    "mistral-7b": (32, [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336)]),
    "gemma-2b": (18, [(2048, 2048), (256, 2048), (256, 2048), (2048, 2048), (16384, 2048), (2048, 16384)]),
    "gemma-7b": (28, [(4096, 3072)] * 3 + [(3072, 4096), (24576, 3072), (3072, 24576)]),
    "gemma-2-9b": (42, [(4096, 3584), (2048, 3584), (2048, 3584), (3584, 4096), (14336, 3584), (3584, 14336)]),
}


@pytest.fixture(scope="module")
def built() -> dict[str, Architecture]:
    return {}


def get(built: dict[str, Architecture], name: str) -> Architecture:
    return built.setdefault(name, architecture(name))


def test_the_tables_here_are_complete() -> None:
    assert set(names()) == set(PARAMETERS) == set(BLOCKS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_models_have_their_published_sizes_and_no_data(built: dict[str, Architecture], name: str) -> None:
    found = get(built, name)
    assert found.parameters == PARAMETERS[name]
    assert {parameter.device.type for parameter in found.whole.parameters()} == {"meta"}


@pytest.mark.parametrize("name", BLOCKS)
def test_roles_find_each_layer_once(built: dict[str, Architecture], name: str) -> None:
    found, (blocks, block) = get(built, name), BLOCKS[name]
    every: Counter[str] = Counter()
    for role, shape in zip(("q", "k", "v", "o", "up", "down"), block, strict=True):
        mine = layers(found, [role])
        assert list(mine.values()) == [shape] * blocks, role
        every.update(list(mine))
    if name.startswith(("llama", "mistral", "gemma", "smollm")):
        gates = layers(found, ["gate"])
        assert list(gates.values()) == [block[4]] * blocks
        every.update(list(gates))
    else:
        with pytest.raises(Unusable, match=f"{name} has no layer known as gate"):
            layers(found, ["gate"])
    assert set(every.values()) == {1}
    assert set(layers(found, ["all"])) == set(every)


def test_targets_add_up_and_may_be_patterns(built: dict[str, Architecture]) -> None:
    found = get(built, "roberta-base")
    assert len(layers(found, ["q", "v"])) == 24
    assert layers(found, ["layer.3.attention.self.query"]) == {"encoder.layer.3.attention.self.query": (768, 768)}
    assert len(layers(found, ["q", "layer.3.*.key"])) == 13


def test_gpt3_is_built_in_little_time() -> None:
    started = time.process_time()
    assert len(layers(architecture("gpt3-175b"), ["q", "v"])) == 192
    assert time.process_time() - started < 6


def test_the_head_counts_as_part_of_the_model_and_is_not_adapted(built: dict[str, Architecture]) -> None:
    found = get(built, "llama-7b")
    assert found.parameters - sum(p.numel() for p in found.body.parameters()) == 32000 * 4096
    assert not any("lm_head" in path for path in layers(found, ["all"]))


def saved(folder: Path, config: transformers.PretrainedConfig) -> str:
    config.save_pretrained(folder)
    return str(folder)


def test_a_folder_needs_a_configuration_alone(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(dim=24, hidden_dim=48, n_layers=2, n_heads=2, vocab_size=11)
    found = architecture(saved(tmp_path, config))
    assert [len(layers(found, [role])) for role in ("q", "k", "v", "o", "up", "down")] == [2] * 6
    assert layers(found, ["up"])["transformer.layer.0.ffn.lin1"] == (48, 24)
    assert found.parameters == sum(p.numel() for p in transformers.DistilBertModel(config).parameters())


def test_fused_projections_are_named_as_such(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=11, n_positions=8)
    found = architecture(saved(tmp_path, config))
    with pytest.raises(Unusable, match="has no q of its own, it is a part of c_attn: name that instead"):
        layers(found, ["q"])
    assert list(layers(found, ["c_attn"]).values()) == [(72, 24)] * 2  # (out, in), though GPT-2 stores (in, out)
    assert list(layers(found, ["o", "up", "down"]).values()) == [(24, 24), (96, 24), (24, 96)] * 2


@pytest.mark.parametrize("kind", ["GPT2", "OPT"])
def test_gpt2_in_the_shape_of_opt_has_gpt2s_parameters(kind: str, tmp_path: Path) -> None:
    """Why the skeleton is an honest stand-in: the same matrices, c_attn cut in three, and the same everything else."""
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    if kind == "GPT2":
        sizes = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
        found = architecture(saved(tmp_path, transformers.GPT2Config(**sizes)))
    else:
        found = architecture("gpt2-medium")
    assert found.parameters == PARAMETERS["gpt2-medium"]
    assert sum(out * in_ for out, in_ in layers(found, ["all"]).values()) == 24 * 12 * 1024**2


def test_t5_has_roles_too(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=40, num_layers=2, num_heads=2, vocab_size=11)
    found = architecture(saved(tmp_path, config))
    assert [len(layers(found, [role])) for role in ("q", "v", "up", "down")] == [6, 6, 4, 4]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt3-17b", "unknown model 'gpt3-17b': did you mean gpt3-175b"),
        ("nowhere/at/all", "unknown model 'nowhere/at/all'"),
        ("", "unknown model ''"),
        ("somebody/something", "no folder 'somebody/something', and the hub does not give it"),
    ],
)
def test_unknown_models_are_one_line(monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(architectures, "hf_hub_download", refuse)
    with pytest.raises(Unusable) as problem:
        architecture(name)
    assert str(problem.value).startswith(expected)
    assert "\n" not in str(problem.value)


def test_a_hub_model_gives_its_configuration_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    saved(tmp_path, transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))

    def give(name: str, file: str, *, local_files_only: bool) -> str:
        asked.append((name, file, local_files_only))
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        return str(tmp_path / file)

    monkeypatch.setattr(architectures, "hf_hub_download", give)
    assert len(layers(architecture("somebody/something"), ["q"])) == 1
    assert asked == [("somebody/something", "config.json", True), ("somebody/something", "config.json", False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "holds no config.json"),
        ("{", "no model can be made from the configuration"),
        ('{"model_type": "unheard-of"}', "no model can be made from the configuration"),
        (json.dumps({"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}), "no model can be made"),
    ],
)
def test_folders_of_no_model_are_one_line(tmp_path: Path, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(Unusable, match=expected) as problem:
        architecture(str(tmp_path))
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("target", ["qurey", ""])
def test_targets_that_match_nothing_say_what_there_is(built: dict[str, Architecture], target: str) -> None:
    with pytest.raises(Unusable, match=r"minilm: .* matches no layer; layers of this model: encoder"):
        layers(get(built, "minilm"), [target])


def test_building_leaves_the_random_state_and_the_default_device_alone() -> None:
    before = torch.random.get_rng_state()
    architecture("minilm")
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.empty(1).device.type == "cpu"


def test_each_role_names_its_layers_once() -> None:
    every = [pattern for patterns in ROLES.values() for pattern in patterns]
    assert len(every) == len(set(every))


@pytest.mark.assets
def test_minilm_is_the_released_one(built: dict[str, Architecture]) -> None:
    mine = get(built, "minilm").whole
    released = architecture(str(assets.fetch("minilm"))).whole
    assert {path: p.shape for path, p in mine.named_parameters()} == {
        path: p.shape for path, p in released.named_parameters()
    }
