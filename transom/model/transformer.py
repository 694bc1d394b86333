"""The Transformer: embeddings, a stack of blocks, a final norm; hidden states first, logits on request.

`model(tokens)` gives hidden states, `model.logits(hidden)` what follows each position, `model.loss(batch)`
the summed loss without the full table of logits. A block adds two branches to the residual stream:
attention, which moves information between positions, and the feed-forward, which works on each alone.
Source: Vaswani et al. 2017; pre-norm as in Radford et al. 2019. Read next: attention, feedforward, losses.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Rule, SelfAttention
from .cache import KVCache
from .config import ModelConfig
from .feedforward import FeedForward, Linear
from .initialize import initialize
from .losses import cap, cross_entropy
from .norms import NORMS
from .positions import rotary_frequencies, rotation, sinusoids


class Batch(Protocol):
    """What `loss` reads of a batch; -100 marks a target that carries no loss."""

    @property
    def tokens(self) -> Tensor: ...  # (B, L) int64
    @property
    def targets(self) -> Tensor: ...  # (B, L) int64
    @property
    def documents(self) -> Tensor | None: ...  # (B, L)
    @property
    def positions(self) -> Tensor | None: ...  # (B, L) int64


class Table(nn.Embedding):
    """One row (D,) a number: (B, L) -> (B, L, D)."""

    def reset_parameters(self) -> None:
        """Leave the rows as they are: `initialize` draws the weights of a whole model."""


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the residual stream (B, L, D)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.attn_norm = norm(config.dim, config.norm_eps)
        self.attn = SelfAttention(config, layer)
        self.ffn_norm = norm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config)
        self.norm_before = config.norm_position == "before"
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, rule: Rule, turn: tuple[Tensor, Tensor] | None, state: KVCache | None
    ) -> Tensor:
        if self.norm_before:
            x = x + self._drop(self.attn(self.attn_norm(x), rule, turn, state))
            return x + self._drop(self.ffn(self.ffn_norm(x)))
        x = self.attn_norm(x + self._drop(self.attn(x, rule, turn, state)))
        return self.ffn_norm(x + self._drop(self.ffn(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        return F.dropout(branch, self.dropout, self.training) if self.dropout else branch


class Transformer(nn.Module):
    """A decoder built from a config; its weights are drawn from `seed`."""

    frequencies: Tensor | None

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embed = Table(config.vocab_size, config.dim)
        if config.position == "learned":
            self.position_embed = Table(config.max_len, config.dim)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        if config.norm_position == "before":
            self.final_norm = NORMS[config.norm](config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.head = Linear(config.dim, config.vocab_size, bias=False)
        frequencies = rotary_frequencies(config) if config.position == "rotary" else None
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.checkpoint_activations = False
        """Keep only the input of each block for the backward pass and run the block again there."""
        initialize(self, config.n_layers, seed)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        state: KVCache | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D) of tokens (B, L).

        positions (B, L): where each token stands in its document, by default one after the other from 0, or
        from the end of `state`. documents (B, L): packed rows; attention stays within equal numbers.
        state: keys and values of earlier tokens, extended in place. dtype: the arithmetic of the
        activations, by default that of the weights.
        """
        length, config = tokens.shape[1], self.config
        if length > config.max_len:
            raise ValueError(f"{length} tokens in a row; this model reads at most {config.max_len}")
        slots = None
        if state is not None:
            ahead = state.positions(length).to(tokens.device)
            slots = ahead if state.ragged else None
            positions = ahead if positions is None else positions
        elif positions is None:
            positions = torch.arange(length, device=tokens.device)[None]
        x = self._embed(tokens, positions, dtype or self.embed.weight.dtype)
        turn = None if self.frequencies is None else rotation(positions, self.frequencies, x.dtype)
        rules = {
            window: Rule(causal=True, window=window, documents=documents, positions=slots,
                         softcap=config.attn_softcap)
            for window in {config.window_of(i) for i in range(config.n_layers)}
        }  # fmt: skip
        for i, block in enumerate(self.layers):
            rule = rules[config.window_of(i)]
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, rule, turn, state, use_reentrant=False)
            else:
                x = block(x, rule, turn, state)
        if state is not None:
            state.advance(length)
        return self.final_norm(x) if config.norm_position == "before" else x

    def _embed(self, tokens: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        config = self.config
        x = self.embed(tokens)
        if config.scale_embeddings:
            x = x * config.dim**0.5
        if config.position == "learned":
            x = x + self.position_embed(positions)
        elif config.position == "sinusoidal":
            x = x + sinusoids(positions, config.dim, x.dtype)
        return F.dropout(x.to(dtype), config.dropout, self.training) if config.dropout else x.to(dtype)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, D) that turns hidden states into logits."""
        return self.embed.weight if self.config.tie_embeddings else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every next token, in float32: (..., D) -> (..., V)."""
        scores = F.linear(hidden, self.output_weight.to(hidden.dtype))
        return cap(scores.float(), self.config.logit_softcap)

    def loss(self, batch: Batch, *, dtype: torch.dtype | None = None) -> Tensor:
        """The sum of -log p(target) over the batch, in nats: a float32 scalar.

        Divide once, by all targets of an optimizer step.
        """
        hidden = self(batch.tokens, positions=batch.positions, documents=batch.documents, dtype=dtype)
        return cross_entropy(
            hidden.flatten(0, 1), self.output_weight, batch.targets.flatten(), self.config.logit_softcap
        )

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty decode state for `batch` rows of up to `capacity` tokens, where the weights live."""
        weight = self.embed.weight
        return KVCache(self.config, batch, capacity, dtype or weight.dtype, weight.device)

    @property
    def n_parameters(self) -> int:
        """How many numbers are learned; a tied head counts once."""
        return sum(weight.numel() for weight in self.parameters())

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations to learn from one token, forward and backward, in rows of `length`.

        Two per weight that multiplies, forward, and four backward; attention counts the half of the map that
        a causal model computes. Lookups, norms and activations are left out.
        """
        multiplied = self.n_parameters - (0 if self.config.tie_embeddings else self.embed.weight.numel())
        if self.config.position == "learned":
            multiplied -= self.position_embed.weight.numel()
        width = self.config.n_heads * self.config.head_dim
        seen = sum(min(length, self.config.window_of(i) or length) for i in range(self.config.n_layers)) / 2
        return 6.0 * multiplied + 12.0 * width * seen
