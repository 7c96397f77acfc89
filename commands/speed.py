"""What a step costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from commands.shared import (
    Plugins,
    console,
    listing,
    method_names,
    write_text,
)

verbs = typer.Typer()


@verbs.command()
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
    baseline: Annotated[Path | None, typer.Option(help="Earlier --json file: exit 1 unless its ratios hold.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the blocks of every model.")] = False,
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
    where = targets.split(",")
    base, settings = prepared(model, methods, shape, rounds, threads, rank, where, starts, compile, earlier)
    if explain:
        listing(explained(base, settings), as_json=False)
        return
    found = measure(base, settings, console)
    if json_file is not None:
        write_text(json_file, result.text(found))
    print_bench(found, out)
    if earlier is not None:
        against_baseline(earlier, found)


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
    """Says what got worse, what is gone and what was not compared, and ends with 1 unless the baseline is held."""
    from evaluation.bench.baseline import judged

    verdict = judged(earlier, found)
    for line in verdict.lines():
        console.print(line, soft_wrap=True, markup=False)
    if not verdict.held:
        raise typer.Exit(1)
