"""One door for attention: the fast paths against the plain twin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.model.attend import Rule, attend, attend_plain
from transom.model.cpu import blocked_attention, pays


def qkv(batch: int, n_queries: int, n_keys: int, heads: int, groups: int, width: int = 8, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((n_queries, heads), (n_keys, groups), (n_keys, groups))
    return [torch.randn(batch, n, h, width, generator=draw) for n, h in shapes]


@settings(max_examples=scaled(60))
@given(
    batch=st.integers(1, 3),
    n_queries=st.integers(1, 9),
    earlier=st.integers(0, 5),
    groups=st.sampled_from([1, 2]),
    per_group=st.sampled_from([1, 3]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 12),
    biased=st.booleans(),
    softcap=st.none() | st.just(5.0),
    scale=st.none() | st.just(0.3),
)
def test_attend_equals_its_plain_twin(
    batch, n_queries, earlier, groups, per_group, causal, window, biased, softcap, scale
):
    heads, n_keys = groups * per_group, n_queries + earlier
    query, key, value = qkv(batch, n_queries, n_keys, heads, groups)
    bias = torch.randn(heads, n_queries, n_keys) if biased else None
    rule = Rule(causal=causal, window=window, bias=bias, softcap=softcap, scale=scale)
    torch.testing.assert_close(attend(query, key, value, rule), attend_plain(query, key, value, rule))


@settings(max_examples=scaled(40))
@given(cuts=st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=3))
def test_a_packed_document_sees_only_itself(cuts):
    documents = torch.tensor(cuts).cumsum(1)
    query, key, value = qkv(len(cuts), 7, 7, 2, 2)
    mixed = attend(query, key, value, Rule(causal=True, documents=documents))
    for row, numbers in enumerate(documents):
        for number in numbers.unique():
            own = numbers == number
            parts = (x[row : row + 1, own] for x in (query, key, value))
            torch.testing.assert_close(mixed[row : row + 1, own], attend(*parts, Rule(causal=True)))


def test_rows_of_the_mask_equal_the_whole_mask():
    rule = Rule(causal=True, window=3, documents=torch.tensor([[0, 0, 1, 1, 1, 2]]))
    whole = rule.mask(6, 6, torch.device("cpu"))
    rows = torch.tensor([4, 1])
    assert torch.equal(rule.visible(rows, 6, 6), whole[:, :, rows])


def test_window_counts_the_token_itself():
    seen = Rule(causal=True, window=2).mask(4, 4, torch.device("cpu"))
    assert seen[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("length", [2, 64, 300])
@pytest.mark.parametrize("packed", [False, True])
def test_blocked_backward_is_as_exact_as_the_kernel(length, packed):
    """Gradients in bfloat16 are no further from float64 than those of the fused kernel, times two."""
    torch.manual_seed(length)
    exact = [x.double().requires_grad_() for x in qkv(3, length, length, 4, 2, width=32)]
    coarse = [x.detach().bfloat16().requires_grad_() for x in exact]
    rule = Rule(causal=True, documents=(torch.arange(length) // 40).expand(3, -1) if packed else None)
    assert pays(coarse[0], coarse[1])
    mixed = attend(*coarse, rule)
    assert "BlockedAttention" in type(mixed.grad_fn).__name__
    slope = torch.randn_like(mixed)
    blocked = torch.autograd.grad(mixed, coarse, slope)
    truth = torch.autograd.grad(attend_plain(*exact, rule), exact, slope.double())
    mask = rule.mask(length, length, torch.device("cpu"))
    fused_out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in coarse), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    fused = torch.autograd.grad(fused_out, coarse, slope)
    for ours, theirs, true in zip(blocked, fused, truth, strict=True):
        ours_off, theirs_off = ((x.double() - true).norm() / true.norm() for x in (ours, theirs))
        assert ours_off < max(2 * theirs_off, 4e-3)


def test_blocked_attention_without_a_mask():
    exact = [x.double().requires_grad_() for x in qkv(2, 5, 5, 2, 2)]
    mixed = blocked_attention(*exact, None, False, 0.5)
    plain = attend_plain(*exact, Rule(scale=0.5))
    torch.testing.assert_close(mixed, plain)
    slope = torch.randn_like(mixed)
    ours, theirs = (torch.autograd.grad(x, exact, slope) for x in (mixed, plain))
    torch.testing.assert_close(ours, theirs)


def test_one_query_of_bfloat16_that_sees_all_keys_has_a_mask():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, 2, 16).bfloat16() for n in (1, 5, 5))
    rule = Rule(causal=True)
    with torch.no_grad():
        found, right = attend(query, key, value, rule), attend_plain(query, key, value, rule)
    torch.testing.assert_close(found, right, atol=0.02, rtol=0.02)
