"""The tensors that determine an adapter: what a file of it holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from variants.core.attachment import check_known, required, required_unmerged
from variants.core.host import hosts
from variants.core.interface import Refused

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INDICES = (torch.int64, torch.int32)


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
    check_like(mine, state)
    for host in hosts(model).values():
        if name in host.adapter:
            host.unrebase()  # a residual belongs to the factors it was made with
    for key, tensor in mine.items():
        tensor.copy_(state[key])


def check_like(mine: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises Refused unless tensors from elsewhere can be copied into ``mine``."""
    if set(mine) != set(state):
        odd = sorted(set(mine) ^ set(state))
        raise Refused(f"the adapter file does not fit the method here: {len(odd)} keys differ, first {odd[0]!r}")
    for key, tensor in mine.items():
        if tensor.shape != state[key].shape:
            raise Refused(f"{key} has shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}")
        if tensor.is_floating_point() != state[key].is_floating_point():
            raise Refused(f"{key} is {state[key].dtype}, expected {tensor.dtype}")
        check_numbers(key, state[key])


def check_numbers(key: str, tensor: Tensor) -> None:
    """Raises Refused unless the tensor holds finite numbers of a kind that adapters use."""
    if tensor.dtype not in (*FLOATS, *INDICES):
        raise Refused(f"{key!r} is {tensor.dtype}, expected one of {', '.join(map(str, (*FLOATS, *INDICES)))}")
    if not bool(tensor.isfinite().all()):
        raise Refused(f"{key!r} holds numbers that are not finite: the file is damaged, or its training diverged")
