#!/usr/bin/env python3
"""The command line of svdbench: ``python3 tasks.py VERB``, the same as ``svdbench VERB`` after installation.

In a fresh clone it sets itself up: if the dependencies are missing, it makes ``.venv``, installs the project there
with the versions of ``constraints.txt`` and starts itself again in it. Until then only the standard library is used.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  a clone may be started with any Python
    sys.exit(f"svdbench needs Python 3.11 or newer, this is {sys.version.split()[0]}")

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent


# ---- set-up: standard library only ----------------------------------------------------------------------------------


def set_up(verb: str) -> None:
    """Continues in an environment that has everything the verb needs; returns if this one does."""
    extra = verb if verb in ("test", "bench") else ""
    lacking = missing_requirements(extra)
    if not lacking:
        os.environ.pop("SVDBENCH_SET_UP", None)  # not for the programs that a verb starts
        return
    folder = ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if os.environ.get("SVDBENCH_SET_UP") == str(folder):  # was started from below, after the installation
        sys.exit(f"svdbench: {folder} still lacks {lacking[0]}: remove the folder and try again")
    stamp = folder / f".svdbench-{extra or 'core'}"
    pins = hashlib.sha256(b"".join((ROOT / f).read_bytes() for f in ("pyproject.toml", "constraints.txt"))).hexdigest()
    with one_at_a_time(ROOT / ".venv.lock"):
        done = stamp.is_file() and stamp.read_text() == pins and python.exists() and Path(sys.prefix) != folder
        if not done:
            print(f"setting up {folder} with the versions of constraints.txt (once, a few minutes) ...", flush=True)
            install(folder, python, extra)
            stamp.write_text(pins)
    os.environ["SVDBENCH_SET_UP"] = str(folder)
    arguments = [str(python), str(ROOT / "tasks.py"), *sys.argv[1:]]
    if os.name == "nt":
        sys.exit(subprocess.run(arguments, check=False).returncode)
    os.execv(python, arguments)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Inside, no other process that asks for the same file is inside; where there are no such locks, no promise."""
    with open(path, "w") as file:
        if importlib.util.find_spec("fcntl"):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def missing_requirements(extra: str) -> list[str]:
    """Requirements of pyproject.toml which this environment does not meet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    return [requirement for requirement in wanted if not is_met(requirement)]


def is_met(requirement: str) -> bool:
    """Whether ``name>=version`` or ``name==version`` is installed here."""
    name, relation, version = re.fullmatch(r"([\w.-]+)(>=|==)([\d.]+)", requirement).groups()  # type: ignore[union-attr]

    def numbers(text: str) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3]]

    try:
        found = numbers(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
    return found == numbers(version) if relation == "==" else found >= numbers(version)


def install(folder: Path, python: Path, extra: str) -> None:
    """Makes the virtual environment, if need be, and installs the project into it."""
    whole = python.exists() and not subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode
    if not whole:  # absent, or left behind by a set-up that was interrupted
        try:
            venv.create(folder, with_pip=True, clear=True)
        except subprocess.CalledProcessError:
            sys.exit("svdbench: Python cannot make a virtual environment here; on Debian, install python3-venv")
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), "--editable", target], check=False)
    if done.returncode:
        sys.exit("svdbench: the dependencies could not be installed (see above); is there a network?")


if __name__ == "__main__":
    set_up(sys.argv[1] if len(sys.argv) > 1 else "")

# ---- the verbs ------------------------------------------------------------------------------------------------------

import logging

import typer
from rich.console import Console

from commands import adapters, catalogue, comparing, speed

app = typer.Typer(
    help="Which member of the LoRA / SVD family should I use, and what does it really cost?",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
own = typer.Typer()


@own.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(context: typer.Context) -> None:
    """Run the tests; arguments go to pytest.

    Example: python3 tasks.py test -k stiefel
    """
    from evaluation.spec import Unusable

    if not (ROOT / "tests").is_dir():
        raise Unusable("the tests are not installed: run this in a clone of the repository")
    arguments = context.args or ["--numprocesses", "2"]
    raise typer.Exit(subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode)


for verbs in (comparing.verbs, catalogue.verbs, speed.verbs, adapters.verbs, own):  # in the order of the help
    app.add_typer(verbs)


def main() -> None:
    """Runs a verb. Exit codes: 0 done, 1 a check or run failed, 2 unusable input."""
    from evaluation.quiet import quieten

    quieten()
    from evaluation.machine import check_products
    from evaluation.spec import Unusable
    from reports import UnusableResults

    logging.basicConfig(format="%(message)s")
    logging.getLogger("svdbench").setLevel(logging.INFO)  # downloads, and what was found damaged
    try:
        check_products()
        app()
    except (Unusable, UnusableResults) as problem:
        Console(stderr=True).print(f"svdbench: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
