"""A budget as a method's size: the largest rank, block or band whose cost, such as trainable parameters, is within it.

Only shapes enter, so a model's weights are never needed. Counts assume the same method on every layer: one that
divides itself among the layers by need (``Variant.allocate``) may end up elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from variants.core.interface import Refused, Variant

Shape = tuple[int, int]  # out, in


def total_count(variant: Variant, shapes: Iterable[Shape]) -> int:
    """Trainable parameters on layers of these shapes together; a Counter of shapes counts each as often as it says."""
    alike = shapes if isinstance(shapes, Counter) else Counter(shapes)
    return sum(n * variant.parameter_count(*shape) for shape, n in alike.items())


@dataclass(frozen=True)
class Cost:
    """What a budget is spent on.

    Args:
        count: of a method on layers of these shapes together; never falls as the method's size grows.
        verb, unit: for messages, as in "trains 96", "96 parameters".
    """

    count: Callable[[Variant, Counter[Shape]], int]
    verb: str
    unit: str


TRAINED = Cost(total_count, "trains {:,}", "{:,} parameters")


def largest(
    method: type[Variant],
    hyperparameters: Mapping[str, Any],
    shapes: Iterable[Shape],
    budget: int,
    cost: Cost = TRAINED,
) -> Variant:
    """The method in the largest ``size`` that costs at most ``budget`` on layers of these shapes.

    Every size from 0 to the longest side of a layer is considered, whichever of them the method accepts (a block may
    have to divide a side, a rank to be even). If that side itself is within the budget, larger sizes are taken to be
    accepted up to some point, as numbers of entries are.

    Args:
        hyperparameters: all but the size.
        cost: what the budget is spent on, trainable parameters unless given. Few sizes are counted: it may be slow.

    Raises:
        Refused: no size fits, or the method has none; the message then gives the count which is fixed.
        ValueError: a hyperparameter is wrong, or it is the size itself.
    """
    alike = Counter(shapes)
    if not alike:
        raise Refused("no layers: a budget needs layers to be spent on")
    if method.trains != "layers":
        what = "the base model" if method.trains == "base" else "the task head"
        raise Refused(f"{method.name} trains {what}: no budget can change how much; leave the budget out")
    if not method.size:
        fixed = cost.verb.format(cost.count(method(**hyperparameters), alike))
        raise Refused(f"{method.name} has no size: it {fixed} here, whatever the budget")
    if method.size in hyperparameters:
        raise ValueError(f"{method.size} is what the budget decides: leave it out")
    sizes = _Sizes(method, hyperparameters, alike, cost)
    found = sizes.largest(budget)
    if found is None:
        raise Refused(sizes.why_not(budget))
    if sizes.matters(found):
        return found
    fixed = cost.verb.format(sizes.count(found))
    raise Refused(f"{method.name}, as it is set, {fixed} here whatever the {method.size}")


class _Sizes:
    """The sizes of one method on given layers."""

    def __init__(
        self, method: type[Variant], hyperparameters: Mapping[str, Any], alike: Counter[Shape], cost: Cost
    ) -> None:
        self.method, self.hyperparameters, self.alike, self.cost = method, hyperparameters, alike, cost
        self.longest_side = max(max(shape) for shape in alike)
        self.complaint = ""  # of the last size that was not accepted

    def made(self, size: int) -> Variant | None:
        """The method in that size, unless no layer at all could have it."""
        try:
            return self.method(**self.hyperparameters, **{self.method.size: size})
        except ValueError as error:
            self.complaint = str(error)
            return None

    def accepted(self, size: int) -> Variant | None:
        """The method in that size, unless a layer here cannot have it."""
        variant = self.made(size)
        if variant is None:
            return None
        try:
            for shape in self.alike:
                variant.check(*shape)
        except Refused as error:
            self.complaint = str(error)
            return None
        return variant

    def count(self, variant: Variant) -> int:
        return self.cost.count(variant, self.alike)

    def largest(self, budget: int) -> Variant | None:
        """The largest size which is accepted and within the budget."""

        def affordable(size: int) -> bool:
            variant = self.accepted(size)
            return variant is not None and self.count(variant) <= budget

        if affordable(self.longest_side):
            entries = max(out * in_ for out, in_ in self.alike)
            return self.accepted(_last(affordable, self.longest_side, entries))
        return self._up_to_the_longest_side(budget)

    def _up_to_the_longest_side(self, budget: int) -> Variant | None:
        """Among twice as many sizes each time, until the largest is too much; then by halving."""
        known: list[Variant] = []  # accepted, by rising size
        tried = 0
        while tried <= self.longest_side and not (known and self.count(known[-1]) > budget):
            sizes = range(tried, min(2 * tried, self.longest_side) + 1)
            known += [variant for size in sizes if (variant := self.accepted(size))]
            tried = 2 * tried + 1
        found = _last(lambda place: place < 0 or self.count(known[place]) <= budget, -1, len(known) - 1)
        return known[found] if found >= 0 else None

    def matters(self, found: Variant) -> bool:
        """Whether the count depends on the size: a method may have settings under which it does not."""
        least = self.smallest()
        return least is None or least == found or self.count(least) != self.count(found)

    def smallest(self) -> Variant | None:
        """In the smallest size up to the longest side which is accepted."""
        return next((v for size in range(self.longest_side + 1) if (v := self.accepted(size))), None)

    def why_not(self, budget: int) -> str:
        """Why no size is both accepted and within the budget."""
        size, name = self.method.size, self.method.name
        smallest = self.smallest()
        if smallest is None:
            return f"no {size} of {name} fits these layers: {self.complaint}"
        least = f"{size} {getattr(smallest, size)}, {self.cost.verb.format(self.count(smallest))}"
        return f"no {size} of {name} stays within {self.cost.unit.format(budget)}: the smallest, {least}"


def _last(holds: Callable[[int], bool], first: int, end: int) -> int:
    """The last number from ``first`` to ``end`` for which ``holds``, given that it holds up to some point."""
    low, high = first, end
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
