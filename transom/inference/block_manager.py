"""Blocks: which piece of the decode state belongs to whom, and which pieces may be used again.

A block holds what was made of `size` tokens that follow each other. Sequences share the blocks of a common
beginning; a full block that no sequence holds stays as prefix cache until its place is needed, the longest
unused first. Full blocks form a tree, each known by its parent and its own tokens, so that what is found is
always right: nothing is compared by a hash alone. Only bookkeeping is here, no tensor. Sources: paged
attention (Kwon et al. 2023), radix attention (Zheng et al. 2024). Read next: paged.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from itertools import count
from typing import NamedTuple

SPARE = 8
"""A SPARE-th of all blocks is given up at once when room is made, so that free blocks lie together."""


class OutOfBlocks(ValueError):
    """More blocks were asked for than are free or may be given up; nothing was changed."""


class CachedBlock(NamedTuple):
    """A full block in the tree: where it lies, and its place in the tree."""

    block: int
    node: int


class BlockManager:
    """The blocks 1 .. n of a pool; block 0 is nobody's and never written."""

    def __init__(self, n_blocks: int, size: int, reuse: bool = True) -> None:
        """Blocks of `size` tokens each; reuse: whether full ones are kept as prefix cache."""
        self.n_blocks, self.size, self.reuse = n_blocks, size, reuse
        self._holders = [0] * (n_blocks + 1)
        self._in_use = bytearray([1]) + bytearray(n_blocks)  # 1: held by a sequence, or kept
        self._n_free = n_blocks
        self._tree: dict[tuple[Hashable, tuple[int, ...]], CachedBlock] = {}
        self._key_of: dict[int, tuple[Hashable, tuple[int, ...]]] = {}  # of a block that is in the tree
        self._idle: OrderedDict[int, None] = OrderedDict()  # in the tree, held by no sequence; oldest first
        self._nodes = count(1)

    @property
    def available(self) -> int:
        """How many blocks can be had now: free ones, and kept ones that no sequence holds."""
        return self._n_free + len(self._idle)

    def find(self, parent: Hashable, tokens: Sequence[int], start: int, limit: int) -> list[CachedBlock]:
        """The kept blocks of tokens start .. limit, as far as they go; `start` is the end of a block."""
        found: list[CachedBlock] = []
        for place in range(start, limit - self.size + 1, self.size):
            known = self._tree.get((parent, tuple(tokens[place : place + self.size])))
            if known is None:
                break
            found.append(known)
            parent = known.node
        return found

    def keep(self, parent: Hashable, tokens: Sequence[int], block: int) -> int:
        """Put a full block into the tree, behind its parent: its node, which may be that of its equal."""
        key = (parent, tuple(tokens))
        if key not in self._tree:
            self._tree[key] = CachedBlock(block, next(self._nodes))
            self._key_of[block] = key
        return self._tree[key].node

    def hold(self, blocks: Iterable[int]) -> None:
        """Let one more sequence hold these blocks."""
        for block in blocks:
            self._holders[block] += 1
            self._idle.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """A sequence holds these blocks of its own no more; the last of them is the first to be given up."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._free(block)

    def may_write(self, block: int) -> bool:
        """Return whether a block is one sequence's own, and nobody will look for what it holds."""
        return self._holders[block] == 1 and block not in self._key_of

    def copies(self, block: int, writers: int) -> int:
        """Return how many copies of a shared block it takes before `writers` of its holders may write."""
        return writers if block in self._key_of else min(writers, self._holders[block] - 1)

    def take(self, n: int, after: int = 0) -> list[int]:
        """n blocks for one sequence, consecutive where that can be, and behind block `after` if there is one.

        Raises OutOfBlocks.
        """
        if n > self.available:
            raise OutOfBlocks(f"{n} blocks of {self.size} tokens were asked for; {self.available} can be had")
        self._make_room(n)
        taken: list[int] = []
        while after and len(taken) < n and after < self.n_blocks and not self._in_use[after + 1]:
            after += 1
            taken.append(after)
            self._in_use[after] = 1
        while len(taken) < n:
            # A sequence in pieces already, or a copy, may have its one block anywhere: looking for the
            # longest gap took a fifth of a profiled beam search over 1,000 sentences.
            part = self._anywhere() if after and n == 1 else self._gap(n - len(taken))
            self._in_use[part.start : part.stop] = b"\1" * len(part)
            taken += part
        self._n_free -= n
        for block in taken:
            self._holders[block] = 1
        return taken

    def _anywhere(self) -> range:
        """Return the first free block."""
        first = self._in_use.find(0)
        return range(first, first + 1)

    def _gap(self, n: int) -> range:
        """At most n free blocks of the longest gap: from its middle on, so that both neighbours may grow."""
        gap = max(re.findall(rb"\0+", self._in_use), key=len)
        first, room = self._in_use.find(gap), len(gap) - n
        start = first + (room // 2 if room > 0 and first > 1 else 0)
        return range(start, min(start + n, first + len(gap)))

    def _make_room(self, n: int) -> None:
        """Give up idle blocks until n are free, and then some more."""
        if n <= self._n_free:
            return
        wanted = n + self.n_blocks // SPARE
        while self._n_free < wanted and self._idle:
            block, _ = self._idle.popitem(last=False)
            del self._tree[self._key_of.pop(block)]
            self._free(block)

    def _free(self, block: int) -> None:
        self._in_use[block] = 0
        self._n_free += 1

    def forget(self) -> None:
        """Empty the tree: what was kept is no longer what the model would make."""
        for block in self._idle:
            self._free(block)
        self._idle.clear()
        self._key_of.clear()
        self._tree.clear()
