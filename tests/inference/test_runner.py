"""The runner: whatever is opened, forked, cut and closed, in whatever chunks, every row gets the logits of
the plain contiguous state, for every member of the family.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.scale import scaled
from transom.inference.block_manager import OutOfBlocks
from transom.inference.runner import BlockRunner, Chunk, TokenSequence, TorchRunner
from transom.model.build import Model, build
from transom.model.config import Experts, ModelConfig

CONFIG = ModelConfig(23, 16, 2, 4, 2, head_dim=4, ffn_dim=24, max_len=48)
TWO = {"kind": "encoder-decoder", "n_encoder_layers": 1}
MEMBERS = {
    "decoder": {},
    "window": {"window": 5, "window_layers": (True, False)},
    "learned": {"position": "learned", "norm": "layer"},
    "relative": {"position": "relative"},
    "soft-cap": {"attn_softcap": 3.0, "logit_softcap": 8.0},
    "experts": {"experts": Experts(4, 2, 12)},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "rnn": {"cell": "rnn"},
    "encoder-decoder": {**TWO, "n_kv_heads": 4, "position": "sinusoidal"},
    "relative encoder-decoder": {**TWO, "n_kv_heads": 4, "position": "relative"},
    "lstm encoder-decoder": {**TWO, "cell": "lstm"},
}
THREE = ("decoder", "encoder-decoder", "lstm")

Key = tuple[tuple[int, ...], tuple[int, ...] | None]
"""What a row's logits are a function of: its tokens and its source."""


@cache
def member(name: str, dtype: torch.dtype) -> Model:
    model = build(CONFIG.with_(**MEMBERS[name]), 0).eval().to(dtype)
    with torch.no_grad():
        model.embed.weight.mul_(30)  # so that logits depend on what was read
        for part, weight in model.named_parameters():
            if "relative" in part:
                weight.mul_(100)
    return model.requires_grad_(False)


@cache
def contiguous(name: str, tokens: tuple[int, ...], source: tuple[int, ...] | None) -> Tensor:
    """(L, V) logits by the plain twin: one row, one contiguous state, all at once."""
    model = member(name, torch.float64)
    memory = None if source is None else model.encode(torch.tensor([source]))
    state = model.new_state(1, len(tokens), memory=memory)
    return model.logits(model(torch.tensor([tokens]), state=state))[0]


moves = st.lists(st.tuples(st.sampled_from("oorrrrrraafftc"), st.integers(0, 2**20)), min_size=1, max_size=40)
BEGINNINGS = ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9], [3, 1, 4, 1, 5, 0, 0], [2, 7])


class Play:
    """A random workload: what was asked, and the logits that came."""

    def __init__(self, runner: BlockRunner, two: bool) -> None:
        self.runner, self.two, self.rows = runner, two, list[TokenSequence]()
        self.total = runner.free_tokens()
        self.seen: list[tuple[Key, Tensor]] = []
        self.sources: dict[TokenSequence, tuple[int, ...] | None] = {}

    def play(self, plan: Sequence[tuple[str, int]]) -> Play:
        for move, number in plan:
            if move == "o" or not self.rows:
                self._open(number)
            elif move == "r":
                self._run(number)
            else:
                row = self.rows[number % len(self.rows)]
                {"a": self._append, "f": self._fork, "t": self._cut, "c": self._close}[move](row, number // 7)
        for row in list(self.rows):
            self._close(row, 0)
        assert self.runner.free_tokens() == self.total, "a block was lost"
        return self

    def _open(self, number: int) -> None:
        begin = BEGINNINGS[number % 3][: 1 + number // 3 % 15]
        tokens = [*begin, *[(number >> i) % 23 for i in range(number // 50 % 9)]]
        source = ((1, 2, 3), (4,), (5, 6, 7, 8, 9, 10))[number // 11 % 3] if self.two else None
        row = self.runner.open(tokens, None if source is None else list(source), tenant="ab"[number % 2])
        assert row.tokens == tokens and row.n_read == row.n_reused < len(tokens)
        self.rows.append(row)
        self.sources[row] = source

    def _run(self, number: int) -> None:
        chunks = []
        for i, row in enumerate(self.rows):
            n = min(len(row.tokens) - row.n_read, (1, 1, 3, 20)[number // (i + 1) % 4])
            if n and (number >> i) % 8:
                chunks.append(Chunk(row, n, min(n, number // 3 % 4)))
        before = [row.n_read for row in self.rows]
        needed = sum(self.runner.needs(chunk.sequence, chunk.n) for chunk in chunks)
        free = self.runner.free_tokens()
        try:
            logits = self.runner.run(chunks) if chunks else torch.empty(0)
        except OutOfBlocks:
            assert needed > free and before == [row.n_read for row in self.rows]
            assert self.runner.free_tokens() == free
            return
        at = 0
        for row, n, wanted in chunks:
            stop = before[self.rows.index(row)] + n
            assert row.n_read == stop and free - self.runner.free_tokens() <= needed
            for end in range(stop - wanted + 1, stop + 1):
                self.seen.append(((tuple(row.tokens[:end]), self.sources[row]), logits[at]))
                at += 1
        assert at == len(logits)

    def _append(self, row: TokenSequence, number: int) -> None:
        row.tokens += [number % 23, number // 23 % 23][: CONFIG.max_len - len(row.tokens)]

    def _fork(self, row: TokenSequence, number: int) -> None:
        twin = self.runner.fork(row)
        self.sources[twin] = self.sources[row]
        twin.tokens.append(number % 23) if len(twin.tokens) < CONFIG.max_len else None
        self.rows.append(twin)

    def _cut(self, row: TokenSequence, number: int) -> None:
        n = max(1, len(row.tokens) - number % 9)
        self.runner.truncate(row, n)
        assert len(row.tokens) == n and row.n_read <= n

    def _close(self, row: TokenSequence, number: int) -> None:
        self.rows.remove(row)
        self.runner.close(row)


def check_bits(plays: Iterable[Play]) -> None:
    """Whatever several workloads ask alike has the same bits in all of them."""
    known: dict[Key, Tensor] = {}
    for play in plays:
        for key, logits in play.seen:
            assert torch.equal(known.setdefault(key, logits), logits)


def check(name: str, seen: Sequence[tuple[Key, Tensor]]) -> None:
    for (tokens, source), logits in seen:
        expected = contiguous(name, tokens, source)[-1]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MEMBERS)
@given(
    plan=moves, block=st.sampled_from([1, 3, 4, 16]), room=st.sampled_from([24, 60, 400]), reuse=st.booleans()
)
@settings(max_examples=scaled(40))
def test_any_workload_gives_what_the_contiguous_state_gives(name, plan, block, room, reuse):
    model = member(name, torch.float64)
    runner = TorchRunner(model, n_tokens=room, block=block, reuse=reuse)
    runner._store.in_place_from = 4 if plan[0][1] % 2 else 999  # of a paged cache: read in place, or gathered
    check(name, Play(runner, model.config.kind == "encoder-decoder").play(plan).seen)


@pytest.mark.parametrize("name", THREE)
@given(plan=moves, block=st.sampled_from([2, 4]))
@settings(max_examples=scaled(25))
def test_reuse_changes_no_logits(name, plan, block):
    model = member(name, torch.float64)
    with_reuse, without = (
        Play(TorchRunner(model, n_tokens=2000, block=block, reuse=reuse), model.config.kind != "decoder")
        for reuse in (True, False)
    )
    seen, plain = with_reuse.play(plan).seen, without.play(plan).seen
    alike = dict(plain)
    for key, logits in seen:  # chunks begin elsewhere once something is reused: not the same keys in all
        if key in alike:
            torch.testing.assert_close(logits, alike[key], rtol=1e-4, atol=1e-5)
    check(name, plain)


@pytest.mark.parametrize("name", [*THREE, "experts", "lstm encoder-decoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@given(one=moves, other=moves, seed=st.integers(0, 2**20))
@settings(max_examples=scaled(8))
def test_deterministic_logits_are_bitwise_a_function_of_the_row(name, dtype, one, other, seed):
    model = member(name, dtype)
    # A row that both workloads read, in chunks of its own each time, between whatever else is going on.
    common = [("o", seed), ("r", 1 | seed), ("a", seed), ("r", 1 | seed // 3), ("a", 5), ("r", 1 | seed // 5)]
    plans = (common + one, True), (one + common + other, True), (other + common, False)
    check_bits(
        Play(TorchRunner(model, n_tokens=300, block=4, reuse=reuse, deterministic=True),
             model.config.kind == "encoder-decoder").play(plan)
        for plan, reuse in plans
    )  # fmt: skip


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_decode_is_deterministic_prefill(name, deterministic):
    """Every token's logits, read at once, one by one, and by a row that was put back and is read again."""
    model = member(name, torch.float32)
    tokens, source = [(7 * i + i * i) % 23 for i in range(40)], [1, 2, 3, 4]
    runner = TorchRunner(model, n_tokens=400, block=4, reuse=False, deterministic=deterministic)
    whole = opened(runner, tokens, source)
    at_once = runner.run([Chunk(whole, 40, 40)])
    slow = opened(runner, tokens, source)
    beside = opened(runner, tokens[3:], source)
    steps = [runner.run([Chunk(slow, 1, 1), Chunk(beside, 1, 1)])[0] for _ in range(20)]
    again = opened(runner, tokens[:20], source)
    again_logits = runner.run([Chunk(again, 20, 1)])[0]
    if deterministic:
        assert torch.equal(at_once[:20], torch.stack(steps)) and torch.equal(again_logits, steps[-1])
    torch.testing.assert_close(at_once[:20], torch.stack(steps), rtol=1e-3, atol=1e-3)


def opened(
    runner: TorchRunner, tokens: list[int], source: list[int] | None, tenant: str = ""
) -> TokenSequence:
    two = runner._model.config.kind == "encoder-decoder"
    return runner.open(tokens, source if two else None, tenant=tenant)


@pytest.mark.parametrize("name", THREE)
@given(cuts=st.lists(st.integers(1, 40), max_size=8))
@settings(max_examples=scaled(15))
def test_a_prompt_in_chunks_is_the_prompt_as_a_whole(name, cuts):
    runner = TorchRunner(member(name, torch.float64), n_tokens=400, block=4, reuse=False)
    tokens = [(5 * i + i * i) % 23 for i in range(40)]
    whole, parts = (opened(runner, tokens, [4, 5]) for _ in range(2))
    expected = runner.run([Chunk(whole, 40, 40)])
    ends = sorted({*cuts, 40})
    logits = [
        runner.run([Chunk(parts, n, n)]) for n in (b - a for a, b in zip([0, *ends], ends, strict=False))
    ]
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", THREE)
def test_a_common_beginning_is_read_once(name, monkeypatch):
    model = member(name, torch.float64)
    runner = TorchRunner(model, n_tokens=200, block=4)
    read = []
    inner = runner._store.read
    monkeypatch.setattr(
        runner._store,
        "read",
        lambda m, spans, *rest: (read.extend(s.n for s in spans), inner(m, spans, *rest))[1],
    )
    tokens = [*range(20)]
    first, early = opened(runner, tokens, [3]), opened(runner, [*tokens, 1], [3])
    runner.run([Chunk(first, 20, 1)])
    second, elsewhere = opened(runner, [*tokens, 9], [3]), opened(runner, tokens, [3], tenant="another key")
    assert (second.n_reused, elsewhere.n_reused, early.n_reused) == (20, 0, 0)
    last = opened(runner, tokens, [3])
    assert last.n_read == 16  # the last token is always read: its logits are wanted
    runner.run([Chunk(early, 21, 2)])
    assert early.n_reused == 16 and read == [20, 5]  # what was read in the meantime is taken
    if model.config.kind == "encoder-decoder":
        assert opened(runner, tokens, [4]).n_read == 0  # another source, another state
    for row in (first, early, second, elsewhere, last):
        runner.close(row)
    assert opened(runner, tokens, [3]).n_reused == 16


@pytest.mark.parametrize("name", THREE)
def test_forks_share_until_one_writes(name):
    runner = TorchRunner(member(name, torch.float64), n_tokens=40, block=4)
    row = opened(runner, [*range(10)], [1, 2])
    runner.run([Chunk(row, 10)])
    free = runner.free_tokens()
    beams = [row, *(runner.fork(row) for _ in range(3))]
    assert runner.free_tokens() == free
    for i, beam in enumerate(beams):
        beam.tokens.append(i)
    assert [runner.needs(beam, 1) for beam in beams] == [4] * 4
    logits = runner.run([Chunk(beam, 1) for beam in beams])
    assert runner.free_tokens() == free - 3 * 4  # the last of them writes where the row was
    for beam, scores in zip(beams, logits, strict=True):
        source = (1, 2) if beam.source is not None else None
        torch.testing.assert_close(
            scores, contiguous(name, tuple(beam.tokens), source)[-1], rtol=1e-5, atol=1e-6
        )


def test_sources_are_encoded_together_once_and_shared_by_forks(monkeypatch):
    model = member("encoder-decoder", torch.float64)
    runner = TorchRunner(model, n_tokens=400, block=4)
    batches, projected = [], []
    encode, project = model.encode, model.layers[0].cross_attn._project
    monkeypatch.setattr(model, "encode", lambda s, **kw: (batches.append(tuple(s.shape)), encode(s, **kw))[1])
    monkeypatch.setattr(
        model.layers[0].cross_attn, "_project", lambda s: (projected.append(len(s)), project(s))[1]
    )
    rows = [runner.open([0], source) for source in ([1, 2], [3, 4, 5], [6])]
    assert batches == []
    for _ in range(3):
        runner.run([Chunk(row, 1) for row in rows])
        rows = rows if len(rows) > 3 else [r for row in rows for r in (row, runner.fork(row))]
        for row in rows:
            row.tokens.append(1)
    late = runner.open([0], [7, 8, 9, 9])
    runner.run([*(Chunk(row, 1) for row in rows), Chunk(late, 1)])
    assert batches == [(3, 3), (1, 4)] and projected == [3, 1]


def test_a_row_whose_numbers_are_damaged_leaves_nothing_behind():
    """A freed block may hold NaN; whoever gets it next must not see it even through a mask."""
    model = build(CONFIG, 0).eval()
    runner = TorchRunner(model, n_tokens=32, block=4, reuse=False)
    rows = [runner.open([1, 2, 3], None) for _ in range(2)]
    expected = runner.run([Chunk(row, 3) for row in rows])
    for row in rows:
        runner.close(row)
    runner._store.pool[:, 1:] = torch.nan
    rows = [runner.open([1, 2, 3], None), runner.open([1, 2, 3, 4, 5, 6], None)]
    runner.run([Chunk(rows[1], 5, 0), Chunk(rows[0], 2, 0)])
    torch.testing.assert_close(runner.run([Chunk(rows[0], 1), Chunk(rows[1], 1)])[0], expected[0])


def test_changed_weights_forget_what_was_kept():
    model = build(CONFIG, 0).eval()
    runner = TorchRunner(model, n_tokens=64, block=4)
    tokens = [*range(12)]
    runner.run([Chunk(row := runner.open(tokens), 12)])
    runner.close(row)
    assert runner.open(tokens).n_reused == 8
    other = TorchRunner(model, n_tokens=64, block=4)
    other.run([Chunk(row := other.open(tokens), 12)])
    other.close(row)
    with torch.no_grad():
        model.embed.weight.mul_(2)
    assert other.open(tokens).n_reused == 0


def test_what_cannot_be_read_is_refused_before_anything_is():
    runner = TorchRunner(member("decoder", torch.float64), n_tokens=64, block=4)
    row = runner.open([1, 2, 3])
    with pytest.raises(ValueError, match="a chunk of 4 tokens, 1 wanted; the row has 3 unread"):
        runner.run([Chunk(row, 4)])
    long = runner.open([1] * 49)
    with pytest.raises(ValueError, match="49 tokens in a row; this model reads at most 48"):
        runner.run([Chunk(row, 2), Chunk(long, 49)])
    assert row.n_read == 0 and runner.free_tokens() == 64
    with pytest.raises(ValueError, match="the row has 3 tokens; it cannot be cut to 4"):
        runner.truncate(row, 4)
    runner.close(row)
    runner.close(row)  # once is enough, twice does no harm
    assert runner.free_tokens() == 64


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_pass_that_fails_leaves_rows_as_they_were(name, deterministic, monkeypatch):
    runner = TorchRunner(member(name, torch.float64), n_tokens=200, block=4, deterministic=deterministic)
    tokens, source = [*range(18)], [1, 2]
    row, twin = opened(runner, tokens, source), opened(runner, tokens, source)
    runner.run([Chunk(row, 5, 0)])

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    free = runner.free_tokens()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(runner._store, "read", fail)
        runner.run([Chunk(row, 13), Chunk(twin, 18)])
    assert (row.n_read, twin.n_read, runner.free_tokens()) == (5, 0, free)
    expected = contiguous(name, tuple(tokens), tuple(source) if row.source is not None else None)
    for one in (row, twin):  # the second finds what the first has read
        logits = runner.run([Chunk(one, 18 - one.n_read, 2)])
        torch.testing.assert_close(logits, expected[-2:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["decoder", "experts"])
def test_memory_that_was_never_written_is_never_read(name, deterministic):
    """A slot behind a query has no weight, and 0 * NaN is NaN: so what it holds must be a number."""
    runner = TorchRunner(member(name, torch.bfloat16), n_tokens=300, block=4, deterministic=deterministic)
    runner._store.pool[:, 1:] = torch.nan
    rows = [runner.open([*range(1, 12)]), runner.open([3, 1])]
    assert runner.run([Chunk(rows[0], 11), Chunk(rows[1], 2)]).isfinite().all()
    for row in rows:
        row.tokens.append(5)
    assert runner.run([Chunk(row, 1) for row in rows]).isfinite().all()
