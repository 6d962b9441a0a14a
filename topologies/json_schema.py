"""JSON Schema of a topology file, for editors and other tools; generated from the model.

Differs from the model where the file does: a node may leave out what it inherits, and an empty section or
node may stand there without a value.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema

from topologies.merge import OPTIONAL_SECTIONS, SECTIONS_OF_MAPS
from topologies.scalars import NAME_JSON, SIZE_JSON, TIME_JSON
from topologies.schema import Topology
from topologies.units import format_duration, format_size

DIALECT: Final = GenerateJsonSchema.schema_dialect
VERSION: Final = "argosy/topology/1"


def json_schema() -> dict[str, Any]:
    """The schema as JSON data."""
    schema = Topology.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema["$defs"]
    for definition in (schema, *definitions.values()):
        for key in definition["properties"].values():
            _tidy(key)
    for key in SECTIONS_OF_MAPS:
        section = schema["properties"][key]
        section["additionalProperties"] = _or_nothing(section["additionalProperties"])
    for key in OPTIONAL_SECTIONS:
        section = schema["properties"][key]
        description = section.pop("description")
        schema["properties"][key] = {"description": description, **_or_nothing(section)}
    head = {"$schema": DIALECT, "$id": f"urn:{VERSION.replace('/', ':')}"}
    return {**head, **schema}


def _tidy(key: dict[str, Any]) -> None:
    """Names as pydantic's versions write them differently, defaults as YAML writes them, no titles."""
    key.pop("title", None)
    if "patternProperties" in key:
        (key["additionalProperties"],) = key.pop("patternProperties").values()
        key["propertyNames"] = NAME_JSON
    default = key.pop("default", None)
    if isinstance(default, int) and not isinstance(default, bool):
        written = {TIME_JSON["pattern"]: format_duration, SIZE_JSON["pattern"]: format_size}.get(key.get("pattern"))
        key["default"] = default if written is None else written(default)
    elif isinstance(default, bool) or (isinstance(default, str) and default):
        key["default"] = default


def _or_nothing(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
