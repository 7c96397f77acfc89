"""What a weight becomes when it is stored in fewer bits: half precisions, int8 and NF4; to nearest, or by chance.

All of it happens in full precision: a rounded tensor holds numbers which the format can hold, in the tensor's own
dtype, so that what is lost can be measured without the kernels of one machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Format = Literal["float32", "bfloat16", "float16", "int8", "nf4"]
FORMATS: tuple[Format, ...] = get_args(Format)
BLOCK = 64  # weights that share a scale in NF4, along a row (QLoRA, arXiv 2305.14314)
PART = 2**16  # numbers rounded by chance at a time: the temporary tensors of so few stay in a core's cache
# The 16 quantiles of a standard normal distribution, scaled to [-1, 1], with an exact zero (ibid., appendix E).
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class Rounding:
    """A format, and how to get there.

    Args:
        format: None leaves every number as it is. In int8 every row has a scale (its largest magnitude is 127), in NF4
            every block of 64 numbers along a row; scales are not quantised again. Biases are not quantised.
        rng: round up or down by chance, with the number itself as the expected value; None rounds to nearest.
    """

    format: Format | None = None
    rng: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"no format {self.format!r}: there are {', '.join(FORMATS)}")

    @property
    def quantises(self) -> bool:
        """Whether only the weights of linear layers are stored so, as quantised models do."""
        return self.format in ("int8", "nf4")

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor's numbers, rounded; of a matrix (out, in) where the format has scales.

        Numbers beyond float16's range become infinite, as they do when they are stored.
        """
        if self.format is None:
            return tensor
        if self.format == "int8":
            return _int8(tensor, self.rng)
        if self.format == "nf4":
            return _nf4(tensor, self.rng)
        return _narrowed(tensor, getattr(torch, self.format), self.rng)

    def of_layer(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A layer's weight (out, in) and bias (out,), as stored."""
        return self(W), b if b is None or self.quantises else self(b)


EXACT = Rounding()


def _narrowed(tensor: Tensor, dtype: torch.dtype, rng: torch.Generator | None) -> Tensor:
    if rng is None:
        return tensor.to(dtype).to(tensor.dtype)
    parts = [_narrowed_by_chance(part, dtype, rng) for part in tensor.flatten().split(PART)]
    return torch.cat(parts).view(tensor.shape)


def _narrowed_by_chance(tensor: Tensor, dtype: torch.dtype, rng: torch.Generator) -> Tensor:
    narrow = tensor.to(dtype)
    nearest = narrow.to(tensor.dtype)
    above = tensor > nearest
    beyond = torch.where(above, torch.inf, -torch.inf).to(dtype)
    other = torch.nextafter(narrow, beyond).to(tensor.dtype)  # the number's neighbour on its other side
    low, high = torch.where(above, nearest, other), torch.where(above, other, nearest)
    held = ~nearest.isfinite() | (nearest == tensor)
    return torch.where(held, nearest, _by_chance(tensor, low, high, rng))


def _int8(W: Tensor, rng: torch.Generator | None) -> Tensor:
    scale = W.abs().amax(-1, keepdim=True) / 127
    x = W / torch.where(scale > 0, scale, 1.0)
    return scale * (x.round() if rng is None else _by_chance(x, x.floor(), x.floor() + 1, rng))


def _nf4(W: Tensor, rng: torch.Generator | None) -> Tensor:
    rows, width = W.shape
    levels = torch.tensor(NF4_LEVELS, dtype=W.dtype, device=W.device)
    blocks = torch.nn.functional.pad(W, (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True)
    x = blocks / torch.where(scale > 0, scale, 1.0)
    above = _next_level(x)
    low, high = _at(levels, above - 1), _at(levels, above)
    nearer = above - (x - low <= high - x).int()
    chosen = _at(levels, nearer) if rng is None else _by_chance(x, low, high, rng)
    return (chosen * scale).flatten(1)[:, :width].reshape(rows, width)


def _at(levels: Tensor, index: Tensor) -> Tensor:
    """``levels[index]``, in a fraction of its time."""
    return levels.index_select(0, index.flatten()).view(index.shape)


def _next_level(x: Tensor) -> Tensor:
    """Index of the first of the levels, but at least 1 and at most the last, which is not below x."""
    above = torch.ones(x.shape, dtype=torch.uint8, device=x.device)
    for level in NF4_LEVELS[1:-1]:  # a comparison takes a fraction of a search's time
        above += x > level
    return above.int()


def _by_chance(x: Tensor, low: Tensor, high: Tensor, rng: torch.Generator) -> Tensor:
    """``low`` or ``high``, with the expected value x."""
    drawn = torch.rand(x.shape, generator=rng, dtype=x.dtype, device=rng.device).to(x.device)
    return torch.where(drawn < (x - low) / (high - low), high, low)
