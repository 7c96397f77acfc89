"""Memory of a step: what autograd keeps between forward and backward, and the highest point."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.data import Batch
from evaluation.training import Trainer


def step_memory(trainer: Trainer, batch: Batch, device: torch.device) -> dict[str, int]:
    """saved_bytes and peak_bytes of one training step."""
    return {
        "saved_bytes": saved_bytes(trainer.model, lambda: trainer.losses(batch)[1]),
        "peak_bytes": peak_bytes(lambda: trainer.step(batch), device),
    }


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of memory that autograd keeps from forward for backward: storages counted once, the model's own not."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    packed: list[weakref.ref[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        alone = tensor.detach()  # the tensor itself may be what its own graph keeps: a circle that is never freed
        packed.append(weakref.ref(alone))
        return alone

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    # Some are gone by now, with a part of the graph that led nowhere (a detached norm).
    storages = [tensor.untyped_storage() for reference in packed if (tensor := reference()) is not None]
    total = sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}.values())
    del output  # only now may the storages go
    return total


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Tensor memory that one step allocates at its highest, above what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(max(np.cumsum([0, *changes])))
