"""Trained adapters, kept beside the records of their runs: written by the run, found again by the verbs that use them.

A run's folder then holds ``adapter/`` (the files of ``variants.core.save``; absent for a method that trains only the
head) and ``head.safetensors``, the task head of the comparison.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from evaluation.benchmarks import load_benchmark
from evaluation.data import Split, tokenise
from evaluation.models import Base, load_base
from evaluation.spec import Method, Record, ScoreRun, Unusable, alike
from evaluation.store import Damaged, look, read
from evaluation.training import Classifier
from variants.core import Refused, UnknownHyperparameter, UnknownMethod, Variant, create, load, save
from variants.core.registry import suggestion

ADAPTER, HEAD = "adapter", "head.safetensors"


@dataclass(frozen=True)
class Kept:
    """A finished run whose adapter was kept. ``label``: the method as its suite lists it."""

    folder: Path
    label: str
    record: Record
    run: ScoreRun

    @property
    def title(self) -> str:
        """The run in a few words."""
        return f"{self.label} on {self.run.benchmark}"


def scored_split(kept: Kept, base: Base) -> Split:
    """The tokenised test items of a kept run's benchmark, as the run saw them.

    Raises:
        Unusable: the benchmark's data are no longer those of the run, whose adapter may have been trained on them.
    """
    benchmark = load_benchmark(kept.run.benchmark)
    if benchmark.digest != kept.run.identity.data:
        raise Unusable(f"the data of {kept.run.benchmark} are not those of the run {kept.title}: give the run's own")
    return tokenise(benchmark, base.tokenizer, kept.run.training.max_length).test


def keep(folder: Path, model: Classifier, variant: Variant) -> str:
    """Leaves the adapter of a trained model, and its head, in the folder of its run.

    Returns:
        Why nothing was kept, empty if it was: a method whose adapters cannot be files still has its results.
    """
    if variant.trains != "head":
        try:
            save(model.encoder, folder / ADAPTER)
        except Refused as error:
            return str(error)
    save_file({name: tensor.detach().cpu() for name, tensor in model.head.state_dict().items()}, folder / HEAD)
    return ""


def find(name: str) -> Kept:
    """The run called ``RESULTS/LABEL`` or ``RESULTS/runs/KEY``.

    A label means the method's first final run in the suite as it was last run there.

    Raises:
        Unusable: there is no such run, or it kept no adapter.
    """
    path = Path(name)
    if path.parent.name == "runs" and (path / "record.json").is_file():
        try:
            record, label = read(path), ""
        except Damaged as damage:
            raise Unusable(f"{path} is damaged ({damage}): run its suite again") from damage
    else:
        path, record, label = _labelled(path.parent, path.name)
    if not isinstance(record.run, ScoreRun) or not (path / HEAD).is_file():
        why = record.measures.get("kept") or "a method's first final run does, or every one with keep = 'all'"
        raise Unusable(f"{name} kept no adapter: {why}")
    return Kept(path, label or record.run.method.name, record, record.run)


def _labelled(results: Path, label: str) -> tuple[Path, Record, str]:
    if not (results / "runs").is_dir():
        raise Unusable(f"{results / label} is no trained adapter: write RESULTS/METHOD, as in results/quick/lora")
    try:
        suite = json.loads((results / "suite.json").read_text(encoding="utf-8"))["suite"]
        entries = {one["label"]: (one["method"], one.get("where") or suite["where"]) for one in suite["methods"]}
        searched = frozenset((suite.get("protocol") or {}).get("space") or ())
        lines = (results / "records.jsonl").read_text(encoding="utf-8").splitlines()
        current = {json.loads(line)["key"] for line in lines}  # not those of an earlier form of the suite
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unusable(f"{results} lacks a readable suite.json or records.jsonl: finish its comparison") from error
    if label not in entries:
        raise Unusable(f"{results} has no method {label!r}: {suggestion(label, list(entries))}")
    wanted, where = Method(**entries[label][0]), tuple(entries[label][1])
    finals = [
        record
        for record in look(results, lambda line: print(line, file=sys.stderr)).values()
        if record.key in current
        and isinstance(record.run, ScoreRun)
        and record.run.keep
        and record.status == "done"
        and record.run.where == where
        and alike(wanted, record.run.method, searched)
    ]
    if not finals:
        raise Unusable(f"{label} has no finished run in {results} that kept its adapter")
    first = min(finals, key=lambda record: (record.run.seed, record.run.lr))  # type: ignore[union-attr]
    return results / "runs" / first.key, first, label


def base_of(kept: Kept) -> Base:
    """The base model that the run was trained on.

    Raises:
        Unusable: it is not, or no longer, the same.
    """
    base = load_base(kept.run.model)
    if base.digest != kept.run.identity.model:
        raise Unusable(f"{kept.run.model} is not, or no longer, the model that {kept.folder} was trained on")
    return base


def mount(kept: Kept, encoder: nn.Module, name: str = "default") -> Variant:
    """Puts the kept adapter onto the encoder; the method.

    Raises:
        Unusable: its files are damaged, or were made with another base.
    """
    try:
        variant = create(kept.run.method.name, kept.run.method.hyperparameters)
        if variant.trains != "head":
            load(encoder, kept.folder / ADAPTER, name)
    except UnknownMethod as error:
        raise Unusable(f"{error} (a method of your own: give its file with --plugin)") from error
    except (UnknownHyperparameter, Refused) as error:
        raise Unusable(str(error)) from error
    return variant


def classifier(kept: Kept, base: Base) -> Classifier:
    """The base, as it is, under the head which the run trained.

    Raises:
        Unusable: the head's file is damaged.
    """
    try:
        with safe_open(kept.folder / HEAD, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("weight", "bias")}
        model = Classifier(base.encoder, base.hidden, len(tensors["bias"]), seed=0)
        model.head.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise Unusable(f"{kept.folder / HEAD} is damaged: {' '.join(str(error).split())}") from error
    return model.eval()
