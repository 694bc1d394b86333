"""An encoder as it is best run here: a batch of texts in, what its head makes of each out.

The CPU's own kernels where a plan says the model, else PyTorch, which has the same numbers but for their last
bits. By the kernels a text's numbers are bitwise a function of its own tokens, whatever is read beside it and
by however many threads. Read next: embedder, classifier, native/plan.
"""

from __future__ import annotations

from itertools import chain, count, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transom.model.lora import adapted_layers
from transom.model.transformer import Transformer
from transom.native.plan import PAGE, Plan, Read

from .batching import TextBatch, together
from .native_runner import STEP, available, check_weights, watched
from .onednn_weights import Packing, version_of


class TextEncoder:
    """A model whose head embeds or classifies, on texts."""

    def __init__(self, model: Transformer, weights: str = "") -> None:
        """A model in eval mode. weights: `int8`, `bfloat16`, or "": as the model has them. Raises Refused
        where it cannot have them.
        """
        check_weights(weights, model)
        self.model, self.weights, self._packing = model, weights, Packing(model)
        self._plan: Plan | None = None
        self._adapter = 0
        self._version: Any = None

    @property
    def runs_by(self) -> str:
        """What computes, and where that is PyTorch on a CPU, why."""
        return available(self.model, self.weights)[1]

    @torch.inference_mode()
    def read(self, batch: TextBatch, segments: Tensor | None = None) -> Tensor:
        """Return vectors (B, D) or scores of classes (B, C), float32; segments: (B, L) of tokens."""
        plan = self._current_plan()
        if plan is None or watched(self.model):
            model = self._packing.current()
            hidden = model(batch.tokens, documents=batch.documents, segments=segments)
            return model.head(hidden, batch.documents)  # type: ignore[operator]
        found = self._by_plan(plan, batch, segments)
        return F.normalize(found, dim=-1) if self.model.config.normalize else found

    def _current_plan(self) -> Plan | None:
        """The plan of the weights as they are, where the kernels run this model."""
        version = version_of(chain(self.model.parameters(), self.model.buffers()))
        if version != self._version:
            self._plan, self._version = None, version
            library, _ = available(self.model)
            if library is not None:
                adapters = [self.model] if adapted_layers(self.model) else []
                self._adapter = len(adapters)
                n_pages = max(STEP, self.model.config.max_len)  # a text has one at least
                self._plan = Plan(library, self.model, n_pages, adapters, weights=self.weights)
        return self._plan

    def _by_plan(self, plan: Plan, batch: TextBatch, segments: Tensor | None) -> Tensor:
        n_texts, longest = batch.tokens.shape
        lengths = [longest] * n_texts
        if batch.documents is not None:
            lengths = (batch.documents == 0).sum(1).tolist()
        tokens = batch.tokens.tolist()
        kinds = [[]] * n_texts if segments is None else segments.tolist()
        parts = list[Tensor]()
        for some in together(lengths, STEP):
            pages, reads = count(), list[Read]()
            for row, length, kind in zip(tokens[some], lengths[some], kinds[some], strict=True):
                own = list(islice(pages, -(-length // PAGE)))
                reads.append(Read(row[:length], 0, own, self._adapter, kind[:length]))
            parts.append(plan.encode(reads, torch.get_num_threads()))
        return torch.cat(parts)
