"""Adapters of ours in PEFT 0.21.2: every method gives the same outputs there, or says what to write instead."""

from __future__ import annotations

import copy
import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from peft import PeftModel
from peft.tuners.boft import layer as boft_layer
from torch import nn
from transformers import AutoModel, BertConfig, BertForSequenceClassification

from evaluation.models import load_base
from tests.variants.models import Gated, net
from tests.variants.peft_files import (
    adapted,
    assert_as_before,
    base,
    in_peft,
    output,
    peft_layers,
    put,
    small,
    snapshot,
)
from variants.adalora import AdaLoRA
from variants.core import Refused, Variant, activate, attach, create, method, names
from variants.core.cases import close, gap, move
from variants.core.host import hosts
from variants.core.interface import Init
from variants.core.restoring import restore
from variants.core.rounding import Rounding
from variants.interchange import Exported, export_merged, export_peft, folders
from variants.lora import LoRA

# PEFT asks transformers in an old way whether gradients are checkpointed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NATIVE = {"lora", "rslora", "dora", "adalora", "vera", "oft", "boft", "hra", "ia3"}
NEITHER = {"goft", "dense", "full", "bitfit", "probe", "adapter"}
ONE_FACTOR = {"boft": {"butterflies": 1}}  # PEFT has several only with its CUDA extension


@pytest.fixture(autouse=True)
def _without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: None)


class UnknownToPEFT(AdaLoRA):
    """Could do anything."""


def assert_same_in_peft(kind: str, model: nn.Module, exported: Exported) -> None:
    theirs = in_peft(kind, exported.folder)
    assert peft_layers(theirs) == set(exported.layers) == set(hosts(model))
    close(output(theirs), output(model), 1e-5, "output")
    assert gap(output(model), output(base(kind))) > 1e-3, "the control: the adapter does something"


def test_the_version_that_was_read() -> None:
    assert peft.__version__ == "0.21.2"


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_every_method_gives_the_same_outputs_in_peft_or_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    if name == "bitfit" and kind == "llama":
        pytest.skip("a Llama has no biases")
    model = adapted(kind, small(name, **ONE_FACTOR.get(name, {})))
    before = snapshot(model)
    if name in NEITHER:
        with pytest.raises(Refused, match="export_merged"):
            export_peft(model, tmp_path / "adapter")
        assert not list(tmp_path.iterdir())
    else:
        exported = export_peft(model, tmp_path / "adapter")
        assert exported.form == ("native" if name in NATIVE else "exact pair")
        assert (exported.method, exported.why) == (name, "")
        assert_same_in_peft(kind, model, exported)
    assert_as_before(model, before)


@pytest.mark.parametrize("name", names())
def test_every_mergeable_method_is_written_as_a_plain_model(name: str, tmp_path: Path) -> None:
    kind = "bert" if name == "bitfit" else "llama"  # a Llama has no biases
    model = adapted(kind, small(name))
    before = snapshot(model)
    if method(name).mergeable:
        folder = export_merged(model, tmp_path / "merged")
        plain = type(base(kind)).from_pretrained(folder, **({"add_pooling_layer": False} if kind == "bert" else {}))
        close(output(plain), output(model), 1e-5, "output")
        assert set(plain.state_dict()) == set(base(kind).state_dict())
    else:
        with pytest.raises(Refused, match="merge"):
            export_merged(model, tmp_path / "merged")
    assert_as_before(model, before)


# ---- hyperparameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        small("lora", alpha=7.5),
        small("rslora", alpha=7.0),
        small("dora", alpha=3.0, detach_norm=False),
        small("adalora", alpha=3.0),
        small("adalora", alpha=3.0, faithful="code"),
        small("oft", block=8, inverse="neumann", terms=4),
        small("oft", block=2, inverse="neumann", terms=6),
        small("hra", gram_schmidt=True, rank=3),
        small("ia3", side="input"),
        small("ia3", feedforward="0.mlp.down_proj"),
    ],
    ids=str,
)
def test_native_forms_hold_hyperparameters(variant: Variant, tmp_path: Path) -> None:
    model = adapted("llama", variant, scale=0.1)
    exported = export_peft(model, tmp_path / "adapter")
    assert exported.form == "native"
    assert_same_in_peft("llama", model, exported)


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "adalora", "vera", "ia3", "hra", "oft", "pissa", "sorsa"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_layers_that_store_their_weight_the_other_way_round(name: str, tmp_path: Path) -> None:
    model = adapted("gpt2", small(name))
    if name == "oft":
        with pytest.raises(Refused, match=r"store their weight as \(in, out\).*export_merged"):
            export_peft(model, tmp_path / "adapter")
        return
    exported = export_peft(model, tmp_path / "adapter")
    assert exported.form == ("native" if name in NATIVE - {"hra"} else "exact pair")
    assert ("in, out" in exported.why) is (name == "hra")
    assert settings(exported)["fan_in_fan_out"] is True
    assert_same_in_peft("gpt2", model, exported)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")  # PEFT takes them for LoRA's
def test_pruned_triplets_of_adalora_stay_pruned(tmp_path: Path) -> None:
    """Their number is still divided by. A layer of which nothing is left keeps one triplet of no effect."""
    model = adapted("bert", small("adalora", rank=3))
    E = [host.carried("default").get_parameter("E") for host in hosts(model).values()]
    with torch.no_grad():
        E[0][1] = 0
        E[1].zero_()
    exported = export_peft(model, tmp_path / "adapter")
    assert list(exported.ranks.values()) == [2, 1, 3]
    masks = settings(exported)["rank_pattern"]
    assert list(masks.values()) == [[True, False, True], [True, False, False]]
    assert list(masks) == [f"{path}.lora_E" for path in exported.layers[:2]]
    assert_same_in_peft("bert", model, exported)


def several_ranks(name: str) -> Any:
    """A method with another rank and another scale on every layer."""
    model = base("deep")
    places = ["layer.1.attention.self.query", "layer.11.attention.self.query", "layer.2.attention.self.query"]
    layers: dict[str, tuple[Variant, Init]] = {}
    for i, place in enumerate(places):
        path, local = f"encoder.{place}", create(name, {"rank": i + 1, "alpha": 3.0 * (2 - i) + 1})
        W = model.get_submodule(path).weight.detach()
        layers[path] = local, local.init(W, torch.Generator().manual_seed(i))
    restore(model, create(name, {"rank": 2}), layers, replaces_base=name == "pissa")
    move(model)
    return model


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "pissa"])
def test_ranks_and_scales_that_differ_between_layers(name: str, tmp_path: Path) -> None:
    """Layers 1 and 11 among them, each of which PEFT must find under its own pattern."""
    model = several_ranks(name)
    exported = export_peft(model, tmp_path / "adapter")
    ranks = {path.split(".")[2]: rank for path, rank in exported.ranks.items()}
    assert ranks == ({"1": 2, "11": 4, "2": 6} if name == "pissa" else {"1": 1, "11": 2, "2": 3})
    assert_same_in_peft("deep", model, exported)


@pytest.mark.parametrize(
    ("name", "rank"),
    [("pissa", 8), ("olora", 8), ("corda", 8), ("lora_ga", 8), ("milora", 8), ("sorsa", 8), ("kasa", 8)],
)
def test_pairs_of_methods_that_replace_the_base_have_twice_the_rank(name: str, rank: int, tmp_path: Path) -> None:
    exported = export_peft(adapted("bert", small(name)), tmp_path / "adapter")
    assert set(exported.ranks.values()) == {rank}
    assert settings(exported)["init_lora_weights"] is True


@pytest.mark.parametrize("rank", [9, 16])
def test_pairs_have_no_more_ranks_than_the_layer(rank: int, tmp_path: Path) -> None:
    model = adapted("bert", small("pissa", rank=rank))
    exported = export_peft(model, tmp_path / "adapter")
    assert set(exported.ranks.values()) == {16}
    assert_same_in_peft("bert", model, exported)


def test_a_pair_of_rank_zero_is_one_of_zeros(tmp_path: Path) -> None:
    model = adapted("bert", UnknownToPEFT(rank=4))
    with torch.no_grad():
        next(iter(hosts(model).values())).carried("default").get_parameter("E").zero_()
    exported = export_peft(model, tmp_path / "adapter")
    assert exported.form == "exact pair", "a class which extends a method is not that method"
    assert list(exported.ranks.values()) == [1, 4, 4]
    assert_same_in_peft("bert", model, exported)


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_the_divisor_of_adalora_is_taken_into_account(faithful: str, tmp_path: Path) -> None:
    """It is 1e-5 larger than the rank, which no output in single precision shows."""
    variant: Any = small("adalora", alpha=3.0, faithful=faithful)
    written = settings(export_peft(adapted("bert", variant), tmp_path / "adapter"))
    assert written["lora_alpha"] / (written["init_r"] + 1e-5) == pytest.approx(variant.scale, rel=1e-12)


@pytest.mark.parametrize("name", ["lora_xs", "lora_sb", "psoft", "stiefel", "stella", "polar", "eva", "lora_plus"])
def test_pairs_of_the_others_have_the_rank(name: str, tmp_path: Path) -> None:
    exported = export_peft(
        adapted("bert", small(name, **({"rho": 1.0} if name == "eva" else {}))), tmp_path / "adapter"
    )
    assert set(exported.ranks.values()) == {4}


@pytest.mark.parametrize(
    ("hyperparameters", "reason"),
    [({"butterflies": 2}, "CUDA extension"), ({"butterflies": 1, "inverse": "neumann"}, "exact")],
)
def test_what_pefts_boft_cannot_hold_is_refused(hyperparameters: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = adapted("bert", small("boft", **hyperparameters), scale=0.05)
    with pytest.raises(Refused, match=f"{reason}.*export_merged"):
        export_peft(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_a_row_of_zeros_is_not_given_to_pefts_dora(tmp_path: Path) -> None:
    model = adapted("bert", small("dora"))
    host = next(iter(hosts(model).values()))
    with torch.no_grad():
        host.weight[3] = 0
        host.carried("default").get_parameter("B")[3] = 0
    with pytest.raises(Refused, match="zeros"):
        export_peft(model, tmp_path / "adapter")


# ---- where it goes --------------------------------------------------------------------------------------------------


class Nested(nn.Module):
    """The path of one layer is the end of another's."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)
        self.block = nn.ModuleDict({"query": nn.Linear(6, 6), "xquery": nn.Linear(6, 6)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block["xquery"](self.block["query"](self.query(x)))


def nested() -> Nested:
    torch.manual_seed(3)
    return Nested()


@pytest.mark.parametrize("name", ["lora", "ia3", "adalora", "vera", "oft", "boft", "hra"])
def test_a_path_that_ends_another_means_itself_alone(name: str, tmp_path: Path) -> None:
    model, x = nested(), torch.randn(3, 6)
    layers = {"query": model.query}
    local = small(name, **({"block": 2} if name in ("oft", "boft") else {"rank": 2} if name != "ia3" else {}))
    if name == "boft":
        local = small(name, block=2, butterflies=1)
    if name == "ia3":
        local = small(name, side="input")
    inits = {path: (local, local.init(layer.weight.detach(), torch.Generator())) for path, layer in layers.items()}
    restore(model, local, inits, local.shared([(6, 6)], torch.Generator()))
    move(model)
    exported = export_peft(model, tmp_path / "adapter")
    assert settings(exported)["target_modules"] == "(?:query)"
    theirs = PeftModel.from_pretrained(nested(), exported.folder)
    assert peft_layers(theirs) == {"query"}
    close(theirs(x), model(x), 1e-5, "output")


def test_inner_layers_of_ia3_are_not_found_by_their_ends(tmp_path: Path) -> None:
    """PEFT would take ``query`` also for the end of ``xquery``."""
    model, x = nested(), torch.randn(3, 6)
    output_side, input_side = small("ia3"), small("ia3", side="input")
    sides = {"query": input_side, "block.query": output_side, "block.xquery": output_side}
    restore(model, output_side, {path: (v, v.init(torch.zeros(6, 6), torch.Generator())) for path, v in sides.items()})
    move(model)
    theirs = PeftModel.from_pretrained(nested(), export_peft(model, tmp_path / "adapter").folder)
    close(theirs(x), model(x), 1e-5, "output")


@pytest.mark.parametrize("prefix", ["bert", "bert."])
def test_an_adapter_of_an_encoder_goes_into_a_model_with_a_head(prefix: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}

    def classifier() -> Any:
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(**sizes, vocab_size=20)).eval()

    whole = classifier()
    attach(whole.bert, LoRA(rank=2), ["query", "output.dense"])
    move(whole.bert)
    exported = export_peft(whole.bert, tmp_path / "adapter", base_model_name="some/model", prefix=prefix)
    assert settings(exported)["base_model_name_or_path"] == "some/model"
    theirs = PeftModel.from_pretrained(classifier(), exported.folder).eval()
    assert peft_layers(theirs) == set(exported.layers) == {f"bert.{path}" for path in hosts(whole.bert)}
    tokens = torch.arange(10).view(2, 5)
    close(theirs(tokens).logits, whole(tokens).logits, 1e-5, "logits")


def test_one_of_several_adapters_is_written_whether_it_is_active_or_not(tmp_path: Path) -> None:
    model = adapted("llama", small("pissa"))
    wanted = output(model)
    attach(model, LoRA(rank=2), ["q_proj"], name="other")
    activate(model, None)
    folder = export_peft(model, tmp_path / "adapter").folder
    close(output(in_peft("llama", folder)), wanted, 1e-5, "output")
    merged = export_merged(model, tmp_path / "merged")
    close(output(AutoModel.from_pretrained(merged)), wanted, 1e-5, "merged output")


# ---- what is refused, and folders -----------------------------------------------------------------------------------


def settings(exported: Exported) -> dict[str, Any]:
    return json.loads((exported.folder / "adapter_config.json").read_text())


def test_the_files_are_pefts(tmp_path: Path) -> None:
    exported = export_peft(adapted("llama", small("dora")), tmp_path / "new" / "adapter")
    assert {path.name for path in exported.folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    with safetensors.safe_open(exported.folder / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "base_model.model.layers.0.self_attn.q_proj.lora_magnitude_vector" in file.keys()  # noqa: SIM118
    assert exported.folder.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    model = adapted("llama", small("vera"))
    first = export_peft(model, tmp_path / "adapter")
    second = export_peft(adapted("llama", small("lora")), tmp_path / "adapter")
    assert first.folder == second.folder
    assert settings(second)["peft_type"] == "LORA"
    (tmp_path / "adapter" / "README.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    with pytest.raises(Refused, match=r"README\.md"):
        export_peft(model, tmp_path / "adapter")
    with pytest.raises(Refused, match="is not replaced"):
        export_merged(model, tmp_path / "adapter")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Refused, match="is a file"):
        export_peft(model, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "file"]


def test_what_fails_half_way_leaves_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama", small("lora"))
    folder = export_peft(model, tmp_path / "adapter").folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(*_: Any, **__: Any) -> Iterator[None]:
        raise OSError("no space left")

    monkeypatch.setattr(folders.json, "dumps", full_disk)
    with pytest.raises(OSError, match="no space"):
        export_peft(adapted("llama", small("dora")), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("by_chance", [False, True])
def test_merged_numbers_beyond_a_format_are_refused(by_chance: bool, tmp_path: Path) -> None:
    model = adapted("llama", small("lora"))
    with torch.no_grad():
        host = next(iter(hosts(model).values()))
        host.carried("default").get_parameter("B").fill_(1e6)
    rng = torch.Generator().manual_seed(0) if by_chance else None
    with pytest.raises(Refused, match=r"q_proj\.weight is not finite in float16, .*: store it in bfloat16"):
        export_merged(model, tmp_path / "half", rounding=Rounding("float16", rng))
    assert not list(tmp_path.iterdir())
    export_merged(model, tmp_path / "bfloat16", rounding=Rounding("bfloat16", rng))
    with torch.no_grad():
        host.carried("default").get_parameter("B").fill_(torch.nan)
    with pytest.raises(Refused, match="its training diverged"):
        export_merged(model, tmp_path / "plain")


@pytest.mark.parametrize("write", [export_peft, export_merged])
def test_weights_that_do_not_fit_on_the_disk(write: Any, tmp_path: Path) -> None:
    model, limit = adapted("llama", small("lora")), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(OSError, match="File too large"):
            write(model, tmp_path / "adapter")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no adapter is attached"):
        export_peft(base("llama"), tmp_path / "adapter")
    model = adapted("llama", small("lora"))
    with pytest.raises(Refused, match="no adapter called 'other'"):
        export_peft(model, tmp_path / "adapter", "other")
    with pytest.raises(Refused, match="no adapter called 'other'"):
        export_merged(model, tmp_path / "adapter", "other")
    with torch.no_grad():
        next(iter(hosts(model).values())).carried("default").get_parameter("A")[0, 0] = torch.nan
    with pytest.raises(Refused, match="not finite"):
        export_peft(model, tmp_path / "adapter")
    plain = net(dtype=torch.float32)
    attach(plain, LoRA(rank=1), "up")
    with pytest.raises(Refused, match="no save_pretrained"):
        export_merged(plain, tmp_path / "adapter")
    gated = net(dtype=torch.float32)
    attach(gated, Gated(rank=1), "up")
    with pytest.raises(Refused, match="no native form"):
        export_peft(gated, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


# ---- the real model -------------------------------------------------------------------------------------------------


@pytest.mark.assets
def test_real_adapters_give_the_same_outputs_in_peft(tmp_path: Path) -> None:
    """On every layer of an encoder: more than PEFT lists without shortening the list."""
    plain, tokens = load_base("minilm"), torch.randint(1000, 20000, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        start = plain.encoder(tokens).last_hidden_state
    for name in ("lora", "pissa", "oft", "boft", "dora"):
        model = copy.deepcopy(plain.encoder)
        attach(model, small(name, **ONE_FACTOR.get(name, {})), ["query", "key", "value", "attention.output.dense"])
        move(model, scale=0.02)
        exported = export_peft(model, tmp_path / name)
        theirs = PeftModel.from_pretrained(copy.deepcopy(plain.encoder), exported.folder).eval()
        assert peft_layers(theirs) == set(hosts(model))
        with torch.no_grad():
            wanted = model(tokens).last_hidden_state
            close(theirs(tokens).last_hidden_state, wanted, 1e-5, f"output of {name}")
        assert gap(wanted, start) > 1e-2, "the control: the adapter does something"


@pytest.mark.assets
@pytest.mark.parametrize("name", [name for name in names() if method(name).mergeable])
def test_every_method_on_the_real_encoder_gives_the_same_outputs_outside(name: str, tmp_path: Path) -> None:
    """In PEFT where there is a form for it, else merged, as transformers reads it."""
    plain, tokens = load_base("minilm"), torch.randint(1000, 20000, (2, 7), generator=torch.Generator().manual_seed(0))
    model, variant = copy.deepcopy(plain.encoder).eval(), small(name, **ONE_FACTOR.get(name, {}))
    put(model, variant, ["layer.0.attention.self.query", "layer.5.intermediate.dense"], scale=0.02)
    if name in NEITHER:
        folder = export_merged(model, tmp_path / name)
        theirs = type(plain.encoder).from_pretrained(folder, add_pooling_layer=plain.encoder.pooler is not None).eval()
    else:
        exported = export_peft(model, tmp_path / name)
        theirs = PeftModel.from_pretrained(copy.deepcopy(plain.encoder), exported.folder).eval()
        assert peft_layers(theirs) == set(hosts(model))
    with torch.no_grad():
        wanted, start = model(tokens).last_hidden_state, plain.encoder.eval()(tokens).last_hidden_state
        close(theirs(tokens).last_hidden_state, wanted, 1e-5, f"output of {name}")
    assert name == "probe" or gap(wanted, start) > 1e-3, "the control: the adapter does something"
