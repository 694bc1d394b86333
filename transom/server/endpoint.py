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
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transom.errors import Refused

from .body import read_body
from .errors import ApiError, from_refused, unavailable
from .models import ServedModel
from .schema import Body
from .state import State

Frames = AsyncGenerator[bytes, None]
DONE = b"data: [DONE]\n\n"
PIECE = 256
"""Items of a list above which it is written by itself, of a large answer."""
T = TypeVar("T")


@dataclass
class Call:
    """One request on its way, with all that a handler may look at."""

    asked: Any
    """The checked body."""
    served: ServedModel
    state: State
    tenant: str
    """Whose request it is: one name for each API key."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    began: float = field(default_factory=time.perf_counter)

    async def text_work(self, work: Callable[..., T], *arguments: Any) -> T:
        """See `State.text_work`."""
        return await self.state.text_work(self.tenant, work, *arguments)

    async def whole(self, n_values: int, make: Callable[[], dict[str, Any]]) -> bytes:
        """The answer that `make` makes, of so many values, as JSON; a large one beside the event loop."""
        return await self.state.answer_work(n_values, lambda: b"".join(pieces(make())))


Answer = dict[str, Any] | bytes | Frames
Handler = Callable[[Call], Awaitable[Answer]]


class Endpoint:
    """One POST route: which body it takes, which models can answer, and who does."""

    def __init__(self, state: State, body: type[Body], tasks: tuple[str, ...], handler: Handler) -> None:
        self.state, self.body, self.tasks, self.handler = state, body, tasks, handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked, left_out = await read_body(self.body, scope, receive, self.state)
        alone = self.body.without_model and asked.model is None
        served: Any = None if alone else self.state.find(asked.model, self.tasks)
        call = Call(asked, served, self.state, scope["transom.tenant"])
        headers = {"x-request-id": call.id}
        if left_out:
            headers["x-transom-ignored"] = ascii(", ".join(left_out))[1:-1][:500]
        await until_gone(receive, self._answer(call, headers, send))

    async def _answer(self, call: Call, headers: dict[str, str], send: Any) -> None:
        """Send the whole answer, or the error that became of it, before or after it began."""
        out = Sender(send, headers)
        error: ApiError
        try:
            async with self.state.clock():
                answer = await self.handler(call)
                if isinstance(answer, dict | bytes):
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

    async def whole(self, answer: dict[str, Any] | bytes) -> None:
        """Return one JSON object."""
        data = answer if isinstance(answer, bytes) else to_json(answer)
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
        """Send the last bytes."""
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
    """Write JSON as its standard has it, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def pieces(value: Any) -> Iterator[bytes]:
    """What `to_json` gives, in pieces of about `PIECE` values; other threads have their turn in between."""
    if not _is_large(value):
        yield to_json(value)
    elif isinstance(value, dict):
        for at, (name, held) in enumerate(value.items()):
            yield b"," if at else b"{"
            yield to_json(name) + b":"
            yield from pieces(held)
        yield b"}"
    elif any(isinstance(held, list | dict) for held in value[:PIECE]):
        for at, held in enumerate(value):
            yield b"," if at else b"["
            yield from pieces(held)
        yield b"]"
    else:
        for at in range(0, len(value), PIECE):
            yield b"," if at else b"["
            yield to_json(value[at : at + PIECE])[1:-1]
        yield b"]"


def _is_large(value: Any) -> bool:
    """Return whether a value, or any in it, has more than a piece's worth of items."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return len(value) > PIECE or any(map(_is_large, inner))


def frame(value: Any, event: str = "") -> bytes:
    """Return one server-sent event."""
    named = f"event: {event}\n".encode() if event else b""
    return b"".join([named, b"data: ", *pieces(value), b"\n\n"])
