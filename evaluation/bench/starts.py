"""PiSSA's start on every layer of a model: ours in every way and out of the cache, against PEFT's exact one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.bench.pairs import pairs
from evaluation.bench.result import Interval, Start
from evaluation.measures.contestants import replica
from evaluation.measures.intervals import interval
from evaluation.measures.replicas import sharing
from variants.core import attach, create
from variants.core.cache import keep_in, not_kept
from variants.core.host import hosts
from variants.core.krylov import SVD
from variants.pissa import PiSSA

TIMES = 3
EXACT = "peft exact"  # what the others are compared with


def starts(base: nn.Module, rank: int, where: Sequence[str], folder: Path) -> dict[str, Start]:
    """Seconds of attaching PiSSA to all layers of copies of ``base``, in turns, and how far the residuals are from
    PEFT's. ``folder`` is scratch."""
    peer: Any = create("peft:lora", pairs(rank, 1)["pissa"].theirs)
    ours, krylov, randomised = (PiSSA(rank=rank, svd=how) for how in get_args(SVD))

    def attached(variant: PiSSA, kept: Path | None) -> nn.Module:
        plain = sharing(base)
        with not_kept():  # which puts back what was said before
            keep_in(kept)
            return _timed(lambda: (attach(plain, variant, list(where)), plain)[1], spans)

    spans: list[float] = []
    makers: dict[str, Callable[[], nn.Module]] = {
        EXACT: lambda: _wrapped(peer, base, list(where), spans),
        "ours": lambda: attached(ours, None),
        "ours, krylov": lambda: attached(krylov, None),
        "ours, randomised": lambda: attached(randomised, None),
        "ours, from the cache": lambda: attached(ours, folder / "starts"),
    }
    attached(ours, folder / "starts")  # fills the cache
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    apart: dict[str, float] = {}
    exact: dict[str, Tensor] = {}
    for _ in range(TIMES):
        for name, make in makers.items():
            model = make()
            seconds[name].append(spans[-1])
            if name not in apart:
                found = _residuals(model)
                exact = exact or found
                apart[name] = max(float((W - exact[path]).norm() / exact[path].norm()) for path, W in found.items())
            del model
            gc.collect()
    return {n: Start(seconds=Interval(**interval(np.array(s))), residual=apart[n]) for n, s in seconds.items()}


def _wrapped(peer: Any, base: nn.Module, where: list[str], spans: list[float]) -> nn.Module:
    own = replica(base, peer, own=True)  # it writes its residuals into what it is given
    return _timed(lambda: peer.wrap(own, where, 0, 0.0), spans)


def _timed(make: Callable[[], nn.Module], spans: list[float]) -> nn.Module:
    began = time.perf_counter()
    model = make()
    spans.append(time.perf_counter() - began)
    return model


@torch.no_grad()
def _residuals(model: nn.Module) -> dict[str, Tensor]:
    """Layer path -> the frozen weight (out, in) beside the pair."""
    ours = {path: host.dense() for path, host in hosts(model).items()}
    prefix = "base_model.model."
    theirs = {
        path.removeprefix(prefix): module.base_layer.weight
        for path, module in model.named_modules()
        if hasattr(module, "base_layer")
    }
    return {path: W.clone() for path, W in (ours or theirs).items()}
