"""What is timed against each other: methods on replicas of one base, and the floor, on made-up batches."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evaluation.calibration import calibrate
from evaluation.clock import Clock
from evaluation.compiling import compile_blocks
from evaluation.data import Batch
from evaluation.mounting import mount, peer_base
from evaluation.peers import Peer
from evaluation.spec import Training
from evaluation.training import Classifier, Trainer, autocast, seeded
from variants.core import Variant
from variants.core.cache import not_kept


@dataclass
class Contestant:
    """One method on its replica."""

    trainer: Trainer
    init_seconds: float
    compile_seconds: float | None  # None: it is not compiled


@contextmanager
def undisturbed(encoder: nn.Module, threads: int, device: torch.device) -> Iterator[None]:
    """Inside, so many threads compute and random numbers are seeded; afterwards these, and which parameters of the base
    train, are as they were."""
    before = torch.get_num_threads()
    trains = {parameter: parameter.requires_grad for parameter in encoder.parameters()}
    torch.set_num_threads(threads)
    try:
        with seeded(0, device):
            yield
    finally:
        torch.set_num_threads(before)
        for parameter, flag in trains.items():
            parameter.requires_grad_(flag)


def random_batch(rows: int, tokens: int, encoder: nn.Module, classes: int) -> Batch:
    """Full rows of random token ids: padding would hide work from some shapes."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, encoder.config.vocab_size, (rows, tokens), generator=rng)  # type: ignore[union-attr, arg-type]
    if classes == 1:  # regression: cross entropy over one class would have no gradient
        return Batch(ids, torch.ones_like(ids), torch.randn(rows, generator=rng))
    return Batch(ids, torch.ones_like(ids), torch.randint(0, classes, (rows,), generator=rng))


def contestant(
    variant: Variant,
    where: Iterable[str],
    training: Training,
    floor: Floor,
    batch: Batch,
    total: int,
    own: bool = False,
) -> Contestant:
    """A replica of the floor's base, as ``replica`` makes it, with the method attached.

    Args:
        batch: what a method that needs calibration is calibrated on.
        total: steps that will be taken, so that schedules (rank budgets) do in them what they do in a run.
        own: whether the replica has frozen parameters of its own.

    Raises:
        Refused: the method cannot work here, or cannot be compiled where the training asks for it.
    """
    places, base, device = list(where), floor.model, batch.labels.device
    hidden, classes = base.head.in_features, base.head.out_features
    encoder = replica(base.encoder, variant, own)
    stock = Classifier(encoder, hidden, classes, seed=0).to(device)
    stats = calibrate(stock, places, variant.needs, [batch], training.precision)
    with not_kept():  # decompositions count
        began = time.perf_counter()
        encoder = mount(encoder, variant, places, 0, training.adapter_dropout, stats)
        init_seconds = time.perf_counter() - began
    model = Classifier(encoder, hidden, classes, seed=0).to(device)
    # A small rate: the arithmetic is the same at every rate, and random labels must not make it diverge. But not
    # smaller still: numbers below 1e-38, which are slow, would enter the optimiser's moments.
    trainer = Trainer(model, variant, training, 1e-5, Clock(device), total)
    if not training.compile:
        return Contestant(trainer, init_seconds, None)
    compile_blocks(encoder, device)
    trainer.rehearse([batch])
    return Contestant(trainer, init_seconds, trainer.clock.seconds()["compile"])


def replica(base: nn.Module, variant: Variant, own: bool) -> nn.Module:
    """The base on which a contestant is made.

    Parameters that the method trains are its own. Frozen ones are those of ``base``, unless ``own`` says otherwise; a
    peer's base is what it is everywhere (``mounting.peer_base``).
    """
    if isinstance(variant, Peer):
        return peer_base(base)
    frozen = {id(p): p for path, p in base.named_parameters() if not variant.trains_base(path)}
    return copy.deepcopy(base, memo={} if own else frozen)


class Floor:
    """The frozen base: a forward pass, and the gradient of the embedded input. No method that adapts every layer can
    be faster."""

    def __init__(self, model: Classifier, precision: str, clock: Clock) -> None:
        self.model, self.precision, self.clock = model.requires_grad_(False).eval(), precision, clock
        self.embed: nn.Module = model.encoder.get_input_embeddings()  # type: ignore[operator]

    def forward(self, batch: Batch) -> Tensor:
        with autocast(batch.labels.device, self.precision):
            embedded = self.embed(batch.input_ids).requires_grad_()
            hidden = self.model.encoder(inputs_embeds=embedded, attention_mask=batch.attention_mask).last_hidden_state
            return self.model.head(hidden.mean(1)).float().logsumexp(1).mean()

    def step(self, batch: Batch) -> None:
        with self.clock("forward"):
            loss = self.forward(batch)
        with self.clock("backward"):
            loss.backward()
