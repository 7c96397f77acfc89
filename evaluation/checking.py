"""The conformance suite on the command line."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from evaluation.plugins import load_plugins
from evaluation.spec import Unusable
from variants.core import UnknownMethod, Variant, method, names
from variants.core.checks import CHECKS, SLOW_CHECKS
from variants.core.conformance import Outcome, conform


def chosen_methods(wanted: list[str], plugins: list[str]) -> list[type[Variant]]:
    """The classes meant by names, by files that define methods, or by ``all`` for every registered one.

    Raises:
        Unusable: no such method or file, or a file that registers none.
    """
    load_plugins(plugins)
    chosen: list[str] = []
    for word in wanted:
        if word == "all":
            chosen += names()
        elif word.endswith(".py") or Path(word).is_file():
            registered = load_plugins([word])
            if not registered:
                raise Unusable(f'{word} registers no method: decorate its class with @register("name")')
            chosen += registered
        else:
            chosen.append(word)
    try:
        return [method(name) for name in dict.fromkeys(chosen)]
    except UnknownMethod as error:
        raise Unusable(str(error)) from error


def check_methods(classes: list[type[Variant]], console: Console) -> list[Outcome]:
    """Holds methods against every check, and prints a row for each method and what went wrong."""
    table = Table("method", "held", "failed", "expected to fail", "seconds", box=box.SIMPLE_HEAD)
    everything: list[Outcome] = []
    failures: list[str] = []
    total = len(classes) * (len(CHECKS) + len(SLOW_CHECKS))
    with Progress(console=console, transient=True, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("checking", total=total)
        for cls in classes:
            mine: list[Outcome] = []
            for outcome in conform(cls):
                mine.append(outcome)
                progress.update(bar, advance=1, description=f"{cls.name}: {outcome.check}")
            counts = Counter(outcome.status for outcome in mine)
            failed = counts["failed"] + counts["unexpectedly held"]
            seconds = sum(outcome.seconds for outcome in mine)
            table.add_row(cls.name, str(counts["held"]), str(failed), str(counts["expected"]), f"{seconds:.1f}")
            failures += [f"{cls.name}: {o.check} {o.status}: {o.message}" for o in mine if o.status != "held"]
            everything += mine
    console.print(table)
    for line in failures:
        console.print(line, soft_wrap=True)
    return everything
