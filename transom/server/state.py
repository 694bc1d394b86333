"""What all requests of one server share: its models, its settings, the pool for text work, the clocks.

Read next: served, endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from transom.errors import nearest
from transom.server_settings import ServerSettings

from .errors import ApiError, busy
from .metrics import Metrics
from .served import Served

TEXT_THREADS = 2
MOST_WAITING = 128
"""Texts that wait for a thread; above it the answer is 429."""
T = TypeVar("T")


class State:
    """One server: made once, looked at by every request."""

    def __init__(self, models: Mapping[str, Served], settings: ServerSettings, memory: Any = None) -> None:
        """memory: from the name of an API key to what is remembered for it; None where nothing is."""
        self.models, self.settings, self.memory = dict(models), settings, memory
        self.metrics = Metrics(self.models)
        self.stopping = False
        self._clocks: set[asyncio.Timeout] = set()
        self._pool = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="text")
        self._waiting = 0

    def find(self, name: str | None, tasks: tuple[str, ...] = ()) -> Served:
        """The model of this name, which must do one of these tasks; raises ApiError 404 or 400."""
        able = [model for model in self.models.values() if not tasks or model.task in tasks]
        if name is None:
            if len(able) == 1:
                return able[0]
            known = ", ".join(self.models)
            raise ApiError(400, f"name a model; this server has {known}", param="model")
        called = [model for model in self.models.values() if name in model.aliases]
        found = self.models.get(name) or (called[0] if len(called) == 1 else None)
        if found is None:
            close = nearest(name[:100], self.models) or f"; this server has {', '.join(self.models)}"
            raise ApiError(404, f"there is no model {ascii(name[:100])} here{close}", param="model",
                           code="model_not_found")  # fmt: skip
        if tasks and found.task not in tasks:
            raise ApiError(
                400,
                f"{found.name} is a model to {found.task}; use {ROUTES[found.task]}",
                param="model",
                code="wrong_task",
            )
        return found

    async def text_work(self, work: Callable[..., T], *arguments: Any) -> T:
        """Tokenising and templates, beside the event loop and never more than so much at a time."""
        if self._waiting >= MOST_WAITING:
            raise busy("too many texts are waiting to be read; try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def clock(self) -> AsyncIterator[None]:
        """The deadline of one request; raises TimeoutError when it has passed or the server ends."""
        if self.stopping:
            raise TimeoutError
        async with asyncio.timeout(self.settings.deadlines.request) as clock:
            self._clocks.add(clock)
            try:
                yield
            finally:
                self._clocks.discard(clock)

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return len(self._clocks)

    def end_all(self) -> None:
        """Let every request that is being answered end now, with an error."""
        self.stopping = True
        for clock in list(self._clocks):
            clock.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for model in self.models.values():
            model.worker.stop()


ROUTES = {
    "generate": "/v1/completions",
    "chat": "/v1/chat/completions or /v1/completions",
    "translate": "/translate",
    "classify": "/classify",
    "embed": "/v1/embeddings",
}
"""Where each kind of model answers."""
