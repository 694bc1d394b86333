"""A fair semaphore: so many at a time, each API key in its turn, and none in the way of another.

Those of one key wait in a queue of their own, which is bounded; whenever something ends, the next queue is
asked for its first. Nothing is reserved: a key alone gets all places. Read next: state, worker.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .errors import busy


class FairSemaphore:
    """Places, and who waits for one. Of one event loop."""

    def __init__(self, places: int, most: int, what: str) -> None:
        """most: of one tenant, those that have a place included; what: the word for them in a refusal."""
        self.free, self.most, self.what = places, most, what
        self.held: Counter[str] = Counter()
        """Of each tenant, how many wait or have a place."""
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return self.held.total()

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a place and have it while the block runs; raises ApiError 429 at once if too many wait."""
        await self.take(tenant)
        try:
            yield
        finally:
            self.give_back(tenant)

    async def take(self, tenant: str) -> None:
        """Wait for a place, which `give_back` frees; raises ApiError 429 at once if too many wait."""
        if self.held[tenant] >= self.most:
            raise busy(f"{self.held[tenant]} {self.what} wait already; try again in a moment")
        self.held[tenant] += 1
        if self.free:
            self.free -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(mine)
        try:
            await mine
        except BaseException:
            if mine.cancelled():
                self._forget(tenant)
            else:  # the place came in the moment of leaving
                self.give_back(tenant)
            raise

    def give_back(self, tenant: str) -> None:
        """Free a place of this tenant; the next queue in turn has it."""
        self._forget(tenant)
        while self._queues:
            after = next(iter(self._queues))
            queue = self._queues.pop(after)
            mine = queue.popleft()
            if queue:
                self._queues[after] = queue  # behind the others
            if not mine.done():  # else whoever waited has left
                mine.set_result(None)
                return
        self.free += 1

    def _forget(self, tenant: str) -> None:
        self.held[tenant] -= 1
        if not self.held[tenant]:
            del self.held[tenant]
