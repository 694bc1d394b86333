"""Blocks and the paged cache: who holds what, what may be used again, and what is read in place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.inference.block_manager import BlockManager, OutOfBlocks
from transom.inference.paged import SHORT, PagedCache, PagedStep
from transom.inference.sequence import Span, TokenSequence
from transom.model.attend import Rule, attend_plain
from transom.model.config import ModelConfig

CONFIG = ModelConfig(8, 8, 2, 4, 2, head_dim=4, ffn_dim=8, max_len=512)
CPU = torch.device("cpu")


def filled(blocks: BlockManager, parent: object, tokens: list[int]) -> tuple[list[int], list[int]]:
    """A row that has read whole blocks: its blocks and their nodes."""
    mine = blocks.take(len(tokens) // blocks.size)
    nodes = []
    for i, block in enumerate(mine):
        nodes.append(blocks.keep(parent, tokens[i * blocks.size : (i + 1) * blocks.size], block))
        parent = nodes[-1]
    return mine, nodes


def test_rows_grow_into_consecutive_blocks_side_by_side():
    blocks = BlockManager(64, 4)
    rows = [blocks.take(1) for _ in range(4)]
    for _ in range(7):
        for row in rows:
            row += blocks.take(1, row[-1])
    assert [row == [*range(row[0], row[0] + 8)] for row in rows] == [True] * 4
    assert len({block for row in rows for block in row}) == 32 and 0 not in rows[0]


def test_a_common_beginning_is_found_again_in_its_own_scope_only():
    blocks = BlockManager(16, 2)
    mine, nodes = filled(blocks, "a", [1, 2, 3, 4, 5, 6])
    blocks.release(mine)
    assert blocks.available == 16
    assert [k.block for k in blocks.find("a", [1, 2, 3, 4, 9, 9], 0, 6)] == mine[:2]
    assert [k.node for k in blocks.find(nodes[0], [1, 2, 3, 4, 5, 6], 2, 6)] == nodes[1:]
    assert len(blocks.find("a", [1, 2, 3, 4, 5, 6], 0, 5)) == 2  # the limit cuts inside the third
    assert blocks.find("b", [1, 2], 0, 2) == [] and blocks.find("a", [3, 4], 0, 2) == []


def test_the_longest_unused_goes_first_and_the_end_of_a_row_before_its_beginning():
    blocks = BlockManager(24, 1)
    old, _ = filled(blocks, "old", [*range(10)])
    new, _ = filled(blocks, "new", [*range(10)])
    blocks.release(old)
    blocks.release(new)
    blocks.take(5)  # 4 are free: one more and a spare 24 // 8 have to go
    assert len(blocks.find("old", [*range(10)], 0, 10)) == 6
    assert len(blocks.find("new", [*range(10)], 0, 10)) == 10
    held = blocks.find("old", [*range(10)], 0, 2)
    blocks.hold(known.block for known in held)
    blocks.take(blocks.available)
    assert [k.block for k in blocks.find("old", [*range(10)], 0, 10)] == [k.block for k in held]
    with pytest.raises(OutOfBlocks, match="1 blocks of 1 tokens were asked for; 0 can be had"):
        blocks.take(1)


def test_a_shared_or_kept_block_may_not_be_written():
    blocks = BlockManager(4, 2)
    (block,) = blocks.take(1)
    assert blocks.may_write(block)
    blocks.hold([block])
    assert not blocks.may_write(block) and blocks.copies(block, 1) == 1 and blocks.copies(block, 2) == 1
    blocks.release([block])
    blocks.keep("", [1, 2], block)
    assert not blocks.may_write(block) and blocks.copies(block, 1) == 1
    blocks.forget()
    assert blocks.may_write(block) and blocks.find("", [1, 2], 0, 2) == []


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=60))
@settings(max_examples=scaled(100))
def test_no_block_has_two_owners_and_none_is_lost(n_blocks, moves):
    blocks = BlockManager(n_blocks, 1)
    rows: list[list[int]] = []
    for move, number in moves:
        row = rows[number % len(rows)] if rows else []
        if move == 0 or not rows:
            rows.append([])
        elif move == 1:
            try:
                row += blocks.take(1 + number % 3, row[-1] if row else 0)
            except OutOfBlocks:
                assert blocks.available < 1 + number % 3
        elif move == 2:
            parent: object = ""
            for place, block in enumerate(row):
                parent = blocks.keep(parent, [place + number % 2], block)
        else:
            rows.remove(row)
            blocks.release(row)
        held = [block for row in rows for block in row]
        assert len(set(held)) == len(held) and set(held) <= set(range(1, n_blocks + 1))
        assert blocks.available == n_blocks - len(held)
    for row in rows:
        blocks.release(row)
    assert blocks.available == n_blocks


@st.composite
def reads(draw: st.DrawFn) -> tuple[list[tuple[list[int], int, int]], int]:
    """Rows with blocks in any order, and what each has read and reads now; the size of a block."""
    size = draw(st.sampled_from([1, 3, 16]))
    n_rows = draw(st.integers(1, 5))
    spans, free = [], draw(st.permutations(range(1, 61)))
    ordered = draw(st.booleans())
    for _ in range(n_rows):
        n = draw(st.one_of(st.just(1), st.integers(1, 12)))
        start = draw(st.integers(0, 12 * size - n)) if 12 * size > n else 0
        used = -(-(start + n) // size)
        mine, free = free[:used], free[used:]
        spans.append((sorted(mine) if ordered else mine, start, n))
    return spans, size


@given(reads(), st.sampled_from([None, 4]), st.booleans(), st.sampled_from([1, 20, 999]), st.integers(0, 99))
@settings(max_examples=scaled(100))
def test_a_pass_over_many_rows_attends_as_each_row_alone(case, window, alike, in_place_from, seed):
    spans, size = case
    cache = PagedCache(CONFIG, 60, size, torch.float64, CPU)
    cache.in_place_from, cache.short = in_place_from, 8
    generator = torch.Generator().manual_seed(seed)
    cache.pool[:, 1:] = torch.randn(cache.pool[:, 1:].shape, generator=generator, dtype=torch.float64)
    given_spans = []
    for blocks, start, n in spans:
        row = TokenSequence([0] * (start + n), None, "")
        row.blocks = blocks
        given_spans.append(Span(row, start, n))
    ordered = [given_spans[i] for i in cache.arranged(given_spans, alike)]
    step = PagedStep(cache, ordered, gather=alike)
    n_tokens = sum(span.n for span in ordered)
    query = torch.randn(n_tokens, 1, 4, 4, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, n_tokens, 1, 2, 4, generator=generator, dtype=torch.float64)
    mixed = step.attend(1, query, key, value, Rule(causal=True, window=window))
    at = 0
    for span in ordered:
        own = slice(at, at + span.n)
        held = cache.blocks[1][span.blocks].flatten(0, 1)[None, : span.stop].unbind(2)
        assert torch.equal(held[0][0, span.start :], key[own, 0])
        alone = attend_plain(query[None, own, 0], *held, Rule(causal=True, window=window))
        torch.testing.assert_close(mixed[own, 0], alone[0])
        at = own.stop


def test_consecutive_blocks_are_read_in_place_and_others_are_not():
    cache = PagedCache(CONFIG, 40, 16, torch.float32, CPU)
    row = TokenSequence([0] * 300, None, "")
    row.blocks = [*range(5, 24)]
    assert cache.in_place_from == (256 << 10) // (2 * 2 * 4 * 4)
    cache.in_place_from = 128
    assert cache.in_place(Span(row, 127, 1)) and not cache.in_place(Span(row, 126, 1))
    assert cache.in_place(Span(row, 3, SHORT + 1)) and not cache.in_place(Span(row, 200, 1), gather=True)
    row.blocks = [5, 7, *range(8, 24)]
    assert not cache.in_place(Span(row, 127, 1)) and cache.consecutive(Span(row, 3, 2))


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=2, max_size=4),
    st.sampled_from([None, 5]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=scaled(60))
def test_rows_with_one_beginning_look_back_together_as_each_alone(own, window, biased, seed):
    size, beginning = 4, [*range(1, 16)]
    cache = PagedCache(CONFIG, 60, size, torch.float64, CPU)
    cache.shared_from = 16
    generator = torch.Generator().manual_seed(seed)
    cache.pool[:, 1:] = torch.randn(cache.pool[:, 1:].shape, generator=generator, dtype=torch.float64)
    free, spans = [*range(59, 15, -1)], []
    for before, n in own:
        row = TokenSequence([0] * (60 + before + n), None, "")
        row.blocks = beginning + [free.pop() for _ in range(-(-(before + n) // size))]
        spans.append(Span(row, 60 + before, n))
    other = TokenSequence([0] * 20, None, "")
    other.blocks = [free.pop() for _ in range(5)]
    spans.insert(1, Span(other, 19, 1))
    together = sum(before + n for before, n in own) <= 60
    assert cache.shared_prefix_groups(spans) == ([[0, *range(2, len(spans))]] if together else [])
    ordered = [spans[i] for i in cache.arranged(spans)]
    step, n_tokens = PagedStep(cache, ordered), sum(span.n for span in ordered)
    longest = max(span.stop for span in ordered)
    query = torch.randn(n_tokens, 1, 4, 4, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, n_tokens, 1, 2, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(n_tokens, 4, 1, longest, generator=generator, dtype=torch.float64) if biased else None
    mixed = step.attend(1, query, key, value, Rule(causal=True, window=window, bias=bias))
    at = 0
    for span in ordered:
        mine = slice(at, at + span.n)
        held = cache.blocks[1][span.blocks].flatten(0, 1)[None, : span.stop].unbind(2)
        assert torch.equal(held[0][0, span.start :], key[mine, 0])
        seen = None if bias is None else bias[mine, :, 0, : span.stop].transpose(0, 1)[None]
        alone = attend_plain(query[None, mine, 0], *held, Rule(causal=True, window=window, bias=seen))
        torch.testing.assert_close(mixed[mine, 0], alone[0])
        at = mine.stop
