"""The door: who asks, from where and how, decided on the raw request before anything is read or routed.

Deny by default: every path needs a key but the few in `open_paths`, compared as they stand in
`scope["path"]`, so no trick of spelling can reach a route around it. Host and Origin keep web pages of
others out (DNS rebinding, cross-site requests). The drain after SIGTERM is here too. Read next: origins, app.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import traceback
from collections.abc import Collection
from typing import Any

from transom.server_settings import ServerSettings

from .errors import INTERNAL, ApiError, answer_error, unavailable
from .keys import Keys
from .origins import Origins, host_name

SAFE = ("GET", "HEAD", "OPTIONS")
BODILESS = (*SAFE, "DELETE")
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
logger = logging.getLogger("transom.server")


class Guard:
    """An ASGI application around another: refuses what must not pass, and answers for what breaks inside."""

    def __init__(self, app: Any, settings: ServerSettings, keys: Keys, open_paths: Collection[str]) -> None:
        self.app, self.settings, self.keys, self.open_paths = app, settings, keys, frozenset(open_paths)
        self.names = own_names(settings)
        self.origins = Origins(settings.allow_origin, settings.allow_host)
        self.draining = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
        started = False

        async def guarded_send(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = [*message.get("headers", []), *HEADERS, *self.origins.headers(scope)]
                message = {**message, "headers": headers}
            await send(message)

        try:
            if self.origins.is_preflight(scope):
                self._check_host(_only(scope["headers"], b"host"))
                return await self.origins.answer_preflight(scope, guarded_send)
            self.check(scope)
            await self.app(scope, receive, guarded_send)
        except ApiError as error:
            if not started:
                await answer_error(error, guarded_send)
        except Exception as error:
            # The message of an exception may quote the request, which has no place in a log.
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s %s: %s\n%s", scope["method"], ascii(scope["path"]), type(error).__name__, frames)
            if started:
                raise ConnectionAbortedError("the answer broke off") from None
            await answer_error(INTERNAL, guarded_send)

    def check(self, scope: Any) -> None:
        """Raise ApiError for what must not pass; leaves who asks in `scope["transom.tenant"]`."""
        headers = scope["headers"]
        if len(headers) > self.settings.limits.header_lines:
            raise ApiError(431, f"the request has {len(headers)} header lines; the limit is"
                           f" {self.settings.limits.header_lines}")  # fmt: skip
        self._check_host(_only(headers, b"host"))
        method, path = scope["method"], scope["path"]
        if method not in SAFE:
            self.origins.check(_only(headers, b"origin"), _only(headers, b"host") or b"")
        who = self.keys.tenant(_bearer(headers))
        if who is None and path not in self.open_paths:
            raise ApiError(
                401,
                "this server needs an API key: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        scope["transom.tenant"] = who or ""
        if self.draining and path not in self.open_paths:
            raise unavailable("this server is about to stop; ask another, or later", 5)
        if method not in BODILESS:
            _check_kind(headers)

    def _check_host(self, host: bytes | None) -> None:
        name = host_name((host or b"").decode("latin-1"))
        if name not in self.names and not _is_address(name):
            says = f"names '{name}'" if name else "names no server"
            raise ApiError(421, f"the Host header {says}, which is not this server; --allow-host adds a name")


def own_names(settings: ServerSettings) -> frozenset[str]:
    """Names by which this server may be called, besides addresses in numbers, which cannot be rebound."""
    given = [settings.host, *settings.allow_host, "localhost"]
    own = [] if settings.loopback else [socket.gethostname(), socket.getfqdn()]
    return frozenset(name.lower().rstrip(".") for name in [*given, *own])


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Return the value of a header that may stand there once."""
    found = [value for key, value in headers if key == name]
    if len(found) > 1:
        raise ApiError(400, f"the header {name.decode()} is there {len(found)} times")
    return found[0] if found else None


def _bearer(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    kind, _, key = (_only(headers, b"authorization") or b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else None


def _check_kind(headers: list[tuple[bytes, bytes]]) -> None:
    """JSON, and not compressed: a form or a script tag of another site cannot send that unasked."""
    kind = (_only(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise ApiError(415, "send JSON, with Content-Type: application/json")
    if (_only(headers, b"content-encoding") or b"identity").lower() != b"identity":
        raise ApiError(415, "send the request uncompressed, without Content-Encoding")
