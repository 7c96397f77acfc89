"""Trained adapters: merging, writing and reading other libraries' files, combining."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from commands.shared import (
    Json,
    Model,
    Plugins,
    Prefix,
    RunName,
    Seed,
    console,
    listing,
)

verbs = typer.Typer()


class StoredAs(StrEnum):
    """Formats in which a plain model can be stored."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Target(StrEnum):
    """What an adapter can be written as."""

    peft = "peft"
    merged = "merged"


@verbs.command()
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


@verbs.command()
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


@verbs.command(name="import")
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


@verbs.command()
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
