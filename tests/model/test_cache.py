"""The decode state: reordering is a copy of rows, whatever share of them moves."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.model.cache import KVCache, Slots, StateHistory
from transom.model.config import ModelConfig

CONFIG = ModelConfig(8, 8, 2, 2, 2, head_dim=4, ffn_dim=8, max_len=16)


def filled(kind: type[Slots], rows: int, used: int) -> Slots:
    config = CONFIG.with_(cell="lstm") if kind is StateHistory else CONFIG
    state = kind(config, rows, 10, torch.float32)
    for kept in state.tensors:
        for tensor in kept:
            tensor[:, : used + (kind is StateHistory)].normal_()
    state.advance(used)
    return state


@given(st.sampled_from([KVCache, StateHistory]), st.integers(1, 9), st.integers(1, 6), st.data())
@settings(max_examples=scaled(60))
def test_reordering_copies_rows(kind, rows, used, data):
    state = filled(kind, rows, used)
    if data.draw(st.booleans()):  # most rows stay where they are
        wanted = list(range(rows))
        wanted[data.draw(st.integers(0, rows - 1))] = data.draw(st.integers(0, rows - 1))
    else:
        wanted = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=12))
    cuts = [data.draw(st.integers(0, used)) for _ in range(rows)]
    state.truncate(cuts)
    before = [[tensor.clone() for tensor in kept] for kept in state.tensors]
    state.reorder(wanted)
    assert state.lengths == [cuts[row] for row in wanted]
    for old, new in zip(before, state.tensors, strict=True):
        for was, now in zip(old, new, strict=True):
            assert len(now) == len(wanted)
            for row, origin in enumerate(wanted):
                held = cuts[origin] + (kind is StateHistory)
                assert torch.equal(now[row, :held], was[origin, :held])
