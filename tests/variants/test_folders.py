"""Folders that are replaced as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from variants.core import Refused
from variants.core.folders import replaced

OWN = frozenset({"a", "b", "c"})


def write(folder: Path, text: str, names: str = "ab") -> None:
    with replaced(folder, OWN) as new:
        for name in names:
            (new / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {item.name: item.read_text() for item in folder.iterdir()}


def test_an_earlier_folder_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "x" / "y", "old", "abc")
    write(tmp_path / "x" / "y", "new")
    assert contents(tmp_path / "x" / "y") == {"a": "new", "b": "new"}
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["y"]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_folder_that_is_there_stays_the_same_folder(
    earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the working directory, or where something is mounted."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tmp_path.chmod(0o500)
    try:
        if earlier:
            write(Path("."), "old", "abc")
        inode = os.stat(".").st_ino
        write(Path("."), "new")
    finally:
        tmp_path.chmod(0o700)
    assert (tmp_path / "here").stat().st_ino == inode
    assert Path.cwd() == tmp_path / "here"
    assert contents(Path(".")) == {"a": "new", "b": "new"}


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", range(1, 6))
@pytest.mark.parametrize("earlier", ["", "abc"])
def test_an_interrupted_move_leaves_what_was_there(
    stop: type[BaseException],
    after: bool,
    nth: int,
    earlier: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "x").mkdir()
    write(tmp_path / "x", "old", earlier)
    moves, replace = [0], os.replace

    def stopped(*paths: Any) -> None:
        moves[0] += 1
        if moves[0] != nth or after:
            replace(*paths)
        if moves[0] == nth:
            raise stop

    monkeypatch.setattr(os, "replace", stopped)
    if nth <= len(earlier) + 2:
        with pytest.raises(stop):
            write(tmp_path / "x", "new")
        assert contents(tmp_path / "x") == dict.fromkeys(earlier, "old")
    else:
        write(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        with replaced(tmp_path / "x", OWN) as new:
            (new / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not list(tmp_path.iterdir())


def test_home_is_meant_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(Path("~/~"), "new")
    assert contents(tmp_path / "~") == {"a": "new", "b": "new"}


def test_what_is_somebody_elses_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(Refused, match="'mine', which is not replaced"):
        write(tmp_path, "new")
    with pytest.raises(Refused, match="is a file"):
        write(tmp_path / "mine", "new")
    assert contents(tmp_path) == {"mine": "mine"}
