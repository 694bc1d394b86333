"""Attention in bfloat16 on a CPU whose bits are those of a query alone, whoever is read beside it.

In float32 the order of a sum costs a millionth; in bfloat16 the smallest difference is rounded to a whole
step somewhere, and a few layers later to as much as bfloat16 errs at all: a token's log-probability by 0.2
nats. What is written beside others would then not be what a plain pass reads again. PyTorch's kernel sums in
an order that depends on how many slots it is given and on whether a block has fewer than four queries. So a
query is always computed over as many slots as its own place says (`reach`), those behind it hidden, and in
blocks of four and more. Read next: attention.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .attention import Rule

KERNEL_SPAN = 512
"""Slots that the kernel takes at a time, from the first on."""
SPANS = (64, 128, 256, KERNEL_SPAN)
"""How many of the last 512 a query is computed over."""
TOGETHER = 4
"""A block of fewer queries is multiplied in another order."""


def aligns(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether keys of this kind are read so, where no gradient is wanted."""
    return device.type == "cpu" and dtype == torch.bfloat16


def reach(slot: int) -> int:
    """Over how many slots, from the first on, the query of a slot is computed."""
    whole, left = divmod(slot, KERNEL_SPAN)
    return whole * KERNEL_SPAN + next(span for span in SPANS if left < span)


def aligned_attention(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """`attend` of a causal rule without documents, bias or cap: query (B, L, H, K), key (B, M, G, K).

    A rule with `positions` must be of queries with one `reach`, which M is.
    """
    n_queries, n_keys = query.shape[1], key.shape[1]
    before, first, mixed = n_keys - n_queries, 0, []
    while first < n_queries:
        end, last = n_keys, n_queries
        if rule.positions is None:
            end = reach(before + first)
            last = min(end - before, n_queries)
        asked = _filled(query[:, first:last], -(last - first) % TOGETHER)
        over = (_filled(x[:, :end], max(0, end - n_keys)).transpose(1, 2) for x in (key, value))
        found = F.scaled_dot_product_attention(
            asked.transpose(1, 2), *over, attn_mask=_hidden(rule, slice(first, last), query, n_keys, end),
            scale=rule.scale, enable_gqa=query.shape[2] != key.shape[2],
        )  # fmt: skip
        mixed.append(found[:, :, : last - first])
        first = last
    return torch.cat(mixed, dim=2).transpose(
        1, 2
    )  # `insight.attention_recorder` takes this for the end of the call


def _filled(x: Tensor, more: int) -> Tensor:
    """(B, N, ...) with zeros behind: (B, N + more, ...)."""
    return F.pad(x, (0, 0, 0, 0, 0, more)) if more else x


def _hidden(rule: Rule, rows: slice, query: Tensor, n_keys: int, end: int) -> Tensor:
    """0 where some of the queries look and minus infinity elsewhere, (B or 1, 1, R, end), R filled up."""
    place = (rows.start, rows.stop, n_keys)
    found = rule._masks.get(place)
    if found is None:
        seen = rule.visible(torch.arange(rows.start, rows.stop), query.shape[1], n_keys)
        if seen is None:  # every key, as for the last token
            seen = torch.ones(1, 1, rows.stop - rows.start, n_keys, dtype=torch.bool)
        seen = F.pad(seen[..., :end], (0, max(0, end - n_keys)))
        filled = -(rows.stop - rows.start) % TOGETHER
        seen = torch.cat((seen, seen[:, :, -1:].expand(-1, -1, filled, -1)), dim=2)
        found = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, -math.inf)
        rule._masks[place] = found
    return found
