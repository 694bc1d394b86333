"""Masked language modelling: a pure function of (seed, step, row), BERT's shares, control never hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.token_files import write_tokens
from tests.scale import scaled
from transom.data.masking import Masking
from transom.data.order import NO_LOSS, Batch, Windows
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.data.tokens import TokenFile
from transom.errors import Refused


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("bytes", iter([]), 0, frame="text")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> TokenFile:
    numbers = np.random.default_rng(0)
    documents = [numbers.integers(0, 256, length) for length in (1, 0, 700, 4000, 90, 30_000, 3)]
    path = tmp_path_factory.mktemp("masking") / "a.tokens"
    return write_tokens(path, documents, eos_id=256, bytes_per_token=tokenizer.bytes_per_token)


def check(plain: Batch, masked: Batch, tokenizer: Tokenizer) -> None:
    chosen = masked.targets != NO_LOSS
    assert torch.equal(masked.targets[chosen], plain.tokens[chosen]), "the hidden token itself is the target"
    assert torch.equal(masked.tokens[~chosen], plain.tokens[~chosen])
    control = torch.isin(plain.tokens, torch.tensor(sorted(tokenizer.control_ids)))
    assert not (chosen & control).any()
    shown = masked.tokens[chosen]
    assert not torch.isin(
        shown[shown != tokenizer.mask_id], torch.tensor(sorted(tokenizer.control_ids))
    ).any()
    free = (~control).sum(dim=1)
    wanted = torch.where(free > 0, (0.15 * free).round().clamp(min=1), 0)
    assert torch.equal(chosen.sum(dim=1), wanted.long()) and torch.equal(masked.row_targets, wanted.long())
    assert masked.n_targets == masked.n_bytes == int(wanted.sum()), "every byte here is a token"
    assert torch.equal(masked.ids, plain.ids) and (masked.documents is None) == (plain.documents is None)
    if masked.documents is not None and plain.documents is not None:
        assert torch.equal(masked.documents, plain.documents)


@given(step=st.integers(0, 10**7), length=st.integers(1, 80), size=st.integers(1, 6))
@settings(max_examples=scaled(80))
def test_what_is_hidden(file: TokenFile, tokenizer: Tokenizer, step: int, length: int, size: int) -> None:
    windows = Windows(file, length, 5)
    masking = Masking(windows, tokenizer, 5)
    batch = masking.batch(step, size)
    check(windows.batch(step, size), batch, tokenizer)
    again = Masking(Windows(file, length, 5), tokenizer, 5).batch(step, size)
    assert torch.equal(batch.tokens, again.tokens) and torch.equal(batch.targets, again.targets)
    parts = [masking.batch(step, 2 * size, rank, 2) for rank in range(2)]
    whole = masking.batch(step, 2 * size)
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_shares(file: TokenFile, tokenizer: Tokenizer) -> None:
    windows = Windows(file, 128, 0)
    plain, masked = windows.batch(0, 256), Masking(windows, tokenizer).batch(0, 256)
    chosen = masked.targets != NO_LOSS
    n = int(chosen.sum())
    masks = int((masked.tokens[chosen] == tokenizer.mask_id).sum())
    kept = int((masked.tokens[chosen] == plain.tokens[chosen]).sum())
    assert abs(n / chosen.numel() - 0.15) < 0.005
    assert abs(masks / n - 0.8) < 0.02 and abs(kept / n - 0.1) < 0.015
    replaced = masked.tokens[chosen & (masked.tokens != plain.tokens) & (masked.tokens != tokenizer.mask_id)]
    assert len(replaced.unique()) > 150, "replaced by any of 256 tokens"
    columns = chosen.sum(dim=0).float()
    assert columns.max() < 2 * columns.mean() and columns.min() > 0.4 * columns.mean()


def test_epochs_and_seeds_hide_other_tokens(file: TokenFile, tokenizer: Tokenizer) -> None:
    windows = Windows(file, 64, 0)
    first = Masking(windows, tokenizer, 0)
    assert not torch.equal(first.batch(0, 8).targets, Masking(windows, tokenizer, 1).batch(0, 8).targets)
    where = [first.batch(step, 8).targets != NO_LOSS for step in (0, 1)]
    assert float((where[0] & where[1]).float().mean()) < 0.06, "not the same places at every step"


def test_measuring_hides_the_same_every_time(file: TokenFile, tokenizer: Tokenizer) -> None:
    windows = Windows(file, 50)
    masking = Masking(windows, tokenizer)
    one, other = list(masking.eval_batches(16)), list(masking.eval_batches(16))
    for plain, first, second in zip(windows.eval_batches(16), one, other, strict=True):
        assert torch.equal(first.tokens, second.tokens) and torch.equal(first.targets, second.targets)
        check(plain, first, tokenizer)
    assert (masking.length, masking.n_windows, masking.file) == (50, windows.n_windows, file)


def test_a_tokenizer_without_a_mask(file: TokenFile, tmp_path: Path) -> None:
    plain = train_tokenizer("bytes", iter([]), 0)
    with pytest.raises(Refused, match="the tokenizer names no mask token .* or give --data.tokenizer bpe"):
        Masking(Windows(file, 8), plain)
    assert Masking(Windows(file, 8), plain.framed_as("text")).mask_id == 258
