"""JSON schemas from outside: what is taken of them, and within which limits.

The one idea: what a schema says is kept to, or it is refused by name; the few keywords that a reader can
check for itself are left out and told (`unkept`). Read next: structured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from transom.data.documents import printable
from transom.data.messages import json_levels
from transom.errors import Refused

MAX_BYTES, MAX_DEPTH = 64 << 10, 32
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
"""Formats that llguidance knows."""

_REGEX = ("pattern", "patternProperties")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose values hold schemas by names that are not keywords."""
_DATA = ("enum", "const", "default", "examples", "required")
"""Keywords whose values are no schemas."""


def checked_schema(schema: dict[str, Any] | str, regex: bool) -> dict[str, Any]:
    """Return a schema as an object; raises Refused for one out of the limits, or that cannot be kept to."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
        size = len(text.encode())
        parsed = json.loads(text) if size <= MAX_BYTES else {}
        json.dumps(parsed, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    except RecursionError:
        raise Refused(f"schema: too deep; the limit is {MAX_DEPTH} levels") from None
    except (TypeError, ValueError) as error:
        raise Refused(f"schema: not JSON ({printable(str(error)[:80])})") from None
    if size > MAX_BYTES:
        raise Refused(f"schema: {size:,} bytes of JSON; the limit is {MAX_BYTES:,}")
    if not isinstance(parsed, dict):
        raise Refused(f"schema: a JSON {type(parsed).__name__}; a schema is an object")
    if (depth := sum(1 for _ in json_levels(parsed))) > MAX_DEPTH:
        raise Refused(f"schema: too deep, {depth} levels; the limit is {MAX_DEPTH} levels")
    found = {id(schema): schema for schema in _schemas(parsed)}
    for schema in found.values():
        if "x-guidance" in schema or any(keyword in schema and not regex for keyword in _REGEX):
            keyword = next(key for key in ("x-guidance", *_REGEX) if key in schema)
            raise Refused(f"schema: '{keyword}' is not taken from requests; say what the value is without it")
        fewest, required = schema.get("minProperties", 0), schema.get("required", ())
        if (
            isinstance(fewest, int | float)
            and isinstance(required, list | tuple)
            and fewest > max(1, len(required))
        ):
            raise Refused("schema: minProperties cannot be kept to, as JSON may repeat a name; use required")
        if "$id" in schema and schema is not parsed:
            raise Refused("schema: $id within a schema changes what $ref means; leave it out")
        if "$ref" in schema and id(_target(parsed, schema["$ref"])) not in found:
            says = printable(repr(schema["$ref"])[:80])
            raise Refused(
                f"schema: $ref is {says}; it must be '#' or lead to a schema within this one, such as"
                " '#/$defs/NAME'"
            )
    return parsed


def _target(whole: dict[str, Any], reference: Any) -> Any:
    """Return what a reference leads to, a JSON pointer (RFC 6901) in a URI fragment; None: nothing here."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    path = unquote(reference[1:])
    if path and not path.startswith("/"):
        return None
    at: Any = whole
    for step in path.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(at, list) and step.isdecimal() and len(step) < 6 and int(step) < len(at):
            at = at[int(step)]
        elif isinstance(at, dict) and step in at:
            at = at[step]
        else:
            return None
    return at


def unkept(schema: Any) -> list[str]:
    """Return what in a schema is left to the reader: formats that nobody here knows, which say nothing about
    validity (JSON Schema 2020-12, validation, 7.2.3), and that items are unique.
    """
    found = {
        keyword
        for part in _schemas(schema)
        for keyword in ("format", "uniqueItems")
        if isinstance(part.get(keyword), str | bool) and _unkept(keyword, part[keyword])
    }
    return sorted(found)


def _unkept(keyword: str, value: Any) -> bool:
    return keyword == "uniqueItems" or keyword == "format" and isinstance(value, str) and value not in FORMATS


def kept_to(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a checked schema without what is unkept; names that are chosen from a list become properties."""

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [kept(part) for part in value]
        if not isinstance(value, dict):
            return value
        made = {}
        for keyword, held in value.items():
            if keyword in _MAPS and isinstance(held, dict):
                made[keyword] = {name: kept(part) for name, part in held.items()}
            elif not _unkept(keyword, held) and keyword != "propertyNames":
                made[keyword] = held if keyword in _DATA else kept(held)
        return _named(made, value.get("propertyNames"))

    return kept(schema)


def _named(schema: dict[str, Any], names: Any) -> dict[str, Any]:
    """Return a schema of objects whose names are chosen from a list; else any string is one."""
    if not isinstance(names, dict) or not names.keys() - {"type", "title", "description"}:
        return schema
    known = [names["const"]] if "const" in names else names.get("enum")
    if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
        raise Refused("schema: propertyNames can be kept to as an enum or a const of strings; use properties")
    value = schema.get("additionalProperties", True)
    given = schema.get("properties", {})
    return {
        **schema,
        "properties": {name: given.get(name, value) for name in known},
        "additionalProperties": False,
    }


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Return a schema and all schemas in it, those that references lead to included."""
    if isinstance(schema, list):
        for part in schema:
            yield from _schemas(part)
    elif isinstance(schema, dict):
        yield schema
        for keyword, value in schema.items():
            if keyword in _MAPS and isinstance(value, dict):
                yield from _schemas(list(value.values()))
            elif keyword not in _DATA:
                yield from _schemas(value)


def words(schema: Any) -> Iterator[str]:
    """Return the strings that a text of this schema may have to hold: names and chosen values."""
    for part in _schemas(schema):
        names = part.get("properties")
        yield from names if isinstance(names, dict) else ()
        yield from _strings([part.get("required"), part.get("enum"), part.get("const")])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(part)
