"""The body of a request: so many bytes, read once, strictly JSON, an object.

Read next: schema.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_core import from_json

from transom.server_settings import LimitSettings

from .errors import ApiError

LARGE = 65_536
"""Bytes above which JSON is parsed beside the event loop, since it would hold it for milliseconds."""


async def read_object(scope: Any, receive: Any, limits: LimitSettings) -> dict[str, Any]:
    """The JSON object that a client sent; raises ApiError 413 above the limit and 400 for anything else."""
    data = await read_bytes(scope, receive, limits.body)
    found = parse(data, limits) if len(data) < LARGE else await asyncio.to_thread(parse, data, limits)
    if not isinstance(found, dict):
        raise ApiError(400, "the body must be a JSON object: {...}")
    return found


async def read_bytes(scope: Any, receive: Any, limit: int) -> bytes:
    """All of the body, refused as soon as it is known to be too large."""
    told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if len(told) > 15 or int(told) > limit:
        raise _too_large(limit)
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client left before its request was whole")
        data += message.get("body", b"")
        if len(data) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(data)


def _too_large(limit: int) -> ApiError:
    message = f"the request is larger than {limit:,} bytes, the limit (--limits.body)"
    return ApiError(413, message, code="too_large", headers={"connection": "close"})


def parse(data: bytes, limits: LimitSettings) -> Any:
    """JSON as its standard has it: no NaN, no halves of surrogate pairs, no abyss of brackets."""
    try:
        found = from_json(data, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        where = str(error).rpartition(" at ")[2] if " at " in str(error) else ""
        said = (
            "brackets nested too deep"
            if "recursion" in str(error)
            else f"not JSON{' at ' * bool(where)}{where}"
        )
        raise ApiError(400, f"the body is {said}", code="invalid_json") from None
    if _deeper(found, limits.json_depth):
        message = f"brackets are nested deeper than {limits.json_depth}, the limit (--limits.json-depth)"
        raise ApiError(400, message, code="invalid_json")
    return found


def _deeper(value: Any, depth: int) -> bool:
    """Whether a value has more levels of brackets than `depth`; level by level, without recursion."""
    level = [value]
    for _ in range(depth):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [held for held in item.values() if isinstance(held, dict | list)]
            elif isinstance(item, list):
                inner += [held for held in item if isinstance(held, dict | list)]
        level = inner
        if not level:
            return False
    return True
