"""The body of a request: so many bytes, read once, strictly JSON, an object, then checked.

The interpreter turns to nobody else while a library in C or Rust parses or validates, in whatever thread it
does. So what costs it time is counted beforehand: values before parsing, names and brackets after it, items
of lists before each is looked at (`schema.AtMost`). Read next: schema.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic_core import from_json

from transom.data.messages import json_levels
from transom.server_settings import LimitSettings

from .errors import ApiError
from .schema import B, read
from .state import State

LARGE = 65_536
"""Bytes above which a body is read beside the event loop, since it would hold it for milliseconds."""


async def read_body(kind: type[B], scope: Any, receive: Any, state: State) -> tuple[B, list[str]]:
    """Return the checked request of a client, and the names of what was left out of account.

    Raises ApiError 413 above the limit of bytes, 429 where too many large ones wait, 400 for anything else.
    """
    limits, lenient = state.settings.limits, state.settings.lenient
    data = await read_bytes(scope, receive, limits.body)

    def work() -> tuple[B, list[str]]:
        return read(kind, parse_object(data, limits), limits, lenient=lenient)

    return work() if len(data) < LARGE else await state.text_work(scope["transom.tenant"], work)


def parse_object(data: bytes, limits: LimitSettings) -> dict[str, Any]:
    """Return the JSON object that these bytes are; raises ApiError 400."""
    found = parse(data, limits)
    if not isinstance(found, dict):
        raise ApiError(400, "the body must be a JSON object: {...}")
    return found


async def read_bytes(scope: Any, receive: Any, limit: int) -> bytes:
    """Read all of the body, refused as soon as it is known to be too large."""
    told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if len(told) > 15 or int(told) > limit:
        raise _too_large(limit)
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "the client left before its request was whole")
        data += message.get("body", b"")
        if len(data) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(data)


def _too_large(limit: int) -> ApiError:
    message = f"the request is larger than {limit:,} bytes, the limit (--limits.body)"
    return ApiError(413, message, code="too_large", headers={"connection": "close"})


def parse(data: bytes, limits: LimitSettings) -> Any:
    """JSON as its standard has it: no NaN, no halves of surrogate pairs, no abyss of brackets, no flood."""
    if (n := n_values(data)) > limits.json_values:
        message = f"the body holds {n:,} values; the limit is {limits.json_values:,} (--limits.json-values)"
        raise ApiError(400, message, code="above_limit")
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
    _check_shape(found, limits)
    return found


def n_values(data: bytes) -> int:
    """Return how many values JSON holds, or a few more: one for each comma and opening bracket outside of
    texts.

    Arrays of numpy, since they count megabytes in milliseconds and let other threads go on.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") < LARGE // 2:
        return 1  # few enough, however many of them stand in texts
    plain = data.replace(b"\\\\", b"..").replace(b'\\"', b"..")  # what is escaped ends no text
    signs = np.frombuffer(plain, np.uint8)
    in_text = np.cumsum(signs == ord('"'), dtype=np.uint8) & 1
    begins = (signs == ord(",")) | (signs == ord("[")) | (signs == ord("{"))
    return 1 + int(np.count_nonzero(begins & (in_text == 0)))


def _check_shape(value: Any, limits: LimitSettings) -> None:
    """Raise ApiError for brackets too deep and objects too wide."""
    for depth, level in enumerate(json_levels(value), 1):
        if depth > limits.json_depth:
            message = f"brackets are nested deeper than {limits.json_depth}, the limit (--limits.json-depth)"
            raise ApiError(400, message, code="invalid_json")
        widest = max((len(item) for item in level if isinstance(item, dict)), default=0)
        if widest > limits.json_names:
            message = (
                f"an object of the body has {widest:,} names; the limit is {limits.json_names:,}"
                " (--limits.json-names)"
            )
            raise ApiError(400, message, code="above_limit")
