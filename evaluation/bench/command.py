"""What the command line asks of a bench."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

from evaluation.bench.pairs import known as known_methods
from evaluation.bench.result import Bench
from evaluation.bench.running import SHAPES, Progress, Settings, bench, check, parsed_shape
from evaluation.machine import cores
from evaluation.models import Base, load_base
from evaluation.spec import Unusable

__all__ = ["known_methods", "measure", "prepared"]


def prepared(
    model: str,
    methods: Sequence[str],
    shapes: Sequence[str],
    rounds: int,
    threads: int,
    rank: int,
    where: Sequence[str],
    starts: bool,
) -> tuple[Base, Settings]:
    """The base, and what is measured on it; zeros choose.

    Raises:
        Unusable: any of it is not what it should be. Nothing was timed then.
    """
    chosen = tuple(dict.fromkeys(map(parsed_shape, shapes))) or SHAPES.get(model, SHAPES["minilm"])
    if rounds and rounds < 6:
        raise Unusable(f"--rounds {rounds}: an interval takes at least 6 rounds; 0 chooses by the size of the batch")
    names = tuple(name.strip() for name in methods if name.strip())
    settings = Settings(names, chosen, threads or cores(), rounds or None, rank, tuple(where), starts)
    settings.entries()  # before the model is loaded, which takes a while
    base = load_base(model)
    check(base, settings)
    return base, settings


def measure(base: Base, settings: Settings, console: Console) -> Bench:
    """Measures, with a bar on a terminal and lines elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("attaching", total=None)

        def say(words: str) -> None:
            bar.update(task, description=words)
            if not console.is_terminal:
                console.print(words, highlight=False)

        steps = Progress(say, lambda total: bar.update(task, total=total), lambda: bar.advance(task))
        return bench(base, settings, steps)
