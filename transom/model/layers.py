"""The parts that layers are made of: linear maps and tables, norms, activations, dropout, the feed-forward.

`Linear` keeps its weights as they are stored (float32 masters while training) and multiplies in the type of
its input. Layer norm (Ba et al. 2016) takes away the mean and divides by the deviation; RMS norm (Zhang &
Sennrich 2019) only divides by the root mean square; both work in float32 inside. Dropout (Srivastava et al.
2014) stands on embeddings and on what branches add to the residual stream, as in Vaswani et al. 2017.
On a CPU some of this has a measured twin in `cpu`, which a first reading may skip. Read next: attention.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cpu
from .config import ModelConfig


class Linear(nn.Linear):
    """y = x W^T + b in the type of `x`, (..., in) -> (..., out); a weight of another type is cast."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are: `initialize` draws those of a whole model."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Table(nn.Embedding):
    """One row (D,) a number: (B, L) -> (B, L, D)."""

    def reset_parameters(self) -> None:
        """Leave the rows as they are: `initialize` draws the weights of a whole model."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if x.is_cpu:
            return cpu.rms_norm(x, weight, self.eps)
        return F.rms_norm(x, weight.shape, weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu_squared,
}


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero about `rate` of x and scale the rest so that the mean stays; outside of training x itself."""
    if not training or rate == 0.0:
        return x
    return cpu.dropout(x, rate) if x.is_cpu else F.dropout(x, rate)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Drop another share from now on: in every part of `model`, and by its config."""
    parts: list[Any] = list(model.modules())
    for part in parts:
        if hasattr(part, "dropout"):
            part.dropout = rate
        if hasattr(part, "config"):
            part.config = part.config.with_(dropout=rate)


class FeedForward(nn.Module):
    """(B, L, D) -> (B, L, D) through a hidden width F, by default that of the config."""

    def __init__(self, config: ModelConfig, ffn_dim: int | None = None) -> None:
        super().__init__()
        wide = ffn_dim or config.ffn_dim
        if config.gated:
            self.gate_proj = Linear(config.dim, wide, bias=config.ffn_bias)
        self.up_proj = Linear(config.dim, wide, bias=config.ffn_bias)
        self.down_proj = Linear(wide, config.dim, bias=config.ffn_bias)
        self.activation = ACTIVATIONS[config.activation]
        self.gated = config.gated

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(self.activation(self.up_proj(x)))
