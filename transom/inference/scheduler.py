"""The scheduler: which tokens of which requests are read in the next step.

The one idea: a request is a sequence of tokens of which some are not read yet. Sequences with one such token
write, and go every step; longer ones read their prompts in chunks beside them, each tenant (an API key) its
fair share. What finds no room waits; when nothing can move the latest request is preempted, so the oldest
always moves. A tenant of which nothing runs takes the place of the latest request of the tenant that has
most. Sources: Yu et al. 2022 (Orca); Agrawal et al. 2023 (chunked prefill). Read next: runner, engine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from transom.errors import Refused

from .beam import BeamSearch
from .request import Request
from .request_queue import RequestQueue
from .runner import Chunk, Runner, TokenSequence
from .sampling_rows import SamplingRow
from .speculative import NGrams

MOST_PREFIX = 64
"""Tokens of an answer's given beginning that are read at once, since each costs a sequence of logits."""
HEADROOM = 16
"""Tokens that every sequence should have room to grow by when another is let in."""
WORTH = 32
"""Tokens that another request is just reading for which it is worth waiting: then they are reused."""


class RequestState:
    """A request with its sequences in the runner: one, or as many as its beam search keeps beginnings."""

    number = 0
    """Its place in the order of arrival."""

    def __init__(self, request: Request, sampling: SamplingRow) -> None:
        self.request, self.sampling = request, sampling
        self.sequences: list[TokenSequence] = []
        self.texts = [list(request.prompt)]
        """What its sequences are to hold, while it waits."""
        self.draft_tokens: list[int] = []
        """The last tokens of its sequence, which may be wrong."""
        self.ngrams: NGrams | None = None
        self.search: BeamSearch | None = None
        if request.beam > 1:
            self.search = BeamSearch(
                request.max_tokens, beam=request.beam, length_penalty=request.length_penalty,
                early_stopping=request.early_stopping, ends=request.ends,
            )  # fmt: skip

    @property
    def tenant(self) -> str:
        """Who shares fairly with whom."""
        return self.request.tenant

    @property
    def n_tokens(self) -> int:
        """The tokens that it may come to hold, for the bounds of the queue."""
        source = self.request.source or ()
        return len(source) + len(self.request.prompt) + self.request.max_tokens

    @property
    def writing(self) -> bool:
        """Whether all is read but the last token of each sequence."""
        return all(sequence.n_read > 0 and unread(sequence) == 1 for sequence in self.sequences)


class ScheduledRequest(NamedTuple):
    """What one request does in a step."""

    state: RequestState
    chunks: list[Chunk]

    @property
    def wanted(self) -> int:
        """How many sequences of logits are its own."""
        return sum(chunk.wanted for chunk in self.chunks)


def unread(sequence: TokenSequence) -> int:
    """Return how many tokens of a sequence the model has not read."""
    return len(sequence.tokens) - sequence.n_read


class Scheduler:
    """Requests that run, the oldest first, and which of those that wait run next."""

    def __init__(
        self,
        runner: Runner,
        queue: RequestQueue[RequestState],
        *,
        max_rows: int,
        chunk_tokens: int,
        draft: int = 0,
        refuse: Callable[[RequestState, Exception], None],
    ) -> None:
        """`refuse` ends a request that cannot go on, with the reason; see `EngineSettings` for the rest."""
        self.runner, self.queue, self.refuse = runner, queue, refuse
        self.max_rows, self.chunk_tokens, self.draft = max_rows, chunk_tokens, draft
        self.running: list[RequestState] = []
        self.n_preempted = self.n_reused = 0
        self._taken = 0

    def remove(self, state: RequestState) -> None:
        """Forget a request, waiting or running, and give back what it holds."""
        if state in self.running:
            self.running.remove(state)
        else:
            self.queue.remove(state)
        self._close(state)

    def _close(self, state: RequestState) -> None:
        sequences, state.sequences = state.sequences, []
        self.n_reused += sequences[0].n_reused if sequences else 0
        for sequence in sequences:
            self.runner.close(sequence)

    def schedule(self) -> list[ScheduledRequest]:
        """Say what is read in the next step; nothing when there is nothing to do."""
        self._admit()
        while True:
            # Rows that write come first, since each costs one token and somebody is reading along; prompts
            # share what is left of the step.
            self._taken = 0
            scheduled = self._write()
            scheduled += self._read({item.state for item in scheduled})
            if scheduled or not self.running:
                return scheduled
            # Nothing moves: the latest gives its blocks to the oldest, which therefore always comes through.
            if len(self.running) > 1:
                self._preempt(self.running[-1])
            else:
                self.refuse(self.running[0], Refused("the request outgrew the cache; give it more memory"))

    def _preempt(self, state: RequestState) -> None:
        """Free the blocks of a request that runs; it waits its turn again, with all that it has written."""
        state.texts = [list(sequence.tokens) for sequence in state.sequences]
        self.running.remove(state)
        self._close(state)
        self.queue.add(state)
        self.n_preempted += 1

    def _room(self) -> int:
        """Count the tokens that can still be read in this step."""
        return self.runner.free_tokens() - self._taken

    def _take(self, sequences: list[TokenSequence], n: int) -> bool:
        """Reserve room for the next n tokens of each sequence, if there is so much."""
        need = sum(self.runner.needs(sequence, n) for sequence in sequences)
        fits = need <= self._room()
        self._taken += need if fits else 0
        return fits

    # Sequences that write

    def _write(self) -> list[ScheduledRequest]:
        """Schedule one token of every sequence that writes, and those drafted after it."""
        scheduled = []
        for state in self.running:
            if not state.writing:
                continue
            draft_tokens = self._draft_tokens(state)
            if draft_tokens and not self._take(state.sequences, 1 + len(draft_tokens)):
                draft_tokens = []
            if draft_tokens or self._take(state.sequences, 1):
                state.draft_tokens, n = draft_tokens, 1 + len(draft_tokens)
                state.sequences[0].tokens.extend(draft_tokens)
                scheduled.append(
                    ScheduledRequest(state, [Chunk(sequence, n, n) for sequence in state.sequences])
                )
        return scheduled

    def _draft_tokens(self, state: RequestState) -> list[int]:
        """Tokens that may come next: those the answer is given to begin with, else a guess by n-grams."""
        request, made = state.request, len(state.request.tokens)
        if state.search is not None or not (self.draft or made < len(request.prefix_tokens)):
            return []
        most = min(request.max_tokens - made, self.runner.max_len - len(state.sequences[0].tokens)) - 1
        if made < len(request.prefix_tokens):
            return request.prefix_tokens[made : made + max(0, min(most, MOST_PREFIX))]
        if state.ngrams is None:
            state.ngrams = NGrams(state.sequences[0].tokens)
        return state.ngrams.draft(min(most, self.draft)) if most > 0 else []

    # Sequences that read

    def _read(self, others: set[RequestState]) -> list[ScheduledRequest]:
        """The next parts of prompts: `chunk_tokens` in all, shared evenly by the tenants that have any."""
        reading: dict[str, deque[RequestState]] = {}
        for state in self.running:
            if state not in others and not state.writing:
                reading.setdefault(state.request.tenant, deque()).append(state)
        left, scheduled = self.chunk_tokens, []
        while left > 0 and reading:
            heads = sorted((queue.popleft() for queue in reading.values()), key=_work)
            for place, state in enumerate(heads):
                part = self._part(state, left // (len(heads) - place), first=not scheduled)
                if part:
                    scheduled.append(ScheduledRequest(state, part))
                    left -= min(left, _cost(state, part))
            reading = {tenant: queue for tenant, queue in reading.items() if queue}
        return scheduled

    def _part(self, state: RequestState, share: int, first: bool) -> list[Chunk]:
        """Return the next chunks of a request, of `share` tokens; a source is read whole, or next time."""
        chunks: list[Chunk] = []
        for sequence in state.sequences:
            source = _source(state, sequence)
            if source:
                if source > share and (chunks or not first):
                    break
                share = max(share - source, 1)
            # The sequences of a search go on together: each waits with its last token for the others.
            n = min(unread(sequence) - (len(state.sequences) > 1), share)
            if n > 0 and self.runner.needs(sequence, n) > self._room():
                n = self._room()
            if n > 0 and self._take([sequence], n):
                chunks.append(Chunk(sequence, n, int(n == unread(sequence))))
                share -= n
        return chunks

    # Sequences that wait

    def _admit(self) -> None:
        """Open sequences for those that wait while there is room for all that they have to read."""
        while self.queue.lines and (state := self._next()) is not None:
            # A tenant of which nothing runs takes the place of one that has more than one; then it has to
            # fit beside all that is left, so that what runs is not preempted a moment later.
            for other in self._in_the_way(state):
                self._preempt(other)
            if self.running and not self._fits(state, self.running):
                return  # and nobody overtakes it
            # From here on it runs: what the prefix cache holds of its text need not be read.
            try:
                request = state.request
                for tokens in state.texts:
                    state.sequences.append(
                        self.runner.open(
                            list(tokens), request.source, tenant=request.tenant, adapter=request.adapter
                        )
                    )
            except Exception as error:
                self.refuse(state, error)
                continue
            self.queue.remove(state)
            self.running.append(state)
            self.running.sort(key=lambda state: state.number)

    def _next(self) -> RequestState | None:
        """Of the tenants with the fewest requests running, the oldest that waits."""
        running = Counter(state.request.tenant for state in self.running)
        heads = [queue[0] for queue in self.queue.lines.values() if not self._read_by_another(queue[0])]
        return min(heads, key=lambda state: (running[state.request.tenant], state.number), default=None)

    def _in_the_way(self, state: RequestState) -> list[RequestState]:
        """Return what is preempted for a request, the latest first, of whichever tenant runs most: so much
        that it fits, and nothing where its own tenant runs already. Each tenant keeps one, so that all go on.
        """
        n_running = Counter(other.request.tenant for other in self.running)
        staying, leaving = list(self.running), list[RequestState]()
        if n_running[state.request.tenant]:
            return []
        freed = 0
        while staying and not self._fits(state, staying, freed):
            ((tenant, most),) = n_running.most_common(1)
            if most < 2:
                return []
            n_running[tenant] -= 1
            leaving.append(next(one for one in reversed(staying) if one.request.tenant == tenant))
            staying.remove(leaving[-1])
            freed += sum(sequence.n_read for sequence in leaving[-1].sequences)
        return leaving

    def _fits(self, state: RequestState, others: list[RequestState], freed: int = 0) -> bool:
        """Return whether a sequence more may run, and there is room for its texts beside what others have to
        read, with some for all to grow; freed: tokens of room besides.
        """
        sequences = [sequence for other in others for sequence in other.sequences]
        owed = sum(self.runner.needs(sequence, unread(sequence) + HEADROOM) for sequence in sequences)
        owed += sum(len(tokens) + HEADROOM for tokens in state.texts)
        n_rows = state.request.beam + sum(other.request.beam for other in others)
        return n_rows <= self.max_rows and owed <= self.runner.free_tokens() + freed

    def _read_by_another(self, state: RequestState) -> bool:
        """Say whether a running request is just reading what this one begins with: soon it can be reused."""
        request, tokens = state.request, state.texts[0]
        return any(
            other.sequences[0].n_read + WORTH <= common(other.sequences[0].tokens, tokens)
            for other in self.running
            if (other.request.tenant, other.request.adapter, other.request.source)
            == (request.tenant, request.adapter, request.source)
        )


def _work(state: RequestState) -> int:
    return sum(map(unread, state.sequences))


def _cost(state: RequestState, chunks: list[Chunk]) -> int:
    """Count the tokens that go through the model for these chunks, those of a source included."""
    return sum(chunk.n + _source(state, chunk.sequence) for chunk in chunks)


def _source(state: RequestState, sequence: TokenSequence) -> int:
    """Return how long a source is that has to be encoded before a sequence is read."""
    return len(state.request.source or ()) if sequence.n_read == 0 else 0


def common(one: list[int], other: list[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare in C
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
