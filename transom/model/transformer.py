"""The Transformer: embeddings, a stack or two, a head; hidden states first, logits on request.

`model(tokens)` gives hidden states, `model.logits(hidden)` what follows each position, `model.loss(batch)`
the summed loss without the full table of logits. A decoder sees what came before, an encoder sees all; an
encoder-decoder has both, and `encode` gives the memory of the source that its decoder reads.
Sources: Vaswani et al. 2017; Devlin et al. 2019; Radford et al. 2019. Read next: stack, heads, losses.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from .cache import DecodeState, KVCache, Memory
from .config import ModelConfig
from .experts import balance_loss, routers
from .heads import HEADS
from .initialize import initialize
from .layers import NORMS, Table, dropout
from .losses import IGNORE, cap, cross_entropy
from .positions import sinusoids
from .scores import scores
from .stack import Stack


class Batch(Protocol):
    """What `loss` reads of a batch; -100 marks a target that carries no loss.

    A batch for an encoder-decoder also has `source` (B, M) and `source_documents` (B, M) or None.
    """

    @property
    def tokens(self) -> Tensor: ...  # (B, L) int64
    @property
    def targets(self) -> Tensor: ...  # (B, L) int64
    @property
    def documents(self) -> Tensor | None: ...  # (B, L)
    @property
    def positions(self) -> Tensor | None: ...  # (B, L) int64


class Transformer(Stack):
    """A Transformer built from a config; its weights are drawn from `seed`."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        two = config.kind == "encoder-decoder"
        super().__init__(config, config.n_layers, causal=config.kind != "encoder", reads_source=two)
        self.embed = Table(config.vocab_size, config.dim)
        if config.position == "learned":
            self.position_embed = Table(config.max_len + config.position_offset, config.dim)
        if config.segments:
            self.segment_embed = Table(config.segments, config.dim)
        if config.embed_norm:
            self.embed_norm = NORMS[config.norm](config.dim, config.norm_eps)
        if config.n_encoder_layers is not None:
            self.encoder = Stack(config, config.n_encoder_layers, causal=False)
        self.head = HEADS[config.head](config)
        initialize(self, config.n_layers, seed)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segments: Tensor | None = None,
        state: DecodeState | None = None,
        memory: Memory | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D) of tokens (B, L).

        positions (B, L): where each token stands in its document, by default one after the other from 0, or
        from the end of `state`. documents (B, L): attention stays within equal numbers; several texts in a
        row, or 0 for text and -1 for the padding behind it. segments (B, L): the kind of each token's
        segment. state: keys and values of earlier tokens, extended in place. memory: the encoded source,
        unless `state` brings it. dtype: the arithmetic of the activations, by default that of the weights.
        """
        length = tokens.shape[1]
        if length > self.config.max_len:
            raise ValueError(f"{length} tokens in a row; this model reads at most {self.config.max_len}")
        if state is not None:
            ahead = state.positions(length).to(tokens.device)
            positions = ahead if positions is None else positions
            memory = state.memory if memory is None else memory
        if self.config.kind == "encoder-decoder" and memory is None:
            raise ValueError("an encoder-decoder writes what it reads: give the memory that `encode` gives")
        positions = self._places(tokens) if positions is None else positions
        x = self._embedded(tokens, positions, segments, dtype)
        return self.run(x, positions, documents, state, memory)

    def encode(
        self, source: Tensor, *, documents: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Memory:
        """Read the source (B, M) of an encoder-decoder; documents (B, M) as for `forward`."""
        if source.shape[1] > self.config.max_len:
            longest = self.config.max_len
            raise ValueError(f"{source.shape[1]} tokens in a source; this model reads at most {longest}")
        positions = self._places(source)
        x = self._embedded(source, positions, None, dtype)
        return Memory(self.encoder.run(x, positions, documents), documents)

    def _places(self, tokens: Tensor) -> Tensor:
        return torch.arange(tokens.shape[1], device=tokens.device)[None]

    def _embedded(
        self, tokens: Tensor, positions: Tensor, segments: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        config = self.config
        x = self.embed(tokens)
        if config.scale_embeddings:
            x = x * config.dim**0.5
        if config.position in ("learned", "sinusoidal"):
            x = x + self.placed(positions)
        if config.segments:
            x = x + self.segment_embed(torch.zeros_like(tokens) if segments is None else segments)
        x = x.to(dtype or self.embed.weight.dtype)
        if config.embed_norm:
            x = self.embed_norm(x)
        return dropout(x, config.dropout, self.training)

    def placed(self, positions: Tensor) -> Tensor:
        """What learned or sinusoidal positions (...) add to the embeddings: (..., D)."""
        if self.config.position == "learned":
            return self.position_embed(positions + self.config.position_offset)
        return sinusoids(positions, self.config.dim, self.embed.weight.dtype)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, D) that turns hidden states into logits."""
        return self.embed.weight if self.config.tie_embeddings else self.head.weight  # type: ignore[return-value]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, in float32: (..., D) -> (..., V)."""
        found = scores(self.head(hidden), self.output_weight, self.head.bias)  # type: ignore[arg-type]
        return cap(found, self.config.logit_softcap)

    def label_logits(self, hidden: Tensor, documents: Tensor | None = None) -> Tensor:
        """Scores of the classes, in float32: (B, C) of whole texts, or (B, L, C) of their tokens."""
        return self.head(hidden, documents)

    def vectors(self, hidden: Tensor, documents: Tensor | None = None) -> Tensor:
        """One vector for each text, in float32: (B, D)."""
        return self.head(hidden, documents)

    def loss(self, batch: Batch, *, dtype: torch.dtype | None = None, smoothing: float = 0.0) -> Tensor:
        """The sum of -log p(target) over the batch, in nats: a float32 scalar.

        Divide once, by all targets of an optimizer step. `smoothing` of labels, and what balances experts by
        a loss, belong to training: in evaluation neither is added.
        """
        memory = None
        if self.config.kind == "encoder-decoder":
            memory = self.encode(batch.source, documents=batch.source_documents, dtype=dtype)  # type: ignore[attr-defined]
        hidden = self(
            batch.tokens, positions=batch.positions, documents=batch.documents, memory=memory, dtype=dtype
        )
        hidden, targets = hidden.flatten(0, 1), batch.targets.flatten()
        if self.config.head_transform:  # of masked words few positions are targets: only those are turned
            kept = targets != IGNORE
            hidden, targets = hidden[kept], targets[kept]
        loss = cross_entropy(
            self.head(hidden),
            self.output_weight,
            targets,
            self.config.logit_softcap,
            self.head.bias,  # type: ignore[arg-type]
            smoothing if self.training else 0.0,
        )
        return loss + balance_loss(routers(self)) if self.config.experts is not None else loss

    def new_state(
        self, batch: int, capacity: int, dtype: torch.dtype | None = None, memory: Memory | None = None
    ) -> KVCache:
        """An empty decode state for `batch` rows of up to `capacity` tokens, where the weights live.

        memory: the encoded source that the rows go on from; what each layer makes of it is kept with it.
        """
        weight = self.embed.weight
        kept = None if memory is None else memory.keep()
        return KVCache(self.config, batch, capacity, dtype or weight.dtype, weight.device, kept)

    def blocks(self) -> list[nn.Module]:
        """The layers of all stacks: the units that are compiled, spread over ranks and recomputed."""
        reads = list(self.encoder.layers) if self.config.n_encoder_layers is not None else []
        return [*reads, *self.layers]

    @property
    def n_parameters(self) -> int:
        """How many numbers are learned; a tied head counts once."""
        return sum(weight.numel() for weight in self.parameters())

    @property
    def n_active_parameters(self) -> int:
        """How many of them one token meets: of the experts only those that it goes through."""
        idle = 0
        for layer in range(self.config.n_layers):
            experts = self.config.experts_of(layer)
            if experts is not None:
                matrices = (3 if self.config.gated else 2) * self.config.dim * experts.ffn_dim
                idle += (experts.n_experts - experts.n_active) * matrices
        return self.n_parameters - idle

    @property
    def n_looked_up(self) -> int:
        """How many only stand in tables and multiply nothing; a tied head's do."""
        tables = {n: w.numel() for n, w in self.named_parameters() if n.split(".")[-2].endswith("embed")}
        if self.config.tie_embeddings and self.config.head == "tokens":
            tables.pop("embed.weight")
        return sum(tables.values())

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations to learn from one token, forward and backward, in rows of `length`.

        Two per weight that multiplies, forward, two backward, and two more where it learns; attention counts
        the half of the map that a causal model computes. Lookups, norms and activations are left out. Of an
        encoder-decoder: for one token of either side, where both are equally long.
        """
        config, multiplied = self.config, self.n_active_parameters - self.n_looked_up
        width = config.n_heads * config.head_dim
        whole = 1.0 if config.kind == "encoder" else 0.5
        seen = whole * sum(min(length, config.window_of(i) or length) for i in range(config.n_layers))
        if config.n_encoder_layers is not None:
            seen += length * (config.n_encoder_layers + config.n_layers)
        learned = sum(weight.numel() for weight in self.parameters() if weight.requires_grad)
        learned = multiplied if learned == self.n_parameters else learned  # adapters and heads all multiply
        both = 4.0 * multiplied + 2.0 * learned + 12.0 * width * seen
        return both / 2 if config.n_encoder_layers is not None else both
