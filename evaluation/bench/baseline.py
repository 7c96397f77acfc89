"""Whether a ratio got worse since an earlier bench, beyond what noise would do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evaluation.bench.result import Bench, Interval
from evaluation.spec import Unusable

ALIKE = ("model", "digest", "where", "rank", "threads", "compile")
RULE = "worse: the intervals do not overlap, and the medians differ by more than the noise of each measurement"


@dataclass(frozen=True)
class Regression:
    """A ratio that got worse: of ``method`` to ``reference``, on batches of ``shape``."""

    shape: str
    method: str
    reference: str
    before: Interval
    now: Interval

    def __str__(self) -> str:
        before, now = (f"{i.median:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (self.before, self.now))
        return f"{self.shape} {self.method} / {self.reference}: {before} became {now}"


def check_alike(before: Bench, now: Mapping[str, object]) -> None:
    """Raises Unusable unless a bench of which this is known can be compared with an earlier one."""
    for what in ALIKE:
        if getattr(before, what) != now[what]:
            here = f"{what} {getattr(before, what)}, this bench {now[what]}"
            raise Unusable(f"the baseline has {here}: only like can be compared with like")


def regressions(before: Bench, now: Bench) -> list[Regression]:
    """Every ratio of ``now`` that got worse since ``before``, in order; only what both have measured counts.

    A ratio is worse if its interval lies above the earlier one, and its median above the earlier one by more, as a
    share of it, than either bench's own noise on that shape: the interval of a few rounds is short by chance now and
    then, and the noise of the floor with itself is then the better judge.

    Raises:
        Unusable: the two did not measure the same thing.
    """
    check_alike(before, {what: getattr(now, what) for what in ALIKE})
    return list(_worse(before, now))


def _worse(before: Bench, now: Bench) -> Iterator[Regression]:
    earlier = {shape.name: shape for shape in before.shapes}
    for shape in now.shapes:
        old = earlier.get(shape.name)
        if old is None:
            continue
        noise = max(old.noise, shape.noise)
        for label, timing in shape.methods.items():
            ratios = old.methods[label].ratios if label in old.methods else {}
            for reference, ratio in timing.ratios.items():
                then = ratios.get(reference)
                if then and ratio.low > then.high and ratio.median > then.median * (1 + noise):
                    yield Regression(shape.name, label, reference, then, ratio)


def compared(before: Bench, now: Bench) -> int:
    """How many ratios both have."""
    earlier = {shape.name: shape.methods for shape in before.shapes}
    both = ((t, earlier.get(s.name, {}).get(label)) for s in now.shapes for label, t in s.methods.items())
    return sum(len(timing.ratios.keys() & then.ratios.keys()) for timing, then in both if then)
