"""A parameter budget as a method's size: the largest rank, block or band whose trainable parameters stay within it.

Only shapes enter, so a model's weights are never needed. Counts assume the same method on every layer: one that
divides itself among the layers by need (``Variant.allocate``) may end up elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from variants.core.interface import Refused, Variant

Shape = tuple[int, int]  # out, in


def total_count(variant: Variant, shapes: Iterable[Shape]) -> int:
    """Trainable parameters on layers of these shapes together; a Counter of shapes counts each as often as it says."""
    alike = shapes if isinstance(shapes, Counter) else Counter(shapes)
    return sum(n * variant.parameter_count(*shape) for shape, n in alike.items())


def largest(method: type[Variant], hyperparameters: Mapping[str, Any], shapes: Iterable[Shape], budget: int) -> Variant:
    """The method in the largest ``size`` that trains at most ``budget`` parameters on layers of these shapes.

    Every size from 0 to the longest side of a layer is considered, whichever of them the method accepts (a block may
    have to divide a side, a rank to be even). If that side itself is within the budget, larger sizes are taken to be
    accepted up to some point, as numbers of entries are. Counts are taken to grow with the size.

    Args:
        hyperparameters: all but the size.

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
        fixed = total_count(method(**hyperparameters), alike)
        raise Refused(f"{method.name} has no size: it trains {fixed:,} here, whatever the budget")
    if method.size in hyperparameters:
        raise ValueError(f"{method.size} is what the budget decides: leave it out")
    sizes = _Sizes(method, hyperparameters, alike)
    found = sizes.largest(budget)
    if found is None:
        raise Refused(sizes.why_not(budget))
    if sizes.matters(found):
        return found
    raise Refused(f"{method.name}, as it is set, trains {sizes.count(found):,} here whatever the {method.size}")


class _Sizes:
    """The sizes of one method on given layers."""

    def __init__(self, method: type[Variant], hyperparameters: Mapping[str, Any], alike: Counter[Shape]) -> None:
        self.method, self.hyperparameters, self.alike = method, hyperparameters, alike
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
        return total_count(variant, self.alike)

    def largest(self, budget: int) -> Variant | None:
        """The largest size which is accepted and within the budget."""

        def affordable(size: int) -> bool:
            variant = self.accepted(size)
            return variant is not None and self.count(variant) <= budget

        if affordable(self.longest_side):
            entries = max(out * in_ for out, in_ in self.alike)
            return self.accepted(_last(affordable, self.longest_side, entries))
        best = None
        for size in range(self.longest_side):
            variant = self.accepted(size)
            if variant is not None and self.count(variant) > budget:
                break
            best = variant or best
        return best

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
        least = f"{size} {getattr(smallest, size)}, trains {self.count(smallest):,}"
        return f"no {size} of {name} stays within {budget:,} parameters: the smallest, {least}"


def _last(holds: Callable[[int], bool], first: int, end: int) -> int:
    """The last number from ``first`` to ``end`` for which ``holds``, given that it holds up to some point."""
    low, high = first, end
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
