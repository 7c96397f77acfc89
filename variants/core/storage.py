"""The tensors that determine an adapter: what a file of it holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from variants.core.attachment import check_known, required, required_unmerged
from variants.core.host import hosts
from variants.core.interface import Refused


def adapter_state(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Everything that determines an adapter, under ``<layer path>.adapter.<tensor>``.

    What the layers share comes once, under ``adapter.shared.<tensor>``; trained base tensors keep their own keys. These
    are the tensors an adapter file holds, not copies of them: clone what should outlive training.
    """
    record = required(model)
    check_known(record, [name])
    state = {
        f"{path}.adapter.{key}": tensor.detach()
        for path, host in hosts(model).items()
        if name in host.adapter
        for key, tensor in host.carried(name).own_tensors().items()
    }
    shared = {
        f"adapter.shared.{key}": tensor.detach()
        for host in hosts(model).values()
        if name in host.adapter
        for key, tensor in host.carried(name).shared.named_buffers()
    }
    parameters = dict(model.named_parameters())
    return state | shared | {path: parameters[path].detach() for path in record.trained_base}


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor], name: str = "default") -> None:
    """Copies tensors of ``adapter_state`` into an adapter attached with the same method, whatever its seed.

    Raises:
        Refused: keys, shapes or kinds of numbers differ, or a number is not finite; nothing changes then.
    """
    required_unmerged(model)
    mine = adapter_state(model, name)
    if set(mine) != set(state):
        odd = sorted(set(mine) ^ set(state))
        raise Refused(f"the adapter file does not fit the attached method: {len(odd)} keys differ, first {odd[0]!r}")
    for key, tensor in mine.items():
        if tensor.shape != state[key].shape:
            raise Refused(f"{key} has shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}")
        if tensor.is_floating_point() != state[key].is_floating_point():
            raise Refused(f"{key} is {state[key].dtype}, expected {tensor.dtype}")
        if not bool(state[key].isfinite().all()):
            raise Refused(f"{key} holds numbers that are not finite: the file is damaged, or its training diverged")
    for host in hosts(model).values():
        if name in host.adapter:
            host.unrebase()  # a residual belongs to the factors it was made with
    for key, tensor in mine.items():
        tensor.copy_(state[key])
