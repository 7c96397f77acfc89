"""The host for transformers' ``Conv1D`` (GPT-2): a linear layer which stores its weight as (in, out)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from variants.core.host import HOSTS, Host


class HostConv1D(Host, Conv1D):  # type: ignore[misc]  # transformers is skipped by the type checker
    """Hosts ``Conv1D``: weight stored as (in, out)."""

    plain = Conv1D
    transparent = True

    def frozen(self, x: Tensor) -> Tensor:
        return x @ cast(Tensor, self.weight)

    def base(self, x: Tensor, stored: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.reshape(-1, x.size(-1)), stored)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def oriented(stored: Tensor) -> Tensor:
        return stored.T


HOSTS[Conv1D] = HostConv1D
