"""Maps against the definition, for every way in which PyTorch's attention can be asked; and their memory."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import transom
from tests.scale import scaled
from transom.errors import Refused
from transom.insight import maps


class Attends(nn.Module):
    """Nothing but one call of PyTorch's attention."""

    def forward(self, *parts: Tensor, **named: object) -> Tensor:
        return F.scaled_dot_product_attention(*parts, **named)


def softmax_map(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """The definition, in float64."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.double() @ key.double().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.double()
    return scores.softmax(-1).nan_to_num(0)  # a query that sees nothing uses nothing


@settings(max_examples=scaled(120))
@given(
    batch=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    per_group=st.sampled_from([1, 3]),
    n_queries=st.integers(1, 40),
    n_keys=st.integers(1, 40),
    masked=st.sampled_from(["no", "causal", "bool", "a row of nothing", "float", "one a head"]),
    scale=st.none() | st.just(0.9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    grad=st.booleans(),
    tile=st.sampled_from([1, 300, 16 << 20]),
    seed=st.integers(0, 99),
)
def test_every_map_is_the_softmax_it_should_be(
    batch, groups, per_group, n_queries, n_keys, masked, scale, dtype, grad, tile, seed
):
    drawn, heads = torch.Generator().manual_seed(seed), groups * per_group
    query = torch.randn(batch, heads, n_queries, 8, generator=drawn).to(dtype).requires_grad_(grad)
    key, value = (torch.randn(batch, groups, n_keys, 8, generator=drawn).to(dtype) for _ in range(2))
    visible = torch.rand(batch, 1, n_queries, n_keys, generator=drawn) < 0.6
    visible[..., 0] = True
    if masked == "a row of nothing":
        visible[:, :, 0] = False
    mask = {
        "no": None, "causal": None, "bool": visible, "a row of nothing": visible,
        "float": torch.randn(n_queries, n_keys, generator=drawn).to(dtype),
        "one a head": torch.randn(batch, heads, n_queries, n_keys, generator=drawn).to(dtype),
    }[masked]  # fmt: skip
    net, causal = Attends(), masked == "causal"
    named = dict(attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=per_group > 1)
    with transom.look(net) as seen:
        out = net(query, key, value, **named)
    assert torch.equal(out, net(query, key, value, **named))
    expected = softmax_map(query.detach(), key, mask, causal, scale)
    call, near = seen.calls[0], 1e-3 if dtype == torch.bfloat16 else 1e-5  # its normaliser is rounded more
    for item in range(batch):
        found, error = call.rows(slice(0, n_queries), item)
        torch.testing.assert_close(found.double(), expected[item], rtol=0, atol=near)
        assert error <= maps.LIMITS[dtype]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "TILE_BYTES", tile)
        parts = [F.pad(w, (0, n_keys - w.shape[-1])) for _, w in call.tiles()]
    torch.testing.assert_close(torch.cat(parts, 1).double(), expected[0], rtol=0, atol=near)


@settings(max_examples=scaled(60))
@given(
    row=st.integers(0, 11), head=st.integers(0, 2), seed=st.integers(0, 99), by=st.sampled_from([0.05, 0.5])
)
def test_one_wrong_row_of_one_head_is_noticed(row: int, head: int, seed: int, by: float) -> None:
    drawn = torch.Generator().manual_seed(seed)
    net = Attends()
    with transom.look(net) as seen, torch.no_grad():
        net(*(torch.randn(1, 3, 12, 16, generator=drawn) for _ in range(3)))
    call = seen.calls[0]
    assert call.rows(slice(0, 12))[1] < 1e-5
    call.kept.query[0, head, row] += by * torch.randn(16, generator=drawn)
    with pytest.raises(maps.Mismatch):
        call.rows(slice(0, 12))
    others = [i for i in range(12) if i != row]
    assert all(call.rows(slice(i, i + 1))[1] < 1e-5 for i in others)


def test_a_map_too_large_to_hold_is_refused_with_what_to_ask_instead() -> None:
    net, x = Attends(), torch.zeros(1, 8, 6000, 4)
    with transom.look(net) as seen, torch.no_grad():
        net(x, x, x, is_causal=True)
    with pytest.raises(Refused, match="1.1 GiB.*row= or head="):
        seen.attention(0)


LONG = """
import resource, torch, transom
from transom.model.build import build
from transom.model.config import ModelConfig
torch.set_num_threads(1)
config = ModelConfig(60, 32, 2, 2, 1, head_dim=16, ffn_dim=32, max_len=8192)
model = build(config).eval()
tokens = torch.randint(3, 60, (1, 8192))
with torch.no_grad():
    model(tokens)
    with transom.look(model) as seen:
        model(tokens)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grid = seen.heads()
row = seen.attention(1, row=8191)
assert grid.entropy.shape == (2, 2) and row.weights.shape == (2, 8192)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss counts in other units")
def test_8192_tokens_take_no_map() -> None:
    run = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 64  # MiB; one map of one head alone is 256
