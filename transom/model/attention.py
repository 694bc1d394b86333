"""The attention of a layer: projections to heads, the door of `attend`, and back.

A sequence attends to itself (`SelfAttention`), or a target to its source (`CrossAttention`).
Read next: attend, positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .attend import Rule, attend
from .config import ModelConfig
from .layers import Linear, RMSNorm
from .positions import Rotary, rotate

if TYPE_CHECKING:  # the state attends through the same door
    from .cache import DecodeState, Memory


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

    def forward(self, x: Tensor, rule: Rule, rotary: Rotary | None, state: DecodeState | None) -> Tensor:
        """`rotary`: cosines and sines of rotary positions; `state`: keys and values of earlier calls."""
        query, key, value = self.heads(x, rotary)
        if state is None:
            mixed = attend(query, key, value, rule)
        else:
            mixed = state.attend(self.layer, query, key, value, rule)
        return self.o_proj(mixed.flatten(2))

    def heads(self, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, ...]:
        """Queries (B, L, H, K), keys and values (B, L, G, K), normed and rotated to their positions."""
        query, key, value = self.project(x)
        if self.qk_norm and self.whole_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in (query, key, value))
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
        """`rule` is of the rows of `memory`; a row that several rows of x share is read by all their queries
        at once.
        """
        key, value = memory.keys_and_values(self.layer, self._project)
        asked = memory.by_source(self.q_proj(x))
        mixed = attend(asked.unflatten(-1, (-1, self.head_dim)), key, value, rule)
        return self.o_proj(memory.by_row(mixed.flatten(2), x.shape))

    def _project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*source.shape[:2], -1, self.head_dim)
        return self.k_proj(source).view(shape), self.v_proj(source).view(shape)
