"""The engine for models that read whole texts: classes and vectors for many at once.

Every step reads one batch: of the texts whose turn is next, each tenant in its turn, those that are about as
long as the very next one. The interface is that of `engine.Engine`. Read next: batching, classifier,
embedder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from transom.data.tokenizer import Ids, Tokenizer
from transom.errors import Refused
from transom.model.transformer import Transformer

from .batching import BUDGET, batches, framed
from .engine import EngineSettings, not_finite
from .request import Event, FinishReason
from .request_queue import RequestQueue

AHEAD = 4
"""Batches' worth of waiting texts among which those of one length are looked for."""

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class Reader(Protocol):
    """What reads a batch: a Classifier or an Embedder."""

    model: Transformer
    tokenizer: Tokenizer
    max_tokens: int

    @property
    def read(self) -> Callable[..., Sequence[Any]]: ...


class TextRequest:
    """One text, framed as the model reads it."""

    number = 0
    """Its place in the order of arrival."""

    def __init__(
        self, tokens: Ids, *, options: Mapping[str, Any] = NO_OPTIONS, tenant: str = "", id: str = ""
    ) -> None:
        """options: what the reader is told besides the text. tenant: who shares fairly with whom."""
        self.tokens, self.options, self.tenant, self.id = tokens, options, tenant, id
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None

    @property
    def n_tokens(self) -> int:
        """Its length."""
        return len(self.tokens)


class EncoderEngine:
    """Texts in; events with an answer each out."""

    def __init__(
        self, reader: Reader, *, settings: EngineSettings | None = None, budget: int = BUDGET
    ) -> None:
        """budget: tokens of a batch, padding included."""
        self.reader, self.settings, self.budget = reader, settings or EngineSettings(), budget
        self.queue: RequestQueue[TextRequest] = RequestQueue(
            self.settings.max_queue, self.settings.max_queue_tokens, "texts"
        )
        self._events: list[Event] = []
        self._n_answered = 0

    def requests(
        self,
        texts: Sequence[str],
        *,
        cut: bool = False,
        most: int | None = None,
        blank: bool = False,
        options: Mapping[str, Any] = NO_OPTIONS,
        tenant: str = "",
        id: str = "",
    ) -> list[TextRequest]:
        """Return a request for each text, of at most `most` tokens (None: what the model reads).

        Raises Refused for a blank text unless `blank`, and for one too long unless `cut`.
        """
        limit = min(most or self.reader.max_tokens, self.reader.max_tokens)
        framed_texts = framed(self.reader.tokenizer, texts, limit, cut=cut, blank=blank)
        return [TextRequest(tokens, options=options, tenant=tenant, id=id) for tokens in framed_texts]

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.queue.lines or self._events)

    def submit(self, request: TextRequest) -> None:
        """Let a text wait its turn; raises Refused if it is too long, and Busy if the queue is full."""
        length, limit = len(request.tokens), self.reader.max_tokens
        if length > limit:
            raise Refused(f"the text has {length} tokens; this model reads at most {limit}: shorten it")
        self.queue.submit(request)

    def abort(self, request: TextRequest) -> None:
        """Forget a text that waits; does nothing if it has been answered."""
        if request in self.queue.lines.get(request.tenant, ()):
            self._end(request, "abort")
            self._events.append(Event(request, finish_reason="abort"))

    def step(self) -> list[Event]:
        """Read one batch; its answers, and the aborts before it."""
        requests = self._schedule()
        answers = self._run(requests)
        return self._finish(requests, answers)

    def _schedule(self) -> list[TextRequest]:
        """The text whose turn it is, and others of about its length that are read with the same options."""
        ahead = self._ahead()
        ahead = [request for request in ahead if request.options == ahead[0].options]
        for batch in batches([request.tokens for request in ahead], self._device, budget=self.budget):
            if 0 in batch.places:
                return [ahead[place] for place in batch.places]
        return []

    @property
    def _device(self) -> Any:
        return self.reader.model.embed.weight.device

    def _ahead(self) -> list[TextRequest]:
        """Return the next texts, one of each tenant in turn; whose turn is first moves on with every step."""
        lines = self.queue.lines
        tenants = list(lines)
        if tenants:
            lines[tenants[0]] = lines.pop(tenants[0])
        found, tokens = [], 0
        for place in range(max(map(len, lines.values()), default=0)):
            for tenant in tenants:
                if place < len(lines[tenant]):
                    found.append(lines[tenant][place])
                    tokens += len(found[-1].tokens)
                    if tokens >= AHEAD * self.budget:
                        return found
        return found

    def _run(self, requests: list[TextRequest]) -> list[Any]:
        """Return the answer to each text, or the exception that reading it raised."""
        if not requests:
            return []
        started = time.perf_counter()
        try:
            (batch,) = batches([request.tokens for request in requests], self._device, budget=1 << 60)
            answers: list[Any] = [None] * len(requests)
            for place, answer in zip(
                batch.places, self.reader.read(batch, **requests[0].options), strict=True
            ):
                answers[place] = answer
            self.queue.measure(batch.tokens.numel(), time.perf_counter() - started)
            return answers
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [self._run([request])[0] for request in requests]

    def _finish(self, requests: list[TextRequest], answers: list[Any]) -> list[Event]:
        events, self._events = self._events, []
        for request, answer in zip(requests, answers, strict=True):
            error = answer if isinstance(answer, Exception) else None
            if error is None and not _finite(answer):
                error = not_finite()
            self._end(request, "stop" if error is None else "error")
            self._n_answered += error is None
            if error is None:
                events.append(Event(request, finish_reason="stop", answer=answer))
            else:
                request.error = error
                said = str(error) if isinstance(error, Refused) else type(error).__name__
                events.append(Event(request, finish_reason="error", error=f"the text failed: {said}"))
        return events

    def _end(self, request: TextRequest, reason: FinishReason) -> None:
        request.finish_reason = reason
        self.queue.remove(request)

    def load(self) -> dict[str, float]:
        """Figures of now (queued, running) and totals since the engine was made."""
        return {
            "queued": len(self.queue),
            "running": 0,
            "tokens_read": self.queue.n_read,
            "answers": self._n_answered,
            "steps": self.queue.n_steps,
        }


def _finite(answer: Any) -> bool:
    """Return whether an answer holds numbers only."""
    return bool(np.isfinite(getattr(answer, "confidence", answer)).all())
