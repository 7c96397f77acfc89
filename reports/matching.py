"""Where training time was matched instead of the number of steps: who took how many, and how well times agree."""

from __future__ import annotations

from reports import statistics
from reports.records import Json, Results
from reports.rounding import percent, significant
from reports.runlog import training_seconds
from reports.table import EMPTY, Cell, Column, Table, count, with_bounds, with_half
from reports.tables import METHOD, interval_cell
from reports.words import in_words

OVER = "†"
LOOSE = 0.1  # half-width of a ratio's interval, relative to it, beyond which the match is worth a warning
ROUNDOFF = 1e-6  # steps / ratio may be a whole number
OVER_NOTE = "The least number of steps that a method gets takes longer than the baseline's training."


def matched_table(results: Results) -> Table | None:
    """The steps of every method and the time that they take; None where all take the same number."""
    if not (results.time_matched and results.speed):
        return None
    base = results.baseline
    columns = (
        METHOD,
        Column("steps", "steps", count, place="terminal"),
        Column("items_seen", "items seen", count),
        Column("step_time_ratio", "step time", with_bounds(), f"× {base}", interval=True, place="terminal"),
        Column("training_time_ratio", "all steps", with_bounds(), f"× {base}", interval=True, place="terminal"),
        Column("training_seconds", "training as it ran", with_half(), "s", interval=True),
    )
    rows = tuple(_row(results, label) for label in results.labels)
    return Table("matched", "Training time", _caption(results), columns, rows, ((OVER, OVER_NOTE),))


def match_sentences(results: Results) -> list[str]:
    """Warnings where training times were not, or may not have been, the same; none where steps are the same."""
    table = matched_table(results)
    if table is None:
        return []
    return [said for said in (_loose(results, table), _over(results, table), _as_run(results)) if said]


def _loose(results: Results, table: Table) -> str:
    """Step times that are known too roughly to match anything by them."""
    place = [column.key for column in table.columns].index("step_time_ratio")
    ratios = {str(row[0].value): row[place] for row in table.rows}
    loose = [label for label, cell in ratios.items() if cell.half and cell.half > LOOSE * float(cell.value or 0)]
    if not loose:
        return ""
    whose = "step time of" if len(loose) == 1 else "step times of"
    return (
        f"The match of training times is loose: the {whose} {in_words(loose, 'methods')} against {results.baseline} "
        f"{'is' if len(loose) == 1 else 'are'} known to no better than ±{percent(LOOSE)}; more speed.rounds on an idle "
        "machine make it tighter."
    )


def _over(results: Results, table: Table) -> str:
    """Methods whose least number of steps takes longer than the baseline's training."""
    place = [column.key for column in table.columns].index("training_time_ratio")
    over = {str(row[0].value): float(row[place].value or 0) for row in table.rows if row[place].mark == OVER}
    said = [f"{label} (× {significant(ratio, 3)})" for label, ratio in over.items()]
    names = in_words(said, "methods")
    return f"By the measured step times {names} trained longer than {results.baseline}." if said else ""


def _as_run(results: Results) -> str:
    """Methods whose final runs clearly took another time than the baseline's with the same seeds."""
    base, found = _trained(results, results.baseline), dict[str, float]()
    for label in results.labels:
        own = _trained(results, label)
        ratios = [own[seed] / base[seed] for seed in own.keys() & base.keys() if base[seed] > 0]
        ratio = statistics.mean_interval(ratios) if len(ratios) > 1 else None
        if ratio is not None and abs(ratio.mean - 1) - (ratio.half or 0.0) > LOOSE:
            found[label] = ratio.mean
    said = [f"{label} (× {significant(ratio, 3)})" for label, ratio in found.items()]
    if not said:
        return ""
    names, other = in_words(said, "methods"), f"over {percent(LOOSE)} longer or shorter than {results.baseline}"
    return f"As they ran, {names} trained {other}: steps were matched as they were timed before."


def _trained(results: Results, label: str) -> dict[int, float]:
    """seed -> seconds of training of the final runs that came to their end."""
    finals = ((run, training_seconds(run)) for run in results.of(label, "final") if run.status == "done")
    return {run.seed: seconds for run, seconds in finals if seconds is not None}


def _row(results: Results, label: str) -> tuple[Cell, ...]:
    steps, given = results.steps(label), results.training
    ratio = (results.speed or {}).get("methods", {}).get(label, {}).get("ratio_baseline")
    seen = steps * given["batch_size"] if steps and given.get("batch_size") else None
    return (
        Cell(label),
        Cell(steps),
        Cell(seen),
        interval_cell(ratio),
        _whole(results, label, ratio),
        _ran(results, label),
    )


def _whole(results: Results, label: str, ratio: Json | None) -> Cell:
    """All steps of a method against all of the baseline's, with the interval of the ratio of their step times."""
    steps, base = results.steps(label), results.training.get("steps")
    if not (steps and base and ratio):
        return EMPTY
    median, low, high = (ratio[name] * steps / base for name in ("median", "low", "high"))
    return Cell(median, low, high, mark=OVER if median > 1 + ROUNDOFF else "")


def _ran(results: Results, label: str) -> Cell:
    """The mean over the final runs that came to their end, with its t-interval."""
    found = _trained(results, label)
    if not found:
        return EMPTY
    estimate = statistics.mean_interval(list(found.values()))
    return Cell(estimate.mean, estimate.low, estimate.high)


def _caption(results: Results) -> str:
    speed, base = results.speed or {}, results.baseline
    threads = int(speed.get("threads", 1))
    n = speed.get("noise")
    noise = f", and the floor's ratio with itself is known to ±{significant(float(n), 1)}" if n else ""
    return (
        "Training time, not the number of steps, was matched: every method took as many steps as fit into the time of "
        f"{base}'s {results.training.get('steps'):,}. Step times are those of the speed run, which came first: "
        f"medians of {speed.get('rounds')} interleaved rounds on {threads} thread{'s' if threads > 1 else ''} of "
        f"{_machine(results)}, {speed.get('batch_size')} full rows of {speed.get('tokens')} tokens a step. The match "
        f"is as good as these ratios: their 95 % intervals are given{noise}. What attaching and calibrating take is "
        "not matched. As it ran: the mean over the final runs that did not diverge with its 95 % t-interval, attaching "
        "included; these runs share the machine, and their rows are as long as the texts."
    )


def _machine(results: Results) -> str:
    """On which the steps were timed."""
    record = next((r for r in reversed(results.records) if r["run"]["kind"] == "speed"), {})
    environment = record.get("environment") or {}
    return str(environment.get("gpu") or environment.get("cpu") or "a machine which is not recorded")
