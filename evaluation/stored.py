"""What methods store on a model, in bytes of tensors, known from shapes alone.

There is no closed form of it (frozen bases, indices): it is read off a start in which tensors have shapes and no data,
so that no matrix is decomposed, whatever its size.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from evaluation.architectures import Architecture
from variants.core import Variant
from variants.core.attach import layer_rng
from variants.core.budget import Shape
from variants.core.linalg import decomposed_in_full

_FLOAT_BYTES = 4
_SMALL = 2**24  # numbers in a tensor that is computed after all, if it follows from sizes alone


class Unknown(Exception):
    """Shapes alone do not tell what a method stores: it depends on the weight's numbers, or is computed elsewhere."""


def trained_base(model: Architecture, variant: Variant) -> int:
    """Parameters of the base model itself which the method trains."""
    return sum(p.numel() for path, p in model.whole.named_parameters() if variant.trains_base(path))


def file_bytes(model: Architecture, variant: Variant, shapes: Iterable[Shape]) -> int:
    """Bytes of the tensors in an adapter file, trained and frozen, of a method on layers of these shapes together.

    Raises:
        Unknown: they depend on the weights' numbers, or are computed outside torch.
    """
    base = _FLOAT_BYTES * trained_base(model, variant)
    if variant.trains != "layers":
        return base
    alike = shapes if isinstance(shapes, Counter) else Counter(shapes)
    everywhere = list(alike.elements())
    shared = _without_numbers(lambda _: list(variant.shared(everywhere, layer_rng(0, "")).values()))
    base += _FLOAT_BYTES * sum(tensor.numel() for tensor in shared)  # drawn in any precision, kept in the adapter's
    return base + sum(n * stored_bytes(variant, *shape) for shape, n in alike.items())


def stored_bytes(variant: Variant, out: int, in_: int) -> int:
    """Bytes of the adapter tensors of one layer, trained and frozen, for a base in float32.

    Raises:
        Unknown: they depend on the weight's numbers, or are computed outside torch.
    """

    def start(mode: _WithoutData) -> list[Tensor]:
        W, C, m = (mode.empty(shape) for shape in ((out, in_), (in_, in_), (in_,)))
        stats = {k: v for k, v in {"gradient": W, "covariance": C, "mean": m}.items() if k in variant.needs}
        init = variant.init(W, layer_rng(0, ""), stats)
        if sum(tensor.numel() for tensor in init.train.values()) != variant.parameter_count(out, in_):
            raise Unknown("the number of trained parameters depends on the weight's numbers")
        return [*init.train.values(), *init.frozen.values()]

    return sum(tensor.numel() * tensor.element_size() for tensor in _without_numbers(start))


def _without_numbers(work: Callable[[_WithoutData], list[Tensor]]) -> list[Tensor]:
    problem: Exception | None = None
    for small, answer in itertools.product((0, _SMALL), (1, 0)):
        with decomposed_in_full(), _WithoutData(answer, small) as mode:
            try:
                return work(mode)
            except Exception as error:  # whatever comes of numbers that are none
                problem = error
    raise Unknown("it cannot be told from shapes alone") from problem


class _WithoutData(FakeTensorMode):
    """Inside, tensors have a shape and no data, but for those up to ``small`` numbers which follow from sizes alone: a
    method may work out from them which places it trains.

    Where a program asks for a number which is not there, it gets ``answer``, a limited number of times: a loop may wait
    for another.
    """

    def __init__(self, answer: int, small: int) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.answer, self.small, self.patience = answer, small, 1000

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor without data."""
        return FakeTensor(self, torch.empty(shape, device="meta"), torch.device("cpu"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        here = not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs)))
        if func is torch.ops.aten._local_scalar_dense.default and not here:
            self.patience -= 1
            if self.patience < 0:
                raise Unknown("a loop that does not end")
            dtype = args[0].dtype
            return bool(self.answer) if dtype == torch.bool else self.answer * (1.0 if dtype.is_floating_point else 1)
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        except DynamicOutputShapeException:
            if not (here and self.small):
                raise
            return func(*args, **kwargs)
        large = any(isinstance(leaf, Tensor) and leaf.numel() > self.small for leaf in tree_leaves(result))
        return func(*args, **kwargs) if here and not large else result
