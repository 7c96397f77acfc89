"""The JSON schema of suite files: up to date, true to what is accepted, and refusing what a suite refuses."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from evaluation.schema import SHIPPED, schema_text, suite_schema
from evaluation.spec import SUITES, Unusable, load_suite
from tests.evaluation.tiny import TEMPLATE


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(suite_schema())
    return jsonschema.Draft202012Validator(suite_schema())


def problems(schema: jsonschema.Draft202012Validator, text: str) -> list[str]:
    return [error.message for error in schema.iter_errors(tomllib.loads(text))]


def test_the_shipped_schema_is_up_to_date() -> None:
    written = SHIPPED.read_text(encoding="utf-8")
    assert written == schema_text(), f"write it again: python3 tasks.py schema --out {SHIPPED.relative_to(Path.cwd())}"


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_suites_are_valid_and_name_the_schema(schema: jsonschema.Draft202012Validator, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not problems(schema, text)
    assert text.startswith(f"#:schema ./{SHIPPED.name}\n"), "an editor finds the schema by the first line"


ACCEPTED = [
    ("", ""),
    ("merging = false\nspeed = false", ""),
    ("budget = 1000", ""),
    ('budget = "0.3%"', ""),
    ("[quantised]\nranks = [4]", ""),
    ("[training]\nsteps = 3\nclip = 2", ""),
    ("", 'label = "lora"\nlr = 1e-3\nwhere = ["key"]\npoints = 2\nseeds = 3\nrank = 8\nalpha = 16.0'),
    ('name = "mine.2"', 'kind = "some"\nfast = true\nlist = [1, 2]'),
]


@pytest.mark.parametrize(("before", "inside"), ACCEPTED)
def test_what_a_suite_may_say(
    schema: jsonschema.Draft202012Validator, tmp_path: Path, before: str, inside: str
) -> None:
    text = TEMPLATE.format(before=before, inside=inside)
    assert not problems(schema, text)
    (tmp_path / "mine.toml").write_text(text)
    load_suite(str(tmp_path / "mine.toml"))


REFUSED = {
    "unknown key": ("benchmrk = 'x'", ""),
    "unknown key of a section": ("[training]\nstpes = 3", ""),
    "unknown section": ("[trainign]\nsteps = 3", ""),
    "wrong type": ("[training]\nsteps = 'many'", ""),
    "truth for a number": ("[training]\nsteps = true", ""),
    "half a step": ("[training]\nsteps = 2.5", ""),
    "negative": ("[training]\nbatch_size = -1", ""),
    "share above one": ("[training]\nwarmup = 1.5", ""),
    "all dropped": ("[training]\nadapter_dropout = 1.0", ""),
    "not one of": ("[training]\nschedule = 'linaer'", ""),
    "no format": ("[merging]\nformats = ['float8']", ""),
    "no formats": ("[merging]\nformats = []", ""),
    "true for a section": ("merging = true", ""),
    "rate of zero": ("[protocol]\nlr = 0.0", ""),
    "rate of a method": ("", "lr = 'fast'"),
    "seeds of a method": ("", "seeds = 0"),
    "no layer": ("", "where = []"),
    "half a parameter": ("budget = 2.5", ""),
    "name of a folder elsewhere": ("name = '../x'", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_suite_may_not_say(schema: jsonschema.Draft202012Validator, tmp_path: Path, case: str) -> None:
    text = TEMPLATE.format(before=REFUSED[case][0], inside=REFUSED[case][1])
    assert problems(schema, text)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(Unusable):
        load_suite(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    "methods", ["", "methods = []", "methods = ['lora']", "[[methods]]\nrank = 3", "[[methods]]\nname = 3"]
)
def test_methods_that_cannot_be_used(schema: jsonschema.Draft202012Validator, methods: str) -> None:
    assert problems(schema, f"model = 'm'\nbenchmark = 'b'\nwhere = 'q'\n{methods}")


def test_every_key_is_explained_and_none_may_be_null() -> None:
    found = suite_schema()
    for place, part in {"suite": found, **found["$defs"]}.items():
        for name, field in part["properties"].items():
            assert explained(field, found["$defs"]), f"{place}.{name} needs a description, see evaluation/spec.py"
    assert "null" not in schema_text()


def explained(field: dict[str, Any], definitions: dict[str, Any]) -> bool:
    """By its own words, or by those of the section that it is."""
    parts = [field, *field.get("anyOf", [])]
    sections = [definitions[part["$ref"].rpartition("/")[2]] for part in parts if "$ref" in part]
    return any("description" in part for part in [*parts, *sections])
