"""Seconds of what is done once with an adapter: attach, merge, unmerge, save, load."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from evaluation.bench.result import Costs
from evaluation.measures.contestants import Contestant, replica
from evaluation.measures.replicas import sharing
from evaluation.peers import is_peer
from variants.core import Refused, Variant, attach, load, merged, save
from variants.core.cache import keep_in, not_kept

TIMES, LONG = 3, 1.0  # repetitions, and the seconds from which one is enough


def costs(contestant: Contestant, base: nn.Module, where: Sequence[str], folder: Path) -> Costs:
    """Each once or, if it is short, the median of three. ``folder`` is scratch, and keeps decompositions between calls.

    attach: again, with decompositions found in the cache; of peers, and of methods that need data, None. load: onto a
    stock base.
    """
    model, variant = contestant.trainer.model.encoder, contestant.trainer.variant
    measure = _peers_costs if is_peer(model) else _our_costs
    with warnings.catch_warnings(action="ignore"):  # of PEFT about rounding in its merges
        found = measure(model, variant, base, list(where), folder)
    return Costs(init=contestant.init_seconds, compile=contestant.compile_seconds, **found)


def _our_costs(
    model: nn.Module, variant: Variant, base: nn.Module, where: list[str], folder: Path
) -> dict[str, float | None]:
    file, own = folder / "adapter", variant.trains == "base"

    def stock() -> nn.Module:
        return copy.deepcopy(base) if own else sharing(base)

    def again() -> float:
        with not_kept():  # which puts back what was said before
            keep_in(folder / "decompositions")
            attach(sharing(base), variant, where)  # fills the cache
            return _seconds(lambda plain: attach(plain, variant, where), stock)

    whole = variant.mergeable and variant.trains == "layers"
    merge, unmerge = _in_and_out(lambda: merged(model)) if whole else (None, None)
    saved = _or_none(lambda: _seconds(lambda _: save(model, file)))
    return {
        "attach": None if variant.needs or variant.trains != "layers" else again(),
        "merge": merge,
        "unmerge": unmerge,
        "save": saved,
        "load": None if saved is None else _seconds(lambda plain: load(plain, file), stock),
    }


def _peers_costs(
    model: Any, variant: Variant, base: nn.Module, where: list[str], folder: Path
) -> dict[str, float | None]:
    del where
    import peft

    file = str(folder / f"peft-{variant.name.partition(':')[2]}")
    found: dict[str, float | None] = dict.fromkeys(("attach", "merge", "unmerge", "save", "load"))
    with suppress(Exception):  # here and below: what PEFT's methods raise where they cannot is not of one kind
        found["save"] = _seconds(lambda _: model.save_pretrained(file, save_embedding_layers=False))
        restore = lambda plain: peft.PeftModel.from_pretrained(plain, file)  # noqa: E731
        found["load"] = _seconds(restore, lambda: replica(base, variant, own=True))
    with suppress(Exception):
        found["merge"], found["unmerge"] = _in_and_out(lambda: _peer_merged(model))
    return found


@contextmanager
def _peer_merged(model: Any) -> Iterator[None]:
    model.merge_adapter()
    yield
    model.unmerge_adapter()


def _in_and_out(merging: Callable[[], AbstractContextManager[None]]) -> tuple[float, float]:
    """Seconds of merging and of taking it back: always in turns, as merging twice does nothing the second time."""
    spans = []
    for _ in range(TIMES):
        began = time.perf_counter()
        with merging():
            inside = time.perf_counter()
        spans.append((inside - began, time.perf_counter() - inside))
    into, out = (statistics.median(part) for part in zip(*spans, strict=True))
    return into, out


def _seconds(action: Callable[[Any], object], given: Callable[[], Any] = lambda: None) -> float:
    """Of ``action(given())``, where only the action counts and may be repeated."""
    spans: list[float] = []
    while len(spans) < TIMES and sum(spans) < LONG:
        argument = given()
        began = time.perf_counter()
        action(argument)
        spans.append(time.perf_counter() - began)
    return statistics.median(spans)


def _or_none(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except Refused:
        return None
