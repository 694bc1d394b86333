"""The feed-forward branch: each position, alone, through two or three matrices.

Plain: down(act(up(x))). Gated (Shazeer 2020): down(act(gate(x)) * up(x)).
`Linear` here is the one linear layer of the project: it keeps its weights as they are stored (float32
masters while training) and multiplies in the type of its input. Read next: attention.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig


class Linear(nn.Linear):
    """y = x W^T + b in the type of `x`, (..., in) -> (..., out); a weight of another type is cast."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are: `initialize` draws those of a whole model."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


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
        return self.down_proj(self.widen(x))

    def widen(self, x: Tensor) -> Tensor:
        """What the hidden width holds: (B, L, D) -> (B, L, F)."""
        if self.gated:
            return self.activation(self.gate_proj(x)) * self.up_proj(x)
        return self.activation(self.up_proj(x))
