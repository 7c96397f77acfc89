"""A bench against an earlier one: what counts as worse, what is gone, what is not compared, and what is only said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.bench import baseline
from evaluation.bench.baseline import Verdict, check_alike, check_shapes, judged
from evaluation.bench.result import Bench, Interval, Shape, Timing, read, text
from evaluation.bench.running import hyperparameters
from evaluation.bench.settings import Settings
from evaluation.spec import Unusable

FINE = (1.00, 1.05, 1.10)


def made_up(
    ratio: tuple[float, float, float] = FINE,
    noise: float = 0.02,
    reference: str = "floor",
    labels: tuple[str, ...] = ("lora",),
    shapes: tuple[tuple[int, int], ...] = ((2, 5),),
    **changes: Any,
) -> Bench:
    """A bench in which the ratio of each label to the reference is (low, median, high) on each shape."""
    interval = Interval(low=ratio[0], median=ratio[1], high=ratio[2])
    timing = Timing(phases={}, ratios={reference: interval}, saved_bytes=1, peak_bytes=1)
    methods = dict.fromkeys(labels, timing)
    made = [Shape(rows=r, tokens=t, rounds=6, noise=noise, floor=timing, methods=methods) for r, t in shapes]
    fields = {"model": "toy", "digest": "d", "where": ("all",), "rank": 8, "threads": 2, "environment": {}}
    fields |= {"settings": {label: {} for label in labels}, "shapes": made, "costs": {}, "starts": {}, "left_out": {}}
    return Bench(**{**fields, **changes})


@pytest.mark.parametrize(
    ("now", "noise", "worse"),
    [
        ((1.20, 1.25, 1.30), 0.02, True),
        ((1.20, 1.25, 1.30), 0.30, False),  # within this bench's noise
        ((1.09, 1.25, 1.40), 0.02, False),  # the intervals overlap
        ((1.11, 1.115, 1.12), 0.02, True),
        ((1.11, 1.115, 1.12), 0.07, False),
        ((0.80, 0.85, 0.90), 0.02, False),  # better
        ((1.00, 1.05, 1.10), 0.02, False),  # the same
    ],
)
def test_a_ratio_is_worse_beyond_interval_and_noise(now: tuple[float, float, float], noise: float, worse: bool) -> None:
    before = made_up(FINE)
    found = judged(before, made_up(now, noise))
    assert bool(found.worse) is worse is not found.held
    assert bool(judged(made_up(FINE, noise), made_up(now)).worse) is worse, "either noise counts"
    assert bool(judged(made_up(now, noise), before).worse) is (now[2] < 1.00), "the other way round"
    if worse:
        assert str(found.worse[0]).startswith("2x5 lora / floor: 1.050 [1.000, 1.100] became")
    assert found.compared == 1
    assert found.lines()[-1].startswith(f"{int(worse)} of 1 ratios got worse than the baseline's")


def a_faster_lora(monkeypatch: pytest.MonkeyPatch, judged_by: tuple[str, ...]) -> Verdict:
    monkeypatch.setattr(baseline, "JUDGED", judged_by)
    before, now = (made_up(labels=("lora", "svf", "peft:lora")).model_dump() for _ in range(2))
    steps = {"lora": 1.2, "svf": 1.5, "peft:lora": 1.4}
    for made, lora in ((before, 1.2), (now, 1.0)):
        for label, timing in made["shapes"][0]["methods"].items():
            own = lora if label == "lora" else steps[label]
            against = {"floor": 1.0, "lora": lora} | ({"peft": 1.4} if label == "lora" else {})
            timing["ratios"] = {k: dict.fromkeys(("low", "median", "high"), own / by) for k, by in against.items()}
    return judged(Bench(**before), Bench(**now))


def test_a_faster_lora_makes_nothing_else_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = a_faster_lora(monkeypatch, baseline.JUDGED)
    assert found.held
    assert found.compared == 3, "lora and svf to the floor, lora to PEFT's"
    assert [c.method for c in a_faster_lora(monkeypatch, ("floor", "lora", "peft")).worse] == ["svf"]


def test_a_slower_peft_is_not_ours_to_mend_but_a_faster_one_counts() -> None:
    slow = (2.0, 2.1, 2.2)
    assert judged(made_up(labels=("lora", "peft:lora")), made_up(labels=("lora", "peft:lora"))).compared == 1
    before, now = made_up(labels=("lora", "peft:lora")), made_up(labels=("lora", "peft:lora")).model_dump()
    now["shapes"][0]["methods"]["peft:lora"] = made_up(slow).shapes[0].methods["lora"].model_dump()
    assert judged(before, Bench(**now)).held
    assert not judged(made_up(reference="peft"), made_up(slow, reference="peft")).held


def test_what_was_asked_for_and_is_gone_is_named_with_its_reason() -> None:
    before = made_up(labels=("lora", "kasa", "peft:kasa"), shapes=((2, 5), (3, 4)))
    silent = made_up(shapes=((2, 5), (3, 4)), settings=before.settings)
    reasons = {"kasa": "kasa: rank 8 leaves nothing", "peft:kasa": "peft:kasa: no"}
    now = silent.model_copy(update={"left_out": reasons})
    found = judged(before, now)
    assert found.gone == ("kasa on 2x5, 3x4: rank 8 leaves nothing", "peft:kasa on 2x5, 3x4: no")
    assert found.worse == ()
    assert found.apart == ()
    assert not found.held
    assert "gone: kasa on 2x5, 3x4: rank 8 leaves nothing" in found.lines()
    assert judged(before, silent).gone[0] == "kasa on 2x5, 3x4: it was asked for but not timed, and no reason was kept"
    assert judged(now, now).held, "it was not there then"


def test_on_one_shape_only_is_gone_too() -> None:
    both = made_up(labels=("lora", "dora"), shapes=((2, 5), (3, 4)))
    cut = both.model_dump()
    cut["shapes"][1]["methods"].pop("dora")
    found = judged(both, Bench(**cut))
    assert [line.partition(":")[0] for line in found.gone] == ["dora on 3x4"]
    assert not found.held


def test_what_was_not_asked_for_is_said_in_one_line_and_is_no_failure() -> None:
    before = made_up(labels=("lora", "peft:lora", "dora", "peft:dora", "svf"), shapes=((2, 5), (3, 4)))
    found = judged(before, made_up(labels=("lora", "peft:lora")))
    assert found.held
    assert found.apart == ("3x4, dora, svf, as not asked for now",)
    assert "not compared: 3x4, dora, svf, as not asked for now" in found.lines()
    assert judged(before, made_up()).apart == ("3x4, peft:lora, dora, svf, as not asked for now",)
    assert judged(before, before).apart == ()


def test_a_baseline_of_which_nothing_is_compared_is_not_held() -> None:
    found = judged(made_up(labels=("lora", "dora"), reference="peft"), made_up((2.0, 2.1, 2.2)))
    assert (found.compared, found.worse, found.held) == (0, (), False)
    check_shapes(made_up(shapes=((2, 5), (3, 4))), [(3, 4), (9, 9)])
    with pytest.raises(Unusable, match=r"no batches of 9x9, 8x8: ask for --shape 2x5 --shape 3x4$"):
        check_shapes(made_up(shapes=((2, 5), (3, 4))), [(9, 9), (8, 8)])


def test_a_method_of_other_hyperparameters_is_not_compared_and_it_is_said() -> None:
    def of(rank: int, steps: int, ratio: tuple[float, float, float] = FINE) -> Bench:
        labels = ("lora", "adalora", "peft:adalora", "svf")
        schedule = {"init_r": 8, "total_step": steps}
        fields = {"lora": {}, "adalora": {"faithful": "code"}, "peft:adalora": schedule, "svf": {"rank": rank}}
        return made_up(ratio, labels=labels, settings=fields)

    slow = (2.0, 2.1, 2.2)
    found = judged(of(4, 30), of(6, 30, slow))
    assert [change.method for change in found.worse] == ["lora", "adalora"]
    assert found.apart == ("svf, as svf's rank was 4 and is 6",)
    found = judged(of(4, 30), of(4, 42, slow))
    assert [change.method for change in found.worse] == ["lora", "svf"], "AdaLoRA's schedule is that of the run"
    assert found.apart == ("adalora, as peft:adalora's total_step was 30 and is 42",)
    assert found.compared == 2


def test_the_length_of_the_run_is_among_what_is_compared_of_adalora() -> None:
    two, three = (Settings(("adalora",), shapes, 1).entries() for shapes in (((2, 5),), ((2, 5), (3, 4))))
    assert hyperparameters(two[1].variant) == hyperparameters(three[1].variant)
    assert hyperparameters(two[1].peer) != hyperparameters(three[1].peer)
    assert hyperparameters(two[0].peer) == hyperparameters(three[0].peer)


def test_settings_are_compared_as_they_are_when_read(tmp_path: Path) -> None:
    now = made_up(settings={"lora": {"layers": ("a", "b")}})
    (tmp_path / "a.json").write_text(text(now))
    assert judged(read(tmp_path / "a.json"), now).held


@pytest.mark.parametrize(
    ("what", "was", "is_"),
    [("torch", "2.12", "2.13"), ("peft", "peft 0.20", "peft 0.21"), ("cpu", "a", "b"), ("cores", 2, 64)],
)
def test_another_machine_or_version_is_a_warning(what: str, was: object, is_: object) -> None:
    found = judged(made_up(environment={what: was, "python": "3.11"}), made_up(environment={what: is_}))
    assert found.warnings == (f"{what} was {was} and is {is_}: ratios may differ for that alone",)
    assert found.lines()[0] == f"warning: {found.warnings[0]}"
    assert found.held
    assert found.compared == 1
    assert judged(made_up(environment={what: was}), made_up(environment={what: was})).warnings == ()


UNLIKE = [{"threads": 1}, {"rank": 4}, {"model": "other"}, {"where": ("query",)}, {"weights": "own"}]


@pytest.mark.parametrize("change", UNLIKE)
def test_unlike_benches_are_not_compared(change: dict[str, Any]) -> None:
    (what,) = change
    with pytest.raises(Unusable, match=f"the baseline has {what} .* only like can be compared with like"):
        judged(made_up(), made_up(**change))
    with pytest.raises(Unusable, match="only like"):
        check_alike(made_up(), made_up(**change).model_dump())


@pytest.mark.parametrize(("noise", "loud"), [(0.02, 0), (0.3, 1)])
def test_a_machine_that_was_not_at_rest_is_said(noise: float, loud: int) -> None:
    """Or everything would hold, because nothing can be seen."""
    found = judged(made_up(), made_up(noise=noise)).warnings
    assert [warning for warning in found if "±30 % on 2x5" in warning] == list(found)
    assert len(found) == loud
