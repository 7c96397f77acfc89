"""What the untouched base makes of texts: the same for every method and every head, so found once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from evaluation.data import Split
from variants.core import trainable_parameters
from variants.core.host import hosts


def is_untouched(encoder: nn.Module) -> bool:
    """Whether an encoder stays the base in training: the head is all that trains."""
    return not hosts(encoder) and not trainable_parameters(encoder)


class BaseFeatures:
    """Remembers the features of one base model, shape (items, hidden), by texts and by the base's state.

    Heads differ from run to run; what comes before them does not where the base is untouched. The least recently found
    ones go once there are more than ``most`` bytes.
    """

    def __init__(self, most: int = 2**26) -> None:
        self.most = most
        self._found: dict[tuple[object, ...], Tensor] = {}

    def of(self, split: Split, state: str, find: Callable[[], Tensor]) -> Tensor:  # shape: (items, hidden)
        """The features of a split.

        Args:
            state: what else decides them: the format that the base is rounded to, the precision of the arithmetic.
            find: computes them.
        """
        place = split.tokens, split.pad, state
        if place not in self._found:
            self._found[place] = find()
            while self._bytes() > self.most and len(self._found) > 1:
                del self._found[next(iter(self._found))]
        return self._found[place]

    def _bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._found.values())
