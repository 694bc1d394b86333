"""The way of every request that wants work done: read, check, answer, and let go of whoever leaves.

A handler gives one JSON object, or frames of server-sent events. Nothing is sent before the first of them is
there, so what the engine refuses is still an ordinary error. A client that leaves, a deadline and the end of
the server all end the handler the same way: it is cancelled, and with it what it asked of the engine.
Read next: schema, completions.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from transom.errors import Refused

from .body import read_object
from .errors import ApiError, from_refused, unavailable
from .schema import Body, read
from .served import Served
from .state import State

Frames = AsyncGenerator[bytes, None]
DONE = b"data: [DONE]\n\n"


@dataclass
class Call:
    """One request on its way, with all that a handler may look at."""

    asked: Any
    """The checked body."""
    served: Served
    state: State
    scope: str
    """Whose request it is: one name for each API key."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    began: float = field(default_factory=time.perf_counter)


Answer = dict[str, Any] | Frames
Handler = Callable[[Call], Awaitable[Answer]]


class Endpoint:
    """One POST route: which body it takes, which models can answer, and who does."""

    def __init__(self, state: State, body: type[Body], tasks: tuple[str, ...], handler: Handler) -> None:
        self.state, self.body, self.tasks, self.handler = state, body, tasks, handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        settings = self.state.settings
        given = await read_object(scope, receive, settings.limits)
        asked, left_out = read(self.body, given, settings.limits, lenient=settings.lenient)
        call = Call(asked, self.state.find(asked.model, self.tasks), self.state, scope["transom.scope"])
        headers = {"x-request-id": call.id}
        if left_out:
            headers["x-transom-ignored"] = ascii(", ".join(left_out))[1:-1][:500]
        await until_gone(receive, self._answer(call, headers, send))

    async def _answer(self, call: Call, headers: dict[str, str], send: Any) -> None:
        """The whole answer, or the error that became of it, before or after it began."""
        out = Sender(send, headers)
        error: ApiError
        try:
            async with self.state.clock():
                answer = await self.handler(call)
                if isinstance(answer, dict):
                    return await out.whole(answer)
                return await out.frames(answer)
        except TimeoutError:
            seconds = self.state.settings.deadlines.request
            error = ApiError(
                504, f"the answer was not ready after {seconds:g} seconds, the limit (--deadlines.request)"
            )
            if self.state.stopping:
                error = unavailable("this server is stopping; send the request again", 5)
        except Refused as refused:
            error = from_refused(refused)
        except ApiError as raised:
            error = raised
        if not out.started:
            raise error
        return await out.end(frame(error.body()))


class Sender:
    """The answer as it goes out."""

    def __init__(self, send: Any, headers: dict[str, str]) -> None:
        self.send, self.headers, self.started = send, headers, False

    async def whole(self, answer: dict[str, Any]) -> None:
        """One JSON object."""
        data = to_json(answer)
        await self._start("application/json", {"content-length": str(len(data))})
        await self.send({"type": "http.response.body", "body": data})

    async def frames(self, frames: Frames) -> None:
        """Events, each whole, as they come."""
        async with aclosing(frames):
            first = await anext(frames)
            await self._start("text/event-stream; charset=utf-8", {"x-accel-buffering": "no"})
            await self._more(first)
            async for data in frames:
                await self._more(data)
        await self.end(b"")

    async def end(self, data: bytes) -> None:
        """The last bytes."""
        await self.send({"type": "http.response.body", "body": data, "more_body": False})

    async def _start(self, kind: str, more: dict[str, str]) -> None:
        self.started = True
        named = {"content-type": kind, **more, **self.headers}
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _more(self, data: bytes) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": True})


async def until_gone(receive: Any, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, or as much of it as gets done before the client leaves."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def to_json(value: Any) -> bytes:
    """JSON as its standard has it, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def frame(value: Any, event: str = "") -> bytes:
    """One server-sent event."""
    named = f"event: {event}\n".encode() if event else b""
    return named + b"data: " + to_json(value) + b"\n\n"
