"""Would a difference hold with new seeds on new questions of the same kind, not only on those that were asked?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reports.comparing import comparisons, level
from reports.records import Results
from reports.rounding import plus_minus
from reports.statistics import Comparison, Difference, ItemDifference, Pair, holm, paired_items
from reports.tables import POINTS
from reports.words import MANY, in_words

HOLDS, OPEN = "holds", "open"


@dataclass(frozen=True)
class Held:
    """The difference with its interval for other seeds and other items; ``word`` is empty where nothing was decided."""

    difference: ItemDifference
    word: str


def item_scores(results: Results, label: str) -> dict[int, list[float]]:
    """seed -> 1 for every test item that was right, 0 for the others; empty where a score is not a mean over items."""
    if results.metric != "accuracy":
        return {}
    found = {}
    for run in results.of(label, "final"):
        items = run.measures.get("score", {}).get("items")
        if run.score("primary") is not None and items:
            found[run.seed] = [float(g == p) for g, p in zip(items["gold"], items["predicted"], strict=True)]
    return found


def held(results: Results, judged: Mapping[Pair, Comparison]) -> dict[Pair, Held]:
    """What remains of each verdict when the test items, too, are a sample.

    Args:
        judged: pair -> its verdict on these items. Those which are better or worse hold if they do so Holm-corrected
            over these pairs; practical equality holds if the interval lies within the margin, Bonferroni-corrected.
    """
    scores = {label: item_scores(results, label) for label in results.labels}
    if not _same_items(results):
        return {}  # of more than one version of the data: items do not pair
    found = {(a, b): d for a, b in judged if (d := paired_items(scores[a], scores[b], level(results))) is not None}
    adjusted = holm({pair: difference.p for pair, difference in found.items()})
    strict = 1 - 2 * (1 - level(results)) / max(1, len(found))  # two one-sided tests at the level of one are this one
    words = {}
    for pair, difference in found.items():
        verdict = judged[pair].verdict
        if verdict == "practically equal":
            wide = paired_items(scores[pair[0]], scores[pair[1]], strict)
            words[pair] = HOLDS if _within(wide, results.margin) else OPEN
        elif verdict == "undecided":
            words[pair] = ""
        else:
            same_side = (difference.mean > 0) == (verdict == "better")
            words[pair] = HOLDS if same_side and adjusted[pair] < 1 - level(results) else OPEN
    return {pair: Held(difference, words[pair]) for pair, difference in found.items()}


def _same_items(results: Results) -> bool:
    """Have all final runs with a score answered the same items in the same order? By id where they are recorded."""
    finals = (run for label in results.labels for run in results.of(label, "final") if run.score("primary") is not None)
    items = [found for run in finals if (found := run.measures["score"].get("items"))]
    asked = [found.get("id") or list(range(len(found["gold"]))) for found in items]
    return all(one == asked[0] for one in asked)


def _within(difference: Difference | None, margin: float) -> bool:
    if difference is None or difference.low is None or difference.high is None:
        return False
    return -margin < difference.low and difference.high < margin


def new_items_sentence(results: Results) -> str:
    """What the verdicts against the baseline say of new questions; empty where nothing is decided on these."""
    judged = {(label, results.baseline): c for label, c in comparisons(results, results.baseline).items()}
    found = {pair[0]: item for pair, item in held(results, judged).items() if item.word}
    if not found:
        return ""
    open_, kept = ([label for label, item in found.items() if item.word == word] for word in (OPEN, HOLDS))
    parts = [f"holds for {in_words(kept, 'methods')}"] if kept else []
    parts += [f"is open for {_named(open_, found)}"] if open_ else []
    return f"With new questions as well as new seeds, the verdict {' and '.join(parts)}."


def _named(labels: list[str], found: Mapping[str, Held]) -> str:
    if len(labels) > MANY:
        return in_words(labels, "methods")
    return in_words([f"{label} ({_points(found[label].difference)})" for label in labels], "methods")


def _points(difference: Difference) -> str:
    half = None if difference.half is None else difference.half * POINTS
    return f"{plus_minus(difference.mean * POINTS, half, signed=True)} points"
