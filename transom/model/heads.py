"""Heads: what hidden states are turned into.

Scores of every token of the vocabulary (language models, translation, masked words), scores of classes for a
whole text or for each of its tokens, or one vector that stands for a text. Each is small beside the stack
under it. Sources: Devlin et al. 2019 (BERT's heads), Reimers & Gurevych 2019 (mean pooling).
Read next: transformer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .layers import ACTIVATIONS, NORMS, Linear, dropout


class TokenHead(nn.Module):
    """Scores of every token: an own matrix (V, D) unless the embeddings serve, a bias, a layer before."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.head_transform:
            self.dense = Linear(config.dim, config.dim, bias=True)
            self.norm = NORMS[config.norm](config.dim, config.norm_eps)
        own = None if config.tie_embeddings else nn.Parameter(torch.empty(config.vocab_size, config.dim))
        self.weight = own
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        self.activation = ACTIVATIONS[config.activation]
        self.transforms, self.scale = config.head_transform, config.logit_scale

    def forward(self, hidden: Tensor) -> Tensor:
        """What is multiplied with the matrix: (..., D) -> (..., D)."""
        if self.transforms:
            hidden = self.norm(self.activation(self.dense(hidden)))
        return hidden if self.scale == 1.0 else hidden * self.scale


class ClassifyHead(nn.Module):
    """Scores of classes of a whole text: pooled, one hidden layer with tanh, then (C, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(config.dim, config.dim, bias=True)
        self.out = Linear(config.dim, len(config.labels), bias=True)
        self.pooling, self.dropout = config.pooling, config.dropout

    def forward(self, hidden: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, L, D) -> float32 (B, C)."""
        pooled = self._drop(pool(hidden, documents, self.pooling))
        return self.out(self._drop(self.dense(pooled).tanh())).float()

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class TagHead(nn.Module):
    """Scores of classes of each token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.out = Linear(config.dim, len(config.labels), bias=True)
        self.dropout = config.dropout

    def forward(self, hidden: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, L, D) -> float32 (B, L, C)."""
        return self.out(dropout(hidden, self.dropout, self.training)).float()


class EmbedHead(nn.Module):
    """One vector for a text: pooled, and of length 1 where the config says so. Nothing is learned here."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pooling, self.normalize = config.pooling, config.normalize

    def forward(self, hidden: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, L, D) -> float32 (B, D)."""
        pooled = pool(hidden, documents, self.pooling).float()
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


def pool(hidden: Tensor, documents: Tensor | None, how: str) -> Tensor:
    """What stands for a text: its first position, or the mean over all that are no padding (documents 0)."""
    if how == "first":
        return hidden[:, 0]
    if documents is None:
        return hidden.float().mean(1).to(hidden.dtype)
    text = (documents == 0)[..., None].float()
    return ((hidden.float() * text).sum(1) / text.sum(1)).to(hidden.dtype)


HEADS: dict[str, type[nn.Module]] = {
    "tokens": TokenHead,
    "classify": ClassifyHead,
    "tag": TagHead,
    "embed": EmbedHead,
}
