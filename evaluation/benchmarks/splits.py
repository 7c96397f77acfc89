"""Splits for data that comes without any: fixed by a hash of the text, near-duplicates on one side.

A question asked twice in slightly other words, once in training and once in the test, is a question the model has seen.
So texts that are near-duplicates, directly or over others, form a group, and a group goes to one split as a whole. The
order of groups is that of a hash, hence independent of the order of the file, of the labels and of Python's hash seed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from evaluation.benchmarks.base import Benchmark, Example

# Two texts are near-duplicates if their word sets share at least NEAR[0]/NEAR[1] of all their words (Jaccard).
# On TREC, 3/4 finds reworded questions ("what college did X play for", "which college did X play for") and leaves
# "what is the capital of X" apart; 0.7 chains fifty questions that only share such a frame, 0.8 misses half the pairs.
NEAR = (3, 4)
Text = str | tuple[str, str]  # a pair is a question with its passage, or two sentences


def normalise(text: str) -> str:
    """The text's words, in order, without case, punctuation and width: what makes two texts the same."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def folded(text: str) -> str:
    """The text without differences in case, white space and how an accent is encoded (NFC); signs and emoji count."""
    once = unicodedata.normalize("NFC", text).casefold()  # which may take composed characters apart
    return " ".join(unicodedata.normalize("NFC", once).split())


def identity(text: Text, normal: Callable[[str], str] = normalise) -> str:
    """16 hex digits that name a text or a pair; equal for those that are equal under ``normal``."""
    return hashlib.sha256("\n".join(map(normal, _parts(text))).encode()).hexdigest()[:16]


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def near(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether two word sets make near-duplicates. Texts without any word are near nothing."""
    if NEAR[1] * len(a) < NEAR[0] * len(b) or NEAR[1] * len(b) < NEAR[0] * len(a):
        return False  # of sizes that differ so much they cannot be; spares most of the long texts' comparisons
    common = len(a & b)
    return common > 0 and common * NEAR[1] >= (len(a) + len(b) - common) * NEAR[0]


def near_duplicates(texts: Sequence[Text]) -> list[list[int]]:
    """Indices of the texts, grouped: the connected components of :func:`near`, in the order of their first index.

    Pairs belong together if their first texts are near, or their second ones: whoever has seen the passage with another
    question has seen most of it.
    """
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for column in zip(*map(_parts, texts), strict=True):
        for i, j in _near_pairs(column):
            parent[root(i)] = root(j)
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(texts)):
        groups[root(i)].append(i)
    return list(groups.values())


def _near_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of indices which link all that are near, directly or over others.

    Prefix filtering: sets that share so much share one of their rarest words, so only such pairs are compared
    (11,000 instead of 14 million for TREC). Equal sets are compared with others once.
    """
    sets = [frozenset(normalise(text).split()) for text in texts]
    frequency = Counter(word for words in set(sets) for word in words)
    first: dict[frozenset[str], int] = {}
    posted: dict[str, list[int]] = defaultdict(list)
    for i, words in enumerate(sets):
        if words and first.setdefault(words, i) < i:
            yield i, first[words]
            continue
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        # A near set has at least need = ceil(3/4 n) words in common with this one, so misses at most n - need of them.
        need = -(-len(words) * NEAR[0] // NEAR[1])
        for j in {j for word in rarest[: len(words) - need + 1] for j in posted[word]}:
            if near(words, sets[j]):
                yield i, j
        for word in rarest[: len(words) - need + 1]:
            posted[word].append(i)


def unseen(examples: Sequence[Example], benchmark: Benchmark) -> list[int]:
    """Indices of the examples none of whose texts, alone or in a pair, is in any split of the benchmark, both
    normalised; a text without any word as it stands."""

    def texts(example: Example) -> set[str]:
        return {normalise(text) or text for text in (example.text, example.text_pair) if text is not None}

    seen = set().union(*map(texts, (*benchmark.train, *benchmark.validation, *benchmark.test)))
    return [i for i, example in enumerate(examples) if seen.isdisjoint(texts(example))]


def split(texts: Sequence[Text], *, test: int, validation: int) -> list[str]:
    """For each text "train", "validation" or "test"; the latter two get exactly as many as asked for.

    Groups come in the order of a hash, each goes to the test if it still fits, else to validation, else to train.

    Raises:
        ValueError: too few texts, or groups so large that they cannot fill a split exactly.
    """
    room = {"test": test, "validation": validation, "train": len(texts)}
    where = [""] * len(texts)
    # The first text of a group in alphabetical order stands for it: the smallest hash would favour large groups.
    names = ["\n".join(map(normalise, _parts(text))) for text in texts]
    named = [(min(names[i] for i in group), group) for group in near_duplicates(texts)]
    for _, group in sorted((hashlib.sha256(f"split 1: {name}".encode()).digest(), group) for name, group in named):
        place = next(name for name in ("test", "validation", "train") if room[name] >= len(group))
        room[place] -= len(group)
        for i in group:
            where[i] = place
    if room["test"] or room["validation"]:
        raise ValueError(f"{len(texts)} texts do not split into {test} for the test and {validation} for validation")
    return where


def assemble(
    name: str, labelled: Iterable[tuple[Text, str | float]], *, test: int, validation: int, metric: str = "accuracy"
) -> Benchmark:
    """A benchmark out of (text, label) pairs in any order; labels are classes by name, or numbers to predict.

    Texts that are equal when normalised count once, in their alphabetically first spelling; a text that occurs with two
    labels is left out, because either would be a guess. Examples are ordered by id.

    Raises:
        ValueError: as in :func:`split`.
    """
    spellings: dict[str, set[tuple[Text, str | float]]] = defaultdict(set)
    for text, label in labelled:
        spellings[identity(text)].add((text, label))
    kept = {
        i: min(found, key=lambda one: _parts(one[0]))
        for i, found in sorted(spellings.items())
        if len({label for _, label in found}) == 1
    }
    labels = tuple(sorted({label for _, label in kept.values() if isinstance(label, str)}))
    where = split([text for text, _ in kept.values()], test=test, validation=validation)
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for (i, (text, label)), place in zip(kept.items(), where, strict=True):
        target = labels.index(label) if isinstance(label, str) else label
        one, *other = _parts(text)
        parts[place].append(Example(i, one, target, *other))
    train, validating, testing = (tuple(parts[part]) for part in ("train", "validation", "test"))
    return Benchmark(name, labels, train, validating, testing, metric)
