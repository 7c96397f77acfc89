"""TREC questions with their 50 fine or 6 coarse classes (Li and Roth, Learning Question Classifiers, 2002)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evaluation import assets
from evaluation.benchmarks.base import Benchmark, register_benchmark
from evaluation.benchmarks.splits import assemble
from evaluation.spec import Unusable


@register_benchmark("trec50", metric="accuracy", sizes=(3875, 500, 1000))
def trec50() -> Benchmark:
    """50 question types, such as LOC:city or NUM:date; short questions: train 3,875, validation 500, test 1,000.

    Out of 5,381 distinct questions: six go because they differ from others in case and punctuation only (five) or have
    two labels (one). 238 lie in 98 groups of near-duplicates, of at most 15 questions. Splits are not stratified: every
    class is in train, the rarest (NUM:ord, NUM:code) twice; six classes are not in validation and three not in the test
    (ENTY:letter, ENTY:religion, NUM:speed), so scores averaged over classes must leave those out.

    Raises:
        Unusable: the questions cannot be fetched.
    """
    return assemble("trec50", _questions(assets.fetch("trec") / "question_labels.txt"), test=1000, validation=500)


@register_benchmark("trec6", metric="accuracy", sizes=(3876, 500, 1000))
def trec6() -> Benchmark:
    """6 question types, such as LOC or NUM, the coarse ones of trec50: train 3,876, validation 500, test 1,000.

    The questions and splits are those of trec50, and one more whose two fine labels are one coarse label. Scores on the
    two are not those of two unrelated tasks.
    Splits are not stratified; the rarest, ABBR, has 59, 9 and 18 questions, the most frequent (ENTY) 908 of train. 13
    of MiniLM's tokens at the median, 41 at most (32 cuts 18).

    Raises:
        Unusable: the questions cannot be fetched.
    """
    questions = _questions(assets.fetch("trec") / "question_labels.txt")
    coarse = ((text, label.partition(":")[0]) for text, label in questions)
    return assemble("trec6", coarse, test=1000, validation=500)


def _questions(path: Path) -> Iterator[tuple[str, str]]:
    """(text, label) of each line ``COARSE:fine text``."""
    # The hyphen of one question's "sister-city" was lost before it was packed; tokenizers would join the words.
    lines = path.read_text(encoding="utf-8").replace("\N{REPLACEMENT CHARACTER}", " ").splitlines()
    for number, line in enumerate(lines, start=1):
        label, _, text = line.partition(" ")
        if ":" not in label or not text.strip():
            raise Unusable(f"{path}, line {number}: expected `COARSE:fine question`, found {line[:40]!r}")
        yield text.strip(), label
