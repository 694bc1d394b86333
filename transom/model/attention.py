"""Attention, through one door: every attention of every model here is a call of `attend`.

`Rule` says, as data, who may look at whom. `attend` hands it to PyTorch's fused kernel;
`attend_plain` is the same thing written out (softmax of scaled dot products, Vaswani et al. 2017), the
oracle of the fast path and its explanation. Read next: transformer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aligned_attention import aligned_attention, aligns
from .blocked_attention import blocked_attention, pays
from .config import ModelConfig
from .feedforward import Linear
from .norms import RMSNorm
from .positions import rotate

if TYPE_CHECKING:  # the state attends, through the door of this file
    from .cache import DecodeState, Memory


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

    def aligns(self) -> bool:
        """Whether `aligned_attention` knows all it says, given that scores have no cap."""
        return self.causal and self.documents is None and self.bias is None

    def is_plainly_causal(self, n_queries: int, n_keys: int) -> bool:
        """Whether the fused kernel's own causal flag says all there is to say."""
        whole = n_queries == n_keys and self.documents is None and self.positions is None
        return self.causal and whole and (self.window is None or self.window >= n_keys)

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
    n_queries, n_keys = query.shape[1], key.shape[1]
    causal = rule.is_plainly_causal(n_queries, n_keys) and rule.bias is None
    if rule.bias is None and pays(query, key):
        key, value = (_one_per_query(x, query.shape[2]) for x in (key, value))
        mask = rule.mask(n_queries, n_keys, query.device)
        return blocked_attention(query, key, value, mask, causal, rule.scale_of(query))
    wants_gradient = torch.is_grad_enabled() and query.requires_grad
    if rule.aligns() and aligns(query.device, query.dtype) and not wants_gradient:
        return aligned_attention(query, key, value, rule)
    mask = None if causal else rule.mask(n_queries, n_keys, query.device)
    if rule.bias is not None:
        bias = rule.bias.to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=rule.scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return mixed.transpose(1, 2)


def attend_plain(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """The same as `attend`, step by step: scores, cap, bias, mask, softmax, mix. Holds an (L, M) map."""
    n_queries, n_keys = query.shape[1], key.shape[1]
    key, value = (_one_per_query(x, query.shape[2]) for x in (key, value))
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


def _one_per_query(x: Tensor, n_heads: int) -> Tensor:
    """Repeat grouped heads (B, M, G, K) so that each query head has its own: (B, M, H, K)."""
    return x if x.shape[2] == n_heads else x.repeat_interleave(n_heads // x.shape[2], dim=2)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, grouped-query when G < H: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = Linear(config.dim, queries, bias=config.qkv_bias)
        self.k_proj = Linear(config.dim, keys, bias=config.qkv_bias)
        self.v_proj = Linear(config.dim, keys, bias=config.qkv_bias)
        self.o_proj = Linear(queries, config.dim, bias=config.out_bias)
        self.whole_norm = config.qk_norm_over == "projection"
        if config.qk_norm:
            self.q_norm = RMSNorm(queries if self.whole_norm else config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(keys if self.whole_norm else config.head_dim, config.norm_eps)
        self.qk_norm, self.head_dim, self.layer = config.qk_norm, config.head_dim, layer
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads

    def forward(
        self, x: Tensor, rule: Rule, rotary: tuple[Tensor, Tensor] | None, state: DecodeState | None
    ) -> Tensor:
        """`rotary`: cosines and sines of rotary positions; `state`: keys and values of earlier calls."""
        return self.o_proj(self.mix(x, rule, rotary, state))

    def mix(
        self, x: Tensor, rule: Rule, rotary: tuple[Tensor, Tensor] | None, state: DecodeState | None
    ) -> Tensor:
        """What the heads have found, side by side: (B, L, D) -> (B, L, H * K)."""
        query, key, value = self.heads(x, rotary)
        if state is None:
            mixed = attend(query, key, value, rule)
        else:
            mixed = state.attend(self.layer, query, key, value, rule)
        return mixed.flatten(2)

    def heads(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, L, H, K), keys and values (B, L, G, K), normed and turned to their positions."""
        batch, length, _ = x.shape
        query, key, value = self.project(x)
        if self.qk_norm and self.whole_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query = query.view(batch, length, -1, self.head_dim)
        key = key.view(batch, length, -1, self.head_dim)
        value = value.view(batch, length, -1, self.head_dim)
        if self.qk_norm and not self.whole_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        return query, key, value

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads: (B, L, D) -> (B, L, H * K) and twice (B, L, G * K)."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class CrossAttention(nn.Module):
    """Multi-head attention of a target to its source: x (B, L, D) and a memory of (B, M, D) -> (B, L, D)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.n_heads * config.head_dim
        self.q_proj = Linear(config.dim, width, bias=config.qkv_bias)
        self.k_proj = Linear(config.dim, width, bias=config.qkv_bias)
        self.v_proj = Linear(config.dim, width, bias=config.qkv_bias)
        self.o_proj = Linear(width, config.dim, bias=config.out_bias)
        self.head_dim, self.layer = config.head_dim, layer

    def forward(self, x: Tensor, rule: Rule, memory: Memory) -> Tensor:
        return self.o_proj(self.mix(x, rule, memory))

    def mix(self, x: Tensor, rule: Rule, memory: Memory) -> Tensor:
        """What the heads have found: (B, L, D) -> (B, L, H * K).

        `rule` is of the rows of `memory`; a row that several rows of x share is read by all their queries
        at once.
        """
        key, value = memory.keys_and_values(self.layer, self._project)
        asked = memory.by_source(self.q_proj(x))
        mixed = attend(asked.unflatten(-1, (-1, self.head_dim)), key, value, rule)
        return memory.by_row(mixed.flatten(2), x.shape)

    def _project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*source.shape[:2], -1, self.head_dim)
        return self.k_proj(source).view(shape), self.v_proj(source).view(shape)
