"""Suites, runs and records: what is refused, and in which words; keys that mean the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from evaluation import spec
from evaluation.display import label_of
from evaluation.resolving import resolve
from evaluation.spec import (
    SUITES,
    Calibration,
    Curve,
    Merging,
    Method,
    Quantised,
    Record,
    ScoreRun,
    Spectrum,
    Speed,
    SpeedRun,
    Suite,
    Training,
    Unusable,
    key,
    load_suite,
)
from tests.evaluation import toy
from tests.evaluation.tiny import TEMPLATE


def write(tmp_path: Path, before: str = "", inside: str = "") -> str:
    path = tmp_path / "mine.toml"
    path.write_text(TEMPLATE.format(before=before, inside=inside))
    return str(path)


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_key_is_that_of_a_golden_run():
    """If this fails, every record that anybody has is out of date: raise FORMAT, and renew the constants."""
    assert key(toy.run("lora")) == "d90d3ebd3c263b9e"
    assert key(toy.speed_run()) == "abffcb17a099a559"
    assert key(toy.quantised_run()) == "9b8ecb834015bc34"


def test_key_does_not_depend_on_the_order_of_hyperparameters():
    method = Method(name="lora", hyperparameters={"alpha": 4, "rank": 2})
    assert key(toy.run("lora", method=method)) == key(toy.run("lora"))


CHANGES: dict[str, Any] = {
    "stage": "search",
    "model": "other",
    "benchmark": "other",
    "where": ("query",),
    "method": Method(name="lora", hyperparameters={"rank": 3, "alpha": 4}),
    "methods": {"lora": Method(name="lora")},
    "baseline": "pissa",
    "lr": 0.02,
    "seed": 2,
    "split": "validation",
    "limit": 5,
    "training": Training(steps=4, batch_size=8),
    "merging": Merging(items=11),
    "spectrum": Spectrum(items=11),
    "calibration": Calibration(),
    "keep": True,
    "vary": ("head",),
    "forecast": True,
    "curve": Curve(items=11),
    "quantised": Quantised(items=11),
    "places": {"lora": ("query",)},
    "speed": Speed(rounds=7),
    "threads": 2,
    "device": "cuda",
    "identity": toy.IDENTITY.model_copy(update={"data": "other"}),
}


@pytest.mark.parametrize("run", [toy.run("lora"), toy.speed_run(), toy.quantised_run()], ids=lambda run: run.kind)
def test_key_changes_with_every_field(run):
    fields = set(type(run).model_fields) - {"kind"}
    keys = {field: key(run.model_copy(update={field: CHANGES[field]})) for field in fields}
    assert len({key(run), *keys.values()}) == len(fields) + 1, keys


def altered(value: Any) -> Any:
    """Another valid value of the kind of ``value``."""
    names = {"linear": "cosine", "float32": "bfloat16", "outputs": "full"}
    if isinstance(value, dict):
        return {**value, "more": "more"}
    if isinstance(value, tuple):
        return value[:-1]
    if value is None:
        return 7
    return names[value] if value in names else not value if isinstance(value, bool) else value + type(value)(1)


@pytest.mark.parametrize(
    "section",
    [Training(), Merging(), Speed(), Quantised(), Calibration(), Curve(), toy.IDENTITY],
    ids=lambda s: type(s).__name__,
)
def test_key_changes_with_every_field_of_a_section(section):
    field = type(section).__name__.lower()
    run = {"speed": toy.speed_run(), "quantised": toy.quantised_run()}.get(field, toy.run("lora"))
    keys = set()
    for name in type(section).model_fields:
        value = getattr(section, name)
        value = f"{value}x" if name in ("model", "data", "forgetting") else altered(value)
        keys.add(key(run.model_copy(update={field: section.model_copy(update={name: value})})))
    assert len(keys | {key(run)}) == len(type(section).model_fields) + 1


def test_the_texts_of_forgetting_are_in_the_key_only_of_runs_that_have_them():
    assert "forgetting" not in toy.IDENTITY.model_dump()
    named = toy.IDENTITY.model_copy(update={"forgetting": "1a2b"})
    assert type(named).model_validate_json(named.model_dump_json()) == named
    assert len({key(toy.run("lora", identity=one)) for one in (toy.IDENTITY, named)}) == 2
    assert Spectrum().text == "polarity"
    assert Spectrum(forgetting=False).text is Spectrum(depth="directions").text is None


def test_key_changes_with_format():
    before = key(toy.run("lora"))
    identity = toy.IDENTITY.model_copy(update={"format": spec.FORMAT + 1})
    assert key(toy.run("lora", identity=identity)) != before


def test_a_key_that_forgets_a_field_is_caught(monkeypatch):
    monkeypatch.setattr(ScoreRun, "model_dump", lambda self, **_: {"lr": self.lr, "seed": self.seed})
    with pytest.raises(AssertionError):
        test_key_changes_with_every_field(toy.run("lora"))


# ---- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [toy.run("lora"), toy.run("full", merging=None), toy.speed_run(), toy.quantised_run()])
def test_runs_and_records_survive_json(run):
    record = Record(
        key=key(run), run=run, status="done", measures={"score": {"items": [1, 2], "x": None}}, seconds={"total": 0.1}
    )
    text = json.dumps(record.model_dump(mode="json"), allow_nan=False)
    again = Record.model_validate(json.loads(text))
    assert again == record
    assert type(again.run) is type(run)
    assert key(again.run) == record.key
    assert json.dumps(again.model_dump(mode="json")) == text
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_runs_are_frozen_and_closed():
    run = toy.run("lora")
    with pytest.raises(ValidationError):
        run.lr = 1.0
    with pytest.raises(ValidationError):
        ScoreRun.model_validate({**run.model_dump(), "more": 1})


# ---- suite files ----------------------------------------------------------------------------------------------------


def test_a_suite_file_is_read_as_written(tmp_path):
    text = "limit = 3\nbaseline = 'mine'\n[training]\nsteps = 5"
    suite = load_suite(write(tmp_path, text, "rank = 2\nlabel = 'mine'\nlr = 1e-3"))
    assert (suite.name, suite.where, suite.limit, suite.training.steps) == ("mine", ("query",), 3, 5)
    assert [(e.label, e.lr) for e in suite.methods] == [("mine", 1e-3), ("probe", None)]
    assert suite.methods[0].method == Method(name="lora", hyperparameters={"rank": 2})


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.toml")))
def test_shipped_suites_resolve_and_survive_json(name):
    suite = resolve(load_suite(name))
    assert suite.name == name
    assert Suite.model_validate(json.loads(json.dumps(suite.model_dump(mode="json")))) == suite


PROBLEMS = {
    "unknown key": ("benchmrk = 'x'", "", "unknown key 'benchmrk': did you mean benchmark?"),
    "unknown key of a section": ("[training]\nstpes = 3", "", "unknown key 'training.stpes': did you mean steps?"),
    "unknown section": ("[trainign]\nsteps = 3", "", "unknown key 'trainign': did you mean training"),
    "wrong type": ("[training]\nsteps = 'many'", "", "training.steps: Input should be a valid integer"),
    "what came": ("[training]\nsteps = 'many'", "", ", got 'many'"),
    "number as text": ("[training]\nsteps = '60'", "", "training.steps: Input should be a valid integer"),
    "truth for a number": ("[training]\nsteps = true", "", "training.steps: Input should be a valid integer"),
    "word for a truth": ("[training]\nbase_dropout = 'no'", "", "training.base_dropout: Input should be a valid bool"),
    "half a step": ("[training]\nsteps = 2.5", "", "training.steps: Input should be a valid integer"),
    "negative": ("[training]\nbatch_size = -1", "", "training.batch_size: Input should be greater than"),
    "negative decay": ("[training]\nweight_decay = -0.1", "", "training.weight_decay: Input should be greater"),
    "infinite decay": ("[training]\nweight_decay = inf", "", "training.weight_decay: Input should be a finite number"),
    "share above one": ("[training]\nwarmup = 1.5", "", "training.warmup: Input should be less than or equal to 1"),
    "truth for a share": ("[training]\nwarmup = true", "", "training.warmup: Input should be a valid number"),
    "no share": ("[training]\nwarmup = nan", "", "training.warmup: Input should be"),
    "all dropped": ("[training]\nadapter_dropout = 1.0", "", "training.adapter_dropout: Input should be less than 1"),
    "not one of": ("[training]\nschedule = 'linaer'", "", "training.schedule: Input should be 'linear' or 'cosine'"),
    "no rate": ("[protocol]\nlr = nan", "", "protocol.lr: Input should be a finite number"),
    "rate of zero": ("[protocol]\nlr = 0.0", "", "protocol.lr: Input should be greater than 0"),
    "no rate of a method": ("", "lr = nan", "methods.0.lr: Input should be a finite number"),
    "same label": ("", "label = 'probe'", "two methods are labelled 'probe': give each its own `label`"),
    "unknown baseline": ("baseline = 'loar'", "", "baseline 'loar' is not one of the methods: did you mean lora?"),
    "baseline by name": (
        "baseline = 'lora'",
        "label = 'mine'",
        "baseline 'lora' is not one of the methods: known: mine",
    ),
    "not TOML": ("steps = = 3", "", "is not a TOML file"),
    "section is no table": ("training = 3", "", "training: Input should be a table, got 3"),
    "key twice": ("where = 'key'", "", "is not a TOML file"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_suite_that_cannot_be_used_is_one_line(tmp_path, case):
    before, inside, said = PROBLEMS[case]
    with pytest.raises(Unusable) as refused:
        load_suite(write(tmp_path, before, inside))
    assert said in str(refused.value)
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("[[methods]]\nnmae = 'lora'", "methods.0: a method needs a `name`"),
        ("methods = ['lora']", "methods.0: Input should be a table, got 'lora'"),
        ("methods = []", "methods: Tuple should have at least 1 item"),
        ("", "methods: Field required"),
        ("[[methods]]\nname = 3", "methods.0.label: Input should be a valid string"),
    ],
)
def test_methods_that_cannot_be_used(tmp_path, methods, said):
    path = tmp_path / "mine.toml"
    path.write_text(f"model = 'm'\nbenchmark = 'b'\nwhere = 'q'\n{methods}")
    with pytest.raises(Unusable) as refused:
        load_suite(str(path))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("rnk = 3", "lora has no hyperparameter 'rnk': did you mean rank?"),
        ("rank = 'big'", "lora: rank is a whole number"),
        ("alpha = -1", "lora: alpha is a positive number"),
        ("alpha = nan", "lora: alpha is a number, not nan"),
        ("rank = true", "lora: rank is a whole number, not True"),
    ],
)
def test_hyperparameters_that_cannot_be_used(tmp_path, inside, said):
    suite = load_suite(write(tmp_path, "", inside))
    with pytest.raises(Unusable) as refused:
        resolve(suite)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unknown_method(tmp_path):
    suite = load_suite(write(tmp_path), {"baseline": "x"} | {"methods": '[{name = "loar", label = "x"}]'})
    with pytest.raises(Unusable, match=r"unknown method 'loar': did you mean lora"):
        resolve(suite)


def test_unknown_suite_and_missing_file(tmp_path):
    with pytest.raises(Unusable, match=r"no suite 'smok': did you mean smoke\?"):
        load_suite("smok")
    with pytest.raises(Unusable, match="no suite"):
        load_suite(str(tmp_path / "nowhere.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(Unusable, match="is not a TOML file"):
        load_suite(str(tmp_path / "binary.toml"))


# ---- --set ----------------------------------------------------------------------------------------------------------


def test_changes_reach_their_places(tmp_path):
    changes = {
        "training.steps": "7",  # a section which the file lacks
        "training.schedule": "cosine",  # a bare word is a string
        "protocol.lr": "1e-3",
        "where": '["key", "query"]',
        "model": "org/name",
        "speed": "false",
    }
    suite = load_suite(write(tmp_path, "[protocol]\nlr = 0.5\nseeds = 9"), changes)
    assert (suite.training.steps, suite.training.schedule) == (7, "cosine")
    assert (suite.protocol.lr, suite.protocol.seeds) == (1e-3, 9)
    assert (suite.where, suite.model, suite.speed) == (("key", "query"), "org/name", None)
    assert load_suite(write(tmp_path), {}).speed is not None


@pytest.mark.parametrize(
    ("changed", "to", "said"),
    [
        ("training.stpes", "7", "unknown key 'training.stpes': did you mean steps?"),
        ("training.steps", "", "training.steps: Input should be a valid integer"),
        ("training.steps", "seven", "training.steps: Input should be a valid integer"),
        ("model.name", "x", "--set model.name: model is not a table"),
        ("methods.0.rank", "3", "--set methods.0.rank: methods is not a table"),
        ("where", "[]", "where: Tuple should have at least 1 item"),
        ("a.b.c", "1", "unknown key 'a'"),
    ],
)
def test_changes_that_cannot_be_used(tmp_path, changed, to, said):
    with pytest.raises(Unusable) as refused:
        load_suite(write(tmp_path), {changed: to})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_speed_run_is_told_from_a_score_run_by_its_kind():
    runs = [toy.run("lora"), toy.speed_run()]
    records = [Record(key=key(run), run=run.model_dump(mode="json"), status="done") for run in runs]
    assert [type(record.run) for record in records] == [ScoreRun, SpeedRun]


def test_spectra_are_off_unless_asked_for():
    assert load_suite("quick").spectrum is None
    assert load_suite("quick", {"spectrum.items": "50"}).spectrum == Spectrum(items=50)
    assert load_suite("quick", {"spectrum.forgetting": "false"}).spectrum.forgetting is None
    with pytest.raises(Unusable, match="'polarity' is trained on: name another benchmark, or false"):
        load_suite("quick", {"benchmark": "polarity", "spectrum.items": "50"})
    with pytest.raises(Unusable, match=r"unknown key 'spectrum.item': did you mean items"):
        load_suite("quick", {"spectrum.item": "50"})


def test_progress_names_the_same_method_on_other_layers_by_its_label(tmp_path):
    other = '[[methods]]\nname = "lora"\nlabel = "elsewhere"\nwhere = "key"'
    suite = load_suite(write(tmp_path, "", other))
    methods = {entry.label: entry for entry in suite.methods}
    for label in ("lora", "elsewhere"):
        entry = methods[label]
        assert label_of(suite, toy.run("lora", method=entry.method, where=suite.layers_of(entry))) == label


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vary": '["dropout"]'}, "nothing would differ between seeds"),
        ({"vary": '["subset", "calibration"]'}, "nothing would differ between seeds"),
        ({"protocol.trials": "3", "methods": '[{name = "lora", points = 9}]'}, "more points than the 3 trials of all"),
    ],
)
def test_settings_that_would_fake_certainty_or_unequal_budgets(changes, reason):
    with pytest.raises(Unusable, match=reason):
        load_suite("quick", changes)
    assert load_suite("quick", {"vary": '["dropout"]', "training.adapter_dropout": "0.1"}).vary == ("dropout",)
