"""Methods of PEFT through our harness: as what PEFT itself would make of the same base, batches and optimiser."""

from __future__ import annotations

import dataclasses

import peft
import pytest
import torch

from evaluation.execute import execute
from evaluation.measures.parameters import parameters
from evaluation.mounting import mounted
from evaluation.peers import PeftPeer, states_of, train_branches
from evaluation.spec import Method, Unusable
from evaluation.training import Classifier
from tests.evaluation import toy
from variants.core import Refused, UnknownHyperparameter, create, method

KINDS = {
    "lora": {"r": 2, "lora_alpha": 4},
    "oft": {"r": 0, "oft_block_size": 4},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "adalora": {"init_r": 3, "target_r": 1, "total_step": 20, "tinit": 1, "tfinal": 1},
}


def run(kind: str, **changes: object):
    return toy.run(f"peft:{kind}", method=Method(name=f"peft:{kind}", hyperparameters=KINDS[kind]), **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_trains_and_leaves_the_base_alone(monkeypatch, kind):
    bench = toy.bench(monkeypatch)
    before = toy.bits(bench.base.encoder)
    record = execute(run(kind, training={"steps": 30}, lr=3e-2), bench)
    assert record.status == "done", record.error
    losses = record.measures["training"]["loss"]
    assert sum(losses[-8:]) < sum(losses[:8])
    assert record.measures["merging"] == {"items": 10, "mergeable": None, "formats": {}, "restored": True}
    assert record.measures["parameters"]["closed_form"] is None
    assert record.measures["parameters"]["trainable"] > 0
    assert toy.same(toy.bits(bench.base.encoder), before)


def test_lora_of_peft_is_lora_of_ours(monkeypatch):
    """From equal factors, on equal batches: the same losses, to rounding."""
    bench = toy.bench(monkeypatch)
    wrap = PeftPeer.wrap
    ours = execute(toy.run("lora"), bench).measures["training"]["loss"]

    def with_our_start(self, encoder, where, seed, dropout):
        made = wrap(self, encoder, where, seed, dropout)
        stock = toy.bert()
        with mounted(stock, create("lora", toy.METHODS["lora"]), where, seed) as adapted:
            for path, module in made.base_model.model.named_modules():
                if hasattr(module, "lora_A"):
                    host = adapted.get_submodule(path)
                    module.lora_A["default"].weight.data.copy_(host.carried("default").A)
        return made

    monkeypatch.setattr(PeftPeer, "wrap", with_our_start)
    theirs = execute(run("lora"), bench).measures["training"]["loss"]
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-5, atol=1e-6)


def test_the_start_is_the_seed_alone():
    variant = create("peft:lora", KINDS["lora"])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (variant.wrap(toy.bert(), ["query"], seed, 0.0).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert toy.same(first, again)
    assert not toy.same(first, other)


def test_adalora_of_peft_gets_its_budget(monkeypatch):
    """PEFT leaves the call to its user; left out, all ranks would survive."""
    with mounted(toy.bert(), create("peft:adalora", KINDS["adalora"]), toy.WHERE) as model:
        called: list[int] = []
        monkeypatch.setattr(model.base_model, "update_and_allocate", called.append)
        create("peft:adalora", KINDS["adalora"]).after_step(states_of(model), 7, 20)
    assert called == [7]


def test_only_the_branches_drop_out():
    variant = create("peft:lora", {**KINDS["lora"], "lora_dropout": 0.3})
    with mounted(toy.bert(), variant, toy.WHERE) as model:
        model.eval()
        train_branches(model)
        training = {name for name, m in model.named_modules() if m.training and isinstance(m, torch.nn.Dropout)}
    assert training
    assert all("lora_dropout" in name for name in training)


def test_counts_of_a_peer():
    with mounted(toy.bert(), create("peft:lora", KINDS["lora"]), toy.WHERE) as model:
        Classifier(model, toy.HIDDEN, toy.CLASSES, seed=0)
        found = parameters(model, create("peft:lora", KINDS["lora"]))
    with mounted(toy.bert(), create("lora", {"rank": 2}), toy.WHERE) as model:
        ours = parameters(model, create("lora", {"rank": 2}))
    assert found["trainable"] == ours["trainable"]
    assert found["base"] == ours["base"]
    assert found["closed_form"] is None


def test_hyperparameters_are_the_fields_of_the_configuration():
    cls = method("peft:lora")
    assert {"r", "lora_alpha", "use_dora"} <= {field.name for field in dataclasses.fields(cls)}
    assert create("peft:lora", {"r": 3}).config().r == 3
    assert peft.__version__ in cls.release
    with pytest.raises(UnknownHyperparameter, match="no hyperparameter 'rr': did you mean"):
        create("peft:lora", {"rr": 3})


def test_errors_teach():
    with pytest.raises(Unusable, match="has no method 'lorra': did you mean lora"):
        method("peft:lorra")
    with pytest.raises(Refused, match="dropout is a field of PEFT's own"):
        create("peft:lora", KINDS["lora"]).wrap(toy.bert(), ["query"], 0, 0.1)
    with pytest.raises(Refused, match="peft:oft: "):
        create("peft:oft", {"r": 7, "oft_block_size": 5}).wrap(toy.bert(), ["query"], 0, 0.0)


def test_adalora_of_peft_keeps_its_orthogonality_loss():
    """PEFT adds it only where the model returns a loss of its own; what PEFT would add is what we add."""
    variant = create("peft:adalora", {**KINDS["adalora"], "orth_reg_weight": 0.5})
    with mounted(toy.bert(), variant, toy.WHERE) as model:
        penalty = variant.penalty(states_of(model))
        gaps = []
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = p @ p.T if "lora_A" in name else p.T @ p
                gaps.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram))))
        torch.testing.assert_close(penalty, 0.5 * torch.stack(gaps).mean())
        assert penalty.requires_grad
    with mounted(toy.bert(), create("peft:lora", KINDS["lora"]), toy.WHERE) as model:
        assert create("peft:lora", KINDS["lora"]).penalty(states_of(model)) is None


def walks(variant: PeftPeer, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often three steps' penalties go through the names of all parameters."""
    found, states = [], states_of(model)
    walk = model.named_parameters
    monkeypatch.setattr(model, "named_parameters", lambda *a, **k: (found.append(1), walk(*a, **k))[1])
    values = [variant.penalty(states) for _ in range(3)]
    assert torch.equal(values[0], values[2])
    with torch.no_grad():
        for p in states[0].t.values():
            p.mul_(2)
    assert not torch.equal(variant.penalty(states), values[0]), "of the factors as they are now"
    return len(found)


def test_the_penalty_looks_for_its_factors_once(monkeypatch):
    """In a bench, what we add to PEFT's step is timed as PEFT's."""
    variant = create("peft:adalora", KINDS["adalora"])
    with mounted(toy.bert(), variant, toy.WHERE) as model:
        assert walks(variant, model, monkeypatch) == 1
    penalty = PeftPeer.penalty
    monkeypatch.setattr(
        PeftPeer, "penalty", lambda self, states: (states[0].scratch.pop("wide", 0), penalty(self, states))[1]
    )
    with mounted(toy.bert(), variant, toy.WHERE) as model:
        assert walks(variant, model, monkeypatch) == 4, "one that forgets them is caught"


def test_layers_that_look_at_their_own_mode_are_in_training():
    variant = create("peft:pvera", {"r": 4})
    with mounted(toy.bert(), variant, toy.WHERE) as model:
        model.eval()
        train_branches(model)
        layers = [m for m in model.modules() if type(m).__module__.startswith("peft.tuners.pvera.layer")]
        assert layers
        assert all(layer.training for layer in layers)
        assert not model.base_model.model.encoder.layer[0].output.dropout.training


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga"])
def test_a_start_that_needs_data_is_refused(start):
    """PEFT would go on as plain LoRA, or fail with a message about something else."""
    with pytest.raises(Refused, match=f"'{start}' needs PEFT's own pass over data"):
        create("peft:lora", {"init_lora_weights": start}).wrap(toy.bert(), ["query"], 0, 0.0)


def test_a_peer_starts_its_search_where_our_method_does():
    assert method("peft:ia3").lr_ratio == method("ia3").lr_ratio != 1
    assert method("peft:prompt_tuning").lr_ratio == method("lora").lr_ratio


def test_the_base_of_a_peer_is_counted_before_it_is_wrapped():
    stock = sum(p.numel() for p in toy.bert().parameters())
    for kind, more in (("lora", {"bias": "all"}), ("adalora", {})):
        variant = create(f"peft:{kind}", {**KINDS[kind], **more})
        with mounted(toy.bert(), variant, toy.WHERE) as model:
            assert parameters(model, variant)["base"] == stock
