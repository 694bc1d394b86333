"""Events of the engine as parts of an answer: one part for each sequence, whole or as it grows.

What ends a sequence badly ends the whole answer: a client that asked for three texts is not served by two.
Read next: completions, chat, responses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from transom.errors import Refused
from transom.inference.request import Event, Request, TokenLogprob

from .endpoint import Call
from .errors import INTERNAL, ApiError, from_refused, unavailable


@dataclass
class Part:
    """One sequence of an answer."""

    index: int
    request: Request
    pieces: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    """As they count for a client: without the token that ends the text, and no further than the text."""
    n_made: int = 0
    finish_reason: str | None = None
    given_tokens: int = 0
    """Of what the answer was given to begin with, and is not told again, so many are still to come."""
    given_characters: int = 0
    _n_certain: int = 0
    _waiting: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that it says by now."""
        return "".join(self.pieces)

    def take(self, event: Event) -> Step:
        """Return what an event brings to this part."""
        cut, told = event.piece[self.given_characters :], event.tokens[self.given_tokens :]
        self.given_characters -= len(event.piece) - len(cut)
        self.given_tokens -= len(event.tokens) - len(told)
        self._n_certain += len(event.piece)
        self._waiting += [token for token in told if token.token not in self.request.ends]
        self.pieces.append(cut)
        self.n_made += len(told)
        self.finish_reason = event.finish_reason
        shown = self._certain()
        self.tokens += shown
        return Step(self, cut, shown)

    def _certain(self) -> list[TokenLogprob]:
        """The tokens that wait and whose text is certain by now; at the end those of which any text is."""
        certain, waiting, ended = self._n_certain, self._waiting, self.finish_reason is not None
        n = next((i for i, token in enumerate(waiting) if token.span[1] > certain), len(waiting))
        shown, self._waiting = waiting[:n], waiting[n:]
        if ended and self._waiting and self._waiting[0].span[0] < certain:  # a stop string cuts it
            known = sum(len(token.bytes) for token in (*self.tokens, *shown))
            left = len(self.text.encode()) - known
            shown.append(replace(self._waiting[0], bytes=self._waiting[0].bytes[:left]))
        return shown


@dataclass(frozen=True)
class Step:
    """What one step brought to one part."""

    part: Part
    piece: str
    tokens: list[TokenLogprob]


@asynccontextmanager
async def stream_steps(call: Call, requests: Sequence[Request]) -> AsyncIterator[AsyncIterator[Step]]:
    """Have the requests worked on; gives the steps of their parts as they come."""
    async with call.served.worker.run(requests) as events:
        yield _steps(call, requests, events)


async def _steps(
    call: Call, requests: Sequence[Request], events: AsyncIterator[Event]
) -> AsyncIterator[Step]:
    parts = {id(request): _part(index, request) for index, request in enumerate(requests)}
    metrics, name, first = call.state.metrics, call.served.name, True
    metrics.tokens.labels(name, "read").inc(sum(len(request.prompt) for request in requests))
    async for event in events:
        part = parts[id(event.request)]
        if event.finish_reason in ("error", "abort"):
            raise failure(event)
        if first and event.tokens:
            metrics.first.labels(name).observe(perf_counter() - call.began)
            first = False
        metrics.tokens.labels(name, "written").inc(len(event.tokens))
        yield part.take(event)


def _part(index: int, request: Request) -> Part:
    n_tokens, n_characters = len(request.prefix_tokens), len(request.prefix_text)
    return Part(index, request, given_tokens=n_tokens, given_characters=n_characters)


def failure(event: Event) -> ApiError:
    """Why a sequence ended badly: the client's own mistake is told, ours is not."""
    if event.finish_reason == "abort":
        return unavailable("the answer was ended by the server; the request can be sent again")
    error = event.request.error
    return from_refused(error) if isinstance(error, Refused) else INTERNAL


async def all_parts(call: Call, requests: Sequence[Request]) -> list[Part]:
    """Return the parts when all of them have ended."""
    parts: dict[int, Part] = {}
    async with stream_steps(call, requests) as steps:
        async for step in steps:
            parts[step.part.index] = step.part
    return [parts[index] for index in sorted(parts)]


def n_values(parts: Sequence[Part]) -> int:
    """About how many values the parts come to in an answer, log-probabilities with their bytes included."""
    tokens = [token for part in parts for token in part.tokens]
    return sum(8 + 8 * len(token.top) for token in tokens) + sum(len(part.text) for part in parts) // 64


def usage(parts: Sequence[Part], n_prompt: int) -> dict[str, Any]:
    """Count the tokens of an answer; those of a prompt count once, however many answers it has."""
    made = sum(part.n_made for part in parts)
    return {"prompt_tokens": n_prompt, "completion_tokens": made, "total_tokens": n_prompt + made}


def prompt_tokens(requests: Sequence[Request], n: int) -> int:
    """Count the tokens of all prompts, of which each has n requests side by side."""
    return sum(len(request.prompt) for request in requests[::n])
