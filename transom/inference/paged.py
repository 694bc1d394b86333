"""The paged cache: keys and values in blocks that rows take as they grow, share, and give back.

One pass reads tokens of many rows at once, each token as a row of its own, (N, 1): no padding, whatever the
rows have to read. Only attention looks at rows: those that share a long beginning look back at it together,
others that read equally many tokens are grouped; what they hold is read in place where its blocks lie
consecutively, and otherwise whole blocks are gathered. All that is planned once a pass, not once a layer.
Equal to `model.cache.KVCache`, its plain twin.
Sources: Kwon et al. 2023; Juravsky et al. 2024 (shared beginnings). Read next: runner.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from os.path import commonprefix

import torch
from torch import Tensor

from transom.model.attend import Rule, attend
from transom.model.cache import Memory
from transom.model.config import ModelConfig
from transom.model.cpu import aligns, reach
from transom.model.transformer import Transformer

from .encoder_memory import EncoderMemory
from .sequence import Span

SHORT = 64
"""Rows that read up to so many tokens look back together; longer ones each alone."""
IN_PLACE = 256 << 10
"""On a CPU a short row whose keys and values take so many bytes a layer is read in place, alone, where its
blocks are consecutive: a gather copies what attention then reads again, which grows with the row, and a call
of its own costs some ten operators, which does not. Reckoned, not measured."""
SHARED = 256
"""Rows that begin with so many tokens in the same blocks look back at them together."""


class PagedCache:
    """Keys and values of all layers in blocks: (layers, blocks + 1, size, 2, G, K); block 0 is zero.

    Bytes: 2 * n_layers * (blocks + 1) * size * G * K * bytes of `dtype`.
    """

    def __init__(
        self, config: ModelConfig, n_blocks: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.n_layers, n_blocks + 1, size, 2, config.n_kv_heads, config.head_dim)
        self.pool = torch.empty(shape, dtype=dtype, device=device)  # takes memory only as blocks are written
        self.pool[:, 0] = 0
        self.size, self.device, self.n_kv_heads = size, device, config.n_kv_heads
        self.in_place_from = -(
            -IN_PLACE // (2 * config.n_kv_heads * config.head_dim * self.pool.element_size())
        )
        """The tokens of a short row from which on it is read in place."""
        self.short, self.shared_from = SHORT, SHARED
        self.aligned = aligns(device, dtype) and config.position != "relative" and config.attn_softcap is None
        """Whether a row's bits are those of it alone (`model.cpu.aligned_attention`) but for a prefix."""
        self.blocks = list(self.pool)
        self.slots = [blocks.flatten(0, 1) for blocks in self.blocks]

    def clear(self, blocks: Sequence[int]) -> None:
        """Blocks given to a new owner hold zeros: a hidden slot has weight 0, and 0 * NaN is NaN."""
        if blocks:
            self.pool.index_fill_(1, torch.tensor(blocks, device=self.device), 0)

    def copy(self, origin: Sequence[int], to: Sequence[int]) -> None:
        """Copy blocks of all layers: what a row does before it writes into a block that others share."""
        if origin:
            index = torch.tensor([origin, to], device=self.device)
            self.pool.index_copy_(1, index[1], self.pool.index_select(1, index[0]))

    def read(
        self, model: Transformer, spans: Sequence[Span], sources: EncoderMemory, alike: bool = False
    ) -> tuple[Tensor, list[int]]:
        """Hidden states (N, D) of the tokens of all spans, and the place of each span's first token.

        alike: lay all keys out alike, so that what is computed never depends on where blocks lie.
        """
        order = self.arranged(spans, alike)
        ordered = [spans[i] for i in order]
        memory = None
        if spans[0].sequence.source is not None:
            memory = sources.memory([span.sequence.source for span in ordered for _ in range(span.n)])  # type: ignore[misc]
        step = PagedStep(self, ordered, memory, alike)
        tokens = torch.tensor([token for span in ordered for token in span.tokens()], device=self.device)
        hidden = model(tokens[:, None], state=step)[:, 0]
        firsts, at = [0] * len(spans), 0
        for i in order:
            firsts[i], at = at, at + spans[i].n
        return hidden, firsts

    def arranged(self, spans: Sequence[Span], gather: bool = False) -> list[int]:
        """Return the order in which a pass reads spans: those that look back together stand side by side."""
        group_of = {i: n for n, group in enumerate(self.shared_prefix_groups(spans, gather)) for i in group}
        keys = [
            (group_of.get(i, len(spans)), span.n, self.in_place(span, gather), span.stop)
            for i, span in enumerate(spans)
        ]
        return sorted(range(len(spans)), key=keys.__getitem__)

    def shared_prefix_groups(self, spans: Sequence[Span], gather: bool = False) -> list[list[int]]:
        """Return which spans are read together because their rows have a beginning in common that is long.

        It is at least as long as all that comes after it, so that little is compared in vain.
        """
        if gather:
            return []
        alike: defaultdict[int, list[int]] = defaultdict(list)
        for i, span in enumerate(spans):
            if span.start >= self.shared_from:
                alike[span.blocks[0]].append(i)
        return [group for group in alike.values() if len(group) > 1 and self._pays([spans[i] for i in group])]

    def _pays(self, group: Sequence[Span]) -> bool:
        shared = self.size * len(self.shared(group))
        return shared >= max(self.shared_from, sum(span.stop - shared for span in group))

    def shared(self, group: Sequence[Span]) -> list[int]:
        """Return the blocks that all these rows begin with and that none of them is about to write."""
        return list(commonprefix([span.blocks[: span.start // self.size] for span in group]))

    def in_place(self, span: Span, gather: bool = False) -> bool:
        """Return whether a row is read where it lies: its blocks are consecutive, and it pays."""
        if gather or not self.consecutive(span):
            return False
        if span.n > self.short:
            return True
        # What is computed over more slots than a row has is gathered, with zeros behind.
        return self.device.type == "cpu" and span.stop >= self.in_place_from and not self.aligned

    def alike(self, one: Span, other: Span, gather: bool = False) -> bool:
        """Return whether a short row can be read beside a shorter one."""
        if other.n != one.n or self.in_place(other, gather):
            return False
        if self.aligned:
            return reach(one.start) == reach(one.stop - 1) == reach(other.start) == reach(other.stop - 1)
        return other.stop <= 2 * one.stop + self.size  # padded to the longest: at most to the double

    def consecutive(self, span: Span) -> bool:
        """Return whether the blocks that hold a row up to the end of the span lie one behind the other."""
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
        self.adapters = [span.sequence.adapter for span in spans for _ in range(span.n)]
        """Of each token, which one reads it."""
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
        """Return where each token stands in its row: (N, 1)."""
        return self._positions

    def advance(self, length: int) -> None:
        """Nothing: what is read is counted by the rows."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Store key and value (N, 1, G, K), then let query (N, 1, H, K) look back in its row."""
        slots = self.cache.slots[layer]
        if self._run is None:
            slots.index_copy_(0, self._slots, torch.cat((key, value), dim=1).to(slots.dtype))
        else:
            slots[self._run, 0], slots[self._run, 1] = key[:, 0], value[:, 0]
        if len(self._groups) == 1:
            return self._groups[0].attend(self.cache, layer, query, rule)
        mixed = [group.attend(self.cache, layer, query[group.of], rule) for group in self._groups]
        return torch.cat(mixed)

    def _grouped(self, spans: Sequence[Span], gather: bool) -> list[_Group | _SharedPrefixGroup]:
        groups: list[_Group | _SharedPrefixGroup] = []
        begin, at = 0, 0
        for group in self.cache.shared_prefix_groups(spans, gather):  # they stand first
            end = begin + len(group)
            of = slice(at, at + sum(span.n for span in spans[begin:end]))
            groups.append(_SharedPrefixGroup(self.cache, spans[begin:end], of))
            begin, at = end, of.stop
        while begin < len(spans):
            first, end = spans[begin], begin + 1
            if first.n <= self.cache.short and not self.cache.in_place(first, gather):
                while end < len(spans) and self.cache.alike(first, spans[end], gather):
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
        padded = cache.aligned and (self.n == 1 or self.rows > 1)
        if padded:
            self.length = reach(self.length - 1)
        self._rules: dict[Rule, Rule] = {}
        self._in_place: slice | None = None
        if len(spans) == 1 and not gather and not padded and cache.consecutive(spans[0]):
            first = spans[0].blocks[0] * cache.size
            self._in_place = slice(first, first + self.length)
        else:
            used = -(-self.length // cache.size)
            mine = [span.blocks[: -(-span.stop // cache.size)] for span in spans]
            tables = [[*blocks, *[0] * (used - len(blocks))] for blocks in mine]
            self._table = torch.tensor(tables, device=cache.device).flatten()
        self._starts = torch.tensor([span.start for span in spans], device=cache.device)[:, None]
        self._uneven = padded or any(span.stop != self.length for span in spans)

    def attend(self, cache: PagedCache, layer: int, query: Tensor, rule: Rule) -> Tensor:
        """query (B * n, 1, H, K) of the group's tokens -> the same shape."""
        own = self._rules.get(rule)
        if own is None:  # one rule, and with it one mask, serves all layers that share it
            own = self._rules[rule] = self._rule(rule, query.shape[2] // cache.n_kv_heads)
        if self._in_place is not None:
            held = cache.slots[layer][None, self._in_place]
        else:
            held = cache.blocks[layer].index_select(0, self._table).unflatten(0, (self.rows, -1))
            held = held.flatten(1, 2)[:, : self.length]
        key, value = held.unbind(2)
        if self.n > 1:
            asked = query.view(self.rows, self.n, *query.shape[2:])
            return attend(asked, key, value, own).reshape(query.shape)
        # The queries of one token that share a head of keys ask it together.
        asked = query.view(self.rows, cache.n_kv_heads, -1, query.shape[3]).transpose(1, 2)
        return attend(asked, key, value, own).transpose(1, 2).reshape(query.shape)

    def _rule(self, rule: Rule, shared: int) -> Rule:
        """The rule of the pass as that of the group; shared: how many queries of a token ask one key head."""
        own = None
        if self._uneven or (self.n == 1 and rule.window is not None):
            places = torch.arange(self.n, device=self._starts.device)
            own = (self._starts + places).expand(-1, shared if self.n == 1 else self.n)
        bias = rule.bias
        if bias is not None:  # (N, H, 1, M) -> (B, H, n, M), or of one token (B, G, shared, M)
            bias = bias[self.of, :, 0, : self.length].unflatten(0, (self.rows, self.n))
            bias = bias[:, 0].unflatten(1, (-1, shared)) if self.n == 1 else bias.transpose(1, 2)
        causal = rule.causal and (own is not None or self.n > 1)  # one token at the end sees all before it
        return replace(rule, causal=causal, positions=own, bias=bias, _masks={})


class _SharedPrefixGroup:
    """Rows with one beginning: all their tokens look at it, laid out once, and each at its own row behind it.

    It is one row to the kernel: M slots, those of the beginning and then those of one row after the other.
    """

    def __init__(self, cache: PagedCache, spans: Sequence[Span], of: slice) -> None:
        self.of = of
        shared = cache.shared(spans)
        blocks, places, owners = list(shared), [*range(len(shared) * cache.size)], [-1] * len(shared)
        for number, span in enumerate(spans):
            own = span.blocks[len(shared) : -(-span.stop // cache.size)]
            places += range(len(shared) * cache.size, (len(shared) + len(own)) * cache.size)
            blocks += own
            owners += [number] * len(own)
        tokens = [(number, i) for number, span in enumerate(spans) for i in range(span.start, span.stop)]
        self._table, self._places = (torch.tensor(x, device=cache.device) for x in (blocks, places))
        self._owners = torch.tensor(owners, device=cache.device).repeat_interleave(cache.size)
        self._rows, self._own = torch.tensor(tokens, device=cache.device)[..., None].unbind(1)
        self._rules: dict[Rule, Rule] = {}

    def attend(self, cache: PagedCache, layer: int, query: Tensor, rule: Rule) -> Tensor:
        """query (T, 1, H, K) of the tokens of all rows -> the same shape."""
        own = self._rules.get(rule)
        if own is None:
            bias = self._bias(rule, query)
            own = self._rules[rule] = Rule(bias=bias, softcap=rule.softcap, scale=rule.scale)
        held = cache.blocks[layer].index_select(0, self._table).flatten(0, 1)
        key, value = held[None].unbind(2)
        return attend(query.transpose(0, 1), key, value, own).transpose(0, 1)

    def _bias(self, rule: Rule, query: Tensor) -> Tensor:
        """0 where a token may look, else -inf: (1, 1, T, M); with the bias (N, H, 1, slots) of the pass."""
        distance = self._own - self._places
        seen = ((self._owners < 0) | (self._owners == self._rows)) & (distance >= 0)
        if rule.window is not None:
            seen &= distance < rule.window
        if rule.bias is None:
            bias = query.new_zeros(1, 1, *seen.shape)
        else:
            mine = rule.bias[self.of, :, 0]
            bias = mine.index_select(-1, self._places.clamp(max=mine.shape[-1] - 1)).transpose(0, 1)[None]
        return bias.masked_fill(~seen, -math.inf)
