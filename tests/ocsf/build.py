"""Makes the JSON Schema of class 6003 from a clone of ocsf/ocsf-schema: ``python -m tests.ocsf.build CLONE``.

It holds the class and the objects that the projection uses. Other attributes are left out; objects refuse them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OBJECTS = (
    *("actor", "user", "group", "idp", "authorization", "policy", "api", "request", "response", "service"),
    *("network_endpoint", "resource_details", "metadata", "product"),
)
TARGET = Path(__file__).parent / "api_activity-1.8.0.json"
CLASS, CATEGORY = 6003, 6
SIMPLE = {
    "string_t": {"type": "string"},
    "integer_t": {"type": "integer"},
    "long_t": {"type": "integer"},
    "float_t": {"type": "number"},
    "boolean_t": {"type": "boolean"},
    "json_t": {},
}


class Schema:
    """A clone of the schema, by its files."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.dictionary = self.read("dictionary.json")

    def read(self, name: str) -> dict[str, Any]:
        return json.loads((self.clone / name).read_text())

    def merged(self, document: dict[str, Any], folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give attributes and constraints, those of what it extends included; attributes of profiles are left out."""
        attributes: dict[str, Any] = {}
        constraints: dict[str, Any] = {}
        if (parent := document.get("extends")) is not None:
            places = [f"{folder}/{parent}.json", f"{folder}/application/{parent}.json", f"{folder}/base_event.json"]
            found = next(place for place in places if (self.clone / place).exists())
            attributes, constraints = self.merged(self.read(found), folder)
        for name, own in document.get("attributes", {}).items():
            if name != "$include" and not own.get("profile"):
                before = attributes.get(name, {})
                attributes[name] = {**before, **own, "enum": {**before.get("enum", {}), **own.get("enum", {})}}
        return attributes, {**constraints, **document.get("constraints", {})}

    def type_of(self, name: str) -> dict[str, Any] | None:
        if name in SIMPLE:
            return SIMPLE[name]
        if name in self.dictionary["types"]["attributes"]:
            found = self.dictionary["types"]["attributes"][name]
            shape = dict(SIMPLE[found["type"]])
            shape |= {"pattern": found["regex"]} if "regex" in found else {}
            return shape | ({"maxLength": found["max_len"]} if "max_len" in found else {})
        if name == "object":
            return {"type": "object"}
        return {"$ref": f"#/$defs/{name}"} if name in OBJECTS else None

    def shape(self, document: dict[str, Any], folder: str) -> dict[str, Any]:
        attributes, constraints = self.merged(document, folder)
        properties, required = {}, []
        for name, own in sorted(attributes.items()):
            known = {**self.dictionary["attributes"][name], **own}
            shape = self.type_of(known["type"])
            if shape is None:
                continue
            values = {**self.dictionary["attributes"][name].get("enum", {}), **own.get("enum", {})}
            if values and "type" in shape and shape["type"] == "integer":
                shape = {"enum": sorted(map(int, values))}
            properties[name] = {"type": "array", "items": shape} if known.get("is_array") else shape
            required += [name] if own.get("requirement") == "required" else []
        made: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        made["additionalProperties"] = False
        if "at_least_one" in constraints:
            made["anyOf"] = [{"required": [name]} for name in constraints["at_least_one"] if name in properties]
        return made

    def document(self) -> dict[str, Any]:
        activity = self.shape(self.read("events/application/api_activity.json"), "events")
        properties = activity["properties"]
        kinds = properties["activity_id"]["enum"]
        properties["class_uid"], properties["category_uid"] = {"const": CLASS}, {"const": CATEGORY}
        properties["type_uid"] = {"enum": [CLASS * 100 + kind for kind in kinds]}
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$comment": "Made from ocsf/ocsf-schema 1.8.0 by tests/ocsf/build.py; Apache-2.0, see NOTICE beside it.",
            **activity,
            "$defs": {name: self.shape(self.read(f"objects/{name}.json"), "objects") for name in OBJECTS},
        }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(Schema(Path(sys.argv[1])).document(), indent=1, sort_keys=True) + "\n")
