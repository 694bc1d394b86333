"""An engine for callers in this process: it runs while somebody reads what comes of their requests.

It is kept between calls, so that a prompt that goes on from an earlier one is not read again, and made anew
when the model's weights have changed. Several streams may be read in turns, from several threads: whoever
asks steps the engine for all, and what came for others waits for them. Read next: engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from transom.model.build import Model

from .engine import Engine, EngineSettings
from .request import Event, Request
from .scheduler import RequestState

CACHE_BYTES = 1 << 30
"""Room for the decode state of a local engine, unless one row alone needs more."""


class SyncEngine:
    """Runs requests to their end."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        """`make` gives an engine for the model as it is now."""
        self.make = make
        self._made: Engine | None = None
        self._inboxes: dict[Request, list[Event]] = {}
        """Where the events of a request go: the requests of one call share one."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drop what was kept of earlier calls: the next one's numbers depend on its own requests alone."""
        with self._lock:
            self._made = None

    def run(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Return the events of these requests as they come; raises Refused at once for one that can never
        run.

        A request that goes wrong raises its error where its event would stand.
        """
        with self._lock:
            if self._made is None or self._made.runner.stale:
                self._made = self.make()
            engine = self._made
        return self._events(engine, [engine.prepare(request) for request in requests])

    def _events(self, engine: Engine, states: Sequence[RequestState]) -> Iterator[Event]:
        inbox: list[Event] = []
        requests = [state.request for state in states]
        n_going = len(requests)
        try:
            with self._lock:
                for state in states:
                    self._inboxes[state.request] = inbox
                    engine.submit(state)
            while n_going:
                for event in self._next(engine, inbox):
                    if event.request.error is not None:
                        raise event.request.error
                    n_going -= event.finish_reason is not None
                    yield event
        finally:
            with self._lock:
                for request in requests:
                    engine.abort(request)
                    self._inboxes.pop(request, None)

    def _next(self, engine: Engine, inbox: list[Event]) -> list[Event]:
        """Return what has arrived, after a step if nothing had."""
        with self._lock:
            if not inbox:
                for event in engine.step():
                    if event.request in self._inboxes:
                        self._inboxes[event.request].append(event)
            events = list(inbox)
            inbox.clear()
            return events


def cache_tokens(model: Model, max_rows: int) -> int:
    """Count the tokens that a cache of CACHE_BYTES holds, but no more than `max_rows` rows of full length can
    use, and no fewer than a few rows.
    """
    config = model.config
    per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim * model.embed.weight.element_size()
    few = 4 * config.max_len
    return max(few, min(max_rows * config.max_len, CACHE_BYTES // per_token))


UNBOUNDED = 1 << 60


def sync_settings(max_rows: int, chunk_tokens: int = 512) -> EngineSettings:
    """For one caller, who waits for all that it asks: a queue without bounds."""
    return EngineSettings(max_rows, chunk_tokens, max_queue=UNBOUNDED, max_queue_tokens=UNBOUNDED)
