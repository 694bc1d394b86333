"""The paged cache: keys and values in blocks that rows take as they grow, share, and give back.

One pass reads tokens of many rows at once, each token as a row of its own, (N, 1): no padding, whatever the
rows have to read. Only attention looks at rows: those that read equally many tokens are grouped, what they
hold is read in place where its blocks lie consecutively, and otherwise whole blocks are gathered. All that is
planned once a pass, not once a layer. Equal to `model.cache.KVCache`, its plain twin.
Source: Kwon et al. 2023. Read next: runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from transom.model.attention import Rule, attend
from transom.model.cache import Memory
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer

from .rows import Span
from .sources import Sources

SHORT = 8
"""Rows that read up to so many tokens look back together; longer ones each alone."""
IN_PLACE = 256 << 10
"""On a CPU a short row whose keys and values take so many bytes a layer is read in place, alone, where its
blocks are consecutive: a gather copies what attention then reads again, which grows with the row, and a call
of its own costs some ten operators, which does not. Reckoned, not measured."""


class PagedCache:
    """Keys and values of all layers in blocks: (layers, 2, blocks + 1, size, G, K); block 0 is zero.

    Bytes: 2 * n_layers * (blocks + 1) * size * G * K * bytes of `dtype`.
    """

    def __init__(
        self, config: ModelConfig, n_blocks: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.n_layers, 2, n_blocks + 1, size, config.n_kv_heads, config.head_dim)
        self.pool = torch.empty(shape, dtype=dtype, device=device)  # takes memory only as blocks are written
        self.pool[:, :, 0] = 0
        self.size, self.device = size, device
        self.in_place_from = -(
            -IN_PLACE // (2 * config.n_kv_heads * config.head_dim * self.pool.element_size())
        )
        """The tokens of a short row from which on it is read in place."""
        self.blocks = [(keys, values) for keys, values in self.pool]
        self.slots = [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in self.blocks]

    def clear(self, blocks: Sequence[int]) -> None:
        """Blocks given to a new owner hold zeros: a hidden slot has weight 0, and 0 * NaN is NaN."""
        if blocks:
            self.pool.index_fill_(2, torch.tensor(blocks, device=self.device), 0)

    def copy(self, origin: Sequence[int], to: Sequence[int]) -> None:
        """Copy blocks of all layers: what a row does before it writes into a block that others share."""
        if origin:
            index = torch.tensor([origin, to], device=self.device)
            self.pool.index_copy_(2, index[1], self.pool.index_select(2, index[0]))

    def read(
        self, model: Transformer, spans: Sequence[Span], sources: Sources, alike: bool = False
    ) -> tuple[Tensor, list[int]]:
        """Hidden states (N, D) of the tokens of all spans, and the place of each span's first token.

        alike: lay all keys out alike, so that what is computed never depends on where blocks lie.
        """
        order = self.arranged(spans, alike)
        ordered = [spans[i] for i in order]
        memory = None
        if spans[0].row.source is not None:
            memory = sources.memory([span.row.source for span in ordered for _ in range(span.n)])  # type: ignore[misc]
        step = PagedStep(self, ordered, memory, alike)
        tokens = torch.tensor([token for span in ordered for token in span.tokens()], device=self.device)
        hidden = model(tokens[:, None], state=step)[:, 0]
        firsts, at = [0] * len(spans), 0
        for i in order:
            firsts[i], at = at, at + spans[i].n
        return hidden, firsts

    def arranged(self, spans: Sequence[Span], gather: bool = False) -> list[int]:
        """The order in which a pass reads spans: those that look back together stand side by side."""
        keys = [(span.n, self.in_place(span, gather), span.stop) for span in spans]
        return sorted(range(len(spans)), key=keys.__getitem__)

    def in_place(self, span: Span, gather: bool = False) -> bool:
        """Whether a row is read where it lies: its blocks are consecutive, and it pays."""
        if gather or not self.consecutive(span):
            return False
        return span.n > SHORT or (self.device.type == "cpu" and span.stop >= self.in_place_from)

    def consecutive(self, span: Span) -> bool:
        """Whether the blocks that hold a row up to the end of the span lie one behind the other."""
        used = -(-span.stop // self.size)
        first = span.blocks[0]
        return span.blocks[used - 1] == first + used - 1 and span.blocks[:used] == list(
            range(first, first + used)
        )


class PagedStep:
    """The decode state of one pass over spans of rows, in the order of `PagedCache.arranged`: N tokens."""

    ragged = False

    def __init__(
        self, cache: PagedCache, spans: Sequence[Span], memory: Memory | None = None, gather: bool = False
    ) -> None:
        """memory: of the sources; gather: never read in place, so that all is laid out alike."""
        self.cache, self.memory = cache, memory
        places = [place for span in spans for place in range(span.start, span.stop)]
        slots = [
            span.blocks[place // cache.size] * cache.size + place % cache.size
            for span in spans
            for place in range(span.start, span.stop)
        ]
        both = torch.tensor([places, slots], device=cache.device)
        self._positions, self._slots = both[0][:, None], both[1]
        self._run = slice(slots[0], slots[-1] + 1) if slots == [*range(slots[0], slots[-1] + 1)] else None
        self.lengths = [max(span.stop for span in spans) - 1]
        self._groups = self._grouped(spans, gather)

    def positions(self, length: int) -> Tensor:
        """Where each token stands in its row: (N, 1)."""
        return self._positions

    def advance(self, length: int) -> None:
        """Nothing: what is read is counted by the rows."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Store key and value (N, 1, G, K), then let query (N, 1, H, K) look back in its row."""
        keys, values = self.cache.slots[layer]
        if self._run is None:
            keys.index_copy_(0, self._slots, key[:, 0].to(keys.dtype))
            values.index_copy_(0, self._slots, value[:, 0].to(values.dtype))
        else:
            keys[self._run], values[self._run] = key[:, 0], value[:, 0]
        if len(self._groups) == 1:
            return self._groups[0].attend(self.cache, layer, query, rule)
        mixed = [group.attend(self.cache, layer, query[group.of], rule) for group in self._groups]
        return torch.cat(mixed)

    def _grouped(self, spans: Sequence[Span], gather: bool) -> list[_Group]:
        groups: list[_Group] = []
        begin, at = 0, 0
        while begin < len(spans):
            first, end = spans[begin], begin + 1
            if first.n <= SHORT and not self.cache.in_place(first, gather):
                # Shorter rows are padded to the longest: at most to the double.
                most = 2 * first.stop + self.cache.size
                while end < len(spans) and spans[end].n == first.n and spans[end].stop <= most:
                    if self.cache.in_place(spans[end], gather):
                        break
                    end += 1
            of = slice(at, at + first.n * (end - begin))
            groups.append(_Group(self.cache, spans[begin:end], of, gather))
            begin, at = end, of.stop
        return groups


class _Group:
    """Rows that read equally many tokens and look back together: B rows, n tokens each, M slots."""

    def __init__(self, cache: PagedCache, spans: Sequence[Span], of: slice, gather: bool) -> None:
        self.of, self.n, self.rows = of, spans[0].n, len(spans)
        """of: which tokens of the pass."""
        self.length = max(span.stop for span in spans)
        self._rules: dict[Rule, Rule] = {}
        self._in_place: slice | None = None
        if len(spans) == 1 and not gather and cache.consecutive(spans[0]):
            first = spans[0].blocks[0] * cache.size
            self._in_place = slice(first, first + self.length)
        used = -(-self.length // cache.size)
        tables = [[*span.blocks[:used], *[0] * (used - len(span.blocks))] for span in spans]
        self._table = torch.tensor(tables, device=cache.device).flatten()
        uneven = any(span.stop != self.length for span in spans)
        starts = torch.tensor([span.start for span in spans], device=cache.device)
        self._own = starts[:, None] + torch.arange(self.n, device=cache.device) if uneven else None

    def attend(self, cache: PagedCache, layer: int, query: Tensor, rule: Rule) -> Tensor:
        """query (B * n, 1, H, K) of the group's tokens -> the same shape."""
        own = self._rules.get(rule)
        if own is None:  # one rule, and with it one mask, serves all layers that share it
            own = self._rules[rule] = replace(rule, positions=self._own, bias=self._bias(rule), _masks={})
        if self._in_place is not None:
            key, value = (slots[None, self._in_place] for slots in cache.slots[layer])
        else:
            key, value = (
                blocks.index_select(0, self._table).view(self.rows, -1, *blocks.shape[2:])[:, : self.length]
                for blocks in cache.blocks[layer]
            )
        mixed = attend(query.view(self.rows, self.n, *query.shape[2:]), key, value, own)
        return mixed.reshape(query.shape)

    def _bias(self, rule: Rule) -> Tensor | None:
        """The bias (N, H, 1, M) of the pass as that of the group: (B, H, n, M)."""
        if rule.bias is None:
            return None
        mine = rule.bias[self.of, :, 0, : self.length]
        return mine.view(self.rows, self.n, *mine.shape[1:]).transpose(1, 2)
