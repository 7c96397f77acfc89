"""What several verbs share: their options, and how results are printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

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


def method_names(plugins: list[str]) -> list[str]:
    from evaluation.plugins import load_plugins
    from variants.core import names

    load_plugins(plugins)
    return names()


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
