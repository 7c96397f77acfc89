"""Yes-or-no questions with a passage that answers them (Clark et al., BoolQ, 2019)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation import assets
from evaluation.benchmarks.base import Benchmark, register_benchmark
from evaluation.benchmarks.splits import assemble
from evaluation.spec import Unusable

_ANSWERS = {True: "yes", "True": "yes", False: "no", "False": "no"}


@register_benchmark("boolq", metric="accuracy", sizes=(11196, 500, 1000))
def boolq() -> Benchmark:
    """Yes-or-no questions, each with a passage: train 11,196, validation 500, test 1,000.

    The official training (9,427) and development set (3,270) together, less one that occurs twice: 1,059 questions of
    the latter have a passage which is near one of the former's, so the official split is not kept and scores are not
    those of papers. Questions share passages (10,830 of them for 12,696 questions) and passages overlap, so what is
    near in question or passage goes to one split as a whole: 5,303 lie in 1,594 groups, of at most 113 (about world
    cups). 62 % are "yes" (632 of the test). Question and passage have 126 of MiniLM's tokens at the median and 1,044 at
    most; 128 cuts 6,134 passages, 256 cuts 720.

    Raises:
        Unusable: the questions cannot be fetched.
    """
    folder = assets.fetch("boolq")
    return assemble("boolq", _questions(folder), test=1000, validation=500)


def _questions(folder: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """((question, passage), answer) of the official development set and of the rest that is labelled, which is the
    official training set: rows without a label are the official test set."""
    asked = set()
    for question, passage, answer in _rows(folder / "dev.jsonl", "answer"):
        asked.add(question)
        yield (question, passage), _ANSWERS[answer]
    for question, passage, answer in _rows(folder / "combined.jsonl", "label"):
        if answer is not None and question not in asked:
            yield (question, passage), _ANSWERS[answer]


def _rows(path: Path, key: str) -> Iterator[tuple[str, str, Any]]:
    """Question, passage and answer of each line; the answer is None where ``combined`` has none."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, passage, answer = row["question"].strip(), row["passage"].strip(), row.get(key)
            sound = bool(question and passage) and (answer in _ANSWERS or (answer is None and key == "label"))
        except (ValueError, LookupError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise Unusable(f"{path}, line {number}: expected a question, a passage and `{key}`, found {line[:40]!r}")
        yield question, passage, answer
