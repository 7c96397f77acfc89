"""The one training loop, the same for every method; the only place that knows penalties and step hooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from evaluation.clock import Clock
from evaluation.compiling import refusing, step_begins
from evaluation.data import Batch, Split, evaluation_batches, task_loss
from evaluation.peers import states_of, train_branches
from evaluation.spec import Training
from variants.core import Variant, trainable_parameters
from variants.core.linalg import raised

# Of an evaluation batch. On a core, products of 512 rows are as fast as larger ones, whose activations leave its cache.
CPU_TOKENS, GPU_TOKENS = 2**9, 2**14


class Diverged(ArithmeticError):
    """The loss or the gradient became infinite or not a number."""


class Classifier(nn.Module):
    """An encoder, the mean of its last hidden states over the real tokens, and a linear head; for regression, of one
    output."""

    def __init__(self, encoder: nn.Module, hidden: int, classes: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(hidden, classes, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            rng = torch.Generator().manual_seed(seed)
            self.head.weight.uniform_(-(hidden**-0.5), hidden**-0.5, generator=rng)
            self.head.bias.zero_()

    def features(self, batch: Batch) -> Tensor:  # shape: (rows, hidden)
        hidden = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        hidden = hidden[:, -batch.attention_mask.shape[1] :]  # a peer may have put virtual tokens in front
        mask = batch.attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, batch: Batch) -> Tensor:  # shape: (rows, classes)
        return self.head(self.features(batch))


class Trainer:
    """One model in training, a step at a time, so that several can be interleaved.

    The model's encoder must have the variant attached. For a method that trains only the head, ``lr`` is the head's
    rate; for all others the head's is ``training.head_lr``.
    """

    def __init__(
        self, model: Classifier, variant: Variant, training: Training, lr: float, clock: Clock, total: int | None = None
    ) -> None:
        self.model, self.variant, self.training, self.clock = model, variant, training, clock
        self.total = total or training.steps
        self.done = 0
        self.states = states_of(model.encoder)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self._groups(lr), lr=lr, weight_decay=training.weight_decay, fused=True, betas=(0.9, 0.999)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: rate(step, self.total, training.warmup, training.schedule)
        )
        model.eval()
        if training.base_dropout:
            model.train()
        train_branches(model.encoder)

    def _groups(self, lr: float) -> list[dict[str, object]]:
        groups = self.variant.param_groups(self.states, lr)
        grouped = {id(p) for group in groups for p in group["params"]}
        base = [p for p in trainable_parameters(self.model.encoder).values() if id(p) not in grouped]
        adapters = {id(p) for state in self.states for p in state.t.values() if p.requires_grad}
        if adapters - grouped:
            raise ValueError(f"{self.variant.name}.param_groups leaves {len(adapters - grouped)} trainable tensors out")
        head_lr = lr if self.variant.trains == "head" else self.training.head_lr
        groups += [{"params": base, "lr": lr}, {"params": list(self.model.head.parameters()), "lr": head_lr}]
        return [group for group in groups if group["params"]]

    def step(self, batch: Batch) -> float:
        """One optimiser step; the task loss before it.

        Raises:
            Diverged: loss or gradient norm is not finite, and the parameters are left as they were; or the method's
                own arithmetic failed after the step.
        """
        if self.training.compile:
            step_begins(batch.labels.device)
        with self.clock("forward"):
            loss, objective = self.losses(batch)
        with self.clock("backward"):
            objective.backward()
        with self.clock("optimiser"):
            norm = nn.utils.clip_grad_norm_(self.parameters, self.training.clip)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            self.optimiser.zero_grad()  # a base that others use must not carry these gradients into their steps
            raise Diverged(f"loss {value}, gradient norm {norm.item()} at step {self.done + 1}")
        with self.clock("hooks"):
            self.variant.before_step(self.states)
        with self.clock("optimiser"):
            self.optimiser.step()
            self.schedule.step()
        self.done += 1
        with self.clock("hooks"):
            try:
                self.variant.after_step(self.states, self.done, self.total)
            except ArithmeticError as error:  # a step so long that there is nothing to retract
                raise Diverged(f"{error} (step {self.done})") from error
        with self.clock("optimiser"):
            self.optimiser.zero_grad()
        return value

    def rehearse(self, batches: Iterable[Batch]) -> None:
        """Goes forward and backward through the batches, so that a compiled model is compiled for what is like them.
        Nothing remains of it: no step is taken, and random numbers are put back.

        Raises:
            Refused: the method cannot be compiled.
        """
        for batch in batches:
            device = batch.labels.device
            with self.clock("compile"), seeded(0, device), refusing(self.variant.name):
                step_begins(device)
                self.losses(batch)[1].backward()
                self.optimiser.zero_grad()

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The task loss, and what is minimised: the task loss with the method's penalty."""
        with autocast(batch.labels.device, self.training.precision):
            outputs = self.model(batch)
        loss = task_loss(raised(outputs), batch.labels)
        penalty = self.variant.penalty(self.states)  # in the adapter's own precision
        return loss, loss if penalty is None else loss + penalty


def rate(step: int, total: int, warmup: float, schedule: str) -> float:
    """The share of the peak learning rate for step 0 .. total - 1: linear warm-up, then linear or cosine to zero."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, total - rising)
    return max(0.0, 1 - progress) if schedule == "linear" else (1 + math.cos(math.pi * min(1.0, progress))) / 2


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@torch.inference_mode()
def features(model: Classifier, split: Split, clock: Clock, device: torch.device, precision: str = "float32") -> Tensor:
    """What the head sees of a whole split in its own order, shape (items, hidden), in the head's dtype."""
    found = torch.empty(len(split), model.head.in_features, dtype=model.head.weight.dtype, device=device)
    model.eval()
    most = GPU_TOKENS if device.type == "cuda" else CPU_TOKENS
    for index in evaluation_batches(split, most):
        with clock("evaluation"), autocast(device, precision):
            found[index] = model.features(split.batch(index).to(device)).to(found.dtype)
    return found


@torch.inference_mode()
def outputs_of(model: Classifier, features: Tensor, precision: str = "float32") -> Tensor:
    """The head's outputs for features (items, hidden): shape (items, classes), float32 on the CPU."""
    with autocast(features.device, precision):
        return model.head(features).float().cpu()


def logits(model: Classifier, split: Split, clock: Clock, device: torch.device, precision: str = "float32") -> Tensor:
    """The model's outputs for a whole split in its own order, shape (items, classes), float32 on the CPU."""
    return outputs_of(model, features(model, split, clock, device, precision), precision)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generators; inside, they are seeded, and afterwards put back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
