"""Places in turn: nobody waits behind all that another scope has waiting; who leaves takes no place along."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from transom.server.errors import ApiError
from transom.server.fair_semaphore import FairSemaphore


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 30))


def test_queues_take_turns_and_one_that_is_full_leaves_room_for_the_others():
    async def work() -> None:
        turns, order, ending = FairSemaphore(1, 4, "texts"), [], asyncio.Event()

        async def one(scope: str) -> None:
            async with turns.turn(scope):
                order.append(scope)
                await ending.wait()

        tasks = [asyncio.create_task(one("greedy")) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="4 texts wait already") as refused:
            await turns.take("greedy")
        assert refused.value.status == 429
        tasks += [asyncio.create_task(one(scope)) for scope in ("modest", "modest", "other")]
        await asyncio.sleep(0)
        ending.set()
        await asyncio.gather(*tasks)
        assert order == ["greedy", "greedy", "modest", "other", "greedy", "modest", "greedy"]
        assert turns.free == 1 and not turns.held

    run(work)


def test_whoever_leaves_at_any_moment_takes_no_place_along():
    async def work() -> None:
        chance, turns = random.Random(0), FairSemaphore(3, 1000, "texts")
        most = 0

        async def one(scope: str) -> None:
            nonlocal most
            async with turns.turn(scope):
                most = max(most, 3 - turns.free)
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)

        tasks: list[asyncio.Task[None]] = []
        for _ in range(3000):
            tasks.append(asyncio.create_task(one(chance.choice("abc"))))
            for task in chance.sample(tasks[-12:], min(len(tasks), chance.randrange(4))):
                task.cancel()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most == 3 and turns.free == 3 and not turns.held

    run(work)
