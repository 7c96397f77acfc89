"""Whether a bench holds an earlier one: what got worse beyond noise, and what is not there any more.

Our methods are judged by their ratios to the floor and to PEFT's own. Those to ``lora`` are not: when ``lora`` gets
faster, nothing else got worse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.bench.pairs import PEFT
from evaluation.bench.result import Bench, Interval
from evaluation.spec import Unusable

ALIKE = ("model", "digest", "where", "rank", "threads", "compile", "weights")
MACHINE = ("cpu", "cores", "products", "torch", "transformers", "peft")  # of the environment: what ratios may depend on
JUDGED = ("floor", "peft")
LOUD = 0.05  # noise of a machine that does something else beside
RULE = "worse: the intervals do not overlap, and the medians differ by more than the noise of each measurement"


@dataclass(frozen=True)
class Change:
    """A ratio measured twice: of ``method`` to ``reference``, on batches of ``shape``. ``noise``: the larger of the two
    benches' own on that shape."""

    shape: str
    method: str
    reference: str
    before: Interval
    now: Interval
    noise: float

    @property
    def worse(self) -> bool:
        """The interval lies above the earlier one, and the median above the earlier one by more, as a share of it, than
        the noise: the interval of a few rounds is short by chance now and then, and the noise of the floor with itself
        is then the better judge."""
        return self.now.low > self.before.high and self.now.median > self.before.median * (1 + self.noise)

    def __str__(self) -> str:
        before, now = (f"{i.median:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (self.before, self.now))
        return f"{self.shape} {self.method} / {self.reference}: {before} became {now}"


@dataclass(frozen=True)
class Verdict:
    """What a baseline says of a bench.

    ``worse``: ratios that got so. ``gone``: what was timed then and asked for now, but not timed, with the reason.
    ``apart``: what was not compared, and why that is no fault. ``warnings``: how the machine differs, and where it was
    not at rest. ``compared``: how many ratios were.
    """

    worse: tuple[Change, ...]
    gone: tuple[str, ...]
    apart: tuple[str, ...]
    warnings: tuple[str, ...]
    compared: int

    @property
    def held(self) -> bool:
        """A baseline of which nothing could be compared is not held."""
        return self.compared > 0 and not self.worse and not self.gone

    def lines(self) -> list[str]:
        """For the terminal, the count last."""
        return [
            *(f"warning: {line}" for line in self.warnings),
            *(f"not compared: {line}" for line in self.apart),
            *(f"gone: {line}" for line in self.gone),
            *(f"worse: {line}" for line in self.worse),
            f"{len(self.worse)} of {self.compared} ratios got worse than the baseline's ({RULE})",
        ]


def check_alike(before: Bench, now: Mapping[str, object]) -> None:
    """Raises Unusable unless a bench of which this is known can be compared with an earlier one."""
    for what in ALIKE:
        if getattr(before, what) != now[what]:
            here = f"{what} {getattr(before, what)}, this bench {now[what]}"
            raise Unusable(f"the baseline has {here}: only like can be compared with like")


def check_shapes(before: Bench, shapes: Collection[tuple[int, int]]) -> None:
    """Raises Unusable if the earlier bench has none of these rows x tokens: nothing could get worse then."""
    if not {(shape.rows, shape.tokens) for shape in before.shapes} & set(shapes):
        asked, had = ", ".join(f"{r}x{t}" for r, t in shapes), [shape.name for shape in before.shapes]
        raise Unusable(f"the baseline has no batches of {asked}: ask for {' '.join(f'--shape {name}' for name in had)}")


def judged(before: Bench, now: Bench) -> Verdict:
    """Compares what both have timed with equal hyperparameters.

    Raises:
        Unusable: the two did not measure the same thing.
    """
    check_alike(before, {what: getattr(now, what) for what in ALIKE})
    unlike = _unlike(before, now)
    changes = list(_changes(before, now, unlike))
    then, here = ({key: bench.environment.get(key) for key in MACHINE} for bench in (before, now))
    differ = _differences(then, here)
    return Verdict(
        worse=tuple(change for change in changes if change.worse),
        gone=tuple(_gone(before, now)),
        apart=(*_not_asked_for(before, now), *(f"{label}, as {why}" for label, why in unlike.items())),
        warnings=(*(f"{what}: ratios may differ for that alone" for what in differ), *_loud(before, now)),
        compared=len(changes),
    )


def _loud(*benches: Bench) -> Iterator[str]:
    """Shapes on which the floor did not even agree with itself: what got worse there by less is not seen."""
    for when, bench in zip(("earlier", "this"), benches, strict=True):
        for shape in (shape for shape in bench.shapes if shape.noise > LOUD):
            yield f"the {when} bench is known to ±{100 * shape.noise:.0f} % on {shape.name}: less than that is not seen"


def _changes(before: Bench, now: Bench, unlike: Collection[str]) -> Iterator[Change]:
    earlier = {shape.name: shape for shape in before.shapes}
    for shape, old in ((shape, earlier[shape.name]) for shape in now.shapes if shape.name in earlier):
        noise = max(old.noise, shape.noise)
        for label, timing in shape.methods.items():
            if label.startswith(PEFT) or label in unlike or label not in old.methods:
                continue
            then = old.methods[label].ratios
            for reference in (r for r in JUDGED if r in timing.ratios and r in then):
                yield Change(shape.name, label, reference, then[reference], timing.ratios[reference], noise)


def _unlike(before: Bench, now: Bench) -> dict[str, str]:
    """Label -> which hyperparameter changed, of ours or of PEFT's own. PEFT's tell of ours as well: they name the steps
    of AdaLoRA's schedule, which our own takes from the length of the run."""
    then, later = (bench.model_dump(mode="json")["settings"] for bench in (before, now))  # as they are when read
    found = {}
    for label in (label for label in later if not label.startswith(PEFT)):
        both = [each for each in (label, PEFT + label) if each in then and each in later]
        if changed := [f"{each}'s {what}" for each in both for what in _differences(then[each], later[each])]:
            found[label] = ", ".join(changed)
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        was, is_ = before.get(name, "unset"), now.get(name, "unset")
        if was != is_:
            yield f"{name} was {was} and is {is_}"


def _gone(before: Bench, now: Bench) -> Iterator[str]:
    later = {shape.name: shape.methods for shape in now.shapes}
    for label in now.settings:
        had = [shape.name for shape in before.shapes if label in shape.methods]
        if lost := [name for name in had if name in later and label not in later[name]]:
            why = now.left_out.get(label, "it was asked for but not timed, and no reason was kept")
            yield f"{label} on {', '.join(lost)}: {why.removeprefix(f'{label}: ')}"


def _not_asked_for(before: Bench, now: Bench) -> Iterator[str]:
    shapes = [shape.name for shape in before.shapes if shape.name not in {each.name for each in now.shapes}]
    timed = dict.fromkeys(label for shape in before.shapes for label in shape.methods)
    missing = [label for label in timed if label not in now.settings]
    # PEFT's own goes with ours, unless ours is there without it.
    methods = [n for n in missing if not n.startswith(PEFT) or n.removeprefix(PEFT) in now.settings]
    if shapes or methods:
        yield f"{', '.join([*shapes, *methods])}, as not asked for now"
