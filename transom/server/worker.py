"""One thread per model, which alone touches the engine; the event loop hands requests in and gets events out.

What the loop wants done lies in an inbox that the thread empties between two steps. Events of a step go back
in one call. Whoever leaves, for whatever reason, leaves through `run`'s exit, and that aborts: so a slot is
freed however a client goes. An engine that breaks is made anew; those it was working for are told that they
may ask again. Read next: fair_semaphore, models, completions.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

import torch

from .errors import unavailable
from .fair_semaphore import FairSemaphore

Call = Callable[[Any], None]
T = TypeVar("T")
MOST_RESTARTS = 5
"""Engines made anew within `STEADY` seconds before the worker gives up and stays failed."""
STEADY = 300.0
BACKOFF = 0.5
logger = logging.getLogger("transom.server")


class Engine(Protocol):
    """What the thread needs of an engine; those for text, vectors and classes are alike in this."""

    @property
    def busy(self) -> bool: ...
    def submit(self, request: Any, /) -> None: ...
    def abort(self, request: Any, /) -> None: ...
    def step(self) -> list[Any]: ...
    def load(self) -> dict[str, float]: ...


class Worker:
    """The engine of one model in its own thread."""

    def __init__(self, make_engine: Callable[[], Engine], name: str, looks: int = 8) -> None:
        """looks: of one tenant, how many may wait for `between_steps`."""
        self.make_engine, self.name = make_engine, name
        self.engine: Engine | None = make_engine()
        """None while it is made anew."""
        self.failed = False
        """Whether there is no working engine now; requests get 503 until there is one again."""
        self.restarts = 0
        self.figures: dict[str, float] = self._whole.load()
        """What the engine said of itself after its last step."""
        self._inbox: deque[Call] = deque()
        self._wake = threading.Event()
        self.beside = FairSemaphore(1, looks, f"looks into {name}")
        """Callers of `between_steps` that wait for their work, or for their turn."""
        self._closing = False
        self._listeners: dict[int, asyncio.Queue[Any]] = {}
        self._n_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._main, name=f"engine {name}", daemon=True)

    @property
    def _whole(self) -> Engine:
        """The engine, which is there."""
        assert self.engine is not None
        return self.engine

    # On the event loop

    def start(self) -> None:
        """Begin to work for the event loop that calls this."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """End the thread after the step it is in."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def in_flight(self) -> int:
        """Sequences that somebody waits for."""
        return len(self._listeners)

    @asynccontextmanager
    async def run(self, requests: Sequence[Any]) -> AsyncIterator[AsyncIterator[Any]]:
        """Have requests worked on together; gives their events as they come, until each has ended.

        Raises Refused (Busy where the queue is full) before anything was done for any of them. Leaving early
        aborts them.
        """
        if self.failed:
            raise unavailable(f"the engine of {self.name} is not running; it is being started again", 5)
        events: asyncio.Queue[Any] = asyncio.Queue()
        for request in requests:
            self._listeners[id(request)] = events
        unfinished = {id(request): request for request in requests}
        try:
            await self._do(lambda engine: _submit(engine, requests))
            yield _until_ended(events, unfinished)
        finally:
            for request in requests:
                self._listeners.pop(id(request), None)
            left = list(unfinished.values())
            if left:
                self._post(lambda engine: _abort(engine, left))

    async def between_steps(self, work: Callable[[], T], tenant: str = "") -> T:
        """Have work that is not the engine's done in its thread, between two steps; raises what it raises,
        and ApiError 429 where too much of this tenant waits.

        One at a time, each tenant in its turn, so that a step of the engine comes between any two. Work whose
        turn has not come when the caller leaves is not done at all.
        """
        if self.failed:
            raise unavailable(f"the engine of {self.name} is not running; it is being started again", 5)
        wanted: list[bool] = [True]
        answers: list[T] = []
        try:
            async with self.beside.turn(tenant):
                await self._do(lambda _: answers.append(work()) if wanted else None)
        finally:
            wanted.clear()
        return answers[0]

    async def _do(self, work: Call) -> None:
        """Have something done between two steps and wait for it; raises what it raises."""
        done: asyncio.Future[None] = self._loop.create_future()

        def settle(error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def call(engine: Any) -> None:
            error: BaseException | None = None
            try:
                if engine is None:
                    raise unavailable(f"the engine of {self.name} broke; the request can be sent again", 5)
                work(engine)
            except Exception as raised:
                error = raised
            self._to_loop(settle, error)

        self._post(call)
        await done

    def _post(self, call: Call) -> None:
        self._inbox.append(call)
        self._wake.set()

    def _hand_out(self, events: list[Any]) -> None:
        for event in events:
            listener = self._listeners.get(id(event.request))
            if listener is not None:
                listener.put_nowait(event)

    def _broken(self) -> None:
        """Whoever waits hears that the engine is gone."""
        for listener in {id(queue): queue for queue in self._listeners.values()}.values():
            listener.put_nowait(None)

    # In the thread

    def _main(self) -> None:
        torch.set_num_threads(self._n_threads)  # counted per thread
        began = deque([0.0] * MOST_RESTARTS, maxlen=MOST_RESTARTS)
        while not self._closing:
            if self._ran_to_its_end():
                return None
            self._to_loop(self._broken)
            self._empty_inbox(None)
            self.engine = None
            _collect()  # its parts know each other, and its cache must be gone before there is another
            if time.monotonic() - began[0] < STEADY and began[0] > 0:
                logger.error("the engine of %s broke %d times; it stays down", self.name, MOST_RESTARTS)
                return self._refuse_for_ever()
            began.append(time.monotonic())
            self._start_again()
        return None

    def _ran_to_its_end(self) -> bool:
        """Work until the worker closes; False if the engine broke, of whose frames nothing is left then."""
        try:
            self._work()
        except Exception as error:
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("the engine of %s broke: %s\n%s", self.name, type(error).__name__, frames)
            self.failed = True
            return False
        return True

    def _work(self) -> None:
        engine = self._whole
        while not self._closing:
            self._empty_inbox(engine)
            if engine.busy:
                events = engine.step()
                self.figures = engine.load()  # before its events: whoever hears of a step may look at them
                if events:
                    self._to_loop(self._hand_out, events)
            elif not self._inbox:
                self._wake.wait()
                self._wake.clear()

    def _empty_inbox(self, engine: Any) -> None:
        n_calls = len(self._inbox)
        for _ in range(n_calls):
            self._inbox.popleft()(engine)
        if n_calls and engine is not None:
            self.figures = engine.load()

    def _start_again(self) -> None:
        self.restarts += 1
        time.sleep(BACKOFF * 2 ** min(self.restarts - 1, 5))
        try:
            self.engine = self.make_engine()
        except Exception as error:
            logger.error("the engine of %s cannot be started: %s", self.name, type(error).__name__)
            return self._refuse_for_ever()
        self._empty_inbox(None)
        self.failed = False
        return None

    def _refuse_for_ever(self) -> None:
        while not self._closing:
            self._empty_inbox(None)
            self._wake.wait()
            self._wake.clear()

    def _to_loop(self, call: Callable[..., Any], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop has closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(call, *arguments)


def _collect() -> None:
    """Free what only knows itself, that which `serve` has frozen included."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()


def _submit(engine: Engine, requests: Sequence[Any]) -> None:
    """Submit all of them or none."""
    for place, request in enumerate(requests):
        try:
            engine.submit(request)
        except Exception:
            _abort(engine, requests[:place])
            raise


def _abort(engine: Engine | None, requests: Sequence[Any]) -> None:
    if engine is not None:
        for request in requests:
            engine.abort(request)


async def _until_ended(events: asyncio.Queue[Any], unfinished: dict[int, Any]) -> AsyncIterator[Any]:
    while unfinished:
        event = await events.get()
        if event is None:
            raise unavailable("the engine broke; the request can be sent again", 5)
        if event.finish_reason is not None:
            unfinished.pop(id(event.request), None)
        yield event
