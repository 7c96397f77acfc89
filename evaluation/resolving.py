"""A suite spelt out: every hyperparameter of every method, and the sizes that a budget leaves open."""

from __future__ import annotations

import dataclasses

from evaluation.architectures import Architecture, architecture, layers
from evaluation.budgets import Budget, largest_within, parsed_budget
from evaluation.spec import Entry, Method, Suite, Unusable, alike
from evaluation.trying import check_space
from variants.core import Refused, UnknownHyperparameter, UnknownMethod, create, method


def resolve(suite: Suite) -> Suite:
    """The suite with every hyperparameter of every method spelt out, sizes by its budget included.

    Raises:
        Unusable: an unknown method or hyperparameter, the same method twice, a budget that a method cannot
            meet, or a space of the search that a method cannot take.
    """
    if suite.budget is None:
        entries = tuple(map(_resolved, suite.methods))
    else:
        found = architecture(suite.model)
        most = parsed_budget(suite.budget, found.parameters)
        entries = tuple(_resolved(_sized(entry, found, suite.layers_of(entry), most)) for entry in suite.methods)
    for i, entry in enumerate(entries):
        for other in entries[:i]:
            same_place = suite.layers_of(entry) == suite.layers_of(other)
            if same_place and alike(entry.method, other.method, suite.searched):
                # Their runs could not be told apart.
                apart = " apart from what is searched" if entry.method != other.method else ""
                same = f"{other.label!r} and {entry.label!r} are the same method with the same hyperparameters"
                raise Unusable(same + apart)
    resolved = suite.model_copy(update={"methods": entries})
    check_space(resolved)
    return resolved


def _sized(entry: Entry, found: Architecture, where: tuple[str, ...], budget: Budget) -> Entry:
    """The entry with the largest size within the budget, if there is one to choose."""
    given = entry.method.hyperparameters
    try:
        cls = method(entry.method.name)
        if cls.trains != "layers" or not cls.size or cls.size in given:
            return entry
        create(entry.method.name, given)  # says what is wrong with the other hyperparameters
        sized = largest_within(budget, cls, given, found, layers(found, where))
    except (UnknownMethod, UnknownHyperparameter, Refused) as error:
        raise Unusable(f"{entry.label}: {error}") from error
    chosen = Method(name=entry.method.name, hyperparameters={**given, cls.size: getattr(sized, cls.size)})
    return entry.model_copy(update={"method": chosen})


def _resolved(entry: Entry) -> Entry:
    try:
        variant = create(entry.method.name, entry.method.hyperparameters)
    except (UnknownMethod, UnknownHyperparameter) as error:
        raise Unusable(str(error)) from error
    spelt_out = Method(name=entry.method.name, hyperparameters=dataclasses.asdict(variant))
    return entry.model_copy(update={"method": spelt_out})
