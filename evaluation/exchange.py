"""Trained adapters in and out: merged into plain models, and to and from the files of other libraries."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.clock import Clock
from evaluation.kept import HEAD, Kept, base_of, classifier, find, mount, scored_split
from evaluation.measures.merging import merging
from evaluation.models import Base, load_base
from evaluation.spec import Merging, Unusable
from evaluation.store import writing
from variants.core import Refused, load, save
from variants.core.folders import replaced
from variants.core.rounding import Format, Rounding
from variants.interchange import export_merged, export_peft, import_peft
from variants.interchange.folders import CONFIG, WEIGHTS


@dataclass(frozen=True)
class Source:
    """A base that carries a trained adapter; ``kept``: the run which it comes from, None for a folder of its files."""

    base: Base
    title: str
    kept: Kept | None


def source(name: str, model: str | None) -> Source:
    """The adapter of a run (``RESULTS/LABEL``), or of a folder of adapter files for the base ``model``, on its base.

    Raises:
        Unusable: there is none, or it does not fit.
    """
    folder = Path(name).expanduser()
    if not (folder / "adapter.json").is_file():
        kept = find(name)
        if model is not None:
            raise Unusable(f"{name} is a run, which knows its base: leave --model out")
        base = base_of(kept)
        if mount(kept, base.encoder).trains == "head":
            raise Unusable(f"{kept.title} trains the task head alone: there is no adapter")
        return Source(base, kept.title, kept)
    if model is None:
        raise Unusable(f"{name} is a folder of adapter files: say with --model for which base")
    base = load_base(model)
    try:
        load(base.encoder, folder)
    except Refused as error:
        raise Unusable(str(error)) from error
    return Source(base, folder.name, None)


def merge_behaviour(kept: Kept, spec: Merging) -> dict[str, Any]:
    """What ``measures.merging`` finds for a kept run, on the test items of its benchmark.

    Raises:
        Unusable: its files or its base are not, or no longer, what they were.
    """
    run, base = kept.run, base_of(kept)
    test = scored_split(kept, base)
    stock = {path: parameter.detach().clone() for path, parameter in base.encoder.named_parameters()}
    variant = mount(kept, base.encoder)
    return merging(classifier(kept, base), variant, stock, test.head(run.limit), spec, Clock(), run.seed)


def write_peft(found: Source, folder: Path, prefix: str) -> str:
    """Writes the adapter, and the run's head beside it, for PEFT; what was written, in words."""
    with refusals(), writing(folder), replaced(folder, frozenset({CONFIG, WEIGHTS, HEAD})) as new:
        made = export_peft(found.base.encoder, new, base_model_name=found.base.name, prefix=prefix)
        _copy_head(found, new)
    ranks = sorted(set(made.ranks.values()))
    size = f", rank {ranks[0]}{f' to {ranks[-1]}' if len(ranks) > 1 else ''}" if ranks else ""
    why = f" ({made.why})" if made.why else ""
    return f"{found.title}: PEFT's {made.peft_type}, {made.form}{why}, {len(made.layers)} layers{size}"


def write_merged(found: Source, folder: Path, stored_as: Format = "float32", seed: int | None = None) -> str:
    """Writes a plain model with its tokenizer, and the run's head beside it; what was written, in words.

    Args:
        seed: of stochastic rounding; None rounds to nearest.
    """
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    with refusals(), writing(folder), replaced(folder, frozenset()) as new:
        export_merged(found.base.encoder, new, rounding=Rounding(stored_as, rng))
        found.base.tokenizer.save_pretrained(new)
        _copy_head(found, new)
    return f"{found.title}: merged into {found.base.name}, stored in {stored_as}"


def _copy_head(found: Source, folder: Path) -> None:
    if found.kept is not None:
        shutil.copyfile(found.kept.folder / HEAD, folder / HEAD)


def read_peft(folder: Path, model: str, to: Path, prefix: str) -> str:
    """Turns an adapter of PEFT into adapter files of ours; what was read, in words.

    Raises:
        Unusable: the files are damaged, do not fit the base, or mean something which no method here is.
    """
    base = load_base(model)
    with refusals(), writing(to):
        made = import_peft(base.encoder, folder, prefix=prefix)
        save(base.encoder, to)
    notes = "".join(f"; {note}" for note in made.notes)
    unknown = f"; options without effect: {', '.join(map(repr, made.unknown))}" if made.unknown else ""
    return f"PEFT's {made.peft_type} is our {made.method} on {len(made.layers)} layers{notes}{unknown}"


class refusals:  # lower case: it reads as a statement
    """Turns what cannot work into one clear line for the command line."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Refused):
            raise Unusable(str(error)) from error
