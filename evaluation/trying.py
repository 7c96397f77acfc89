"""What a suite searches, tried before anything runs: all of it is known beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from evaluation.search import Setting
from evaluation.space import owned
from evaluation.spec import TUNABLE, Entry, Suite, Training, Unusable, is_span
from evaluation.strategies import strategy
from variants.core import Refused, UnknownHyperparameter, create, method
from variants.core.registry import suggestion

SUITABLE = 'a range suits throughout: end one of whole numbers in "int" or "int-log", or list choices'


def check_space(suite: Suite) -> None:
    """Tries what the suite searches, at its ends and at every setting that is drawn, on every method that has it.

    Raises:
        Unusable: a name that no method has, a value that a method refuses, or a size that the budget already decides.
    """
    space = {name: values for name, values in suite.protocol.space.items() if name != "lr"}
    have = {entry.label: owned(suite, entry) for entry in suite.methods}
    known = {field.name for e in suite.methods for field in dataclasses.fields(method(e.method.name))} | set(TUNABLE)
    for name in space:
        if not any(name in names for names in have.values()):
            raise Unusable(f"protocol.space: no method here has {name!r}: {suggestion(name, sorted(known))}")
    for entry in suite.methods if space else ():
        for name in sorted(have[entry.label]):
            if suite.budget is not None and method(entry.method.name).size == name:
                raise Unusable(
                    f"{entry.label}: the budget decides {name!r}, and protocol.space searches it: leave one out"
                )
            for value in _ends(space[name]):
                _try(suite, entry, {name: value})
        for setting in settings(suite, entry):
            _try(suite, entry, dict(setting.hyperparameters + setting.training))


def settings(suite: Suite, entry: Entry) -> list[Setting]:
    """Those that a method's search begins with: all of them where several hyperparameters are searched."""
    return strategy(suite, entry).propose(())


def said(values: Mapping[str, Any]) -> str:
    """``block = 8, alpha = 4``."""
    return ", ".join(f"{name} = {value!r}" for name, value in values.items())


def _ends(values: Sequence[Any]) -> tuple[Any, ...]:
    """The ends of a range, or every choice: they are meant to be possible, whether or not they are drawn."""
    return tuple(values[:2]) if is_span(values) else tuple(values)


def _try(suite: Suite, entry: Entry, values: Mapping[str, Any]) -> None:
    training = {name: value for name, value in values.items() if name in TUNABLE}
    own = {name: value for name, value in values.items() if name not in TUNABLE}
    try:
        Training.model_validate(suite.training.model_dump() | training)
        create(entry.method.name, entry.method.hyperparameters | own)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{first['loc'][0]} = {first['input']!r} cannot be trained with: {first['msg']}"
        raise Unusable(f"protocol.space: {what} ({SUITABLE})") from error
    except (UnknownHyperparameter, Refused) as error:
        raise Unusable(f"protocol.space: {entry.label} refuses {said(own)}: {error} ({SUITABLE})") from error


def with_all_settings(suite: Suite) -> Suite:
    """The suite with every method also as each setting of its search makes it, to be tried on the model."""
    found = list(suite.methods)
    for entry in suite.methods:
        for setting in settings(suite, entry):
            changed = entry.model_copy(update={"method": setting.method(entry.method)})
            if changed not in found:
                found.append(changed)
    return suite.model_copy(update={"methods": tuple(found)})
