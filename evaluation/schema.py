"""The JSON schema of suite files, by which an editor completes keys, explains them and marks mistakes.

It follows from the models of ``spec``, but describes what people write: a method's hyperparameters stand beside its
name, and TOML has no null. What it cannot know (whether a method, a model or a layer exists) is checked when a suite is
used.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from evaluation.spec import ENTRY_KEYS, SUITES, Suite

SHIPPED = SUITES / "suite.schema.json"
Schema = dict[str, Any]


class _Untitled(GenerateJsonSchema):
    """Without titles of fields, which would only say the keys again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def suite_schema() -> Schema:
    """The schema as JSON, of draft 2020-12."""
    schema = _without_null(Suite.model_json_schema(schema_generator=_Untitled))
    definitions = schema["$defs"]
    definitions["Entry"] = _flat_entry(definitions["Entry"], definitions.pop("Method"))
    schema["required"].remove("name")  # of the file unless given
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A suite of svdbench"}


def schema_text() -> str:
    """The schema as the shipped file holds it."""
    return json.dumps(suite_schema(), indent=1, ensure_ascii=False) + "\n"


def _flat_entry(entry: Schema, method: Schema) -> Schema:
    """A method as an entry of the file: keys of its own, and hyperparameters, whose names the methods know."""
    own = {key: entry["properties"][key] for key in ENTRY_KEYS}
    name = method["properties"]["name"] | {"description": "A name that `variants` lists, or one of a plug-in."}
    return {
        "type": "object",
        "description": entry["description"],
        "properties": {"name": name, **own},
        "required": ["name"],
        "additionalProperties": {
            "description": "A hyperparameter of the method.",
            "type": ["string", "number", "boolean", "array"],
        },
    }


def _without_null(schema: Any) -> Any:
    """Nothing may be null, and nothing is by default; texts are one line."""
    if isinstance(schema, str):
        return " ".join(schema.split())
    if isinstance(schema, list):
        return [_without_null(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _without_null(value) for key, value in schema.items() if value is not None}
    options = [option for option in kept.pop("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        return options[0] | kept
    return {"anyOf": options, **kept} if options else kept
