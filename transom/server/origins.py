"""Pages of which sites may ask, and what their browsers are told (the Fetch standard, "CORS protocol").

A page may ask the server that it came from, and so may those of sites that the operator named:
`--allow-origin` for other sites, `--allow-host` for this server's own names, which a proxy in front may have
under another scheme and port than are seen here. Read next: guard.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from transom.data.documents import printable
from transom.errors import Refused

from .errors import ApiError

HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::(\d{1,5}))?", re.ASCII)
PORTS = {"http": ":80", "https": ":443"}
METHODS = b"GET, POST, PATCH, DELETE"
SHOWN = b"x-request-id, x-transom-ignored, retry-after"
"""Headers of an answer that a page of another site may read."""


class Origins:
    """Which pages may ask."""

    def __init__(self, allowed: Iterable[str], hosts: Collection[str]) -> None:
        """allowed: origins of other sites; hosts: names given to this server. Raises Refused."""
        self._allowed = frozenset(_checked(origin) for origin in allowed)
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)

    def check(self, origin: bytes | None, host: bytes) -> None:
        """Raise ApiError 403 for a page that may not ask."""
        if origin is None or self._named(origin) or self._own(origin, host):
            return
        raise ApiError(
            403,
            f"this request comes from a page of {_shown(origin)} (Origin) and asks {_shown(host)} (Host); the"
            " operator may let such pages ask with --allow-origin, or name this server with --allow-host",
            code="origin_not_allowed",
        )

    def is_preflight(self, scope: Any) -> bool:
        """Return whether a browser asks first what a page of an allowed site may send."""
        names = {name for name, _ in scope["headers"]}
        return (
            scope["method"] == "OPTIONS"
            and b"access-control-request-method" in names
            and self._named(_origin(scope) or b"")
        )

    async def answer_preflight(self, scope: Any, send: Any) -> None:
        """That it may ask: any path, JSON and a key; for ten minutes."""
        headers = [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", _asked_headers(scope)),
            (b"access-control-allow-private-network", b"true"),
            (b"access-control-max-age", b"600"),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def headers(self, scope: Any) -> list[tuple[bytes, bytes]]:
        """Return what every answer says to the browser of whoever asks; nothing where no other site is named.

        Keys go in a header of their own, so nothing is said of cookies.
        """
        same = (b"cross-origin-resource-policy", b"same-origin")
        if not self._allowed:
            return [same]
        origin = _origin(scope) or b""
        if not self._named(origin):
            return [same, (b"vary", b"Origin")]
        return [
            (b"cross-origin-resource-policy", b"cross-origin"),
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", SHOWN),
            (b"vary", b"Origin"),
        ]

    def _named(self, origin: bytes) -> bool:
        return origin.decode("latin-1").lower() in self._allowed

    def _own(self, origin: bytes, host: bytes) -> bool:
        """Say whether a page came from this server: from the very host that it asks, or from a name of it."""
        scheme, _, place = origin.decode("latin-1").lower().partition("://")
        if scheme not in PORTS or not host_name(place):
            return False
        asked, port = host.decode("latin-1").lower(), PORTS[scheme]
        return host_name(place) in self._hosts or place.removesuffix(port) == asked.removesuffix(port)


def _checked(origin: str) -> str:
    scheme, _, place = origin.lower().rstrip("/").partition("://")
    if scheme not in PORTS or not host_name(place):
        raise Refused(
            f"--allow-origin {printable(origin)} is no origin; name the site, such as https://notes.example,"
            " with its port where it has one"
        )
    return f"{scheme}://{place.removesuffix(PORTS[scheme])}"


def host_name(host: str) -> str:
    """Return the name in a Host header, without its port; empty where it is none."""
    found = HOST.fullmatch(host)
    return "" if found is None else (found[1] or found[2]).lower().rstrip(".")


def _origin(scope: Any) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == b"origin"), None)


def _asked_headers(scope: Any) -> bytes:
    """Return the headers that a page wants to send: names alone, and few of them."""
    asked = next((v for name, v in scope["headers"] if name == b"access-control-request-headers"), b"")
    names = [name for name in asked.decode("latin-1").split(",") if re.fullmatch(r"\s*[\w-]{1,64}\s*", name)]
    return ", ".join(name.strip().lower() for name in names[:32]).encode()


def _shown(value: bytes) -> str:
    return ascii(value.decode("latin-1")[:200])
