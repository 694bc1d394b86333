"""The scheduler: who goes, who waits, and that nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.plain_runner import PlainRunner, chain
from tests.inference.workloads import request_of
from tests.scale import scaled
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.inference.engine import Engine, EngineSettings
from transom.inference.request import Event, Request
from transom.inference.request_queue import Busy

LETTERS: Tokenizer = train_tokenizer("chars", iter(["abcdefghij"]), 16)
V = LETTERS.vocab_size


def engine_of(n_tokens: int = 4000, **limits: Any) -> Engine:
    runner = PlainRunner(chain(V), vocab_size=V, max_len=500, n_tokens=n_tokens)
    return Engine(runner, LETTERS, settings=EngineSettings(**limits))


def ask(length: int, tenant: str = "a", most: int = 4, first: int = 3, **changes: Any) -> Request:
    """A prompt of so many tokens, which begins as no other with another `first`; it makes `most` tokens."""
    prompt = [first + i % 2 for i in range(length)]
    how = {"temperature": 0, "seed": 0, "sample": 0, "logit_bias": {0: -100.0}}
    request = request_of(how | {"prompt": prompt, "tenant": tenant, "max_tokens": most} | changes, LETTERS)
    request.id = f"{tenant}{length}"
    return request


def steps(engine: Engine) -> list[list[Event]]:
    """The events of every step until nothing is left to do."""
    found = []
    while engine.busy:
        found.append(engine.step())
        assert len(found) < 3000, "nothing moves"
    return found


def finished(told: list[list[Event]]) -> list[Request]:
    return [event.request for events in told for event in events if event.finish_reason is not None]


def test_rows_that_write_are_never_held_up_by_a_long_prompt():
    engine, short, long = engine_of(chunk_tokens=10), ask(5, most=30), ask(200, first=5)
    engine.submit(short)
    engine.step()
    engine.submit(long)
    told = steps(engine)
    assert [len(events) for events in told[:19]] == [1] * 19, "a token of the short one in every step"
    sizes = engine.runner.sizes[1:21]  # type: ignore[attr-defined]
    assert all(step == [1, 10] for step in sizes)
    assert {event.request for event in told[19]} == {short, long}


def test_scopes_that_read_share_the_step_and_what_one_leaves_the_others_take():
    engine = engine_of(chunk_tokens=30)
    for request in (ask(100, "a"), ask(100, "a", first=5), ask(100, "b"), ask(4, "c")):
        engine.submit(request)
    engine.step()
    (sizes,) = engine.runner.sizes  # type: ignore[attr-defined]
    assert sorted(sizes) == [4, 13, 13], "the second of scope a waits for the first"


def test_a_busy_scope_does_not_keep_another_waiting():
    engine = engine_of(max_rows=2)
    many = [ask(4 + i, "a", first=3 + i) for i in range(8)]
    for request in many:
        engine.submit(request)
    engine.step()
    other = ask(9, "b")
    engine.submit(other)
    done = finished(steps(engine))
    assert done.index(other) <= 3
    assert [request for request in done if request is not other] == many, "within a scope, first come"


def test_one_that_needs_much_room_is_not_overtaken():
    engine = engine_of(n_tokens=160)
    for request in (ask(60, "a"), ask(20, "b")):
        engine.submit(request)
    engine.step()
    large, small = ask(100, "a", first=5), ask(4, "b", first=7)
    engine.submit(large)
    engine.submit(small)
    done = finished(steps(engine))
    assert done.index(large) < done.index(small) or done[-1] is large
    assert {large, small} <= set(done)


def test_when_nothing_can_move_the_latest_is_put_back_and_the_first_goes_on():
    engine = engine_of(n_tokens=120, chunk_tokens=200)
    requests = [ask(8, first=3 + i, most=80, seed=i) for i in range(4)]
    for request in requests:
        engine.submit(request)
    told = steps(engine)
    assert engine.load()["put_back"] > 0
    assert finished(told)[0] is requests[0] and len(finished(told)) == 4
    mine = [any(event.request is requests[0] for event in events) for events in told]
    assert all(mine[: mine.index(False) if False in mine else None]) and sum(mine) == 80, (
        "the first never waits"
    )
    alone = engine_of()
    again = [ask(8, first=3 + i, most=80, seed=i) for i in range(4)]
    for request in again:
        alone.submit(request)
    steps(alone)
    assert [request.tokens for request in requests] == [request.tokens for request in again]


@settings(max_examples=scaled(40))
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(1, 3), st.sampled_from("abc")),
        max_size=12,
    ),
    st.integers(300, 900),
    st.integers(3, 8),
    st.integers(1, 64),
)
def test_everybody_is_served_whatever_the_room(work, room: int, rows: int, chunk: int):
    engine = engine_of(n_tokens=room, max_rows=rows, chunk_tokens=chunk)
    requests = [
        ask(n, scope, most, first=3 + i % 8, beam=beam) for i, (n, most, beam, scope) in enumerate(work)
    ]
    for request in requests:
        if request.beam * (len(request.prompt) + request.max_tokens + 16) > room:
            request.beam = 1
        engine.submit(request)
    most_rows = 0
    while engine.busy:
        engine.step()
        most_rows = max(most_rows, int(engine.load()["rows"]))
    assert all(request.finish_reason == "length" for request in requests if request.beam == 1)
    assert all(request.finish_reason in ("length", "stop") for request in requests)
    assert most_rows <= rows
    assert engine.load()["free_tokens"] == engine.load()["cache_tokens"] and not engine.runner.rows  # type: ignore[attr-defined]


def test_a_beginning_that_is_just_being_read_is_waited_for():
    engine = engine_of(chunk_tokens=20)
    requests = [ask(100, seed=i) for i in range(3)] + [ask(100, "b"), ask(100, first=7)]
    for request in requests:
        engine.submit(request)
    for _ in range(4):
        engine.step()
    assert engine.load()["running"] == 2, "one of each scope reads; the rest waits for what that reads"
    assert len(finished(steps(engine))) == 5


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_do_is_no_work(n: int):
    engine = engine_of()
    for _ in range(n):
        engine.submit(ask(3))
        steps(engine)
    assert not engine.busy and engine.step() == []


def test_a_full_queue_of_one_scope_lets_another_in_and_it_takes_a_place_at_once():
    engine = engine_of(max_rows=3, max_queue=2)
    long = [ask(5 + i, "a", first=3 + i % 4, most=60) for i in range(5)]
    for i, request in enumerate(long):
        engine.submit(request)
        if i < 3:
            engine.step()
    with pytest.raises(Busy, match="2 requests wait already"):
        engine.submit(ask(9, "a"))
    others = [ask(7, "b", first=4, most=5), ask(8, "c", first=5, most=5)]
    for request in others:
        engine.submit(request)
    told = steps(engine)
    assert set(finished(told[:8])) == set(others), "they waited for no end"
    assert engine.load()["put_back"] == 2 and finished(told)[2] is long[0]
    alone = engine_of()
    again = [ask(5 + i, "a", first=3 + i % 4, most=60) for i in range(5)]
    for request in again:
        alone.submit(request)
    steps(alone)
    assert [request.tokens for request in long] == [request.tokens for request in again]


def test_a_search_that_cannot_fit_puts_nobody_back():
    engine = engine_of(max_rows=4)
    for i in range(4):
        engine.submit(ask(5, "a", first=3 + i, most=30))
    engine.step()
    engine.submit(ask(5, "b", most=4, beam=4))
    engine.step()
    assert engine.load()["put_back"] == 0 and engine.load()["running"] == 4
    assert len(finished(steps(engine))) == 5
