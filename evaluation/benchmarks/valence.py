"""How positive or negative a sentence is, as a number (Hutto and Gilbert, VADER, 2014)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from evaluation import assets
from evaluation.benchmarks.base import Benchmark, register_benchmark
from evaluation.benchmarks.splits import assemble
from evaluation.spec import Unusable

_HEADER = "id\tsentiment\ttext"


@register_benchmark("valence", metric="spearman", sizes=(9101, 500, 1000))
def valence() -> Benchmark:
    """How positive a sentence of a film review is, a number from -4 to 4: train 9,101, validation 500, test 1,000.

    Regression, by Spearman's correlation. The numbers are means over raters: -3.9 to 3.9, mean 0.0, standard deviation
    1.9. The domain is films, and 4,035 of the 4,862 reviews of `polarity` are among the sentences: the two are not
    unrelated tasks. Out of 10,603 distinct sentences two are left out because they occur twice, with two numbers; 6 lie
    in 3 pairs of near-duplicates. 26 of MiniLM's tokens at the median, 79 at most (64 cuts six).

    Raises:
        Unusable: the sentences cannot be fetched.
    """
    sentences = _sentences(assets.fetch("valence") / "movieReviewSnippets_GroundTruth.txt")
    return assemble("valence", sentences, test=1000, validation=500, metric="spearman")


def _sentences(path: Path) -> Iterator[tuple[str, float]]:
    """(text, valence) of each line ``id, valence, text``, separated by tabs."""
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise Unusable(f"{path} is not the table it should be: {error}") from error
    if header != _HEADER:
        raise Unusable(f"{path} does not start with the columns id, sentiment, text")
    for number, line in enumerate(lines, start=1):
        _, value, text = [*line.split("\t", 2), "", ""][:3]
        if not _is_valence(value) or not text.strip():
            raise Unusable(f"{path}, row {number}: expected `id, number from -4 to 4, text`, found {line[:40]!r}")
        yield text.strip(), float(value)


def _is_valence(value: str) -> bool:
    try:
        return math.fabs(float(value)) <= 4  # False for NaN
    except ValueError:
        return False
