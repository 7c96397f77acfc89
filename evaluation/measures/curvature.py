"""The curvature of the loss at a method's start, in its own tensors: what forecasts its learning rate without a run.

*Learning Rate Matters* (arXiv 2602.04998) finds that the best rates of LoRA's variants fall as
the top eigenvalue of the Hessian at the start rises. What a forecast made of it is worth is in docs/decisions/013.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from evaluation.clock import Clock
from evaluation.data import Batch, task_loss
from evaluation.peers import states_of
from evaluation.training import Classifier
from variants.core import Variant, trainable_parameters
from variants.core.linalg import full_precision, raised

PRODUCTS = 20  # Hessian products of Lanczos, at most
TOLERANCE = 1e-2  # relative change of an extreme Ritz value at which it counts as found
BASIS = 2**28  # numbers in the Krylov basis, at most: 1 GiB in float32

Product = Callable[[Tensor], Tensor]  # a symmetric matrix times a vector, shapes: (n,) -> (n,)


class NotTwice(ArithmeticError):
    """The loss has no second derivative that could be computed, or none that is finite; the message says which."""


class Extremes(NamedTuple):
    """What Lanczos found: the largest and the smallest eigenvalue, the products it took, and the residual
    ``||H v - top v||`` of the largest as a share of it (of the largest magnitude, where that is not above zero)."""

    top: float
    bottom: float
    products: int
    residual: float


def curvature(model: Classifier, variant: Variant, batch: Batch, rng: torch.Generator, clock: Clock) -> dict[str, Any]:
    """Second derivatives of what training minimises, by the trainable tensors of the encoder (the head's are left out).

    The model must have the variant attached and is left as it was. Everything is in full precision, with dropout off;
    what the method detaches (DoRA's norm) counts as constant, as it does in training.
    Of a pair with B = 0, as LoRA starts, the block of A is zero and the mixed block of a layer holds the gradient of
    its W, once for each rank: where that dominates, eigenvalues come in pairs of opposite sign, and the top one is
    the size of a gradient more than a curvature. It is well defined all the same.

    Args:
        batch: the training rows over which the loss is averaged.
        rng: draws the start vector, on the CPU.

    Returns:
        top: the largest eigenvalue of the Hessian. magnitude: the eigenvalue of largest magnitude, with its sign; both
        in nats per squared unit of a parameter. products, residual: see ``Extremes``. rows: over which the loss was
        averaged. Without trainable tensors in the encoder, or without a finite second derivative, ``top`` is None
        and ``reason`` says why.
    """
    parameters = list(trainable_parameters(model.encoder).values())
    if not parameters:
        return {"top": None, "reason": "nothing trains in the encoder"}
    with clock("curvature"), _undisturbed(model):
        size = sum(p.numel() for p in parameters)
        start = torch.randn(size, generator=rng).to(parameters[0])
        try:
            product = hessian(model, variant, batch, parameters)
            found = lanczos(product, start, min(PRODUCTS, max(2, BASIS // size)))
        except NotTwice as reason:
            return {"top": None, "reason": str(reason)}
    return {
        "top": found.top,
        "magnitude": found.top if found.top >= -found.bottom else found.bottom,
        "products": found.products,
        "residual": found.residual,
        "rows": len(batch.labels),
    }


@contextmanager
def _undisturbed(model: Classifier) -> Iterator[None]:
    """Inside, nothing is dropped out."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@full_precision
def hessian(model: Classifier, variant: Variant, batch: Batch, parameters: Sequence[Tensor]) -> Product:
    """The Hessian of loss and penalty by these parameters, as products with vectors (double backward, Pearlmutter,
    1994); the graph of the gradient is built once and kept as long as the product is.

    Raises:
        NotTwice: there is no second derivative; from the product, it is not finite.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the one attention kernel that has a second derivative
        loss = task_loss(raised(model(batch)), batch.labels)
    penalty = variant.penalty(states_of(model.encoder))
    objective = loss if penalty is None else loss + penalty
    gradients = torch.autograd.grad(objective, parameters, create_graph=True, allow_unused=True)
    curved = [i for i, gradient in enumerate(gradients) if gradient is not None and gradient.requires_grad]
    _check_twice([gradients[i] for i in curved])
    sizes = [p.numel() for p in parameters]

    @full_precision
    def product(v: Tensor) -> Tensor:  # shapes: (n,) -> (n,)
        parts = [part.view_as(p) for part, p in zip(v.split(sizes), parameters, strict=True)]
        outputs, along = [gradients[i] for i in curved], [parts[i] for i in curved]
        found = torch.autograd.grad(outputs, parameters, along, retain_graph=True, materialize_grads=True)
        flat = torch.cat([part.reshape(-1) for part in found])
        if not bool(flat.isfinite().all()):
            raise NotTwice("a second derivative of the loss is not finite")
        return flat

    return product


def _check_twice(gradients: Sequence[Tensor]) -> None:
    """Raises NotTwice for a function whose author ruled a second derivative out (``once_differentiable``): torch does
    not complain where the result is asked for by tensor, but leaves the function's share out."""
    nodes = [gradient.grad_fn for gradient in gradients]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("Error"):
            raise NotTwice("a function of the method cannot be differentiated twice")
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]


def lanczos(product: Product, start: Tensor, products: int = PRODUCTS, tolerance: float = TOLERANCE) -> Extremes:
    """Both ends of a symmetric matrix's spectrum, by Lanczos with full reorthogonalisation (Golub and Van Loan, 10.1).

    Stops when a product has moved neither the top by more than ``tolerance`` of itself nor the bottom by more than
    that of the largest magnitude, when the Krylov space is exhausted, or after ``products`` products.

    Args:
        start: shape (n,), not zero.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    before = (math.inf, math.inf)
    while True:
        w = product(basis[-1])
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):  # the second pass takes off what rounding left in the first
            for q in basis:
                w = w - (w @ q) * q
        left = float(w.norm())
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        ends = top, bottom = float(values[-1]), float(values[0])
        scale = max(abs(top), abs(bottom))
        settled = abs(top - before[0]) <= tolerance * abs(top) and abs(bottom - before[1]) <= tolerance * scale
        exhausted = left <= 1e-6 * scale or len(basis) == start.numel()
        if exhausted or settled or len(basis) >= products:
            size = top if top > 0 else scale
            return Extremes(top, bottom, len(basis), left * abs(float(vectors[-1, -1])) / size if size else 0.0)
        before = ends
        beside.append(left)
        basis.append(w / left)


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:  # shape: (k, k)
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside, dtype=torch.float64)
    return T + torch.diag(off, 1) + torch.diag(off, -1) if beside else T
