"""Base models: a tiny made-up BERT in a folder, a stand-in for the hub, and the real one of the table."""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
import socket
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from evaluation import assets, hub, models
from evaluation.models import digest_of, load_base
from evaluation.spec import Unusable
from variants.core.products import FastLinear

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 6}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT in bfloat16, with its pooling layer, and a tokenizer of six words."""
    folder = tmp_path_factory.mktemp("saved")
    with torch.random.fork_rng(devices=[]), hub.quiet():
        transformers.BertModel(transformers.BertConfig(**SIZES)).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "what": 2, "is": 3, "a": 4, "b": 5}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to reach the network, which all fail."""
    made: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        made.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return made


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_folder_gives_a_float32_encoder_without_pooling(folder, calls, capfd):
    before = torch.random.get_rng_state()
    base = load_base(str(folder))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (base.name, base.hidden, base.digest) == (str(folder), 8, digest_of(str(folder)))
    assert {p.dtype for p in base.encoder.parameters()} == {torch.float32}
    assert not base.encoder.training
    assert {type(m) for m in base.encoder.modules() if isinstance(m, torch.nn.Linear)} == {FastLinear}
    assert not any("pooler" in name for name, _ in base.encoder.named_parameters())
    weights = load_file(folder / "model.safetensors")
    for name, tensor in base.encoder.named_parameters():
        assert torch.equal(tensor, weights[name].float())
    batch = base.tokenizer(["what is a b", "what"], padding=True, return_tensors="pt")
    assert base.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state.shape == (2, 4, 8)
    assert calls == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bars", [False, True])
def test_libraries_keep_quiet_and_their_settings_are_put_back(folder, monkeypatch, bars):
    library, advice = logging.getLogger("transformers"), Mock(level=logging.NOTSET)
    monkeypatch.setattr(library, "handlers", [advice])
    before = library.level
    hub._show_bars(bars)
    load_base(str(folder))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(Unusable):
        load_base(str(folder))
    assert (library.level, transformers.utils.logging.is_progress_bar_enabled()) == (before, bars)
    advice.handle.assert_not_called()


def test_decoder_without_padding_token_gets_one(folder):
    with torch.random.fork_rng(devices=[]), hub.quiet():
        transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=6)).save_pretrained(
            folder
        )
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["pad_token"]
    file.write_text(json.dumps({**settings, "eos_token": "b"}))
    base = load_base(str(folder))
    assert (base.hidden, base.tokenizer.pad_token) == (8, "b")


def test_digest_is_that_of_weights_config_and_tokenizer_and_nothing_else(folder, monkeypatch):
    monkeypatch.setattr(models, "_encoder", None)  # no weights are loaded for it
    seen = [digest_of(str(folder))]
    (folder / "README.md").write_text("words")
    assert digest_of(str(folder)) == seen[0]
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        seen.append(digest_of(str(folder)))
    assert len(set(seen)) == 5


def drop(folder: Path, *names: str) -> None:
    weights = {n: t for n, t in load_file(folder / "model.safetensors").items() if n not in names}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def own_code(folder: Path) -> None:
    edit_config(folder, model_type="mine", auto_map={"AutoConfig": "code.Mine", "AutoModel": "code.Mine"})
    (folder / "code.py").write_text("raise SystemExit('ran')")


INDEX = "model.safetensors.index.json"
SHARDED = '{"weight_map": {"w": "model-00001-of-00002.safetensors"}}'
BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "pickle only": (pickled, "pickled weights are never read"),
    "weights cut off": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 20), "cannot be loaded"),
    "a weight lacks": (lambda f: drop(f, "encoder.layer.1.output.dense.bias"), "lacks 1 weights of a bert model"),
    "a weight of another shape": (lambda f: edit_config(f, intermediate_size=13), "cannot be loaded|lacks"),
    "a shard lacks": (lambda f: (f / INDEX).write_text(SHARDED), "lacks model-00001-of-00002.safetensors"),
    "index is no index": (lambda f: (f / INDEX).write_text("[]"), "is not an index of weights"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "holds no tokenizer"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "an adapter, not a base model"),
    "code of its own": (own_code, "cannot be loaded"),
    "config out of range": (lambda f: edit_config(f, model_type="t5", classifier_dropout=None), "cannot be loaded"),
    "encoder and decoder": (lambda f: transformers.T5Config().save_pretrained(f), "holds a t5 model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_folder_is_one_line(folder, calls, capfd, case):
    damage, said = BROKEN[case]
    damage(folder)
    before = torch.random.get_rng_state()
    with pytest.raises(Unusable, match=said) as refused:
        load_base(str(folder))
    assert torch.equal(before, torch.random.get_rng_state())
    assert "\n" not in str(refused.value)
    assert calls == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minilmm", "did you mean minilm?"),
        ("smollm", "did you mean smollm2"),
        ("", "known: minilm, smollm2"),
        ("./nowhere", "no model folder './nowhere'"),
        ("a/b/c", "no model folder"),
    ],
)
def test_unknown_name(calls, name, said):
    for verb in (load_base, digest_of):
        with pytest.raises(Unusable, match=re.escape(said)):
            verb(name)
    assert calls == []


def test_hub_is_asked_only_for_what_its_cache_lacks(folder, monkeypatch):
    asked: list[bool] = []
    cached = False

    def snapshot(name: str, *, local_files_only: bool, allow_patterns: list[str], **_: object) -> str:
        assert name == "org/name"
        assert not any("bin" in pattern or pattern == "*" for pattern in allow_patterns)
        asked.append(local_files_only)
        if local_files_only and not cached:
            raise FileNotFoundError("not cached")
        return str(folder)

    monkeypatch.setattr(models, "snapshot_download", snapshot)
    assert load_base("org/name").digest == digest_of(str(folder))
    assert asked == [True, False]
    cached = True
    assert load_base("org/name").name == "org/name"
    assert asked == [True, False, True]


def test_hub_that_gives_nothing_usable_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(models, "snapshot_download", lambda *_, **__: str(folder))
    pickled(folder)
    with pytest.raises(Unusable, match="pickled weights are never read"):
        load_base("org/name")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("404\nNot found\n" + "x" * 1000)

    monkeypatch.setattr(models, "snapshot_download", fail)
    with pytest.raises(Unusable, match="no folder 'org/name', and the hub does not give it: 404 Not found") as refused:
        load_base("org/name")
    assert len(str(refused.value)) < 400


def test_hub_without_network(calls, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Unusable, match="the hub does not give it") as refused:
        load_base("org/name")
    assert "\n" not in str(refused.value)
    assert len(calls) > 0


def test_digest_of_the_table_needs_no_download(monkeypatch):
    monkeypatch.setattr(assets, "fetch", None)
    assert models.names().keys() == {"minilm", "smollm2"}
    assert all(len(digest_of(name)) == 64 for name in models.names())


@pytest.mark.assets
def test_minilm(calls, capfd):
    base = load_base("minilm")
    assert base.digest == digest_of("minilm") == models._folder_digest(assets.fetch("minilm"))
    assert base.hidden == 384
    assert sum(p.numel() for p in base.encoder.parameters()) == 22_713_216 - 384 * 385  # all but the pooling layer
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    batch = base.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = base.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    cosines = means @ means.T
    assert cosines[0, 1] == pytest.approx(0.755, abs=0.01)  # as its authors give it
    assert cosines[0, 2] < 0.2
    assert calls == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.assets
def test_smollm2(capfd):
    """A language model that knows what its words mean: far from chance on a true sentence, and further on a shuffled
    one. Its head is the embedding."""
    base = load_base("smollm2")
    assert base.digest == digest_of("smollm2") == models._folder_digest(assets.fetch("smollm2"))
    assert base.hidden == 576
    assert sum(p.numel() for p in base.encoder.parameters()) == 134_515_008
    assert {p.dtype for p in base.encoder.parameters()} == {torch.float32}
    assert not any(p.is_meta for p in base.encoder.parameters())
    sentence = "The capital of France is Paris, and the capital of Italy is Rome."
    words = sentence.split()
    shuffled = " ".join(words[i] for i in torch.randperm(len(words), generator=torch.Generator().manual_seed(0)))

    def perplexity(text: str) -> float:
        ids = base.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = base.encoder(ids)
            logits = output.last_hidden_state @ base.encoder.get_input_embeddings().weight.T
        assert output.past_key_values is None
        return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).exp())

    assert perplexity(sentence) == pytest.approx(5.4, abs=0.2)
    assert perplexity(shuffled) > 50
    assert capfd.readouterr() == ("", "")
