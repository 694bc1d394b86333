"""Attention, through one door: every attention of every model here is a call of `attend`.

`Rule` says, as data, who may look at whom. `attend` hands it to PyTorch's fused kernel; `attend_plain` is the
same thing written out (softmax of scaled dot products, Vaswani et al. 2017), the oracle of the fast path and
its explanation. Read next: layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu


@dataclass(frozen=True, eq=False)
class Rule:
    """Who may look at whom, and how scores are shaped: given to the kernel and to whoever recomputes a map.

    Keys stand in slots 0 .. M-1. A query stands on the slot `positions` names, by default the last L slots.
    """

    causal: bool = False
    """A query sees no slot after its own."""
    window: int | None = None
    """With `causal`: a query sees its own slot and the `window - 1` before it."""
    documents: Tensor | None = None
    """(B, L) document of each query; it sees keys of the same one. None: one document."""
    key_documents: Tensor | None = None
    """(B, M) document of each key, where keys are not the queries' own positions; None: `documents`."""
    positions: Tensor | None = None
    """(B, L) the slot of each query; None: query i stands on slot M - L + i in every row."""
    bias: Tensor | None = None
    """Added to the scaled scores, broadcast to (B, H, L, M)."""
    softcap: float | None = None
    """Squash scores to cap * tanh(score / cap)."""
    scale: float | None = None
    """Factor of the dot products; None: 1 / sqrt(K)."""
    _masks: dict[tuple[int, ...], Tensor | None] = field(default_factory=dict, repr=False)

    def scale_of(self, query: Tensor) -> float:
        """The factor of the dot products of queries (..., K)."""
        return 1 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale

    def is_plainly_causal(self, n_queries: int, n_keys: int) -> bool:
        """Whether the kernel's own causal flag says all there is to say of who may look at whom."""
        whole = n_queries == n_keys and self.documents is None and self.positions is None
        return self.causal and whole and (self.window is None or self.window >= n_keys)

    def for_kernel(self, query: Tensor, n_keys: int) -> tuple[Tensor | None, bool]:
        """The mask that the fused kernel is given, bias included, and its causal flag instead of one."""
        n_queries = query.shape[1]
        if self.is_plainly_causal(n_queries, n_keys) and self.bias is None:
            return None, True
        mask = self.mask(n_queries, n_keys, query.device)
        if self.bias is None:
            return mask, False
        bias = self.bias.to(query.dtype)
        return bias if mask is None else bias.masked_fill(~mask, -math.inf), False

    def mask(self, n_queries: int, n_keys: int, device: torch.device) -> Tensor | None:
        """(B or 1, 1, L, M) bool, True where a query may look; None when it may look everywhere."""
        shape = (n_queries, n_keys)
        if shape not in self._masks:  # one mask serves every layer that shares the rule
            self._masks[shape] = self.visible(torch.arange(n_queries, device=device), n_queries, n_keys)
        return self._masks[shape]

    def visible(self, rows: Tensor, n_queries: int, n_keys: int) -> Tensor | None:
        """The rows (R,) of the mask, (B or 1, 1, R, M): what a query may see, without the whole map."""
        one_query_sees_all = n_queries == 1 and self.positions is None
        unwindowed = self.window is None or self.window >= n_keys
        if (not self.causal or (one_query_sees_all and unwindowed)) and self.documents is None:
            return None
        slots = torch.arange(n_keys, device=rows.device)
        seen = torch.ones(1, len(rows), n_keys, dtype=torch.bool, device=rows.device)
        if self.causal:
            own = (rows + (n_keys - n_queries))[None] if self.positions is None else self.positions[:, rows]
            seen = slots <= own[..., None]
            if self.window is not None:
                seen = seen & (slots > own[..., None] - self.window)
        if self.documents is not None:
            of_keys = self.documents if self.key_documents is None else self.key_documents
            seen = seen & (self.documents[:, rows, None] == of_keys[:, None, :])
        return seen[:, None]


def attend(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Weighted sums of values: query (B, L, H, K), key and value (B, M, G, K) -> (B, L, H, K).

    Runs in the fused kernel. Scores with a soft cap, which it does not know, take the plain path.
    """
    if rule.softcap is not None:
        return attend_plain(query, key, value, rule)
    if query.is_cpu and (mixed := cpu.attention(query, key, value, rule)) is not None:
        return mixed
    mask, causal = rule.for_kernel(query, key.shape[1])
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask, is_causal=causal,
        scale=rule.scale, enable_gqa=query.shape[2] != key.shape[2],
    )  # fmt: skip
    return mixed.transpose(1, 2)


def attend_plain(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """The same as `attend`, step by step: scores, cap, bias, mask, softmax, mix. Holds an (L, M) map."""
    n_queries, n_keys = query.shape[1], key.shape[1]
    per_group = query.shape[2] // key.shape[2]  # queries that share a head of keys
    if per_group > 1:
        key, value = (x.repeat_interleave(per_group, dim=2) for x in (key, value))
    at_least_float32 = torch.promote_types(query.dtype, torch.float32)
    scores = torch.einsum("blhk,bmhk->bhlm", query, key).to(at_least_float32) * rule.scale_of(query)
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if rule.bias is not None:
        scores = scores + rule.bias
    mask = rule.mask(n_queries, n_keys, query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    pattern = scores.softmax(dim=-1)
    return torch.einsum("bhlm,bmhk->blhk", pattern.to(value.dtype), value)
