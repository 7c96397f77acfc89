"""Several trained adapters on one base: what each way of combining them keeps of every task's score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from evaluation.clock import Clock
from evaluation.data import Split
from evaluation.kept import Kept, base_of, classifier, mount, scored_split
from evaluation.measures.score import primary, score
from evaluation.spec import Unusable
from evaluation.training import Classifier, logits
from variants.core import Refused, activate, detach
from variants.core.combining import Combined, How, combine
from variants.core.registry import suggestion

COMBINED = "combined"  # the name of a combination while it is scored


@dataclass(frozen=True)
class Task:
    """One adapter's own task: its head on the shared encoder, and the items it is scored on."""

    name: str  # of the adapter on the encoder
    title: str  # no other task has it
    kept: Kept
    model: Classifier
    items: Split

    def score(self) -> float:
        """The task's primary measure over the items, with what is active on the encoder at the moment."""
        outputs = logits(self.model, self.items, Clock(), torch.device("cpu"))
        return primary(score(outputs, self.items))


def chosen_ways(text: str) -> list[How]:
    """Ways by name, separated by commas, or all of them.

    Raises:
        Unusable: one is unknown.
    """
    known: dict[str, How] = {way: way for way in get_args(How)}
    asked = list(known) if text == "all" else text.split(",")
    if unknown := [way for way in asked if way not in known]:
        raise Unusable(f"no way {unknown[0]!r} to combine: {suggestion(unknown[0], list(known))}")
    return [known[way] for way in asked]


def combined_scores(
    runs: Sequence[Kept],
    ways: Sequence[How],
    *,
    rank: int,
    density: float,
    items: int,
    seed: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Every task's test score with the base alone, with each adapter, and with every combination of all of them.

    Each task keeps the head which its run trained. Every adapter has weight 1.

    Args:
        rank: of the truncated sum (``svd``).
        density: share of the numbers which TIES and DARE keep.
        items: test items of each task, at most.
        seed: of what DARE drops.
        say: told what has been scored.

    Returns:
        A row for the base, for every adapter, and for every way: its title under ``adapter``, the score of each task
        under the run's title, and what was attached.

    Raises:
        Unusable: fewer than two runs, runs of different base models, or adapters that cannot be combined.
    """
    if not 0 < density <= 1:
        raise Unusable(f"--density is the share of numbers that are kept, above 0 and at most 1, not {density:g}")
    tasks = _tasks(runs, items)
    encoder = tasks[0].model.encoder
    rows: list[dict[str, Any]] = []

    def add(title: str, attached: str) -> None:
        rows.append({"adapter": title} | {task.title: task.score() for task in tasks} | {"attached": attached})
        say(title)

    activate(encoder, None)
    add("none: the base", "")
    for task in tasks:
        activate(encoder, task.name)
        add(task.title, task.kept.run.method.name)
    for way in ways:
        weights, rng = dict.fromkeys((task.name for task in tasks), 1.0), torch.Generator().manual_seed(seed)
        try:
            size = rank if way == "svd" else None
            made = combine(encoder, weights, COMBINED, way, rank=size, density=density, rng=rng)
        except Refused as error:
            raise Unusable(f"{way}: {error}") from error
        add(f"all, {way}", _in_words(made))
        detach(encoder, merge=False, name=COMBINED)
    return rows


def _in_words(made: Combined) -> str:
    ranks = sorted(set(made.ranks.values()))
    size = f" of rank {ranks[0]}{f' to {ranks[-1]}' if len(ranks) > 1 else ''}" if ranks else ""
    return f"{made.method}{size}" + (f", {100 * made.error:.2g} % of the sum cut off" if made.error else "")


def _tasks(runs: Sequence[Kept], items: int) -> list[Task]:
    if len(runs) < 2:
        raise Unusable("give two runs or more: one adapter alone is not a combination")
    if len({kept.folder.resolve() for kept in runs}) < len(runs):
        raise Unusable("one run was given twice: it would count twice in every combination")
    if len({kept.run.identity.model for kept in runs}) > 1:
        raise Unusable(f"the runs trained on different base models: {', '.join(kept.run.model for kept in runs)}")
    base = base_of(runs[0])
    tasks: list[Task] = []
    for number, kept in enumerate(runs):
        name = f"task{number}"
        if mount(kept, base.encoder, name).trains != "layers":
            raise Unusable(f"{kept.title} puts no adapter on layers: there is nothing to combine")
        title = kept.title if kept.title not in {t.title for t in tasks} else f"{kept.title} ({kept.record.key})"
        tasks.append(Task(name, title, kept, classifier(kept, base), scored_split(kept, base).head(items)))
    return tasks
