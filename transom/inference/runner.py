"""The runner: the only thing here that knows how logits are computed. Rows of token ids in, logits out.

It owns the decode state of a batch. Prompts of unequal length are padded on the right for one pass, which a
causal model cannot see, and the padding is then cut from the state. Read next: generator, beam.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transom.model.build import Model
from transom.model.cache import Memory


class TorchRunner:
    """Logits of a growing batch, by plain PyTorch over a contiguous decode state."""

    def __init__(
        self, model: Model, prompts: Sequence[Sequence[int]], capacity: int, memory: Memory | None = None
    ) -> None:
        """Room for `capacity` tokens in each of the rows, one per prompt; memory: their encoded sources."""
        self.model, self.prompts = model, prompts
        self.device = model.embed.weight.device
        self.state = model.new_state(len(prompts), capacity, memory=memory)

    @torch.inference_mode()
    def prefill(self) -> Tensor:
        """Read the prompts; float32 logits (N, V) of what follows the last token of each."""
        lengths = [len(prompt) for prompt in self.prompts]
        longest = max(lengths)
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in self.prompts]
        hidden = self.model(torch.tensor(padded, device=self.device), state=self.state)
        self.state.truncate(lengths)
        last = torch.tensor(lengths, device=self.device) - 1
        return self._logits(hidden[torch.arange(len(lengths), device=self.device), last])

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each row; float32 logits (N, V) of what follows it."""
        hidden = self.model(torch.tensor(tokens, device=self.device)[:, None], state=self.state)
        return self._logits(hidden[:, -1])

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(hidden)
        return logits.cpu() if logits.device.type == "mps" else logits  # Metal lacks the float64 of a draw

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i be a copy of the old row rows[i]; rows not named leave the batch."""
        with torch.inference_mode():
            self.state.reorder(rows)
