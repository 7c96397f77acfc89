"""One pass over a little training data, for methods whose start depends on gradients or on a layer's inputs.

The pass sees the stock base model with the head as it starts, nothing dropped out, padding left out. What it measures
is named and described in ``variants.core.STATISTICS``. It is a function of the model, the data, the seed and the
``Calibration`` settings, all of which are in the key of a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from evaluation.data import Batch, task_loss
from evaluation.training import Classifier, autocast
from variants.core import STATISTICS, Refused, Tensors
from variants.core.host import oriented
from variants.core.linalg import raised
from variants.core.targets import matching_layers

Statistics = dict[str, dict[str, Tensor]]  # path -> name -> tensor


def calibrate(
    model: Classifier, where: Iterable[str], needs: frozenset[str], batches: Iterable[Batch], precision: str = "float32"
) -> Statistics:
    """What ``needs`` names, for every layer that ``where`` selects on the model's encoder, which must be without
    adapters and is left as it was. Tensors are float32 on the CPU.

    Raises:
        Refused: a statistic that is not known, a layer without a host, or a statistic that is not finite.
    """
    if not needs:
        return {}
    if unknown := sorted(needs - set(STATISTICS)):
        raise Refused(f"no calibration measures {unknown[0]!r}: a method may need {', '.join(STATISTICS)}")
    layers = {path: model.encoder.get_submodule(path) for path in matching_layers(model.encoder, list(where))}
    moments = {path: Moments() for path in layers} if needs & {"covariance", "mean"} else {}
    gradients = _gradients(model, layers, moments, "gradient" in needs, batches, precision)
    found: Statistics = {path: {} for path in layers}
    for path in layers:
        if path in moments:
            found[path] |= {"covariance": moments[path].covariance(), "mean": moments[path].mean()}
        if path in gradients:
            found[path]["gradient"] = gradients[path]
        found[path] = {name: tensor.float().cpu() for name, tensor in found[path].items() if name in needs}
        for name, tensor in found[path].items():
            if not bool(tensor.isfinite().all()):
                raise Refused(f"the {name} of {path} is not finite on the calibration data")
    return found


class Moments:
    """Running sums of x and x x^T over a layer's input vectors, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Tensor | None = None  # shape: (in,)
        self.second: Tensor | None = None  # shape: (in, in)

    def add(self, x: Tensor) -> None:  # shape: (tokens, in)
        x = x.detach().double()
        self.count += x.shape[0]
        self.first = x.sum(0) if self.first is None else self.first + x.sum(0)
        self.second = x.T @ x if self.second is None else self.second + x.T @ x

    def mean(self) -> Tensor:
        assert self.first is not None, "no batch was seen"
        return self.first / self.count

    def covariance(self) -> Tensor:
        assert self.second is not None, "no batch was seen"
        return self.second / self.count


def _gradients(
    model: Classifier,
    layers: Mapping[str, nn.Module],
    moments: Mapping[str, Moments],
    with_gradient: bool,
    batches: Iterable[Batch],
    precision: str,
) -> dict[str, Tensor]:
    """Runs the batches, filling the moments; the mean gradient of the loss by each layer's weight, (out, in)."""
    weights = {path: layer.weight for path, layer in layers.items()} if with_gradient else {}
    flags = {p: p.requires_grad for p in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    sums: dict[str, Tensor] = {}
    count = 0
    try:
        model.requires_grad_(False).eval()
        for weight in weights.values():
            weight.requires_grad_(True)  # type: ignore[operator]
        for batch in batches:
            with ExitStack() as hooks, torch.set_grad_enabled(with_gradient), autocast(batch.labels.device, precision):
                for path in moments:
                    handle = layers[path].register_forward_pre_hook(_collector(moments[path], batch.attention_mask))
                    hooks.callback(handle.remove)
                outputs = model(batch)
            if with_gradient:
                loss = task_loss(raised(outputs), batch.labels)
                found = torch.autograd.grad(loss, list(weights.values()))  # type: ignore[arg-type]
                for path, gradient in zip(weights, found, strict=True):
                    sums[path] = sums[path] + gradient if path in sums else gradient
            count += 1
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode
    return {path: oriented(layers[path], gradient / count) for path, gradient in sums.items()}


def _collector(moments: Moments, mask: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def collect(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        real = x[mask.bool()] if x.shape[:2] == mask.shape else x.flatten(0, -2)
        moments.add(real)

    return collect


def digest(stats: Mapping[str, Tensors]) -> str:
    """16 hex digits which change with any bit of the statistics."""
    found = hashlib.sha256()
    for path in sorted(stats):
        for name in sorted(stats[path]):
            found.update(f"{path}:{name}:{tuple(stats[path][name].shape)}".encode())
            found.update(stats[path][name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
