"""The validation curve of a run: its score at several moments of training, which leave the training as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from evaluation.clock import Clock
from evaluation.data import Split, axis_seed
from evaluation.measures.score import primary, score
from evaluation.spec import Curve, Training
from evaluation.training import Classifier, logits

STEP = ("forward", "backward", "optimiser", "hooks")  # phases of a training step


@dataclass
class CurveWatch:
    """Scores a model in training at evenly spaced steps, the last one included.

    Args:
        validation: the benchmark's validation split, of which a sample is scored: the same one in every run.
        clock: of the run. Scoring is timed on it as "evaluation"; its other phases say what training took so far.
    """

    spec: Curve
    training: Training
    validation: Split
    clock: Clock
    points: list[dict[str, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.sample = self.validation.drawn(self.spec.items, axis_seed("curve", 0))
        self.steps = frozenset(spaced(self.training.steps, self.spec.points))
        self.before = self._spent()

    def at(self, model: Classifier, step: int) -> None:
        """Looks at the model after ``step`` steps if it is due; one whose outputs are not finite has no score then."""
        if step not in self.steps:
            return
        spent, device = self._spent() - self.before, model.head.weight.device
        with undisturbed(model, device):
            outputs = logits(model, self.sample, self.clock, device, self.training.precision)
        if bool(torch.isfinite(outputs).all()):
            found = score(outputs, self.sample)
            self.points.append({"step": step, "seconds": spent, "score": primary(found), "loss": found["loss"]})

    def _spent(self) -> float:
        seconds = self.clock.seconds()
        return sum(seconds.get(phase, 0.0) for phase in STEP)

    def result(self) -> dict[str, Any]:
        """metric: the primary measure's name. items: how many were scored. points: for each moment its step, the
        seconds of training until then, the score and the loss (as in ``score``); the list grows while the run trains,
        so that one which diverges keeps what it had."""
        return {"metric": self.sample.metric, "items": len(self.sample), "points": self.points}


def spaced(steps: int, points: int) -> Sequence[int]:
    """``points`` steps from 1 to ``steps``, evenly spaced, the last one included; fewer where there are not so many."""
    return sorted({max(1, round(k * steps / points)) for k in range(1, points + 1)})


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, modes may be set and the global generators drawn from; afterwards both are as they were before."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    for module, mode in modes:
        module.training = mode
