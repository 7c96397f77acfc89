"""Work over many layers at once: order, errors, threads, and starts whatever the number of workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from variants.core import attach
from variants.core.cache import keep_in, not_kept
from variants.core.cases import same_bits
from variants.core.host import hosts
from variants.core.workers import over_layers
from variants.lora_ga import LoRAGA
from variants.pissa import PiSSA


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_answers_come_in_order_from_workers_of_one_thread(threads: int) -> None:
    meeting = threading.Barrier(threads, timeout=60)

    def work(n: int) -> tuple[int, int]:
        meeting.wait()  # all workers are there at once, or this breaks
        return n * n, torch.get_num_threads()

    assert over_layers(work, range(2 * threads * 3)) == [(n * n, 1) for n in range(2 * threads * 3)]
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("threads")
def test_the_first_error_is_raised_and_threads_are_put_back() -> None:
    before = torch.get_num_threads()

    def work(n: int) -> int:
        if n % 2:
            raise ValueError(f"layer {n}")
        return n

    with pytest.raises(ValueError, match=r"^layer 1$"):
        over_layers(work, range(8))
    assert torch.get_num_threads() == before
    assert over_layers(work, []) == []


def net() -> nn.Sequential:
    drawn = torch.Generator().manual_seed(0)
    layers = [nn.Linear(260, 260, bias=False) for _ in range(6)]
    for layer in layers:
        layer.weight = nn.Parameter(torch.randn(260, 260, generator=drawn))
    return nn.Sequential(*layers)


def started(svd: str) -> list[Tensor]:
    model = net()
    attach(model, PiSSA(rank=8, svd=svd))  # type: ignore[arg-type]
    return [tensor for host in hosts(model).values() for tensor in host.state_dict().values()]


@pytest.mark.parametrize("svd", ["exact", "krylov", "randomised"])
def test_starts_do_not_depend_on_the_number_of_workers(svd: str) -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(started(svd))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], other, strict=True))


def test_workers_share_the_cache_and_leave_it_where_it_was(tmp_path: Path) -> None:
    keep_in(tmp_path)
    try:
        attach(net(), PiSSA(rank=8))
        assert len(list(tmp_path.iterdir())) == 6
        gradients = {str(i): {"gradient": torch.ones(260, 260)} for i in range(6)}
        attach(net(), LoRAGA(rank=4), stats=gradients)
        assert len(list(tmp_path.iterdir())) == 6, "what depends on data is not kept"
        with not_kept():
            attach(net(), PiSSA(rank=8))
        attach(nn.Sequential(nn.Linear(9, 9)), PiSSA(rank=2))
        assert len(list(tmp_path.iterdir())) == 7, "and on again"
    finally:
        keep_in(None)
