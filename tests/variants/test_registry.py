"""Methods by name: messages that help, and no silent mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import variants  # noqa: F401  registers the methods
from variants.core import UnknownHyperparameter, UnknownMethod, Variant, create, method, names, register
from variants.core.registry import _METHODS, suggestion
from variants.lora import LoRA


@pytest.fixture
def clean_registry() -> Iterator[None]:
    """Forgets afterwards what a test has registered."""
    before = dict(_METHODS)
    yield
    _METHODS.clear()
    _METHODS.update(before)


def test_names_are_sorted_and_each_class_knows_its_own() -> None:
    assert names() == sorted(names())
    assert {"lora", "dora", "pissa", "milora", "lora_xs", "stiefel", "full", "probe"} <= set(names())
    for name in names():
        assert method(name).name == name
        assert create(name).name == name


def test_create_takes_hyperparameters() -> None:
    assert create("lora", {"rank": 3, "alpha": 6.0}) == LoRA(rank=3, alpha=6.0)
    assert create("lora") == create("lora", {}) == LoRA()


def test_an_unknown_method_names_its_neighbours() -> None:
    with pytest.raises(UnknownMethod, match=r"unknown method 'lorra': did you mean lora"):
        create("lorra")
    with pytest.raises(UnknownMethod, match=r"known: adalora, .*stiefel"):
        method("zzzzzz")


def test_an_unknown_hyperparameter_names_its_neighbours() -> None:
    with pytest.raises(UnknownHyperparameter, match=r"lora has no hyperparameter 'rnak': did you mean rank\?"):
        create("lora", {"rnak": 3})
    with pytest.raises(UnknownHyperparameter, match="probe has no hyperparameter 'rank': it has none"):
        create("probe", {"rank": 3})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank is a whole number from 1, not 0"),
        ({"rank": 2.5}, "rank is a whole number, not 2.5"),
        ({"alpha": 0}, "alpha is a positive number, not 0"),
        ({"alpha": -1.0}, "alpha is a positive number"),
        ({"alpha": float("nan")}, "alpha is a number, not nan"),
        ({"rank": True}, "rank is a whole number, not True"),
        ({"alpha": "much"}, "lora: "),
    ],
)
def test_an_impossible_value_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownHyperparameter, match=message):
        create("lora", wrong)


@pytest.mark.usefixtures("clean_registry")
def test_a_plugin_registers_and_may_be_loaded_again_but_takes_no_name() -> None:
    def plugin() -> type[Variant]:
        @register("mine")
        @dataclass(frozen=True, kw_only=True)
        class Mine(LoRA):
            pass

        return Mine

    plugin()
    again = plugin()
    assert method("mine") is again
    assert create("mine", {"rank": 2}).name == "mine"
    assert LoRA.name == "lora", "a method made from another leaves its name alone"
    with pytest.raises(ValueError, match=r"the method name 'lora' is taken by variants\.lora\.LoRA"):
        register("lora")(again)
    assert method("lora") is LoRA


def test_suggestion() -> None:
    assert suggestion("rnak", ["rank", "alpha"]) == "did you mean rank?"
    assert suggestion("xyz", ["rank", "alpha"]) == "known: rank, alpha"
    assert suggestion("xyz", []) == "it has none"


def test_importing_the_methods_does_not_need_transformers() -> None:
    code = "import sys, variants; sys.exit(any(m.split('.')[0] in {'transformers', 'peft'} for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
