"""Suites as TOML files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from evaluation.spec.sections import Calibration, Curve, Merging, Protocol, Quantised, Spectrum, Speed, Training
from evaluation.spec.suite import Suite
from evaluation.spec.values import Unusable
from variants.core.registry import suggestion

SUITES = Path(__file__).parents[1] / "suites"


def load_suite(name: str, changes: dict[str, str] | None = None) -> Suite:
    """A suite by the name of a shipped one or the path of a TOML file, with ``key=value`` changes applied.

    Raises:
        Unusable: no such suite, not TOML, an unknown key, or a value of the wrong kind; in one line.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        shipped = sorted(p.stem for p in SUITES.glob("*.toml"))
        raise Unusable(f"no suite {name!r}: {suggestion(name, shipped)} (or give the path of a .toml file)") from None
    except OSError as error:
        raise Unusable(f"cannot read the suite {name!r}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(f"{path} is not a TOML file: {error}") from error
    for dotted, text in (changes or {}).items():
        _change(data, dotted, text)
    try:
        return Suite.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        raise Unusable(f"{path.name}: {_first_problem(error)}") from error


def _change(data: dict[str, Any], dotted: str, text: str) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise Unusable(f"--set {dotted}: {parent} is not a table")
    try:
        data[last] = tomllib.loads(f"v = {text}")["v"]
    except (tomllib.TOMLDecodeError, RecursionError):
        data[last] = text  # a bare word is a string


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}: {suggestion(str(first['loc'][-1]), _known_keys(first['loc']))}"
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] in ("dict_type", "model_type"):
        message = "Input should be a table"  # as TOML calls it
    if first["type"] not in ("missing", "value_error"):  # our own messages say what came
        message += f", got {_shown(first['input'])}"
    return f"{place}: {message}" if place else message


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "training": Training,
        "protocol": Protocol,
        "merging": Merging,
        "speed": Speed,
        "quantised": Quantised,
        "spectrum": Spectrum,
        "curve": Curve,
        "calibration": Calibration,
    }
    model: type[BaseModel] = sections.get(str(place[0]), Suite) if len(place) > 1 else Suite
    return list(model.model_fields)
