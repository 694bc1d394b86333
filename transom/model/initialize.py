"""First values of every weight, as one table.

| weight                           | drawn from                                          |
|----------------------------------|-----------------------------------------------------|
| embeddings, positions, segments  | normal, deviation 0.02 (recurrent: 1 / sqrt(D))     |
| q k v gate up projections        | normal, deviation 1 / sqrt(input width)             |
| o and down projections           | the same over sqrt(2 n_layers): depth adds up to 1  |
| head (untied), router, classes   | normal, deviation 0.02                              |
| matrices of a recurrence         | normal, deviation 1 / sqrt(input width)             |
| norm weights / all biases        | 1 / 0; 1 for the forget gate of an LSTM             |

The scaling of what writes into the residual stream is GPT-2's (Radford et al. 2019), the open forget gate
that of Jozefowicz et al. 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALL = 0.02
TABLES = ("embed", "position_embed", "segment_embed", "relative")
SCORES = ("head", "out", "router")
WRITE_BACK = ("o_proj", "down_proj")


@torch.no_grad()
def initialize(model: nn.Module, n_layers: int, seed: int, embedding: float = SMALL) -> None:
    """Fill every parameter in place, the same for the same seed, whatever the device or the order of use.

    embedding: the deviation of the embeddings of tokens; a recurrence, which has no norm, needs a larger one.
    """
    generator = torch.Generator().manual_seed(seed)
    if any(weight.is_meta for weight in model.parameters()):
        return  # a model without storage, made for its shapes
    for name, weight in model.named_parameters():
        *_, module, leaf = name.split(".")
        role = role_of(name)
        if module.endswith("norm"):
            weight.fill_(1.0 if leaf == "weight" else 0.0)
        elif leaf.startswith("bias"):
            weight.zero_()
            if leaf.startswith("bias_ih") and weight.shape[0] == 4 * _width(model, name):
                weight[weight.shape[0] // 4 : weight.shape[0] // 2] = 1.0  # torch's order: i f g o
        else:
            deviation = weight.shape[-1] ** -0.5
            if role in TABLES + SCORES:
                deviation = embedding if role == "embed" else SMALL
            elif role in WRITE_BACK:
                deviation *= (2 * n_layers) ** -0.5
            weight.copy_(_normal(weight, deviation, generator))


def role_of(name: str) -> str:
    """What a weight is for, told from its dotted name: `q_proj`, `embed`, `weight_ih_l0`."""
    *_, module, leaf = name.split(".")
    return module if leaf == "weight" else leaf


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a weight, or each of a stack of one for each expert, turns hidden states into hidden states.

    Tables do not, nor what makes scores (of tokens, classes, experts), nor a single row.
    """
    return weight.ndim >= 2 and min(weight.shape[-2:]) > 1 and role_of(name) not in TABLES + SCORES


def _width(model: nn.Module, name: str) -> int:
    """The width of the state of the recurrent layer that a bias belongs to."""
    layer = model.get_submodule(name.rpartition(".")[0])
    return int(layer.weight_hh_l0.shape[1])  # type: ignore[union-attr, operator]


def _normal(weight: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return torch.randn(weight.shape, generator=generator) * deviation
