"""Running suites, and what comes of them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.shared import (
    Changes,
    Data,
    Device,
    Json,
    On,
    Out,
    Plugins,
    SuiteName,
    Workers,
    console,
    write_text,
)

if TYPE_CHECKING:
    from evaluation.protocol import Plan

verbs = typer.Typer()


@verbs.command()
def compare(
    suite: SuiteName,
    out: Out = None,
    workers: Workers = 0,
    device: Device = "auto",
    plugin: Plugins = [],  # noqa: B006  typer reads the default
    changes: Changes = [],  # noqa: B006
    data: Data = None,
    on: On = [],  # noqa: B006
) -> None:
    """Run a suite and write its report; again: go on where it was.

    Example: python3 tasks.py compare quick

    On several benchmarks, with a report over them: python3 tasks.py compare quick --on trec6 --on sms
    """
    from evaluation.comparison import make_plan
    from evaluation.several import on_benchmarks
    from reports.across import refuse_runs

    edits, plugin = on_data(data, suite, parsed(changes), plugin)
    if not on:
        plan = make_plan(suite, edits, device, plugin)
        raise typer.Exit(run_plan(plan, out or Path("results") / plan.suite.name, workers, plugin))
    each, across = on_benchmarks(suite, on, edits, out)
    refuse_runs(across)  # this, and every bad suite, before the first run
    plans = [(make_plan(suite, dict(one.changes), device, plugin), one.directory) for one in each]
    codes = [run_plan(plan, directory, workers, plugin) for plan, directory in plans]
    print_report([one.directory for one in each], across)
    raise typer.Exit(max(codes))


def run_plan(plan: Plan, directory: Path, workers: int, plugin: list[str]) -> int:
    """Runs what is still to be run of a plan and writes its report. Exit code: 0 done, 1 a run failed."""
    from evaluation.comparison import export
    from evaluation.display import Display, duration
    from evaluation.engines.local import LocalEngine
    from evaluation.machine import cores
    from evaluation.store import Store

    workers = workers or (1 if plan.device == "cuda" else cores())
    store = Store(directory, say=console.print)
    program = ["svdbench"] if Path(sys.argv[0]).name == "svdbench" else ["python3", "tasks.py"]
    command = shlex.join([*program, *sys.argv[1:]])
    display = Display(plan.suite, console)
    engine = LocalEngine(plan, store, workers, plugin, display.show)
    stopped = False
    try:
        with display:
            account = engine.run()
    except KeyboardInterrupt:
        stopped, account = True, engine.account
    try:
        if store.records or engine.failed:
            export(plan, store, engine.failed.values(), command, account, workers)
    finally:
        store.close()
    if stopped:
        console.print("stopped; the same command goes on from here")
        raise typer.Exit(130)
    print_report([store.directory])
    if account.computed:
        console.print(
            f"{account.computed} runs in {duration(account.wall)} on {workers} workers; "
            f"{100 * account.overhead_share:.1f} % of the worker time was not forward, backward, optimiser or "
            "evaluation"
        )
    return 1 if engine.failed else 0


@verbs.command()
def plan(
    suite: SuiteName,
    out: Out = None,
    workers: Workers = 0,
    device: Device = "auto",
    plugin: Plugins = [],  # noqa: B006
    changes: Changes = [],  # noqa: B006
    data: Data = None,
) -> None:
    """Print what a suite would run, and how long it would take here.

    Example: python3 tasks.py plan quick --set protocol.seeds=5
    """
    from evaluation.comparison import make_plan
    from evaluation.display import duration
    from evaluation.estimate import estimate, not_counted
    from evaluation.listing import plan_table
    from evaluation.machine import cores
    from evaluation.store import look

    edits, plugin = on_data(data, suite, parsed(changes), plugin)
    made = make_plan(suite, edits, device, plugin)
    workers = workers or (1 if made.device == "cuda" else cores())
    directory = out or Path("results") / made.suite.name
    records = look(directory, console.print) if (directory / "runs").is_dir() else {}
    rows, seconds = estimate(made, records, workers)
    console.print(plan_table(made, rows))
    console.print(f"about {duration(seconds)} on {workers} workers; not counted: {', '.join(not_counted(made))}")


@verbs.command()
def status(directory: Annotated[Path, typer.Argument(help="A results folder.")]) -> None:
    """Say what has run in a results folder.

    Example: python3 tasks.py status results/quick
    """
    from evaluation.listing import status_table
    from evaluation.store import look

    console.print(status_table(look(directory, console.print).values()))


@verbs.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="A results folder, or several: one a benchmark.")],
    out: Annotated[Path | None, typer.Option(help="Folder of a report over several; default results/across.")] = None,
) -> None:
    """Write the report of a results folder again, from its records alone; or one report over several benchmarks.

    Example: python3 tasks.py report results/quick

    Over several benchmarks: python3 tasks.py report results/quick-trec6 results/quick-sms
    """
    from evaluation.spec import Unusable

    if len(directories) == 1 and out is not None:
        raise Unusable("--out is for a report over several results folders; that of one is written into it")
    print_report(directories, out or Path("results") / "across")


@verbs.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A results folder.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
    as_json: Json = False,
) -> None:
    """Say what changed from one results folder to another beyond noise, and which versions differ.

    Example: python3 tasks.py diff results/quick results/quick-new
    """
    from reports import load
    from reports.difference import differences
    from reports.difference_tables import as_json as in_json, markdown, terminal

    found, names = differences(load(a), load(b)), (str(a), str(b))
    if as_json:
        print(json.dumps(in_json(found, names), indent=1))
    else:
        console.print(terminal(found, names))
    if out is not None:
        write_text(out, markdown(found, names))


@verbs.command()
def schema(out: Annotated[Path | None, typer.Option(help="File to write, instead of printing it.")] = None) -> None:
    """The JSON schema of suite files, for editors.

    Example: python3 tasks.py schema --out suite.schema.json
    """
    from evaluation.schema import schema_text

    if out is None:
        print(schema_text(), end="")
    else:
        write_text(out, schema_text())


def parsed(changes: list[str]) -> dict[str, str]:
    """``key=value`` strings as a mapping."""
    from evaluation.spec import Unusable

    for change in changes:
        if "=" not in change:
            raise Unusable(f"--set {change}: write key=value, for example --set protocol.seeds=5")
    return dict(change.split("=", 1) for change in changes)


def on_data(
    folder: Path | None, suite: str, changes: dict[str, str], plugins: list[str]
) -> tuple[dict[str, str], list[str]]:
    """Changes and plug-ins with which the suite runs on a folder of data, under a name, and results, of its own."""
    if folder is None:
        return changes, plugins
    from evaluation.benchmarks.folders import register_folder
    from evaluation.spec import Unusable

    if "benchmark" in changes:
        raise Unusable(f"--data {folder} is the benchmark: leave out --set benchmark=..., or --data")
    name = register_folder(folder)
    own = f"{Path(suite).stem}-{name.partition(':')[2]}"
    edits = {"benchmark": json.dumps(name), "name": json.dumps(own)}
    return edits | changes, [*plugins, str(folder.expanduser().resolve())]


def print_report(directories: list[Path], across: Path | None = None) -> None:
    """Writes the report of a results folder, or one over several into the folder ``across``, and prints its tables."""
    from evaluation.store import writing
    from reports import write_across, write_report

    target = directories[0] if len(directories) == 1 or across is None else across
    with writing(target):
        written = write_report(target) if len(directories) == 1 else write_across(directories, target)
    console.print(written.terminal())
    console.print(f"report: {target / 'report.html'}", soft_wrap=True)
