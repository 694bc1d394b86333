"""The runner: the only thing here that knows how logits are computed. Sequences of token ids in, logits out.

A sequence is opened with its tokens, read in chunks of any size beside other sequences, forked, cut and
closed; what it has read lies in blocks (`paged` for attention, `recurrent_cache` for a recurrence), whose
bookkeeping is `block_manager`. Its plain twin is `Model.new_state`: one contiguous batch. Read next: engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from transom.model.build import Model

from .block_manager import BlockManager, OutOfBlocks
from .encoder_memory import EncodedSource, EncoderMemory
from .onednn_weights import Packing
from .paged import PagedCache
from .recurrent_cache import RecurrentCache
from .sequence import Span
from .sequence import TokenSequence as TokenSequence

ENCODE_TOKENS = 4096
"""Sources that are encoded as one padded batch: so many tokens, padding included."""


class Chunk(NamedTuple):
    """Read the next `n` tokens of a sequence; logits are wanted after each of the last `wanted` of them."""

    sequence: TokenSequence
    n: int
    wanted: int = 1


class Runner(Protocol):
    """Whatever computes logits: the engine knows no more of it than this."""

    vocab_size: int
    max_len: int
    """The most tokens in a sequence."""

    @property
    def stale(self) -> bool:
        """Whether the model's weights have changed since what it holds was made of them."""
        ...

    def open(
        self, tokens: list[int], source: list[int] | None = None, *, tenant: str = "", adapter: str = ""
    ) -> TokenSequence:
        """Return a sequence with its tokens, of which the prefix cache of `tenant` may hold some already.

        source: of an encoder-decoder; encoded when the sequence is first read. adapter: who reads it.
        """
        ...

    def free_tokens(self) -> int:
        """Return how many tokens can be given blocks now."""
        ...

    def needs(self, sequence: TokenSequence, n: int) -> int:
        """Return how many of `free_tokens` it takes to read n more tokens; the last block may have room."""
        ...

    def run(self, chunks: list[Chunk]) -> Tensor:
        """Read chunks of different sequences: float32 logits (sum of wanted, V), in the order of chunks."""
        ...

    def fork(self, sequence: TokenSequence) -> TokenSequence:
        """Return a sequence that goes on from where this one is."""
        ...

    def truncate(self, sequence: TokenSequence, n: int) -> None:
        """Forget the sequence's tokens past the first n."""
        ...

    def close(self, sequence: TokenSequence) -> None:
        """Give the sequence's blocks back; full ones stay as prefix cache until their place is needed."""
        ...


class BlockRunner(ABC):
    """What every runner does with sequences and their blocks; how blocks are read is a subclass's own."""

    def __init__(self, model: Model, *, n_tokens: int, block: int, reuse: bool) -> None:
        """A model in eval mode, and room for `n_tokens` tokens of all sequences, in blocks of `block`.

        reuse: sequences that begin alike share what was read of it.
        """
        self.vocab_size, self.max_len = model.config.vocab_size, model.config.max_len
        self.blocks = BlockManager(-(-n_tokens // block), block, reuse)
        self._n_sequences = 0

    @property
    @abstractmethod
    def stale(self) -> bool:
        """Whether the model's weights have changed since what it holds was made of them."""

    @abstractmethod
    def _renew(self) -> None:
        """Make what is made of the weights anew."""

    @abstractmethod
    def _prepare(self, origin: list[int], to: list[int], taken: list[int], last: list[int]) -> None:
        """Copy blocks `origin` to blocks `to`; then expect writes to blocks `taken`, of which those that are
        not written as a whole are `last`.
        """

    @abstractmethod
    def _read(self, spans: Sequence[Span], wanted: Sequence[int]) -> Tensor:
        """Read spans, whose blocks are reserved: logits after the last `wanted` tokens of each."""

    def open(
        self, tokens: list[int], source: list[int] | None = None, *, tenant: str = "", adapter: str = ""
    ) -> TokenSequence:
        """Return a sequence with its tokens, of which the prefix cache of `tenant` may hold some already.

        source: of an encoder-decoder; encoded when the sequence is first read. adapter: who reads it; what
        another one has read is never taken for its own.
        """
        if self._n_sequences == 0 and self.stale:  # what was made of the old weights is forgotten
            self._renew()
            self.blocks.forget()
        self._n_sequences += 1
        root = (tenant, adapter, None if source is None else tuple(source))
        encoded = None if source is None else EncodedSource(source)
        sequence = TokenSequence(list(tokens), encoded, root, adapter)
        self._reuse(sequence, len(tokens) - 1)
        return sequence

    def free_tokens(self) -> int:
        """Return how many tokens can be given blocks now."""
        return self.blocks.available * self.blocks.size

    def needs(self, sequence: TokenSequence, n: int) -> int:
        """Return how many of `free_tokens` it takes to read n more tokens; the last block may have room."""
        return self._blocks_for([Span(sequence, sequence.n_read, n)]) * self.blocks.size

    @torch.inference_mode()
    def run(self, chunks: list[Chunk]) -> Tensor:
        """Read chunks of different sequences: float32 logits (sum of wanted, V), in the order of chunks.

        Raises OutOfBlocks when there is no room for them; whatever is raised, the sequences are as before.
        """
        stops = [chunk.sequence.n_read + chunk.n for chunk in chunks]
        for chunk, stop in zip(chunks, stops, strict=True):
            self._check(chunk, stop)
            self._reuse(chunk.sequence, stop - chunk.wanted)  # what another has read since it was opened
        # Blocks are reserved and sources encoded before anything is read, and all is given back if any of it
        # fails: a sequence holds what it has read, and no more.
        spans = [
            Span(c.sequence, c.sequence.n_read, stop - c.sequence.n_read)
            for c, stop in zip(chunks, stops, strict=True)
        ]
        try:
            self._reserve(spans)
            logits = self._read(spans, [chunk.wanted for chunk in chunks])
        except BaseException:  # whatever it was: no sequence may hold blocks for what it has not read
            for chunk, stop in zip(chunks, stops, strict=True):
                self._go_back(chunk.sequence, stop - chunk.n)
            raise
        # Only now have they been read; blocks that are full can be found by sequences that begin alike.
        for span in spans:
            span.sequence.n_read = span.stop
            self._keep(span.sequence)
        return logits.cpu() if logits.device.type == "mps" else logits  # Metal lacks the float64 of a draw

    def fork(self, sequence: TokenSequence) -> TokenSequence:
        """A sequence that goes on from where this one is; they share blocks until one of them writes."""
        twin = TokenSequence(list(sequence.tokens), sequence.source, sequence.nodes[0], sequence.adapter)
        twin.n_read, twin.n_reused, twin.newest = sequence.n_read, sequence.n_reused, sequence.newest
        twin.state_after = sequence.state_after
        twin.blocks, twin.nodes = list(sequence.blocks), list(sequence.nodes)
        self.blocks.hold(twin.blocks)
        self._n_sequences += 1
        return twin

    def truncate(self, sequence: TokenSequence, n: int) -> None:
        """Forget the sequence's tokens past the first n."""
        if not 0 <= n <= len(sequence.tokens):
            raise ValueError(f"the row has {len(sequence.tokens)} tokens; it cannot be cut to {n}")
        del sequence.tokens[n:]
        self._go_back(sequence, n)

    def close(self, sequence: TokenSequence) -> None:
        """Give the sequence's blocks back; full ones stay as prefix cache until their place is needed."""
        if not sequence.nodes:
            return
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.nodes, sequence.newest, sequence.source = [], [], None, None
        self._n_sequences -= 1

    def _go_back(self, sequence: TokenSequence, n: int) -> None:
        """Let the state hold at most the first n tokens of a sequence, and no blocks but theirs."""
        sequence.n_read = n = min(n, sequence.n_read)
        sequence.n_reused = min(sequence.n_reused, n)
        used = -(-n // self.blocks.size)
        self.blocks.release(sequence.blocks[used:])
        del sequence.blocks[used:], sequence.nodes[1 + n // self.blocks.size :]
        if sequence.newest is not None and sequence.newest[0] != n:
            sequence.newest = None

    def _check(self, chunk: Chunk, stop: int) -> None:
        if (
            not 0 <= chunk.wanted <= chunk.n
            or not 1 <= chunk.n <= len(chunk.sequence.tokens) - chunk.sequence.n_read
        ):
            left = len(chunk.sequence.tokens) - chunk.sequence.n_read
            raise ValueError(f"a chunk of {chunk.n} tokens, {chunk.wanted} wanted; the row has {left} unread")
        if stop > self.max_len:
            raise ValueError(f"{stop} tokens in a row; this model reads at most {self.max_len}")

    def _reuse(self, sequence: TokenSequence, limit: int) -> None:
        """Take what the prefix cache holds of the sequence's next tokens, up to number `limit`."""
        size = self.blocks.size
        if not self.blocks.reuse or sequence.n_read % size:
            return
        assert len(sequence.blocks) == len(sequence.nodes) - 1 == sequence.n_read // size
        found = self.blocks.find(sequence.nodes[-1], sequence.tokens, sequence.n_read, limit)
        self.blocks.hold(known.block for known in found)
        sequence.blocks += [known.block for known in found]
        sequence.nodes += [known.node for known in found]
        sequence.n_read += len(found) * size
        sequence.n_reused += len(found) * size

    def _blocks_for(self, spans: Sequence[Span]) -> int:
        """Return how many blocks it takes to read spans: new ones, and copies of those that others share."""
        size, more = self.blocks.size, 0
        shared = Counter[int]()
        for span in spans:
            more += max(-(-span.stop // size) - len(span.blocks), 0)
            if span.start % size and not self.blocks.may_write(span.blocks[-1]):
                shared[span.blocks[-1]] += 1
        return more + sum(self.blocks.copies(block, writers) for block, writers in shared.items())

    def _reserve(self, spans: Sequence[Span]) -> None:
        """Give each sequence blocks of its own for what it is about to read."""
        size, wanted = self.blocks.size, self._blocks_for(spans)
        if wanted > self.blocks.available:
            room = f"{self.blocks.available} of {self.blocks.n_blocks} can be had"
            raise OutOfBlocks(f"{wanted} blocks of {size} tokens are needed; {room}")
        origin, to, new, last = [], [], [], []
        for span in spans:
            blocks = span.blocks
            if span.start % size and not self.blocks.may_write(blocks[-1]):
                origin.append(blocks.pop())
                blocks += self.blocks.take(1, (blocks or origin)[-1])
                to.append(blocks[-1])
                self.blocks.release(origin[-1:])  # at once: the last holder writes where it is
            more = -(-span.stop // size) - len(blocks)
            if more > 0:
                taken = self.blocks.take(more, blocks[-1] if blocks else 0)
                blocks += taken
                new += taken
                last.append(taken[-1])
        self._prepare(origin, to, new, last)

    def _keep(self, sequence: TokenSequence) -> None:
        """Put the blocks that have become full where later sequences find them."""
        size = self.blocks.size
        for place in range(len(sequence.nodes) - 1, sequence.n_read // size if self.blocks.reuse else 0):
            tokens = sequence.tokens[place * size : (place + 1) * size]
            sequence.nodes.append(self.blocks.keep(sequence.nodes[-1], tokens, sequence.blocks[place]))


class TorchRunner(BlockRunner):
    """Logits by PyTorch, for decoders, encoder-decoders and recurrences."""

    def __init__(
        self,
        model: Model,
        *,
        n_tokens: int,
        block: int = 8,
        reuse: bool = True,
        deterministic: bool = False,
        adapters: Mapping[str, Model] | None = None,
    ) -> None:
        """As for `BlockRunner`. deterministic: a sequence's logits are bitwise a function of its own tokens
        and source; every block is then read as a whole and alone. adapters: by name, those over the model
        that a sequence may be read by.
        """
        super().__init__(model, n_tokens=n_tokens, block=block, reuse=reuse)
        config, weight = model.config, model.embed.weight
        self.deterministic = deterministic
        store = PagedCache if config.cell is None else RecurrentCache
        self._store: Any = store(config, self.blocks.n_blocks, block, weight.dtype, weight.device)
        self._sources, self._packing = EncoderMemory(), Packing(model, adapters)
        self._renew()
        # How many tokens of an expert or a recurrence run together changes their bits: there, one by one.
        self._grid = 1 if config.cell is not None or config.experts is not None else block

    @property
    def stale(self) -> bool:
        """Whether the model's weights have changed since what it holds was made of them."""
        return self._packing.version() != self._version

    def _renew(self) -> None:
        self._model, self._version = self._packing.current(), self._packing.version()

    def _prepare(self, origin: list[int], to: list[int], taken: list[int], last: list[int]) -> None:
        self._store.copy(origin, to)  # first: a block let go of may have a new owner by now
        # Those before the last are written as a whole, and at once unless a span is read in pieces.
        self._store.clear(taken if self.deterministic else last)

    def _read(self, spans: Sequence[Span], wanted: Sequence[int]) -> Tensor:
        self._encode([span.sequence.source for span in spans if span.sequence.source is not None])
        return self._alone(spans, wanted) if self.deterministic else self._together(spans, wanted)

    def _encode(self, sources: Sequence[EncodedSource]) -> None:
        """Encode the sources that are asked for the first time, and lay all that are asked side by side."""
        new = [source for source in dict.fromkeys(sources) if source.hidden is None]
        new.sort(key=lambda source: len(source.tokens))
        while new:
            longest = len(new[-1].tokens)
            sequences = 1 if self.deterministic else max(1, ENCODE_TOKENS // longest)
            self._sources.encode(self._model, new[-sequences:])
            del new[-sequences:]
        if sources and not self.deterministic:
            self._sources.prepare(sources)

    def _together(self, spans: Sequence[Span], wanted: Sequence[int]) -> Tensor:
        """Compute the logits of all spans by one pass."""
        some = [span for span in spans if span.n]
        if not some:
            return self._nothing()
        hidden, firsts = self._store.read(self._model, some, self._sources)
        ends = {span.sequence: first + span.n for span, first in zip(some, firsts, strict=True)}
        places = [ends[s.sequence] - w + i for s, w in zip(spans, wanted, strict=True) for i in range(w)]
        if not places:
            return self._nothing()
        if places != [*range(len(hidden))]:
            hidden = hidden.index_select(0, torch.tensor(places, device=hidden.device))
        return self._model.logits(hidden)

    def _alone(self, spans: Sequence[Span], wanted: Sequence[int]) -> Tensor:
        """The same, each alone, in cells of a fixed grid: every shape depends on a token's place only."""
        logits = []
        for span, most in zip(spans, wanted, strict=True):
            if span.sequence.source is not None:
                self._sources.prepare([span.sequence.source])
            for start in range(span.start // self._grid * self._grid, span.stop, self._grid):
                cell = Span(span.sequence, start, min(self._grid, self.max_len - start))
                hidden, _ = self._store.read(self._model, [cell], self._sources, alike=True)
                mine = range(max(start, span.stop - most), min(cell.stop, span.stop))
                if mine:
                    logits.append(self._model.logits(hidden)[mine.start - start : mine.stop - start])
        return torch.cat(logits) if logits else self._nothing()

    def _nothing(self) -> Tensor:
        return torch.empty(0, self.vocab_size, device=self._model.embed.weight.device)
