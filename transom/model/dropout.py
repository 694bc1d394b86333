"""Dropout (Srivastava et al. 2014): in training a share of the activations is zeroed, the rest scaled up.

It stands on embeddings and on what branches add to the residual stream, as in the 2017 paper. On a CPU
PyTorch draws one random number for each activation, in one thread; here one number of 64 bits serves eight.
Measured for a translator of width 256: a fifth of the training step before, a fiftieth now.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 256
"""A byte decides each activation, so a rate is met to the nearest 1/256."""


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero about `rate` of x and scale the rest so that the mean stays; outside of training x itself."""
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = min(LEVELS - 1, max(1, round(rate * LEVELS)))
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
