"""A plain pass that computes what native kernels served.

They and PyTorch round to bfloat16 at different places, which moves a token's log-probability by up to 0.2
nats: a plain pass over an answer would be that of a sibling. But the kernels' residual streams can be had,
bit by bit those of the answer. So each layer reads what was served. Where a view changes something (a head
taken away, a gradient), each layer's input is moved there by a constant, found by one more pass, so that the
change spreads through a pass that is otherwise the served one. Read next: native_runner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from transom.insight.hooks import Edit, edited
from transom.model.build import Model

from .adapters import BASE
from .block_manager import OutOfBlocks
from .native_runner import NativeRunner
from .runner import Runner


@contextmanager
def as_served(
    model: Model,
    tokens: Sequence[int],
    runner: Runner | None,
    *,
    adapter: str = BASE,
    changes: bool = True,
) -> Iterator[None]:
    """In this block and thread, passes over these tokens (L,), or a beginning of them, compute what `runner`
    does. adapter: which of those over its model served them; `model` is the one that has it. changes: whether
    anything of them is changed; else they are only watched, which spares a pass.

    Others are the plain model's, and so are all where PyTorch runs it, where there is a source besides, of a
    recurrence, in float32, where nothing is rounded, and where a busy cache has no room to read the tokens
    once more.
    """
    exact, config = model.embed.weight.dtype == torch.float32, model.config
    plain = config.kind == "encoder-decoder" or config.cell is not None
    if not isinstance(runner, NativeRunner) or plain or (exact and not runner.weights):
        yield
        return
    try:
        streams = runner.streams(tokens, adapter)
    except (OutOfBlocks, MemoryError):
        yield
        return
    served = _Served(torch.tensor(tokens), streams)
    modules: list[Any] = [*model.layers, model.final_norm]  # type: ignore[misc, union-attr]
    read = served.move if changes else served.give
    edits = [Edit(model, "in", served.begin)]
    edits += [Edit(module, "in", partial(read, i)) for i, module in enumerate(modules)]
    edits += [Edit(modules[-1], "out", partial(served.end, model.embed.weight.dtype))]
    with edited(edits):
        if changes:
            with torch.no_grad():
                model(served.tokens[None])
        yield


class _Served:
    """What each layer reads: what was served, or what the layers before make of it, moved there."""

    def __init__(self, tokens: Tensor, streams: Tensor) -> None:
        """tokens (L,), and the streams that were served (layers + 1, L, D)."""
        self.tokens, self._streams = tokens, streams
        self._by: dict[int, Tensor] = {}
        """How far each layer's input is moved, as the first pass has found it."""
        self._n = 0
        """Tokens of the pass that runs, if it reads a beginning of `tokens`; else 0."""

    def begin(self, tokens: Tensor) -> None:
        """Look whether a pass reads these tokens."""
        n = tokens.shape[1]
        alike = n <= len(self.tokens) and bool((tokens == self.tokens[:n]).all())
        self._n = n if alike else 0

    def give(self, layer: int, x: Tensor) -> Tensor | None:
        """The input (B, n, D) of a layer, as it was served."""
        return self._streams[layer, : self._n].expand_as(x) if self._n else None

    def move(self, layer: int, x: Tensor) -> Tensor | None:
        """The same, with what has changed before; the first pass finds how far that is."""
        if not self._n:
            return None
        if layer not in self._by:
            self._by[layer] = self._streams[layer] - x[0].float()
        return x.float() + self._by[layer][: self._n]

    def end(self, dtype: torch.dtype, hidden: Tensor) -> Tensor | None:
        """What the head reads (B, n, D), rounded as it was there; the pass is over."""
        n, self._n = self._n, 0  # a view may read other states by the last norm afterwards
        return hidden.to(dtype).float() if n else None
