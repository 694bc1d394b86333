"""HTTP/1.1 with absolute deadlines: uvicorn's own protocol, and a clock for each thing a client may delay.

uvicorn waits for ever for a header or a body that comes one byte a minute, and for a reader that does not
read. Each of the three gets a timer here that no trickle of bytes can postpone. Connections above the limit
are answered 429 without asking the application, and a body in crumbs 400, since each costs as much time as a
large piece. Read next: guard.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from transom.server_settings import ServerSettings

from .errors import answer_error, busy

FLOOD = 4
"""Times the limit of connections at which a connection is dropped without an answer."""
CRUMB, MOST_CRUMBS = 64, 1000
"""Bytes below which a piece of a body is a crumb, and how many of them a body may have."""


class Connection(h11.Connection):
    """h11's own, which counts the crumbs of a body."""

    n_crumbs = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.n_crumbs = 0
        elif isinstance(event, h11.Data) and len(event.data) < CRUMB:
            self.n_crumbs += 1
            if self.n_crumbs > MOST_CRUMBS:
                raise h11.RemoteProtocolError("a body in crumbs")
        return event


class DeadlineProtocol(H11Protocol):
    """One connection, with a deadline for its header, its body and its reader."""

    settings: ServerSettings  # set by `protocol`, since uvicorn makes the objects

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.conn = Connection(h11.SERVER, self.settings.limits.header_bytes)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Header and body go out as two writes; the second must not wait for the first one's acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clocks: dict[str, asyncio.TimerHandle] = {}
        if len(self.connections) > FLOOD * self.settings.limits.connections:
            transport.abort()
            return
        if self._too_many():
            self.app = _refuse_connection
        self._start("header", self.settings.deadlines.header)

    def _too_many(self) -> bool:
        limits = self.settings.limits
        if len(self.connections) > limits.connections:
            return True
        address = self.client[0] if self.client else ""
        if not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            return False
        others = [getattr(other, "client", None) for other in self.connections]
        same = sum(1 for client in others if client and client[0] == address)
        return same > limits.connections_per_ip

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and "header" not in self._clocks:
            self._start("header", self.settings.deadlines.header)  # the next request of a kept connection
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        state = self.conn.their_state
        if state is not h11.IDLE:
            self._stop("header")
        if state is h11.SEND_BODY:
            self._start("body", self.settings.deadlines.body)
        else:
            self._stop("body")

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # it has been answered already
            self.transport.close()
        elif self.conn.n_crumbs > MOST_CRUMBS:
            size = f"more than {MOST_CRUMBS:,} pieces of less than {CRUMB} bytes"
            super().send_400_response(f"the body comes in {size}; send larger pieces, or a Content-Length")
        else:
            super().send_400_response(msg)

    def on_response_complete(self) -> None:
        self._stop("body")  # answered before all of it came: uvicorn closes, or reads on for the next request
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("reader", self.settings.deadlines.reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("reader")

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._clocks):
            self._stop(name)
        super().connection_lost(exc)

    def _start(self, name: str, seconds: float) -> None:
        if name not in self._clocks:
            self._clocks[name] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, name: str) -> None:
        clock = self._clocks.pop(name, None)
        if clock is not None:
            clock.cancel()


async def _refuse_connection(scope: Any, receive: Any, send: Any) -> None:
    error = busy("this server has as many connections as it takes; try again in a moment")
    error.headers["connection"] = "close"
    await answer_error(error, send)


def protocol(settings: ServerSettings) -> type[DeadlineProtocol]:
    """Return the class for these settings, as uvicorn wants to be given one."""
    return type("Protocol", (DeadlineProtocol,), {"settings": settings})
