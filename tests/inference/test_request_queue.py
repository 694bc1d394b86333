"""What waits: a line for each tenant, in the order of arrival, within its bounds, and nobody else's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.inference.request_queue import MOST_WAIT, Busy, RequestQueue


@dataclass(eq=False)
class Item:
    tenant: str
    n_tokens: int = 1
    number: int = 0


def queue_of(max_queue: int = 3, max_tokens: int = 100) -> RequestQueue[Item]:
    return RequestQueue(max_queue, max_tokens, "requests")


def test_what_is_put_back_stands_before_what_came_after_it():
    queue, items = queue_of(), [Item("a") for _ in range(3)]
    for item in items:
        queue.submit(item)
    queue.remove(items[0])
    queue.remove(items[1])
    queue.add(items[0])
    queue.add(items[1])
    assert list(queue.lines["a"]) == items and len(queue) == 3


def test_each_tenant_has_bounds_of_its_own_and_hears_when_to_come_again():
    queue = queue_of()
    for _ in range(3):
        queue.submit(Item("a"))
    with pytest.raises(Busy, match="3 requests wait already") as busy:
        queue.submit(Item("a"))
    assert busy.value.retry_after == 1, "nothing is known of its speed yet"
    queue.submit(Item("b", 100))
    with pytest.raises(Busy, match="100 tokens") as busy:
        queue.submit(Item("b"))
    queue.measure(50, 1.0)
    with pytest.raises(Busy) as busy:
        queue.submit(Item("b"))
    assert busy.value.retry_after == 3  # 103 tokens at 50 a second
    queue.measure(1, 1e6)
    with pytest.raises(Busy) as busy:
        queue.submit(Item("b"))
    assert busy.value.retry_after <= MOST_WAIT


@settings(max_examples=scaled(200))
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40), st.booleans()), max_size=40))
def test_the_counts_are_those_of_what_waits(moves: list[tuple[str, int, bool]]):
    queue, waiting = queue_of(), list[Item]()
    for tenant, n_tokens, leaves in moves:
        if leaves and waiting:
            queue.remove(waiting.pop(n_tokens % len(waiting)))
            continue
        own = [item for item in waiting if item.tenant == tenant]
        item = Item(tenant, n_tokens)
        if len(own) == 3 or sum(one.n_tokens for one in own) + n_tokens > 100:
            with pytest.raises(Busy):
                queue.submit(item)
        else:
            queue.submit(item)
            waiting.append(item)
    assert len(queue) == len(waiting)
    for tenant in "abc":
        own = [item for item in waiting if item.tenant == tenant]
        assert list(queue.lines.get(tenant, ())) == own
        assert queue.n_tokens[tenant] == sum(item.n_tokens for item in own)
