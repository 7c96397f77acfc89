"""Movie reviews in one sentence, good or bad."""

from __future__ import annotations

import bz2
import csv
from collections.abc import Iterator
from pathlib import Path

from evaluation import assets
from evaluation.benchmarks.base import Benchmark, register_benchmark
from evaluation.benchmarks.splits import assemble
from evaluation.spec import Unusable

_HEADER = ["category", "filename", "text", "movie_name"]
_LABELS = ("fresh", "rotten")


@register_benchmark("polarity", metric="accuracy", sizes=(3362, 500, 1000))
def polarity() -> Benchmark:
    """Movie reviews in a sentence or two, fresh or rotten: train 3,362, validation 500, test 1,000.

    Out of 4,866 reviews: 2,455 fresh, 2,411 rotten; the file's 156 plot summaries have no label and are not used. Four
    reviews occur twice, none with two labels; 4 lie in 2 pairs of near-duplicates. Splits are not stratified: 497 of
    the test and 253 of the validation reviews are rotten. A review has 27 of MiniLM's tokens at the median and 78 at
    most, so that a max_length below 78 cuts some (64: five, 32: 1,546). All 156 films are in train: scores
    say nothing about films that were not seen.

    Raises:
        Unusable: the reviews cannot be fetched.
    """
    file = assets.fetch("polarity") / "rotten_tomatoes_corpus.csv.bz2"
    return assemble("polarity", _reviews(file), test=1000, validation=500)


def _reviews(path: Path) -> Iterator[tuple[str, str]]:
    """(text, label) of each review; summaries of a film's plot, which have no label, are passed over."""
    try:
        with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            if next(rows, None) != _HEADER:
                raise Unusable(f"{path} does not start with the columns {', '.join(_HEADER)}")
            for number, row in enumerate(rows, start=1):
                if len(row) != len(_HEADER) or row[0] not in (*_LABELS, "plot") or not row[2].strip():
                    raise Unusable(f"{path}, row {number}: expected a review with its category, found {str(row)[:40]}")
                if row[0] in _LABELS:
                    yield row[2].strip(), row[0]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise Unusable(f"{path} is not the table it should be: {error}") from error
