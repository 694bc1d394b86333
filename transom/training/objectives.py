"""What a run minimises: a module that turns a batch into one summed loss.

An objective wraps a model so that DDP, FSDP2 and `torch.compile` have one callable to take hold of. Its value
is a sum over targets, not a mean: the loop divides once by the targets of the whole optimizer step, over
micro-batches and ranks, which is why accumulated equals unaccumulated. A method (fine-tuning, classification)
brings its own objective to the same loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model.transformer import Batch, Transformer


class LanguageModelling(nn.Module):
    """Predict every next token: forward(batch) -> the sum of -log p(target) in nats, a float32 scalar."""

    def __init__(self, model: Transformer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, batch: Batch) -> Tensor:
        return self.model.loss(batch, dtype=self.dtype)
