"""What the command line asks of a bench."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

from evaluation.bench.baseline import check_alike, check_shapes
from evaluation.bench.pairs import known, usual
from evaluation.bench.result import Bench
from evaluation.bench.running import Progress, bench, check, identity
from evaluation.bench.settings import SHAPES, Settings, parsed_shape
from evaluation.machine import cores
from evaluation.models import Base, load_base
from evaluation.spec import Unusable


def prepared(
    model: str,
    methods: str,
    shapes: Sequence[str],
    rounds: int,
    threads: int,
    rank: int,
    where: Sequence[str],
    starts: bool,
    compile: bool,
    earlier: Bench | None,
) -> tuple[Base, Settings]:
    """The base, and what is measured on it; zeros choose. ``methods``: ``usual``, ``all``, or separated by commas.

    Raises:
        Unusable: any of it is not what it should be. Nothing was timed then.
    """
    chosen = tuple(dict.fromkeys(map(parsed_shape, shapes))) or SHAPES.get(model, SHAPES["minilm"])
    if rounds and rounds < 6:
        raise Unusable(f"--rounds {rounds}: an interval takes at least 6 rounds; 0 chooses by the size of the batch")
    sets = {"usual": usual(), "all": known()}
    names = tuple(sets.get(methods) or (name.strip() for name in methods.split(",") if name.strip()))
    settings = Settings(names, chosen, threads or cores(), rounds or None, rank, tuple(where), starts, compile=compile)
    settings.entries()  # before the model is loaded, which takes a while
    base = load_base(model)
    check(base, settings)
    if earlier is not None:
        check_alike(earlier, identity(base, settings))
        check_shapes(earlier, settings.shapes)
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
