"""Which examples make which step: a pure function, every example once an epoch, as many steps in each."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.data.bucketed import Bucketed, _cut
from transom.errors import Refused

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)


@given(lengths=LENGTHS, tokens=st.integers(1, 500), seed=st.integers(0, 9), least=st.integers(1, 4))
@settings(max_examples=scaled(150))
def test_every_example_once_an_epoch(lengths: list[int], tokens: int, seed: int, least: int) -> None:
    if len(lengths) < least:
        with pytest.raises(Refused, match=f"fewer than the {least} that a batch needs; give more examples"):
            Bucketed(lengths, tokens, seed, least)
        return
    order = Bucketed(lengths, tokens, seed, least)
    for epoch in range(3):
        batches = [order.batch(epoch * order.n_batches + n) for n in range(order.n_batches)]
        assert min(map(len, batches)) >= least
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))


@given(lengths=LENGTHS, steps=st.lists(st.integers(0, 10**6), min_size=2, max_size=5))
@settings(max_examples=scaled(60))
def test_a_pure_function_of_seed_and_step(lengths: list[int], steps: list[int]) -> None:
    order = Bucketed(lengths, 100, 7)
    first = [order.batch(step).tolist() for step in steps]
    assert [order.batch(step).tolist() for step in reversed(steps)] == first[::-1]
    assert [Bucketed(lengths, 100, 7).batch(step).tolist() for step in steps] == first


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=80),
    n=st.integers(1, 80),
    least=st.integers(1, 5),
)
@settings(max_examples=scaled(300))
def test_cuts(lengths: list[int], n: int, least: int) -> None:
    n = max(1, min(n, len(lengths) // least))
    least = min(least, len(lengths))
    ends = _cut(np.sort(np.array(lengths)), n, least)
    assert len(ends) == n and ends[-1] == len(lengths)
    assert (np.diff(ends, prepend=0) >= least).all()


def test_epochs_differ_and_batches_are_even_and_little_is_padding() -> None:
    lengths = np.maximum(2, np.random.default_rng(0).lognormal(2.7, 0.4, (20_000, 2))).astype(np.int64)
    order = Bucketed(lengths, 2048, 1)
    total = int(lengths.sum())
    assert order.n_batches == round(total / 2048)
    assert set(order.batch(3).tolist()) != set(order.batch(3 + order.n_batches).tolist())
    tokens, padded = [], []
    for step in range(order.n_batches):
        rows = lengths[order.batch(step)]
        tokens.append(int(rows.sum()))
        padded.append(int(rows.max(axis=0).sum()) * len(rows))
    assert min(tokens) > 0.8 * 2048 and max(tokens) < 1.3 * 2048
    assert total / sum(padded) > 0.85, "though the lengths of the two sides are independent here"
    longest = [int(lengths[order.batch(step)].max()) for step in range(200)]
    assert abs(np.corrcoef(longest, np.arange(200))[0, 1]) < 0.3, "short and long batches in turns"


@pytest.mark.alone
def test_a_million_examples_are_ordered_in_about_a_second() -> None:
    lengths = np.random.default_rng(0).integers(5, 80, (1_000_000, 2))
    order = Bucketed(lengths, 4096)
    started = time.perf_counter()
    order.batch(0)
    order.batch(order.n_batches)
    assert time.perf_counter() - started < 6, "two epochs, on a busy machine"


def test_a_batch_of_nothing() -> None:
    with pytest.raises(Refused, match="a batch of 0 tokens is too small; it needs at least 1"):
        Bucketed([3], 0)
