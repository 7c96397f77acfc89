"""The sections of a suite file: methods, and what is done with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from evaluation.spec.values import SCALES, Count, Frozen, Names, Positive, Searchable, Several, Share, off
from variants.core.rounding import FORMATS, Format


class Method(Frozen):
    """One method with its hyperparameters. In a suite file the hyperparameters stand beside the name."""

    name: str
    hyperparameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "hyperparameters" in value:
            return value
        return {"name": value.get("name"), "hyperparameters": {k: v for k, v in value.items() if k != "name"}}


# Sources of randomness. What a run draws for each follows from its seed and the name alone, so methods are paired.
Axis = Literal["subset", "data order", "head", "adapter", "dropout", "calibration"]
AXES: tuple[Axis, ...] = get_args(Axis)

ENTRY_KEYS = ("label", "lr", "where", "points", "seeds")  # of an entry itself; all others are hyperparameters


class Entry(Frozen):
    """A method as a suite lists it: under a label, perhaps with its own centre of the learning-rate grid, on layers of
    its own (a bottleneck adapter belongs elsewhere than LoRA), or with a search and seeds of its own, where some
    methods are to be compared in more depth than the others."""

    label: str = Field(description="What tables call the method; its name unless given, and unlike all others.")
    method: Method
    lr: Positive | None = Field(default=None, description="Centre of its learning-rate grid.")
    where: Names | None = Field(
        default=None, description="Layers of its own, in place of the suite's: patterns of their names."
    )
    points: Count | None = Field(default=None, description="Learning rates to try, in place of the protocol's.")
    seeds: Count | None = Field(default=None, description="Final runs, in place of the protocol's.")

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "method" in value:
            return value
        if "name" not in value:
            raise ValueError("a method needs a `name`")
        own = {k: v for k, v in value.items() if k in ENTRY_KEYS}
        return {"label": value["name"], **own, "method": {k: v for k, v in value.items() if k not in own}}


class Training(Frozen):
    """Everything that decides a training run besides the method. Dropout is a probability, warmup a share of steps,
    max_length a number of tokens."""

    steps: Count = Field(default=60, description="Optimiser steps of a run.")
    subset: Count | None = Field(default=None, description="Train on so many examples, drawn anew with every seed.")
    batch_size: Count = Field(default=16, description="Examples a step.")
    head_lr: Positive = Field(default=1e-2, description="Learning rate of the task head, the same for every method.")
    schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="How the rates fall to zero after the warm-up."
    )
    warmup: Share = Field(default=0.1, description="Share of the steps in which the rates rise from zero.")
    clip: Positive = Field(default=1.0, description="Largest norm of the gradient; longer ones are scaled down to it.")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True, description="AdamW's.")] = 0.0
    adapter_dropout: Annotated[float, Field(ge=0, lt=1, strict=True, description="On an adapter's input.")] = 0.0
    base_dropout: Annotated[bool, Field(strict=True, description="Whether the base keeps its own dropout.")] = False
    max_length: Count = Field(default=128, description="Tokens to which an example is cut.")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="Of the products in training.")
    compile: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="Compile the model's blocks for training (torch.compile)."
    )

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs that do not compile keep the keys which they had before they could."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("compile", False)}


TUNABLE = ("head_lr", "weight_decay", "warmup", "adapter_dropout")  # of Training, by a search over several


class Protocol(Frozen):
    """How learning rates and seeds are chosen. A method's own centre is ``lr`` times its ``lr_ratio``. With one point
    there is nothing to search: final runs use the centre."""

    ruleset: Literal["tuned", "defaults"] = Field(
        default="tuned",
        description="With `defaults` nothing is searched: every method runs at its prior, whatever `lr` and `points` "
        "stand beside it.",
    )
    lr: Positive = Field(default=5e-3, description="Centre of LoRA's learning-rate grid.")
    points: Count = Field(default=3, description="Learning rates of the grid.")
    per_decade: Count = Field(default=2, description="Of them to a factor of ten.")
    trials: Count | None = Field(
        default=None,
        description="Learning rates that every method tries: what the grid leaves goes a step beyond its edge while "
        "the best rate lies there, and between the best rates otherwise.",
    )
    search_seeds: Count = Field(default=1, description="Runs of every rate that is tried.")
    seeds: Count = Field(default=3, description="Final runs, each with a seed of its own.")
    max_seeds: Count | None = Field(
        default=None,
        description="Go on, doubling the seeds of the methods in question, until every pair of methods is decided or "
        "so many are reached.",
    )
    margin: Share = Field(default=0.005, description="Differences of the score below it are practically none.")
    forecast: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="Measure the curvature at the start, which forecasts learning rates."
    )

    racing: Several | None = Field(
        default=None,
        description="Race the rates: all of them with shortened runs, the best one in so many with longer ones, and "
        "so on; what is left runs all steps.",
    )
    rungs: Several = Field(
        default=2,
        description="Lengths of a race's runs: the last has all steps, each before it one in `racing` of them.",
    )
    racing_audit: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="Run the full grid beside a race, to measure what the race saves and loses."
    )
    space: dict[str, Searchable] = Field(
        default_factory=dict,
        description="Search several hyperparameters, quasi-randomly (needs the extra `optuna`), with `trials` settings "
        "a method. Each is [low, high, scale], with a scale linear, log, int or int-log, or a list of choices. `lr` is "
        "LoRA's, relative to its centre; the rest are hyperparameters of methods, head_lr, weight_decay, warmup and "
        "adapter_dropout.",
    )
    space_seed: Annotated[int, Field(ge=0, strict=True)] = Field(default=0, description="Which settings are drawn.")

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.trials is not None and self.trials < self.points and not self.space:
            raise ValueError(f"{self.points} points are more than {self.trials} trials: change one of them")
        if self.racing_audit and (self.racing is None or self.trials is not None):
            raise ValueError("racing_audit compares a race with the full grid: set `racing`, and leave `trials` out")
        if self.max_seeds is not None and not 2 <= self.seeds < self.max_seeds:
            raise ValueError(f"seeds go from {self.seeds} up to {self.max_seeds}: begin with at least 2, end with more")
        return self

    @model_validator(mode="after")
    def _whole_space(self) -> Protocol:
        if not self.space:
            return self
        if self.ruleset == "defaults":
            raise ValueError("the ruleset 'defaults' searches nothing: leave `space` out, or write ruleset = 'tuned'")
        if self.trials is None or self.trials < 2 or self.racing is not None:
            raise ValueError(
                "a space is searched with `trials` settings, 2 or more, all of full length: give it, without `racing`"
            )
        if "lr" not in self.space:
            raise ValueError(
                'space without a learning rate, which no method does without: add lr = [1e-4, 1e-2, "log"]'
            )
        rates = [value for value in self.space["lr"] if value not in SCALES]
        positive = all(type(rate) in (int, float) and float(rate) > 0 for rate in rates)
        if not positive or {"int", "int-log"} & set(self.space["lr"]):
            raise ValueError(
                f'space.lr is {list(self.space["lr"])}: give rates above 0, as in lr = [1e-4, 1e-2, "log"]'
            )
        return self


class Merging(Frozen):
    """Test items and storage formats on which merging is measured, and how deeply: ``outputs`` and what is kept of the
    update; or ``full``, which adds survival by size, drift over ``cycles`` of merging and unmerging, the factors, and
    the ways to deploy on a quantised base."""

    items: Count = Field(default=200, description="Test items whose outputs are compared.")
    formats: tuple[Format, ...] = Field(
        default=FORMATS, min_length=1, description="Storage formats of the merged weights."
    )
    cycles: tuple[Count, ...] = Field(
        default=(1, 10, 100), min_length=1, description="Merges and unmerges before looking."
    )
    depth: Literal["outputs", "full"] = Field(default="outputs", description="What is measured; full takes longer.")


class Speed(Frozen):
    """The shape on which speed is measured: batch_size sequences of the same number of tokens. Latency, of one token
    and of a batch, has rounds and rows of its own: every method is timed in up to three forms."""

    batch_size: Count = Field(default=16, description="Rows of a step.")
    tokens: Count = Field(default=16, description="Tokens of a row.")
    warmup: Count = Field(default=3, description="Rounds before the clock counts.")
    rounds: Count = Field(default=15, description="Rounds in which every method takes one timed step.")
    latency_rounds: Count = Field(default=8, description="Rounds in which every model takes one timed forward pass.")
    latency_batch_size: Count = Field(default=4, description="Rows of the batch whose forward pass is timed.")


class Quantised(Frozen):
    """Starts on a quantised base (QLoRA, LoftQ, QPiSSA), compared on test items at these ranks."""

    ranks: tuple[Count, ...] = Field(default=(4, 8, 16, 32), min_length=1, description="Ranks of the starts.")
    formats: tuple[Literal["int8", "nf4"], ...] = Field(
        default=("int8", "nf4"), min_length=1, description="Of the base."
    )
    items: Count = Field(default=100, description="Test items whose outputs are compared.")


class Spectrum(Frozen):
    """How the trained update is looked at. Every method's first final run is measured in full, the others give only
    their directions."""

    directions: Count = Field(
        default=8, description="Singular directions of the update, and of either end of the base weight's spectrum."
    )
    intruders: Count = Field(default=10, description="Leading singular vectors of the changed weight to examine.")
    epsilon: Share = Field(default=0.5, description="Cosine below which one of them is new.")
    layers: Count = Field(default=2, description="Layers whose directions are kept for comparing runs.")
    points: Annotated[int, Field(ge=2, strict=True)] = Field(
        default=8, description="Of the orthogonality defect over training."
    )
    forgetting: Annotated[str | None, BeforeValidator(off, json_schema_input_type=str | Literal[False])] = Field(
        default="polarity", description="Benchmark on whose validation texts the base's change is measured, or false."
    )
    items: Annotated[int, Field(ge=3, strict=True)] = Field(  # two pairs of similarities cannot be ranked
        default=100, description="Of these texts."
    )
    depth: Literal["directions", "full"] = Field(default="full", description="How much a run measures.")

    @property
    def text(self) -> str | None:
        """The benchmark on whose texts forgetting is measured; None where it is not."""
        return (self.forgetting or None) if self.depth == "full" else None


class Curve(Frozen):
    """How often every final run is scored while it trains, on validation data: for curves, and for the time to a score.
    Nothing of the training depends on it."""

    points: Count = Field(default=16, description="Moments of a run, evenly spaced over its steps.")
    items: Count = Field(default=200, description="Validation examples, drawn once for all runs.")


class Calibration(Frozen):
    """How much training data a method sees whose start depends on gradients or on a layer's inputs."""

    batches: Count = Field(default=8, description="Batches of training examples.")
    batch_size: Count = Field(default=16, description="Examples a batch.")
