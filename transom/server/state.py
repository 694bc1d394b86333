"""What all requests of one server share: its models, its settings, threads for text and answers, the clocks.

Read next: fair_semaphore, models, endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any, TypeVar

from transom.errors import nearest
from transom.retrieval.search import KnowledgeBase
from transom.server_settings import ServerSettings

from .errors import ApiError
from .fair_semaphore import FairSemaphore
from .metrics import Metrics
from .models import ServedModel
from .worker import Worker

TEXT_THREADS = 2
MOST_TEXTS = 128
"""Texts of one API key that wait for a thread; above it the answer is 429."""
LARGE = 5000
"""Values of an answer above which it is made beside the event loop."""
T = TypeVar("T")


class State:
    """One server: made once, looked at by every request."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        settings: ServerSettings,
        memory: Any = None,
        knowledge: Mapping[str, KnowledgeBase] = MappingProxyType({}),
        labels: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        """memory: from the name of an API key to what is remembered for it; None where nothing is. knowledge:
        what is answered from, by name. labels: what each tenant may see of it besides what everybody may.
        """
        self.knowledge, self.labels = dict(knowledge), labels
        self.models, self.settings, self.memory = dict(models), settings, memory
        self.metrics = Metrics(self.models)
        self.stopping = False
        self._clocks: set[asyncio.Timeout] = set()
        self._pool = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="text")
        self._texts = FairSemaphore(TEXT_THREADS, MOST_TEXTS, "texts")
        self._writers = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="answer")

    def find(self, name: str | None, tasks: tuple[str, ...] = ()) -> ServedModel:
        """Return the model of this name, which must do one of these tasks; raises ApiError 404 or 400."""
        able = [model for model in self.models.values() if not tasks or model.task in tasks]
        if name is None:
            whole = [model for model in able if model.base is None]  # an adapter is asked for by its name
            if len(whole) == 1:
                return whole[0]
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

    @property
    def workers(self) -> list[Worker]:
        """The worker of each model; those of adapters are their model's."""
        return list({id(model.worker): model.worker for model in self.models.values()}.values())

    async def text_work(self, tenant: str, work: Callable[..., T], *arguments: Any) -> T:
        """Reading, tokenising and templates: beside the event loop, never more than so much at a time, each
        tenant in its turn. Raises ApiError 429 where too much of this one's waits.
        """
        await self._texts.take(tenant)
        loop, thread = asyncio.get_running_loop(), self._pool.submit(work, *arguments)

        def done(_: Any) -> None:  # whoever leaves before has the place until the thread is free
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self._texts.give_back, tenant)

        thread.add_done_callback(done)
        return await asyncio.wrap_future(thread)

    async def answer_work(self, n_values: int, work: Callable[..., T], *arguments: Any) -> T:
        """Return the making of an answer of so many values; a large one beside the event loop."""
        if n_values < LARGE:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._writers, work, *arguments)

    @asynccontextmanager
    async def clock(self) -> AsyncIterator[None]:
        """Keep the deadline of one request; raises TimeoutError when it has passed or the server ends."""
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
        for pool in (self._pool, self._writers):
            pool.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.stop()


ROUTES = {
    "generate": "/v1/completions",
    "chat": "/v1/chat/completions or /v1/completions",
    "translate": "/translate",
    "classify": "/classify",
    "embed": "/v1/embeddings",
}
"""Where each kind of model answers."""
