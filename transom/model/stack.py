"""A stack of blocks: what every Transformer here is made of, whether it reads, writes or both.

A block adds two branches to the residual stream, attention, which moves information between positions, and
the feed-forward, which works on each alone; where there is a source to read, cross-attention stands between.
Pre-norm (Radford et al. 2019) norms what goes into a branch, post-norm (Vaswani et al. 2017) what comes out.
Read next: attention, layers, experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attend import Rule
from .attention import CrossAttention, SelfAttention
from .cache import DecodeState, Memory
from .config import ModelConfig
from .experts import MixtureOfExperts
from .layers import NORMS, FeedForward, dropout
from .positions import RelativeBias, Rotary, rotary_frequencies, rotation


class Block(nn.Module):
    """One layer: branches added to the residual stream (B, L, D)."""

    def __init__(self, config: ModelConfig, layer: int, reads_source: bool = False) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.attn_norm = norm(config.dim, config.norm_eps)
        self.attn = SelfAttention(config, layer)
        if reads_source:
            self.cross_norm = norm(config.dim, config.norm_eps)
            self.cross_attn = CrossAttention(config, layer)
        self.ffn_norm = norm(config.dim, config.norm_eps)
        experts = config.experts_of(layer)
        self.ffn = FeedForward(config) if experts is None else MixtureOfExperts(config, experts)
        self.reads_source = reads_source
        self.norm_before = config.norm_position == "before"
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        rule: Rule,
        rotary: Rotary | None,
        state: DecodeState | None,
        memory: Memory | None = None,
        memory_rule: Rule | None = None,
    ) -> Tensor:
        if self.norm_before:
            x = x + self._drop(self.attn(self.attn_norm(x), rule, rotary, state))
            if self.reads_source:
                x = x + self._drop(self.cross_attn(self.cross_norm(x), memory_rule, memory))
            return x + self._drop(self.ffn(self.ffn_norm(x)))
        x = self.attn_norm(x + self._drop(self.attn(x, rule, rotary, state)))
        if self.reads_source:
            x = self.cross_norm(x + self._drop(self.cross_attn(x, memory_rule, memory)))
        return self.ffn_norm(x + self._drop(self.ffn(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        return dropout(branch, self.dropout, self.training)


class Stack(nn.Module):
    """Blocks one above the other and, before the norm is inside them, one norm at the end."""

    frequencies: Tensor | None

    def __init__(self, config: ModelConfig, n_layers: int, *, causal: bool, reads_source: bool = False):
        super().__init__()
        self.config, self.causal = config, causal
        self.windows = [config.window_of(i) for i in range(n_layers)]
        self.layers = nn.ModuleList(Block(config, i, reads_source) for i in range(n_layers))
        if config.norm_position == "before":
            self.final_norm = NORMS[config.norm](config.dim, config.norm_eps)
        if config.position == "relative":
            self.relative = RelativeBias(config, causal)
        frequencies = rotary_frequencies(config) if config.position == "rotary" else None
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.checkpoint_activations = False
        """Keep only the input of each block for the backward pass and run the block again there."""

    def run(
        self,
        x: Tensor,
        positions: Tensor,
        documents: Tensor | None = None,
        state: DecodeState | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Embedded tokens (B, L, D) at positions (B or 1, L) -> hidden states (B, L, D)."""
        length, config = x.shape[1], self.config
        slots = positions if state is not None and state.ragged else None
        rotary = None if self.frequencies is None else rotation(positions, self.frequencies, x.dtype)
        bias = None
        if config.position == "relative":
            # Of slots, not of positions: in a packed row those begin anew, and distances are the same.
            own = torch.arange(length, device=x.device)[None] if state is None else positions
            bias = self.relative(own, length if state is None else max(state.lengths) + length)
        rules = {
            window: Rule(causal=self.causal, window=window, documents=documents, positions=slots, bias=bias,
                         softcap=config.attn_softcap, scale=config.attn_scale)
            for window in set(self.windows)
        }  # fmt: skip
        memory_rule = None if memory is None else self._rule_of(memory, x, documents)
        for window, block in zip(self.windows, self.layers, strict=True):
            arguments = (x, rules[window], rotary, state, memory, memory_rule)
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        if state is not None:
            state.advance(length)
        return self.final_norm(x) if config.norm_position == "before" else x

    def _rule_of(self, memory: Memory, x: Tensor, documents: Tensor | None) -> Rule:
        """Who may look where in the source: everyone at all of it, but for padding and other documents."""
        scale = self.config.attn_scale
        if memory.documents is None:
            return Rule(scale=scale)
        if documents is None or memory.group > 1:
            shape = (len(memory.hidden), x.shape[1] * memory.group)
            documents = torch.zeros(shape, dtype=memory.documents.dtype, device=x.device)
        # Padding of the target looks at the first text: looking nowhere would be 0 / 0.
        return Rule(documents=documents.clamp(min=0), key_documents=memory.documents, scale=scale)
