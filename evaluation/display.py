"""What a running comparison shows: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evaluation.engines.local import Progress
from evaluation.measures.score import primary
from evaluation.spec import QuantisedRun, Record, Run, SpeedRun, Suite


def label_of(suite: Suite, run: Run) -> str:
    """The label under which the suite lists the run's method."""
    if isinstance(run, SpeedRun | QuantisedRun):
        return "all methods"
    return next((entry.label for entry in suite.methods if suite.is_of(entry, run)), run.method.name)


def describe(suite: Suite, run: Run) -> str:
    """A run in a few words."""
    if isinstance(run, SpeedRun):
        return f"speed of all methods, {run.threads} threads"
    if isinstance(run, QuantisedRun):
        return "starts on a quantised base"
    return f"{label_of(suite, run)}, lr {run.lr:g}, seed {run.seed} ({run.stage})"


def outcome(record: Record) -> str:
    """A record's result in a few words."""
    if record.status != "done":
        return f"{record.status}: {(record.error or '').splitlines()[0]}"
    if isinstance(record.run, SpeedRun | QuantisedRun):
        return "measured"
    score = record.measures["score"]
    name, value = score.get("metric", "accuracy"), primary(score)
    shown = f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.3f}"
    return f"{record.run.split} {name.replace('_', '-')} {shown}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return "time left not known yet"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Display:
    """Shows the progress of a plan's runs.

    On a terminal: a bar, what runs at the moment, and the time left. Elsewhere: one line for each run that ends.
    """

    def __init__(self, suite: Suite, console: Console) -> None:
        self.suite, self.console = suite, console
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self.began = time.monotonic()

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def show(self, progress: Progress) -> None:
        if progress.latest:
            self._line(progress, progress.latest)
        if self.live:
            self.live.update(self._picture(progress))

    def _line(self, progress: Progress, record: Record) -> None:
        took = f" in {duration(record.seconds['total'])}" if record.seconds else ""
        left = "" if self.live else f"; about {duration(progress.seconds_left)} left"
        count = f"[{progress.done}/{progress.total}]"
        text = f"{count} {describe(self.suite, record.run)}: {outcome(record)}{took}{left}"
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _picture(self, progress: Progress) -> Group:
        bar = Table.grid(padding=(0, 1))
        left = f"about {duration(progress.seconds_left)} left" if progress.seconds_left is not None else "measuring"
        elapsed = duration(time.monotonic() - self.began)
        bar.add_row(
            ProgressBar(total=progress.total, completed=progress.done, width=40),
            f"{progress.done} of {progress.total} runs, {elapsed}, {left}",
        )
        current = [Text(f"  running: {describe(self.suite, run)}", style="dim") for run in progress.running]
        return Group(bar, *(current or [Text("  loading base model and data", style="dim")]))
