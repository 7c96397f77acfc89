"""The store: whole records or none, damage named and set aside, one holder at a time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.spec import Identity, Method, Record, ScoreRun, Training, Unusable, key
from evaluation.store import Store, look


def record(seed: int, accuracy: float = 0.5) -> Record:
    run = ScoreRun(
        stage="final",
        model="m",
        benchmark="b",
        where=("query",),
        method=Method(name="lora", hyperparameters={"rank": 8}),
        lr=1e-3,
        seed=seed,
        split="test",
        limit=None,
        training=Training(),
        merging=None,
        device="cpu",
        identity=Identity(model="1", data="2", methods={"lora": "3"}),
    )
    return Record(key=key(run), run=run, status="done", measures={"score": {"accuracy": accuracy}})


def opened(path: Path, said: list[str] | None = None) -> Store:
    said = [] if said is None else said
    store = Store(path, say=said.append)
    store.close()
    return store


def test_records_survive_closing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = record(1), record(2)
    store.put(first)
    store.put(second)
    store.close()
    assert opened(tmp_path).records == {first.key: first, second.key: second}


def test_what_a_run_leaves_lies_beside_its_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = record(1)
    folder = store.begin(first.key)
    (folder / "adapter.bin").write_bytes(b"tensors")
    assert look(tmp_path) == {}, "not before the record is there"
    store.put(first)
    store.close()
    assert (tmp_path / "runs" / first.key / "adapter.bin").read_bytes() == b"tensors"
    assert opened(tmp_path).records == {first.key: first}


def test_what_a_run_without_a_result_leaves_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for _ in range(2):  # begun, and begun again after its worker died
        (store.begin("0" * 16) / "adapter.bin").write_bytes(b"tensors")
    assert [path.name for path in store.begin("0" * 16).iterdir()] == []
    store.drop("0" * 16)
    store.drop("0" * 16)
    store.close()
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_record_replaces_one_of_the_same_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(record(1, 0.1))
    store.put(record(1, 0.9))
    store.close()
    assert [r.measures["score"]["accuracy"] for r in opened(tmp_path).records.values()] == [0.9]


def truncate(file: Path) -> None:
    file.write_text(file.read_text()[:-7])


def change_a_digit(file: Path) -> None:
    file.write_text(file.read_text().replace("0.5", "0.9"))


def change_the_run(file: Path) -> None:
    content = json.loads(file.read_text())
    content["record"]["run"]["seed"] = 77
    file.write_text(json.dumps(content))


def remove(file: Path) -> None:
    file.unlink()


def write_noise(file: Path) -> None:
    file.write_bytes(b"\xff\x00\xfe")


@pytest.mark.parametrize("damage", [truncate, change_a_digit, change_the_run, remove, write_noise])
def test_damage_is_named_and_set_aside(tmp_path: Path, damage) -> None:
    store = Store(tmp_path)
    good, bad = record(1), record(2)
    store.put(good)
    store.put(bad)
    store.close()
    damage(tmp_path / "runs" / bad.key / "record.json")
    said: list[str] = []
    assert opened(tmp_path, said).records == {good.key: good}
    assert len(said) == 1
    assert bad.key in said[0]
    assert "set aside" in said[0]
    assert [p.name for p in (tmp_path / "damaged").iterdir()] == [f"{bad.key}-0"]
    assert opened(tmp_path, said := []).records.keys() == {good.key}
    assert not said, "what was set aside is not named again"


def test_what_a_killed_process_had_begun_is_swept_away(tmp_path: Path) -> None:
    Store(tmp_path).close()
    begun = tmp_path / "runs" / ".0123456789abcdef"
    begun.mkdir()
    (begun / "record.json").write_text('{"sha256": "')
    said: list[str] = []
    assert opened(tmp_path, said).records == {}
    assert not begun.exists()
    assert not said


def test_a_full_disk_is_one_clear_line_and_leaves_no_half_record(tmp_path: Path, monkeypatch) -> None:
    store = Store(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unusable, match=r"the disk is full.*what is done is kept"):
        store.put(record(1))
    store.close()
    assert list((tmp_path / "runs").iterdir()) == []
    assert store.records == {}


def test_two_processes_do_not_share_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    script = (
        "import sys; from pathlib import Path\n"
        "from evaluation.store import Store; from evaluation.spec import Unusable\n"
        "try: Store(Path(sys.argv[1]))\nexcept Unusable as e: print(e); sys.exit(2)"
    )
    root = Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    store.close()
    assert other.returncode == 2, other.stderr
    assert "in use by another svdbench" in other.stdout


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match="cannot write to"):
        Store(tmp_path / "file" / "results")


def test_what_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    """``runs`` is a common name for a folder: somebody else's things may lie in it."""
    for name in (".DS_Store", ".hidden", "experiment-1", "0123456789ABCDEF"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    opened(tmp_path)
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        ".DS_Store",
        ".hidden",
        "0123456789ABCDEF",
        "experiment-1",
    ]


def test_looking_changes_nothing_and_needs_no_lock(tmp_path: Path) -> None:
    store = Store(tmp_path)
    good, bad = record(1), record(2)
    store.put(good)
    store.put(bad)
    truncate(tmp_path / "runs" / bad.key / "record.json")
    said: list[str] = []
    assert look(tmp_path, said.append) == {good.key: good}
    assert len(said) == 1
    assert bad.key in said[0]
    assert (tmp_path / "runs" / bad.key).is_dir()
    store.close()
    with pytest.raises(Unusable, match="not a results folder"):
        look(tmp_path / "nowhere")
