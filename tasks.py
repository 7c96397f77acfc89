#!/usr/bin/env python3
"""The command line of svdbench: ``python3 tasks.py VERB``, the same as ``svdbench VERB`` after installation.

In a fresh clone it sets itself up: if the dependencies are missing, it makes ``.venv``, installs the project there
with the versions of ``constraints.txt`` and starts itself again in it. Until then only the standard library is used.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  a clone may be started with any Python
    sys.exit(f"svdbench needs Python 3.11 or newer, this is {sys.version.split()[0]}")

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent


# ---- set-up: standard library only ----------------------------------------------------------------------------------


def set_up(verb: str) -> None:
    """Continues in an environment that has everything the verb needs; returns if this one does."""
    extra = verb if verb in ("test", "bench") else ""
    lacking = missing_requirements(extra)
    if not lacking:
        os.environ.pop("SVDBENCH_SET_UP", None)  # not for the programs that a verb starts
        return
    folder = ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if os.environ.get("SVDBENCH_SET_UP") == str(folder):  # was started from below, after the installation
        sys.exit(f"svdbench: {folder} still lacks {lacking[0]}: remove the folder and try again")
    stamp = folder / f".svdbench-{extra or 'core'}"
    pins = hashlib.sha256(b"".join((ROOT / f).read_bytes() for f in ("pyproject.toml", "constraints.txt"))).hexdigest()
    with one_at_a_time(ROOT / ".venv.lock"):
        done = stamp.is_file() and stamp.read_text() == pins and python.exists() and Path(sys.prefix) != folder
        if not done:
            print(f"setting up {folder} with the versions of constraints.txt (once, a few minutes) ...", flush=True)
            install(folder, python, extra)
            stamp.write_text(pins)
    os.environ["SVDBENCH_SET_UP"] = str(folder)
    arguments = [str(python), str(ROOT / "tasks.py"), *sys.argv[1:]]
    if os.name == "nt":
        sys.exit(subprocess.run(arguments, check=False).returncode)
    os.execv(python, arguments)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Inside, no other process that asks for the same file is inside; where there are no such locks, no promise."""
    with open(path, "w") as file:
        if importlib.util.find_spec("fcntl"):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def missing_requirements(extra: str) -> list[str]:
    """Requirements of pyproject.toml which this environment does not meet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    return [requirement for requirement in wanted if not is_met(requirement)]


def is_met(requirement: str) -> bool:
    """Whether ``name>=version`` or ``name==version`` is installed here."""
    name, relation, version = re.fullmatch(r"([\w.-]+)(>=|==)([\d.]+)", requirement).groups()  # type: ignore[union-attr]

    def numbers(text: str) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3]]

    try:
        found = numbers(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
    return found == numbers(version) if relation == "==" else found >= numbers(version)


def install(folder: Path, python: Path, extra: str) -> None:
    """Makes the virtual environment, if need be, and installs the project into it."""
    whole = python.exists() and not subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode
    if not whole:  # absent, or left behind by a set-up that was interrupted
        try:
            venv.create(folder, with_pip=True, clear=True)
        except subprocess.CalledProcessError:
            sys.exit("svdbench: Python cannot make a virtual environment here; on Debian, install python3-venv")
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), "--editable", target], check=False)
    if done.returncode:
        sys.exit("svdbench: the dependencies could not be installed (see above); is there a network?")


if __name__ == "__main__":
    set_up(sys.argv[1] if len(sys.argv) > 1 else "")

# ---- the verbs ------------------------------------------------------------------------------------------------------

import dataclasses
import json
import logging
import shlex
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from evaluation.protocol import Plan

app = typer.Typer(
    help="Which member of the LoRA / SVD family should I use, and what does it really cost?",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(width=None if sys.stdout.isatty() else 120, markup=False)

SuiteName = Annotated[str, typer.Argument(help="Name of a shipped suite, or a TOML file.")]
Out = Annotated[
    Path | None, typer.Option(help="Results folder; default results/SUITE, or with --data and --on SUITE-BENCHMARK.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Plugins = Annotated[
    list[str], typer.Option("--plugin", help="File or module with further methods or benchmarks; may be repeated.")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder with train, validation and test as .csv, .tsv or .jsonl.")
]
On = Annotated[list[str], typer.Option("--on", help="A benchmark instead of the suite's; two or more.")]
Changes = Annotated[list[str], typer.Option("--set", help="key=value, overrides the suite; may be repeated.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes for score runs; 0 means one a core (one on CUDA).")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
RunName = Annotated[str, typer.Argument(help="RESULTS/METHOD, as in results/quick/lora; or a folder of adapter files.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of what is left to chance.")]
Model = Annotated[str | None, typer.Option(help="The base of an adapter that comes as files.")]
Prefix = Annotated[str, typer.Option(help="Where the base sits in the model that PEFT loads, such as bert.")]


class StoredAs(StrEnum):
    """Formats in which a plain model can be stored."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Target(StrEnum):
    """What an adapter can be written as."""

    peft = "peft"
    merged = "merged"


@app.command()
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


@app.command()
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


@app.command()
def status(directory: Annotated[Path, typer.Argument(help="A results folder.")]) -> None:
    """Say what has run in a results folder.

    Example: python3 tasks.py status results/quick
    """
    from evaluation.listing import status_table
    from evaluation.store import look

    console.print(status_table(look(directory, console.print).values()))


@app.command()
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


@app.command()
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


@app.command()
def schema(out: Annotated[Path | None, typer.Option(help="File to write, instead of printing it.")] = None) -> None:
    """The JSON schema of suite files, for editors.

    Example: python3 tasks.py schema --out suite.schema.json
    """
    from evaluation.schema import schema_text

    if out is None:
        print(schema_text(), end="")
    else:
        write_text(out, schema_text())


@app.command()
def variants(
    names: Annotated[list[str], typer.Argument(help="Methods to show in full; none lists all in short.")] = [],  # noqa: B006
    as_json: Json = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """List the methods with what they can do.

    Example: python3 tasks.py variants pissa
    """
    from evaluation.catalogue import IN_SHORT, capabilities
    from evaluation.listing import in_words

    known = method_names(plugin)
    cards = [capabilities(name) for name in names or known]
    if as_json:
        listing(cards, as_json)
    elif names:
        for card in cards:
            for key, value in card.items():
                console.print(f"{key.replace('_', ' '):>10}  {in_words(value)}", soft_wrap=True)
            console.print()
    else:
        listing([{key: card[key] for key in IN_SHORT} for card in cards], as_json)


@app.command()
def check(
    methods: Annotated[list[str], typer.Argument(help="Names of methods, files that define some, or all.")],
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Hold methods against the conformance suite.

    Example: python3 tasks.py check lora my_variant.py
    """
    from evaluation.checking import check_methods, chosen_methods

    outcomes = check_methods(chosen_methods(methods, plugin), console)
    if any(outcome.status in ("failed", "unexpectedly held") for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def new_variant(
    name: Annotated[str, typer.Argument(help="Of the method: letters, digits and _.")],
    folder: Annotated[Path, typer.Option(help="Where to write its file and its test.")] = Path(),
) -> None:
    """Write a working method of one's own, and its test, to start from.

    Example: python3 tasks.py new-variant my_lora
    """
    from evaluation.templates import write_variant

    method, *its_test = map(str, write_variant(name, folder))
    console.print(f"wrote {' and '.join([method, *its_test])}; now: python3 tasks.py check {method}", soft_wrap=True)


@app.command()
def benchmarks(
    as_json: Json = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """List the benchmarks, with their kind, primary measure and sizes.

    Example: python3 tasks.py benchmarks
    """
    from evaluation.benchmarks import cards
    from evaluation.plugins import load_plugins

    load_plugins(plugin)
    listing(cards(), as_json)


@app.command()
def models(as_json: Json = False) -> None:
    """List the base models that come by name; a folder or a hub name works too.

    Example: python3 tasks.py models
    """
    from evaluation.models import names

    listing([{"name": name, "description": text} for name, text in names().items()], as_json)


@app.command()
def params(
    model: Annotated[str, typer.Option(help="Such as gpt3-175b or llama-3-8b; a folder; or org/name on the hub.")],
    variants: Annotated[str, typer.Option(help="Methods, separated by commas, or all.")] = "all",
    rank: Annotated[int, typer.Option(min=1, help="For the methods that have a rank.")] = 8,
    targets: Annotated[str, typer.Option(help="Of q,k,v,o,gate,up,down; or all; or patterns of layer names.")] = "q,v",
    budget: Annotated[str | None, typer.Option(help="Solve the size: 1000000 (parameters), 0.1% or 300 KiB.")] = None,
    as_json: Json = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Count what methods train and store on a model, from its configuration alone.

    Example: python3 tasks.py params --model gpt3-175b --variants lora,pissa --targets q,v --budget 0.1%
    """
    from evaluation.listing import sizes_table
    from evaluation.sizes import sizes

    known = method_names(plugin)
    counted = sizes(model, known if variants == "all" else variants.split(","), targets.split(","), rank, budget)
    if as_json:
        print(json.dumps(dataclasses.asdict(counted), indent=1))
        return
    console.print(sizes_table(counted))
    for row in counted.methods:
        if row.note:
            console.print(f"{row.method}: {row.note}", soft_wrap=True)
    spent = "to train" if counted.budget_unit == "parameters" else "bytes to store"
    limit = "" if counted.budget is None else f"; at most {counted.budget:,} {spent}"
    console.print(f"{model}: {counted.parameters:,} parameters, {counted.layers} layers adapted ({targets}){limit}")


@app.command()
def bench(
    methods: Annotated[
        str, typer.Option(help="Separated by commas; usual (what PEFT has too, and more); all.")
    ] = "usual",
    shape: Annotated[
        list[str], typer.Option(help="Rows x tokens of a batch, such as 32x128; may be repeated; default by model.")
    ] = [],  # noqa: B006
    model: Annotated[str, typer.Option(help="Base model: a name from `models`, a folder, or org/name.")] = "minilm",
    rounds: Annotated[int, typer.Option(min=0, help="Interleaved rounds; 0 chooses by the size of the batch.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of every step; 0 means one a core.")] = 0,
    rank: Annotated[int, typer.Option(min=1, help="For the methods that have a rank.")] = 8,
    targets: Annotated[str, typer.Option(help="Adapted layers: all, or patterns separated by commas.")] = "all",
    starts: Annotated[bool, typer.Option("--starts", help="Also time PiSSA's start on all layers.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for a report page with tables and figures.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Earlier --json file: exit 1 if a ratio got worse.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Only say what each fast path chooses.")] = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Time a training step of every method against the frozen base, full fine-tuning and PEFT's own.

    Example: python3 tasks.py bench --methods lora,dora,pissa --shape 32x32 --json speed.json
    """
    from evaluation.bench import result
    from evaluation.bench.command import measure, prepared
    from evaluation.bench.explain import explained
    from evaluation.spec import Unusable

    method_names(plugin)
    earlier = None if baseline is None else result.read(baseline)
    if json_file is not None and not json_file.parent.is_dir():
        raise Unusable(f"--json {json_file}: there is no folder {json_file.parent}")
    base, settings = prepared(model, methods, shape, rounds, threads, rank, targets.split(","), starts, earlier)
    if explain:
        listing(explained(base, settings), as_json=False)
        return
    found = measure(base, settings, console)
    if json_file is not None:
        write_text(json_file, result.text(found))
    print_bench(found, out)
    if earlier is not None:
        against_baseline(earlier, found)


@app.command()
def merge(
    run: RunName,
    out: Annotated[Path | None, typer.Option(help="Write the merged model there; default: only measure.")] = None,
    stored_as: Annotated[StoredAs, typer.Option("--format", help="In which it is written.")] = StoredAs.float32,
    stochastic: Annotated[bool, typer.Option("--stochastic", help="Round by chance instead of to nearest.")] = False,
    seed: Seed = 0,
    items: Annotated[int, typer.Option(min=1, help="Test items to measure with.")] = 200,
    model: Model = None,
    as_json: Json = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Measure what merging does to a trained adapter in every storage format; write the merged model.

    Example: python3 tasks.py merge results/quick/lora --out merged --format bfloat16
    """
    from evaluation.exchange import merge_behaviour, source, write_merged
    from evaluation.listing import merging_table
    from evaluation.plugins import load_plugins
    from evaluation.spec import Merging, Unusable

    load_plugins(plugin)
    found = source(run, model)
    if found.kept is None and out is None:
        raise Unusable(f"{run} is a folder of adapter files, with no task to measure on: say with --out where to write")
    if out is not None:
        said = write_merged(found, out, stored_as.value, seed if stochastic else None)
        Console(stderr=as_json, markup=False).print(f"{said}: {out}", soft_wrap=True)
    if found.kept is not None:
        behaviour = merge_behaviour(found.kept, Merging(items=items))
        if as_json:
            print(json.dumps(behaviour, indent=1))
        else:
            console.print(merging_table(behaviour))


@app.command()
def export(
    run: RunName,
    to: Annotated[Target, typer.Option(help="An adapter for PEFT, or a plain merged model.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    prefix: Prefix = "",
    model: Model = None,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Write a trained adapter for PEFT, or as a plain model of transformers.

    Example: python3 tasks.py export results/quick/pissa --to peft --out pissa-for-peft
    """
    from evaluation.exchange import source, write_merged, write_peft
    from evaluation.plugins import load_plugins

    load_plugins(plugin)
    found = source(run, model)
    said = write_peft(found, out, prefix) if to is Target.peft else write_merged(found, out)
    console.print(f"{said}: {out}", soft_wrap=True)


@app.command(name="import")
def import_(
    folder: Annotated[Path, typer.Argument(help="What PEFT's save_pretrained wrote.")],
    model: Annotated[str, typer.Option(help="The base model which it was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    prefix: Prefix = "",
) -> None:
    """Turn an adapter of PEFT into adapter files of ours, which merge and export take.

    Example: python3 tasks.py import peft-adapter --model minilm --out adapter
    """
    from evaluation.exchange import read_peft

    console.print(f"{read_peft(folder, model, out, prefix)}: {out}", soft_wrap=True)


@app.command()
def combine(
    runs: Annotated[list[str], typer.Argument(help="Two or more: RESULTS/METHOD, as in results/quick/lora.")],
    how: Annotated[str, typer.Option(help="Ways, separated by commas, or all.")] = "all",
    rank: Annotated[int, typer.Option(min=1, help="Of the truncated sum.")] = 8,
    density: Annotated[float, typer.Option(help="Share of the numbers which TIES and DARE keep.")] = 0.2,
    items: Annotated[int, typer.Option(min=1, help="Test items of each task.")] = 500,
    seed: Seed = 0,
    as_json: Json = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Combine adapters that were trained on different tasks, and score what each task keeps.

    Example: python3 tasks.py combine results/quick/lora results/polarity/lora
    """
    from evaluation.combination import chosen_ways, combined_scores
    from evaluation.kept import find
    from evaluation.plugins import load_plugins

    load_plugins(plugin)
    kept, ways = [find(run) for run in runs], chosen_ways(how)
    with console.status("scoring ...") as status:
        say = lambda done: status.update(f"scored {done} ...")  # noqa: E731
        rows = combined_scores(kept, ways, rank=rank, density=density, items=items, seed=seed, say=say)
    listing(rows, as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(context: typer.Context) -> None:
    """Run the tests; arguments go to pytest.

    Example: python3 tasks.py test -k stiefel
    """
    from evaluation.spec import Unusable

    if not (ROOT / "tests").is_dir():
        raise Unusable("the tests are not installed: run this in a clone of the repository")
    arguments = context.args or ["--numprocesses", "2"]
    raise typer.Exit(subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode)


# ---- shared by the verbs --------------------------------------------------------------------------------------------


def method_names(plugins: list[str]) -> list[str]:
    from evaluation.plugins import load_plugins
    from variants.core import names

    load_plugins(plugins)
    return names()


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


def listing(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Prints rows of equal keys as a table or as JSON."""
    from evaluation.listing import rows_table

    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        console.print(rows_table(rows))


def write_text(path: Path, text: str) -> None:
    """Writes a file and says so."""
    from evaluation.spec import Unusable

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Unusable(f"cannot write {path}: {error.strerror or error}") from error
    console.print(f"wrote {path}", soft_wrap=True)


def print_bench(found: Any, out: Path | None) -> None:
    """Prints the tables of a bench, and writes its report and the numbers into a folder."""
    from evaluation.bench.result import text
    from evaluation.store import writing
    from reports.bench import terminal, write_bench
    from reports.files import write_atomically

    numbers = found.model_dump(mode="json")
    console.print(terminal(numbers))
    if out is not None:
        with writing(out):
            write_atomically(out / "bench.json", text(found))
            write_bench(numbers, out)
        console.print(f"report: {out / 'report.html'}", soft_wrap=True)


def against_baseline(earlier: Any, found: Any) -> None:
    """Says what got worse, and ends with 1 if anything did."""
    from evaluation.bench.baseline import RULE, compared, regressions

    worse = regressions(earlier, found)
    for line in worse:
        console.print(f"worse: {line}", soft_wrap=True)
    console.print(f"{len(worse)} of {compared(earlier, found)} ratios got worse than the baseline's ({RULE})")
    if worse:
        raise typer.Exit(1)


def print_report(directories: list[Path], across: Path | None = None) -> None:
    """Writes the report of a results folder, or one over several into the folder ``across``, and prints its tables."""
    from evaluation.store import writing
    from reports import write_across, write_report

    target = directories[0] if len(directories) == 1 or across is None else across
    with writing(target):
        written = write_report(target) if len(directories) == 1 else write_across(directories, target)
    console.print(written.terminal())
    console.print(f"report: {target / 'report.html'}", soft_wrap=True)


def main() -> None:
    """Runs a verb. Exit codes: 0 done, 1 a check or run failed, 2 unusable input."""
    from evaluation.quiet import quieten

    quieten()
    from evaluation.spec import Unusable
    from reports import UnusableResults

    logging.basicConfig(format="%(message)s")
    logging.getLogger("svdbench").setLevel(logging.INFO)  # downloads, and what was found damaged
    try:
        app()
    except (Unusable, UnusableResults) as problem:
        Console(stderr=True).print(f"svdbench: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
