"""First values of every weight, as one table.

| weight                           | drawn from                                          |
|----------------------------------|-----------------------------------------------------|
| embeddings, positions            | normal, deviation 0.02                              |
| q k v gate up projections        | normal, deviation 1 / sqrt(input width)             |
| o and down projections           | the same over sqrt(2 n_layers): depth adds up to 1  |
| head (untied)                    | normal, deviation 0.02                              |
| norm weights / all biases        | 1 / 0                                               |

The scaling of what writes into the residual stream is GPT-2's (Radford et al. 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.02


@torch.no_grad()
def initialize(model: nn.Module, n_layers: int, seed: int) -> None:
    """Fill every parameter in place, the same for the same seed, whatever the device or the order of use."""
    generator = torch.Generator().manual_seed(seed)
    if any(weight.is_meta for weight in model.parameters()):
        return  # a model without storage, made for its shapes
    for name, weight in model.named_parameters():
        leaf = name.split(".")[-2]
        if leaf.endswith("norm"):
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            weight.zero_()
        else:
            weight.copy_(_normal(weight, _deviation(leaf, weight, n_layers), generator))


def _deviation(leaf: str, weight: Tensor, n_layers: int) -> float:
    if leaf in ("embed", "position_embed", "head"):
        return EMBEDDING_STD
    spread = weight.shape[-1] ** -0.5
    return spread * (2 * n_layers) ** -0.5 if leaf in ("o_proj", "down_proj") else spread


def _normal(weight: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return torch.randn(weight.shape, generator=generator) * deviation
