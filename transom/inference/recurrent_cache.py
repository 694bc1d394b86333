"""The states of a recurrence: the newest of each sequence, and one at the end of each block.

A recurrence forgets what it has read but for one state, so a sequence needs no more than its newest; the
states at block ends are what a common beginning is taken up from, and what a sequence that is cut goes back
to, reading the few tokens from there on again. Twin: `model.cache.StateHistory`. Read next: runner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from transom.model.config import ModelConfig
from transom.model.recurrent import Recurrent

from .encoder_memory import EncoderMemory
from .sequence import Span


class RecurrentCache:
    """The state after each full block: (blocks + 1, layers, parts, D); block 0 is the state before all."""

    def __init__(
        self, config: ModelConfig, n_blocks: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        parts = 2 if config.cell == "lstm" else 1
        shape = (n_blocks + 1, config.n_layers, parts, config.dim)
        self.pool, self.size = torch.empty(shape, dtype=dtype, device=device), size
        self.pool[0] = 0

    def clear(self, blocks: Sequence[int]) -> None:
        """Nothing: a block is written as a whole, when it is full."""

    def copy(self, origin: Sequence[int], to: Sequence[int]) -> None:
        """Nothing: a block that is not full holds nothing yet."""

    def read(
        self, model: Recurrent, spans: Sequence[Span], sources: EncoderMemory, alike: bool = False
    ) -> tuple[Tensor, list[int]]:
        """Hidden states (N, D) of the tokens of all spans, and the place of each span's first token.

        Sequences go from block end to block end, those with equally far to go together; alike: token by
        token, so that what is computed never depends on where a sequence goes on from.
        """
        states = [self._before(span) for span in spans]
        made: list[list[Tensor]] = [[] for _ in spans]
        while True:
            together: defaultdict[int, list[int]] = defaultdict(list)
            for i, (span, (at, _)) in enumerate(zip(spans, states, strict=True)):
                if at < span.stop:
                    most = 1 if alike else self.size - at % self.size
                    together[min(most, span.stop - at)].append(i)
            if not together:
                break
            for length, places in together.items():
                pieces = [Span(spans[i].sequence, states[i][0], length) for i in places]
                hidden, after = self._onward(model, pieces, [states[i][1] for i in places], sources)
                for i, piece, mine, state in zip(places, pieces, hidden, after, strict=True):
                    states[i] = piece.stop, state
                    made[i].append(mine[max(spans[i].start - piece.start, 0) :])
                    if piece.stop % self.size == 0:
                        self.pool[piece.blocks[piece.stop // self.size - 1]] = state
        for span, state in zip(spans, states, strict=True):
            span.sequence.newest = state
        firsts = [0]
        for span in spans:
            firsts.append(firsts[-1] + span.n)
        return torch.cat([part for parts in made for part in parts]), firsts[:-1]

    def _before(self, span: Span) -> tuple[int, Tensor]:
        """The state to go on from, and after how many tokens: all before the span, or up to a block end."""
        sequence = span.sequence
        if sequence.newest is not None and sequence.newest[0] == span.start:
            return sequence.newest
        at = span.start // self.size
        if at == 0 and sequence.source is not None:
            assert sequence.source.first is not None
            return 0, sequence.source.first
        return at * self.size, self.pool[sequence.blocks[at - 1] if at else 0]

    def _onward(
        self, model: Recurrent, pieces: Sequence[Span], states: Sequence[Tensor], sources: EncoderMemory
    ) -> tuple[Tensor, Tensor]:
        """Read equally long pieces: hidden states (B, L, D), and the states after (B, layers, parts, D)."""
        memory = None
        if pieces[0].sequence.source is not None:
            memory = sources.memory([piece.sequence.source for piece in pieces for _ in range(piece.n)])  # type: ignore[misc]
        before = torch.stack(list(states))
        tokens = torch.tensor([piece.tokens() for piece in pieces], device=self.pool.device)
        hidden, after = model.onward(tokens, [list(layer.unbind(1)) for layer in before.unbind(1)], memory)
        return hidden, torch.stack([torch.stack(parts, 1) for parts in after], 1)
