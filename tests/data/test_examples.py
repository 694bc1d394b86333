"""Batches of examples: what stands in them, padding told by place, any ranks and micro-batches alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.data.examples import Classification, Embedding, LabelledRows, PairRows, Translation
from transom.data.order import NO_LOSS
from transom.data.ragged import Ragged
from transom.errors import Refused

END, PAD = 1, 0


def ragged(lengths: list[int], seed: int) -> Ragged:
    numbers = np.random.default_rng(seed)
    return Ragged.of([np.append(numbers.integers(2, 90, n), END).astype(np.uint32) for n in lengths])


def pairs(n: int = 40, seed: int = 0) -> PairRows:
    lengths = np.random.default_rng(seed).integers(1, 12, (2, n)).tolist()
    return PairRows(ragged(lengths[0], seed), ragged(lengths[1], seed + 1), np.arange(n) + 5)


def orders(n: int = 40, tokens: int = 60, seed: int = 0, least: int = 1) -> list[Any]:
    rows = pairs(n, seed)
    labelled = LabelledRows(rows.source, np.arange(n) % 3)
    return [
        Translation(rows, tokens, seed, start_id=PAD, pad_id=PAD, least_rows=least),
        Classification(labelled, tokens, seed, pad_id=PAD, least_rows=least),
        Embedding(rows, tokens, seed, pad_id=PAD, least_rows=least),
    ]


def unpadded(tokens: torch.Tensor, documents: torch.Tensor | None) -> list[list[int]]:
    if documents is None:
        return tokens.tolist()
    assert set(documents.unique().tolist()) == {0, -1}
    assert bool((documents.diff(dim=1) <= 0).all()), "padding is at the end"
    return [row[inside].tolist() for row, inside in zip(tokens, documents == 0, strict=True)]


@given(n=st.integers(1, 60), tokens=st.integers(5, 300), step=st.integers(0, 500))
@settings(max_examples=scaled(60))
def test_a_batch_of_pairs(n: int, tokens: int, step: int) -> None:
    rows = pairs(n)
    batch = Translation(rows, tokens, 3, start_id=PAD, pad_id=PAD).batch(step)
    ids = batch.ids.tolist()
    assert unpadded(batch.source, batch.source_documents) == [rows.source[i].tolist() for i in ids]
    wanted = [rows.target[i].tolist() for i in ids]
    assert unpadded(batch.targets, batch.documents) == wanted
    assert unpadded(batch.tokens, batch.documents) == [[PAD, *row[:-1]] for row in wanted]
    inside = batch.targets != NO_LOSS
    assert torch.equal(inside, torch.ones_like(inside) if batch.documents is None else batch.documents == 0)
    assert batch.n_targets == int(inside.sum()) == int(batch.row_targets.sum())
    assert batch.n_bytes == sum(i + 5 for i in ids)
    assert batch.positions is None and batch.source.dtype == batch.tokens.dtype == torch.int64
    for documents in (batch.documents, batch.source_documents):
        assert documents is None or (documents.dtype == torch.int32 and bool((documents < 0).any()))


def test_the_start_is_the_id_of_padding_and_yet_no_padding() -> None:
    batch = Translation(pairs(), 300, start_id=PAD, pad_id=PAD).batch(0)
    assert batch.documents is not None
    assert bool((batch.tokens[:, 0] == PAD).all()) and bool((batch.documents[:, 0] == 0).all())
    content = batch.tokens[:, 1:][batch.documents[:, 1:] == 0]
    assert PAD not in content.tolist()


def test_batches_of_texts() -> None:
    translation, classification, embedding = orders()
    batch = classification.batch(4)
    assert unpadded(batch.tokens, batch.documents) == [
        classification.rows.text[i].tolist() for i in batch.ids.tolist()
    ]
    assert batch.labels.tolist() == [i % 3 for i in batch.ids.tolist()] and batch.labels.dtype == torch.int64
    assert batch.n_targets == len(batch) and batch.n_bytes == 0
    both = embedding.batch(4)
    rows = embedding.pairs
    assert unpadded(both.tokens, both.documents) == [rows.source[i].tolist() for i in both.ids.tolist()]
    assert unpadded(both.other_tokens, both.other_documents) == [
        rows.target[i].tolist() for i in both.ids.tolist()
    ]
    assert both.n_targets == len(both) and translation.n_examples == 40


def rows_of(batch: Any) -> dict[int, list[Any]]:
    """Example -> its tensors without padding."""
    content: list[list[Any]] = []
    for name in ("source", "tokens", "targets", "other_tokens"):
        tensor = getattr(batch, name, None)
        if tensor is not None:
            twin = {"source": "source_documents", "other_tokens": "other_documents"}.get(name, "documents")
            content.append(unpadded(tensor, getattr(batch, twin)))
    if hasattr(batch, "labels"):
        content.append(batch.labels.tolist())
    return {number: list(parts) for number, *parts in zip(batch.ids.tolist(), *content, strict=True)}


@given(step=st.integers(0, 10**6), world=st.integers(1, 4), n_rows=st.integers(1, 9))
@settings(max_examples=scaled(60))
def test_ranks_and_micro_batches_together_are_the_batch(step: int, world: int, n_rows: int) -> None:
    for order in orders(least=world):
        whole = order.batch(step)
        shares = [order.batch(step, rank, world) for rank in range(world)]
        joined: dict[int, list[Any]] = {}
        for share in shares:
            joined |= rows_of(share)
        assert joined == rows_of(whole) and sum(map(len, shares)) == len(whole)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert sum(share.n_targets for share in shares) == whole.n_targets
        parts = whole.split(n_rows)
        assert all(len(part) <= n_rows for part in parts)
        assert [i for part in parts for i in part.ids.tolist()] == whole.ids.tolist()
        assert sum(part.n_targets for part in parts) == whole.n_targets
        assert sum(part.n_bytes for part in parts) == whole.n_bytes
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)


@given(tokens=st.integers(1, 400))
@settings(max_examples=scaled(30))
def test_measuring_takes_every_example_once(tokens: int) -> None:
    for order in orders():
        batches = order.eval_batches(tokens)
        assert sorted(i for batch in batches for i in batch.ids.tolist()) == list(range(40))
        for batch in batches:
            names = ("source", "tokens") if hasattr(batch, "source") else ("tokens", "other_tokens")
            padded = sum(getattr(batch, name).numel() for name in names if hasattr(batch, name))
            assert len(batch) == 1 or padded <= tokens or isinstance(order, Embedding)
        if isinstance(order, Embedding):  # by pairs: finding one of many is harder
            assert len({len(batch) for batch in batches}) <= 2


def test_figures_and_rows_for_a_trial() -> None:
    for order in orders(200, 100):
        total = int(order.order.lengths.sum())
        assert order.steps_per_epoch == round(total / 100)
        assert abs(order.tokens_per_step * order.steps_per_epoch - total) < order.steps_per_epoch
        assert abs(order.n_rows * order.steps_per_epoch - 200) <= order.steps_per_epoch
        for n in (1, 7, 200, 450):
            trial = order.trial(n)
            assert len(trial) == n
        assert abs(float(order.order.lengths[order.trial(9).ids.numpy()].mean()) - total / 200) < 2


def test_a_batch_too_small_for_its_ranks() -> None:
    order = Translation(pairs(6), 1, start_id=PAD, pad_id=PAD)
    with pytest.raises(
        Refused, match="the batch of step 2 has 1 examples, too few to be shared by 2 processes"
    ):
        order.batch(2, 0, 2)
    shared = Translation(pairs(6), 1, start_id=PAD, pad_id=PAD, least_rows=2)
    assert [len(shared.batch(step, 1, 2)) for step in range(shared.steps_per_epoch)] == [1, 1, 1]


def test_to_a_device_and_wrong_micro_batches() -> None:
    batch = orders()[0].batch(0).to("meta")
    assert batch.source.is_meta and batch.targets.is_meta and not batch.ids.is_meta and batch.n_targets > 0
    with pytest.raises(ValueError, match="a micro-batch has at least 1 row"):
        batch.split(0)
