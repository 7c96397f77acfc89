"""What is known of the untouched base, whatever the method and the head: found in one run, used by those after it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from torch import Tensor, nn

from evaluation.data import Split
from variants.core import trainable_parameters
from variants.core.host import hosts


def is_untouched(encoder: nn.Module) -> bool:
    """Whether an encoder stays the base in training: the head is all that trains."""
    return not hosts(encoder) and not trainable_parameters(encoder)


class Remembered:
    """Tensors by place. Once there are ``most`` bytes no more are kept: what comes round in the same order every time
    would never be there if the oldest went."""

    def __init__(self, most: int) -> None:
        self.left = most
        self._found: dict[Hashable, Tensor] = {}

    def of(self, place: Hashable, find: Callable[[], Tensor]) -> Tensor:
        """What is at a place, not to be written into; ``find`` computes it."""
        if place in self._found:
            return self._found[place]
        found = find()
        if found.nbytes <= self.left:
            self._found[place] = found
            self.left -= found.nbytes
        return found


@dataclass(frozen=True)
class KnownBase:
    """One base model's features of texts, (items, hidden), and its weights as quantised formats store them."""

    _features: Remembered = field(default_factory=lambda: Remembered(2**26))
    weights: Remembered = field(default_factory=lambda: Remembered(2**27))  # by format and path

    def features(self, split: Split, state: str, find: Callable[[], Tensor]) -> Tensor:  # shape: (items, hidden)
        """The features of a split.

        Args:
            state: what else decides them: the format that the base is rounded to, the precision of the arithmetic.
        """
        return self._features.of((split.tokens, split.pad, state), find)
