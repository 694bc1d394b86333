"""Which windows make which step: a pure function, every window once an epoch, the same for any ranks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.token_files import write_tokens
from tests.scale import scaled
from transom.data.order import NO_LOSS, Batch, Windows, _keys, permuted
from transom.data.tokens import TokenFile
from transom.errors import Refused


def corpus(folder: Path, lengths: list[int], seed: int = 0, vocab_size: int = 50) -> TokenFile:
    numbers = np.random.default_rng(seed)
    documents = [numbers.integers(1, vocab_size, size=length) for length in lengths]
    sizes = np.arange(vocab_size, dtype=np.uint16)
    return write_tokens(folder / "c.tokens", documents, eos_id=0, bytes_per_token=sizes)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return corpus(tmp_path_factory.mktemp("order"), [1, 5, 0, 300, 40, 8, 8, 8, 700, 3])


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**64), epoch=st.integers(0, 2**40))
@settings(max_examples=scaled(200))
def test_a_permutation(n: int, seed: int, epoch: int) -> None:
    keys = _keys(seed, epoch)
    order = permuted(np.arange(n, dtype=np.uint64), n, keys)
    assert sorted(order.tolist()) == list(range(n))
    at = seed % n
    assert permuted(np.array([at], dtype=np.uint64), n, keys)[0] == order[at], "random access"


def test_a_permutation_of_very_many() -> None:
    n = 10**15 + 7
    order = permuted(np.arange(2000, dtype=np.uint64), n, _keys(0, 0))
    assert len(set(order.tolist())) == 2000 and order.max() < n
    assert abs(float(order.mean()) / n - 0.5) < 0.05


def test_epochs_and_seeds_differ_and_look_random() -> None:
    n = 1000
    orders = [permuted(np.arange(n, dtype=np.uint64), n, _keys(s, e)) for s in (0, 1) for e in (0, 1)]
    for one in range(4):
        assert np.abs(np.corrcoef(orders[one], np.arange(n))[0, 1]) < 0.15
        for other in range(one):
            assert (orders[one] == orders[other]).mean() < 0.02


def by_hand(file: TokenFile, start: int, length: int) -> tuple[list[int], list[int]]:
    """Document numbers and positions of one row, the plain way."""
    begins = set(file.starts.tolist())
    documents, positions = [], []
    document, since = 0, start
    for at in range(start, start + length):
        if at in begins and at > start:
            document, since = document + 1, at
        documents.append(document)
        positions.append(at - since)
    return documents, positions


@given(step=st.integers(0, 200), size=st.integers(1, 12), length=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=scaled(60))
def test_rows_are_what_they_say(file: TokenFile, step: int, size: int, length: int, seed: int) -> None:
    windows = Windows(file, length, seed)
    batch = windows.batch(step, size)
    assert batch.ids.tolist() == list(range(step * size, (step + 1) * size))
    n_boundaries, n_bytes = 0, 0
    flat = file.tokens.tolist()
    texts = {tuple(flat[start : start + length + 1]): start for start in range(file.n_tokens - length)}
    for row in range(size):
        tokens, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
        assert tokens[1:] == targets[:-1]
        documents, positions = by_hand(file, texts[(*tokens, targets[-1])], length)
        n_boundaries += max(documents)
        n_bytes += sum(targets)  # token n writes n bytes here
        if batch.documents is not None and length > 3:
            assert batch.documents[row].tolist() == documents
            assert batch.positions is not None and batch.positions[row].tolist() == positions
    assert (batch.documents is None) == (batch.positions is None)
    if length > 3:
        assert (batch.documents is None) == (n_boundaries == 0)
    assert batch.n_targets == size * length and batch.n_bytes == n_bytes
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    again = Windows(file, length, seed).batch(step, size)
    assert torch.equal(again.tokens, batch.tokens), "a pure function of its arguments"


def joined(parts: list[Batch], name: str, length: int) -> torch.Tensor:
    filled = []
    for part in parts:
        value = getattr(part, name)
        if value is None:
            value = torch.arange(length).repeat(len(part.tokens), 1) * (name == "positions")
        filled.append(value.long())
    return torch.cat(filled)


@given(step=st.integers(0, 10**9), share=st.integers(1, 5), world=st.sampled_from([1, 2, 3, 4, 8]))
@settings(max_examples=scaled(150))
def test_ranks_together_are_one(file: TokenFile, step: int, share: int, world: int) -> None:
    windows = Windows(file, 16, seed=3)
    size = share * world
    whole = windows.batch(step, size)
    parts = [windows.batch(step, size, rank, world) for rank in range(world)]
    for name in ("tokens", "targets", "ids", "row_bytes", "documents", "positions"):
        assert torch.equal(joined(parts, name, 16), joined([whole], name, 16))
    assert sum(part.n_bytes for part in parts) == whole.n_bytes
    micro = whole.split(2)
    assert torch.equal(joined(micro, "tokens", 16), whole.tokens)
    assert sum(part.n_targets for part in micro) == whole.n_targets
    assert sum(part.n_bytes for part in micro) == whole.n_bytes


@given(length=st.integers(1, 60), seed=st.integers(0, 100), size=st.integers(1, 9), epoch=st.integers(0, 3))
@settings(max_examples=scaled(60))
def test_every_window_once_an_epoch(file: TokenFile, length: int, seed: int, size: int, epoch: int) -> None:
    windows = Windows(file, length, seed)
    n = windows.n_windows
    starts: list[int] = []
    windows._batch = lambda rows, starts_of, ids, missing=0: starts.extend(starts_of.tolist())  # type: ignore
    first = n * epoch
    for step in range(first // size, (first + n) // size + 1):
        before = len(starts)
        windows.batch(step, size)
        inside = [first <= number < first + n for number in range(step * size, (step + 1) * size)]
        starts[before:] = [start for start, keep in zip(starts[before:], inside, strict=True) if keep]
    starts.sort()
    assert len(starts) == n
    assert np.diff(starts).tolist() == [length] * (n - 1), "they tile the text without overlap"
    assert starts[0] < length or n == 1
    assert starts[-1] + length + 1 <= file.n_tokens
    assert file.n_tokens - n * length <= 2 * length


def test_epochs_begin_at_different_places(file: TokenFile) -> None:
    windows = Windows(file, 64, seed=0)
    firsts = set()
    for epoch in range(8):
        numbers = np.arange(windows.n_windows)
        rows = windows.batch(epoch, windows.n_windows).tokens
        assert len(rows) == len(numbers)
        flat = file.tokens.tolist()
        firsts |= {next(s for s in range(len(flat)) if flat[s : s + 64] == row.tolist()) % 64 for row in rows}
    assert len(firsts) > 4


@given(length=st.integers(1, 70), size=st.integers(1, 9))
@settings(max_examples=scaled(80))
def test_held_out_gives_every_token_once(file: TokenFile, length: int, size: int) -> None:
    seen: list[int] = []
    total = n_bytes = 0
    for batch in Windows(file, length).eval_batches(size):
        assert batch.tokens.shape[1] == length and len(batch.tokens) <= size
        seen += [target for row in batch.targets.tolist() for target in row if target != NO_LOSS]
        assert batch.n_targets == int((batch.targets != NO_LOSS).sum())
        assert batch.row_targets.sum() == batch.n_targets and batch.row_bytes.sum() == batch.n_bytes
        total, n_bytes = total + batch.n_targets, n_bytes + batch.n_bytes
    assert seen == file.tokens[1:].tolist()
    assert total == file.n_tokens - 1 and n_bytes == file.n_bytes


def test_a_single_document_has_no_boundaries(tmp_path: Path) -> None:
    batch = Windows(corpus(tmp_path, [500]), 32).batch(0, 8)
    assert batch.documents is None and batch.positions is None


def test_a_row_that_begins_with_a_document_holds_no_boundary(tmp_path: Path) -> None:
    windows = Windows(corpus(tmp_path, [7, 7]), 8)
    assert windows._boundaries(np.array([0, 8])) == (None, None)
    documents, positions = windows._boundaries(np.array([4]))
    assert documents is not None and documents.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert positions is not None and positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]


def test_refusals(file: TokenFile, tmp_path: Path) -> None:
    small = corpus(tmp_path, [9])
    assert Windows(small, 9).n_windows == 1
    with pytest.raises(Refused, match="10 tokens are fewer than one window of 10 .* at most 9"):
        Windows(small, 10)
    with pytest.raises(Refused) as caught:
        Windows(small, 10, name="notes/ (held out)")
    assert str(caught.value) == (
        "notes/ (held out): 10 tokens are fewer than one window of 10 and its last target; give more text, "
        "or a --model.max-len of at most 9"
    )
    with pytest.raises(Refused, match="5 windows cannot be shared evenly by 2 processes"):
        Windows(small, 4).batch(0, 5, 0, 2)


def test_to_and_split_keep_counts(file: TokenFile) -> None:
    batch = Windows(file, 32).batch(0, 6)
    moved = batch.to("cpu")
    assert torch.equal(moved.tokens, batch.tokens) and moved.n_bytes == batch.n_bytes
    assert [len(part.tokens) for part in batch.split(4)] == [4, 2]


@pytest.mark.alone
def test_a_batch_is_fast(tmp_path: Path) -> None:
    windows = Windows(corpus(tmp_path, [3000] * 500, vocab_size=4096), 256)
    windows.batch(0, 64)
    times = []
    for step in range(1, 40):
        began = time.perf_counter()
        windows.batch(step, 64)
        times.append(time.perf_counter() - began)
    assert min(times) < 1e-3
