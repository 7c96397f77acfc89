"""Decompositions kept on disk: found again, enlarged, never trusted when damaged, never in the way."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from variants.core import attach, cache
from variants.core.cache import Triplets, keep_in, kept, not_kept
from variants.core.cases import Case, close, model_of, same_bits
from variants.core.linalg import svd, top
from variants.pissa import PiSSA


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where decompositions are kept during the test; off again after it."""
    place = tmp_path / "not" / "there yet"
    keep_in(place)
    yield place
    keep_in(None)


class Counted:
    """A decomposition of some rank which counts how often it is computed."""

    def __init__(self, rank: int = 3) -> None:
        self.rank, self.times = rank, 0

    def __call__(self, W: Tensor) -> Triplets:
        self.times += 1
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        return U[:, : self.rank], s[: self.rank], Vh[: self.rank]


def matrix(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same(first: Triplets, second: Triplets) -> bool:
    return all(same_bits(a, b) for a, b in zip(first, second, strict=True))


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_it_is_off_until_a_program_says_where(tmp_path: Path) -> None:
    compute = Counted()
    for _ in range(2):
        kept(matrix(), "top", compute)
    assert compute.times == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("folder")
def test_each_decomposition_is_computed_once() -> None:
    compute = Counted()
    first = kept(matrix(), "top", compute)
    again = kept(matrix().clone(), "top", compute)
    assert compute.times == 1
    assert same(first, again)
    assert same(first, Counted()(matrix()))
    keep_in(None)
    kept(matrix(), "top", compute)
    assert compute.times == 2, "off again"


def test_inside_not_kept_everything_is_computed(folder: Path) -> None:
    compute = Counted()
    kept(matrix(), "top", compute)
    with not_kept():
        kept(matrix(), "top", compute)
        kept(matrix(seed=1), "top", compute)
    with pytest.raises(ZeroDivisionError), not_kept():
        raise ZeroDivisionError
    assert compute.times == 3
    assert len(list(folder.iterdir())) == 1
    kept(matrix(), "top", compute)
    assert compute.times == 3, "on again, even after an error"


def test_one_kind_does_not_answer_for_another(folder: Path) -> None:
    """Or what a call gives would depend on what was asked for before."""
    two, three = Counted(2), Counted(3)
    assert len(kept(matrix(), "top 2", two)[1]) == 2
    assert len(kept(matrix(), "top 3", three)[1]) == 3
    assert len(kept(matrix(), "top 2", two)[1]) == 2
    assert (two.times, three.times) == (1, 1)
    assert len(list(folder.iterdir())) == 2


def test_a_file_under_another_name_is_damaged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept(matrix(), "top", Counted())
    (first,) = folder.iterdir()
    kept(matrix(seed=1), "top", Counted())
    (second,) = set(folder.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    with caplog.at_level(logging.WARNING, "svdbench"):
        assert same(kept(matrix(seed=1), "top", Counted()), Counted()(matrix(seed=1)))
    assert "damaged decomposition" in caplog.text


def test_the_bits_of_a_large_matrix_do_not_depend_on_earlier_ranks(folder: Path) -> None:
    W = torch.randn(520, 514, generator=torch.Generator().manual_seed(2))
    keep_in(None)
    alone = {rank: top(W, rank) for rank in (3, 4, 7, 100)}
    keep_in(folder)
    for order in ((100, 7, 4, 3), (3, 4, 7, 100)):
        for rank in order:
            assert same(top(W, rank), alone[rank])
    assert len(list(folder.iterdir())) == 3, "ranks up to 4, up to 8, and the whole"


@pytest.mark.parametrize(
    "other",
    [matrix(seed=1), matrix(dtype=torch.float32), matrix().T, matrix().reshape(5, 7), matrix() + 1e-15],
    ids=["values", "dtype", "transposed", "reshaped", "one bit"],
)
@pytest.mark.usefixtures("folder")
def test_another_matrix_is_another_file(other: Tensor) -> None:
    compute = Counted()
    kept(matrix(), "top", compute)
    got = kept(other, "top", compute)
    assert compute.times == 2
    assert got[0].dtype == other.dtype
    close(got[1], torch.linalg.svdvals(other)[:3], 1e-6, "its own")


@pytest.mark.usefixtures("folder")
def test_layout_in_memory_does_not_matter() -> None:
    compute = Counted()
    kept(matrix(), "top", compute)
    kept(matrix().T.contiguous().T, "top", compute)
    assert compute.times == 1


@pytest.mark.usefixtures("folder")
def test_a_changed_algorithm_does_not_find_the_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Counted()
    kept(matrix(), "top", compute)
    monkeypatch.setattr(cache, "ALGORITHM", cache.ALGORITHM + 1)
    kept(matrix(), "top", compute)
    assert compute.times == 2


def flipped(contents: bytes) -> bytes:
    return contents[:-1] + bytes([contents[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda c: c[:-8], lambda c: c[:30], lambda c: c[:0], lambda c: c + b"\0", lambda c: b"0" + c[1:]],
    ids=["a bit", "cut short", "cut in the digest", "empty", "longer", "the digest"],
)
def test_a_damaged_file_is_noticed_and_replaced(folder: Path, damage: object, caplog: pytest.LogCaptureFixture) -> None:
    compute = Counted()
    whole = kept(matrix(), "top", compute)
    path = the_file(folder)
    contents = path.read_bytes()
    path.write_bytes(damage(contents))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "svdbench"):
        assert same(kept(matrix(), "top", compute), whole)
    assert compute.times == 2
    assert "damaged decomposition" in caplog.text
    assert path.name in caplog.text
    assert path.read_bytes() == contents
    kept(matrix(), "top", compute)
    assert compute.times == 2, "found again"


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["mkdir", "mkstemp", "open", "replace"])
def test_what_cannot_be_written_is_not_kept(
    folder: Path, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if step == "mkdir":
        folder.parent.parent.mkdir(exist_ok=True)
        folder.parent.write_text("a file where the folder should be")
    elif step == "open":
        monkeypatch.setattr("builtins.open", FullDisk)
    else:
        monkeypatch.setattr({"mkstemp": "tempfile.mkstemp", "replace": "os.replace"}[step], lambda *_, **__: no_space())
    compute = Counted()
    with caplog.at_level(logging.WARNING, "svdbench"):
        for _ in range(2):
            assert same(kept(matrix(), "top", compute), Counted()(matrix()))
    monkeypatch.undo()
    assert compute.times == 2
    assert "cannot be kept" in caplog.text
    assert not folder.exists() or not list(folder.iterdir()), "no partial file is left behind"


class FullDisk:
    """An open file which fails where small writes fail: when it is closed."""

    def __init__(self, descriptor: int, mode: str) -> None:
        self.descriptor = descriptor

    def __enter__(self) -> FullDisk:
        return self

    def write(self, contents: bytes) -> None:
        os.write(self.descriptor, contents[:10])

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        no_space()


def test_what_cannot_be_read_is_computed(folder: Path) -> None:
    compute = Counted()
    kept(matrix(), "top", compute)
    path = the_file(folder)
    path.unlink()
    path.mkdir()  # reading and replacing a folder fail for everybody, root included
    assert same(kept(matrix(), "top", compute), Counted()(matrix()))
    assert compute.times == 2


def test_an_unwritable_file_system_gives_results() -> None:
    keep_in(Path("/proc/svdbench"))
    try:
        assert same(kept(matrix(), "top", Counted()), Counted()(matrix()))
    finally:
        keep_in(None)


def test_decompositions_and_methods_use_it(folder: Path) -> None:
    W = matrix()
    before = svd(W)
    assert len(list(folder.iterdir())) == 1
    assert same(top(W, 2), (before[0][:, :2], before[1][:2], before[2][:2])), "cut from the same file"
    assert len(list(folder.iterdir())) == 1
    bits = the_file(folder).read_bytes()
    model = model_of(Case(7, 5))
    attach(model, PiSSA(rank=2))
    assert len(list(folder.iterdir())) == 2
    assert bits in [path.read_bytes() for path in folder.iterdir()], "the first is left alone"
    keep_in(None)
    assert same(svd(W), before), "the same bits without it"


def decompose_many(place: str, answers: multiprocessing.Queue[float]) -> None:
    """In a process of its own: the same matrices as its siblings, in the same order."""
    torch.set_num_threads(1)
    keep_in(Path(place))
    worst = 0.0
    for round_ in range(40):
        W = matrix(round_ % 20)
        U, s, Vh = kept(W, "all", Counted(5))
        worst = max(worst, float(((U * s) @ Vh - W).abs().max()))
    answers.put(worst)


def test_processes_share_it_at_once(folder: Path) -> None:
    """They write the same files at the same time; no answer is ever wrong, and none is damaged."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=decompose_many, args=(str(folder), answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    errors = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert max(errors) < 1e-12
    assert len(list(folder.iterdir())) == 20, "and nothing half written is left"
