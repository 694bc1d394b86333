"""The scheduler: which tokens of which requests are read in the next step.

The one idea: a request is a row of tokens of which some are not read yet. Rows with one such token write, and
go every step; longer ones read their prompts in chunks beside them, each scope (an API key) its fair share.
What finds no room waits; when nothing can move the latest request is put back, so the oldest always moves. A
scope of which nothing runs takes the place of the latest request of the scope that has most.
Sources: Yu et al. 2022 (Orca); Agrawal et al. 2023 (chunked prefill). Read next: runner, engine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from transom.errors import Refused

from .beam import Sentence
from .request import Request
from .runner import Chunk, Row, Runner
from .sampling_rows import SamplingRow
from .speculative import NGrams

MOST_GIVEN = 64
"""Tokens of an answer's given beginning that are read at once, since each costs a row of logits."""
HEADROOM = 16
"""Tokens that every row should have room to grow by when another is let in."""
WORTH = 32
"""Tokens that another request is just reading for which it is worth waiting: then they are reused."""


class Job:
    """A request with its rows in the runner: one, or as many as its beam search keeps beginnings."""

    def __init__(self, request: Request, number: int, sampling: SamplingRow) -> None:
        self.request, self.number, self.sampling = request, number, sampling
        self.rows: list[Row] = []
        self.texts = [list(request.prompt)]
        """What its rows are to hold, while it waits."""
        self.drafts: list[int] = []
        """The last tokens of its row, which may be wrong."""
        self.ngrams: NGrams | None = None
        self.sentence: Sentence | None = None
        if request.beam > 1:
            self.sentence = Sentence(
                request.max_tokens, beam=request.beam, length_penalty=request.length_penalty,
                early_stopping=request.early_stopping, ends=request.ends,
            )  # fmt: skip

    @property
    def n_tokens(self) -> int:
        """The tokens that it may come to hold, for the bounds of the queue."""
        source = self.request.source or ()
        return len(source) + len(self.request.prompt) + self.request.max_tokens

    @property
    def writing(self) -> bool:
        """Whether all is read but the last token of each row."""
        return all(row.n_read > 0 and unread(row) == 1 for row in self.rows)


class Turn(NamedTuple):
    """What one job does in a step."""

    job: Job
    chunks: list[Chunk]

    @property
    def wanted(self) -> int:
        """How many rows of logits are its own."""
        return sum(chunk.wanted for chunk in self.chunks)


def unread(row: Row) -> int:
    """How many tokens of a row the model has not read."""
    return len(row.tokens) - row.n_read


class Scheduler:
    """Requests that wait, in one queue for each scope, and requests that run, the oldest first."""

    def __init__(
        self,
        runner: Runner,
        *,
        max_rows: int,
        chunk_tokens: int,
        draft: int = 0,
        refuse: Callable[[Job, Exception], None],
    ) -> None:
        """`refuse` removes a job that cannot go on, with the reason; see `EngineSettings` for the rest."""
        self.runner, self.max_rows, self.chunk_tokens, self.draft = runner, max_rows, chunk_tokens, draft
        self.refuse = refuse
        self.waiting: dict[str, deque[Job]] = {}
        self.running: list[Job] = []
        self.n_waiting: Counter[str] = Counter()
        """Of each scope, the requests in its queue,"""
        self.waiting_tokens: Counter[str] = Counter()
        """and the tokens that they may come to hold."""
        self.n_put_back = self.n_reused = 0
        self._taken = 0

    def queue(self, job: Job) -> None:
        """Let a job wait, behind those of its scope that are older."""
        queue = self.waiting.setdefault(job.request.scope, deque())
        newer = 0  # only what is put back has any behind it
        while newer < len(queue) and queue[-1 - newer].number > job.number:
            newer += 1
        queue.insert(len(queue) - newer, job)
        self._count(job, 1)

    def remove(self, job: Job) -> None:
        """Forget a job, waiting or running, and give back what it holds."""
        if job in self.running:
            self.running.remove(job)
        else:
            self._leave_queue(job)
        self._close(job)

    def _leave_queue(self, job: Job) -> None:
        queue = self.waiting[job.request.scope]
        queue.remove(job)
        if not queue:
            del self.waiting[job.request.scope]
        self._count(job, -1)

    def _count(self, job: Job, sign: int) -> None:
        scope = job.request.scope
        self.n_waiting[scope] += sign
        self.waiting_tokens[scope] += sign * job.n_tokens
        if not self.n_waiting[scope]:
            del self.n_waiting[scope], self.waiting_tokens[scope]

    def _close(self, job: Job) -> None:
        rows, job.rows = job.rows, []
        self.n_reused += rows[0].n_reused if rows else 0
        for row in rows:
            self.runner.close(row)

    def schedule(self) -> list[Turn]:
        """What is read in the next step; nothing when there is nothing to do."""
        self._admit()
        while True:
            self._taken = 0
            turns = self._write()
            turns += self._read({turn.job for turn in turns})
            if turns or not self.running:
                return turns
            if len(self.running) > 1:
                self._put_back(self.running[-1])
            else:
                self.refuse(self.running[0], Refused("the request outgrew the cache; give it more memory"))

    def _put_back(self, job: Job) -> None:
        """Free the blocks of a job that runs; it waits its turn again, with all that it has written."""
        job.texts = [list(row.tokens) for row in job.rows]
        self.running.remove(job)
        self._close(job)
        self.queue(job)
        self.n_put_back += 1

    def _room(self) -> int:
        """Tokens that can still be read in this step."""
        return self.runner.free_tokens() - self._taken

    def _take(self, rows: list[Row], n: int) -> bool:
        """Reserve room for the next n tokens of each row, if there is so much."""
        need = sum(self.runner.needs(row, n) for row in rows)
        fits = need <= self._room()
        self._taken += need if fits else 0
        return fits

    # Rows that write

    def _write(self) -> list[Turn]:
        """One token of every row that writes, and those drafted after it."""
        turns = []
        for job in self.running:
            if not job.writing:
                continue
            drafts = self._drafts(job)
            if drafts and not self._take(job.rows, 1 + len(drafts)):
                drafts = []
            if drafts or self._take(job.rows, 1):
                job.drafts, n = drafts, 1 + len(drafts)
                job.rows[0].tokens.extend(drafts)
                turns.append(Turn(job, [Chunk(row, n, n) for row in job.rows]))
        return turns

    def _drafts(self, job: Job) -> list[int]:
        """Tokens that may come next: those the answer is given to begin with, else a guess by n-grams."""
        request, made = job.request, len(job.request.tokens)
        if job.sentence is not None or not (self.draft or made < len(request.begins)):
            return []
        most = min(request.max_tokens - made, self.runner.max_len - len(job.rows[0].tokens)) - 1
        if made < len(request.begins):
            return request.begins[made : made + max(0, min(most, MOST_GIVEN))]
        if job.ngrams is None:
            job.ngrams = NGrams(job.rows[0].tokens)
        return job.ngrams.draft(min(most, self.draft)) if most > 0 else []

    # Rows that read

    def _read(self, others: set[Job]) -> list[Turn]:
        """The next parts of prompts: `chunk_tokens` in all, shared evenly by the scopes that have any."""
        reading: dict[str, deque[Job]] = {}
        for job in self.running:
            if job not in others and not job.writing:
                reading.setdefault(job.request.scope, deque()).append(job)
        left, turns = self.chunk_tokens, []
        while left > 0 and reading:
            heads = sorted((queue.popleft() for queue in reading.values()), key=_work)
            for place, job in enumerate(heads):
                part = self._part(job, left // (len(heads) - place), first=not turns)
                if part:
                    turns.append(Turn(job, part))
                    left -= min(left, _cost(job, part))
            reading = {scope: queue for scope, queue in reading.items() if queue}
        return turns

    def _part(self, job: Job, share: int, first: bool) -> list[Chunk]:
        """The next chunks of a job that reads, of `share` tokens; a source is read whole, or next time."""
        chunks: list[Chunk] = []
        for row in job.rows:
            source = _source(job, row)
            if source:
                if source > share and (chunks or not first):
                    break
                share = max(share - source, 1)
            # The rows of a search go on together: each waits with its last token for the others.
            n = min(unread(row) - (len(job.rows) > 1), share)
            if n > 0 and self.runner.needs(row, n) > self._room():
                n = self._room()
            if n > 0 and self._take([row], n):
                chunks.append(Chunk(row, n, int(n == unread(row))))
                share -= n
        return chunks

    # Rows that wait

    def _admit(self) -> None:
        """Open rows for those that wait while there is room for all that they have to read."""
        while self.waiting and (job := self._next()) is not None:
            for other in self._in_the_way(job):
                self._put_back(other)
            if self.running and not self._fits(job, self.running):
                return  # and nobody overtakes it
            try:
                source, scope = job.request.source, job.request.scope
                for tokens in job.texts:
                    job.rows.append(self.runner.open(list(tokens), source, scope=scope))
            except Exception as error:
                self.refuse(job, error)
                continue
            self._leave_queue(job)
            self.running.append(job)
            self.running.sort(key=lambda job: job.number)

    def _next(self) -> Job | None:
        """Of the scopes with the fewest requests running, the oldest that waits."""
        running = Counter(job.request.scope for job in self.running)
        heads = [queue[0] for queue in self.waiting.values() if not self._read_by_another(queue[0])]
        return min(heads, key=lambda job: (running[job.request.scope], job.number), default=None)

    def _in_the_way(self, job: Job) -> list[Job]:
        """What is put back for a job, the latest first, of whichever scope runs most: so much that the job
        fits, and nothing where its own scope runs already. Each scope keeps one, so that all go on.
        """
        n_running = Counter(other.request.scope for other in self.running)
        staying, leaving = list(self.running), list[Job]()
        if n_running[job.request.scope]:
            return []
        freed = 0
        while staying and not self._fits(job, staying, freed):
            ((scope, most),) = n_running.most_common(1)
            if most < 2:
                return []
            n_running[scope] -= 1
            leaving.append(next(one for one in reversed(staying) if one.request.scope == scope))
            staying.remove(leaving[-1])
            freed += sum(row.n_read for row in leaving[-1].rows)
        return leaving

    def _fits(self, job: Job, others: list[Job], freed: int = 0) -> bool:
        """Whether there is a row for it, and room for its texts beside what others have to read, with some
        for all to grow; freed: tokens of room besides.
        """
        rows = [row for other in others for row in other.rows]
        owed = sum(self.runner.needs(row, unread(row) + HEADROOM) for row in rows)
        owed += sum(len(tokens) + HEADROOM for tokens in job.texts)
        n_rows = job.request.beam + sum(other.request.beam for other in others)
        return n_rows <= self.max_rows and owed <= self.runner.free_tokens() + freed

    def _read_by_another(self, job: Job) -> bool:
        """Whether a running request is just reading what this one begins with: soon it can be reused."""
        request, tokens = job.request, job.texts[0]
        return any(
            other.rows[0].n_read + WORTH <= common(other.rows[0].tokens, tokens)
            for other in self.running
            if other.request.scope == request.scope and other.request.source == request.source
        )


def _work(job: Job) -> int:
    return sum(map(unread, job.rows))


def _cost(job: Job, chunks: list[Chunk]) -> int:
    """Tokens that go through the model for these chunks, those of a source included."""
    return sum(chunk.n + _source(job, chunk.row) for chunk in chunks)


def _source(job: Job, row: Row) -> int:
    """How long a source is that has to be encoded before a row is read."""
    return len(job.request.source or ()) if row.n_read == 0 else 0


def common(one: list[int], other: list[int]) -> int:
    """How many tokens two rows begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare in C
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
