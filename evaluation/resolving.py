"""A suite spelt out: every hyperparameter of every method, and the sizes that a budget leaves open."""

from __future__ import annotations

import dataclasses

from evaluation.architectures import Architecture, architecture, layers
from evaluation.budgets import Budget, largest_within, parsed_budget, refuse_beyond
from evaluation.spec import Entry, Method, Suite, Unusable, alike
from evaluation.trying import check_space, said, settings
from variants.core import Refused, UnknownHyperparameter, UnknownMethod, create, method


def resolve(suite: Suite) -> Suite:
    """The suite with every hyperparameter of every method spelt out, sizes by its budget included.

    Raises:
        Unusable: an unknown method or hyperparameter, the same method twice, a budget that a method cannot
            meet, or a space of the search that a method cannot take or that exceeds the budget.
    """
    sized = _sized(suite)
    resolved = sized.model_copy(update={"methods": tuple(map(_resolved, sized.methods))})
    _refuse_twins(resolved)
    check_space(resolved)
    _refuse_beyond_budget(suite, resolved)
    return resolved


def _refuse_twins(suite: Suite) -> None:
    for i, entry in enumerate(suite.methods):
        for other in suite.methods[:i]:
            same_place = suite.layers_of(entry) == suite.layers_of(other)
            if same_place and alike(entry.method, other.method, suite.searched):
                # Their runs could not be told apart.
                apart = " apart from what is searched" if entry.method != other.method else ""
                same = f"{other.label!r} and {entry.label!r} are the same method with the same hyperparameters"
                raise Unusable(same + apart)


def _leaves_size_open(entry: Entry) -> bool:
    cls = method(entry.method.name)
    return cls.trains == "layers" and bool(cls.size) and cls.size not in entry.method.hyperparameters


def _sized(suite: Suite) -> Suite:
    """The suite with the largest sizes within its budget where methods leave theirs open."""
    if suite.budget is None:
        return suite
    model = architecture(suite.model)
    budget = parsed_budget(suite.budget, model.parameters)
    entries = tuple(_largest(entry, model, suite.layers_of(entry), budget) for entry in suite.methods)
    return suite.model_copy(update={"methods": entries})


def _largest(entry: Entry, model: Architecture, where: tuple[str, ...], budget: Budget) -> Entry:
    given = entry.method.hyperparameters
    try:
        if not _leaves_size_open(entry):
            return entry
        create(entry.method.name, given)  # says what is wrong with the other hyperparameters
        cls = method(entry.method.name)
        sized = largest_within(budget, cls, given, model, layers(model, where))
    except (UnknownMethod, UnknownHyperparameter, Refused) as error:
        raise Unusable(f"{entry.label}: {error}") from error
    chosen = Method(name=entry.method.name, hyperparameters={**given, cls.size: getattr(sized, cls.size)})
    return entry.model_copy(update={"method": chosen})


def _refuse_beyond_budget(given: Suite, resolved: Suite) -> None:
    """What is searched beside the size may change what that size costs."""
    if resolved.budget is None or not resolved.searched:
        return
    model = architecture(resolved.model)
    budget = parsed_budget(resolved.budget, model.parameters)
    for before, entry in zip(given.methods, resolved.methods, strict=True):
        where = layers(model, resolved.layers_of(entry))
        drawn = dict.fromkeys(setting.hyperparameters for setting in settings(resolved, entry))
        for values in map(dict, drawn if _leaves_size_open(before) else ()):
            variant = create(entry.method.name, entry.method.hyperparameters | values)
            try:
                refuse_beyond(budget, variant, model, where)
            except Refused as error:
                instead = f"give its {variant.size}, or search less in protocol.space"
                raise Unusable(f"{entry.label}: with {said(values)}, {error}: {instead}") from error


def _resolved(entry: Entry) -> Entry:
    try:
        variant = create(entry.method.name, entry.method.hyperparameters)
    except (UnknownMethod, UnknownHyperparameter) as error:
        raise Unusable(str(error)) from error
    spelt_out = Method(name=entry.method.name, hyperparameters=dataclasses.asdict(variant))
    return entry.model_copy(update={"method": spelt_out})
