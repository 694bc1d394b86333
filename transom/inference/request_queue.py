"""What waits for an engine: a line for each tenant, bounded, and how long whoever is refused had better wait.

Which of those that wait goes next is the engine's choice: one that writes takes it by what runs and fits
(`scheduler`), one that reads whole texts by their lengths (`encoder_engine`). Read next: scheduler.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Generic, Protocol, TypeVar

from transom.errors import Refused

MOST_WAIT = 60
"""Seconds that a refused client is told to wait at most."""
LAST_STEPS = 16
"""Steps over which the speed is averaged, the last ones counting most."""


class Busy(Refused):
    """The queue is full; `retry_after` says in how many seconds to come again."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueItem(Protocol):
    """What can wait."""

    number: int
    """Its place in the order of arrival."""

    @property
    def tenant(self) -> str: ...
    @property
    def n_tokens(self) -> int: ...


W = TypeVar("W", bound=QueueItem)


class RequestQueue(Generic[W]):
    """Lines of what waits, one for each tenant: what one has waiting keeps no other out."""

    def __init__(self, max_queue: int, max_tokens: int, unit: str) -> None:
        """The bounds of each line (see `EngineSettings`), and what its items are called in a refusal."""
        self.max_queue, self.max_tokens, self.unit = max_queue, max_tokens, unit
        self.lines: dict[str, deque[W]] = {}
        self.n_tokens: Counter[str] = Counter()
        """Of each tenant, the tokens that what waits may come to hold."""
        self.n_steps = self.n_read = 0
        self._n_arrived = 0
        self._rate = 0.0  # tokens per second

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))

    def submit(self, item: W) -> None:
        """Let an item wait at the end of its line; raises Busy if that is full."""
        n_waiting = len(self.lines.get(item.tenant, ()))
        if n_waiting >= self.max_queue or self.n_tokens[item.tenant] + item.n_tokens > self.max_tokens:
            wait = math.ceil(self.n_tokens.total() / self._rate) if self._rate else 1
            seconds = min(MOST_WAIT, max(1, wait))
            raise Busy(
                f"{n_waiting} {self.unit} wait already (at most {self.max_queue}, and {self.max_tokens:,}"
                f" tokens); come again in {seconds} s",
                seconds,
            )
        item.number, self._n_arrived = self._n_arrived, self._n_arrived + 1
        self.add(item)

    def add(self, item: W) -> None:
        """Let an item wait before those of its line that arrived after it, whatever the bounds."""
        line = self.lines.setdefault(item.tenant, deque())
        newer = 0  # only what is preempted has any behind it
        while newer < len(line) and line[-1 - newer].number > item.number:
            newer += 1
        line.insert(len(line) - newer, item)
        self.n_tokens[item.tenant] += item.n_tokens

    def remove(self, item: W) -> None:
        """Take an item out of its line."""
        line = self.lines[item.tenant]
        line.remove(item)
        self.n_tokens[item.tenant] -= item.n_tokens
        if not line:
            del self.lines[item.tenant], self.n_tokens[item.tenant]

    def measure(self, n_read: int, seconds: float) -> None:
        """Count a step that read so many tokens: the speed at which the lines move."""
        self.n_steps, self.n_read = self.n_steps + 1, self.n_read + n_read
        self._rate += (n_read / max(seconds, 1e-6) - self._rate) / min(self.n_steps, LAST_STEPS)
