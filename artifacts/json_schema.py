"""The manifest's dataclasses go in; the JSON Schema that is published beside them comes out.

`python -m edgewright.artifacts.json_schema > artifacts/manifest.schema.json` writes it anew.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Annotated, Literal, Union, get_args, get_origin

from edgewright.artifacts.json_text import Json
from edgewright.artifacts.manifest import Manifest
from edgewright.artifacts.strict_json import (
    ITEMS_LIMIT,
    WHOLE_LIMIT,
    Items,
    Range,
    Text,
    field_kinds,
)

Schema = dict[str, Json]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS: dict[object, str] = {bool: "boolean", float: "number", str: "string"}


def manifest_schema() -> Schema:
    definitions: Schema = {}
    root = _schema(Manifest, definitions)
    assert isinstance(root, dict)
    body = definitions.pop("Manifest")
    assert isinstance(body, dict)
    title: Schema = {"$schema": DIALECT, "title": "Edgewright package manifest"}
    return title | body | {"$defs": dict(sorted(definitions.items()))}


def _schema(kind: object, definitions: Schema) -> Schema:
    origin = get_origin(kind)
    if origin is Annotated:
        base, rule = get_args(kind)
        return _schema(base, definitions) | _keywords(rule, get_origin(base))
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(option, definitions) for option in get_args(kind)]}
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    if origin is tuple:
        items = _schema(get_args(kind)[0], definitions)
        return {"type": "array", "items": items, "maxItems": ITEMS_LIMIT}
    if origin is not None and issubclass(origin, Mapping):
        keys, values = (_schema(part, definitions) for part in get_args(kind))
        return {
            "type": "object",
            "propertyNames": keys,
            "additionalProperties": values,
            "maxProperties": ITEMS_LIMIT,
        }
    if isinstance(kind, type) and is_dataclass(kind):
        return _object(kind, definitions)
    if kind is None or kind is type(None):
        return {"type": "null"}
    if kind is int:
        return {"type": "integer", "minimum": -WHOLE_LIMIT, "maximum": WHOLE_LIMIT}
    return {"type": _SCALARS[kind]}


def _object(kind: type, definitions: Schema) -> Schema:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = None  # taken, should it refer to itself
        kinds = field_kinds(kind)
        description = " ".join((kind.__doc__ or "").split())
        # A dataclass without a docstring is given its own signature as one.
        described = description and not description.startswith(f"{kind.__name__}(")
        definitions[kind.__name__] = {
            **({"description": description} if described else {}),
            "type": "object",
            "properties": {name: _schema(k, definitions) for name, k in kinds.items()},
            "required": list(kinds),
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _keywords(rule: object, base_origin: object) -> Schema:
    if isinstance(rule, Range):
        return {"minimum": rule.minimum, "maximum": rule.maximum}
    if isinstance(rule, Text):
        most_letters: Schema = {"maxLength": rule.limit}
        if rule.pattern is None:
            return most_letters
        # Not `$`, which in some languages lets one more newline pass.
        return most_letters | {"pattern": f"^(?:{rule.pattern})(?![\\s\\S])"}
    assert isinstance(rule, Items)
    of_list = base_origin is tuple
    least, most = ("minItems", "maxItems") if of_list else ("minProperties", "maxProperties")
    return {least: rule.minimum, most: rule.maximum}


def schema_bytes() -> bytes:
    return json.dumps(manifest_schema(), indent=2, ensure_ascii=False).encode() + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(schema_bytes())
