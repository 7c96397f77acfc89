"""What there is: methods, benchmarks, models, and what methods come to on a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from commands.shared import (
    Json,
    Plugins,
    console,
    listing,
    method_names,
)

verbs = typer.Typer()


@verbs.command()
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


@verbs.command()
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


@verbs.command()
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


@verbs.command()
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


@verbs.command()
def models(as_json: Json = False) -> None:
    """List the base models that come by name; a folder or a hub name works too.

    Example: python3 tasks.py models
    """
    from evaluation.models import names

    listing([{"name": name, "description": text} for name, text in names().items()], as_json)


@verbs.command()
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
