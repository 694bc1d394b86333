"""The engine: many requests at once through one model, a step at a time.

Schedule, run, finish: the scheduler says which tokens are read, the runner turns them into logits, and each
request takes its next token from its own. One thread calls it. Whatever goes wrong inside one request ends
that request alone. For callers in the same process see `sync_engine`. Read next: scheduler, sampling_rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from transom.data.tokenizer import Tokenizer
from transom.errors import Refused

from .beam import best_next
from .request import Event, Request, TokenLogprob
from .request_queue import RequestQueue
from .runner import Runner
from .sampling_rows import FAILED, Place, RowLogprobs, SamplingRow, choose_rows, logprobs_rows
from .scheduler import HEADROOM, RequestState, ScheduledRequest, Scheduler
from .speculative import n_kept
from .token_rules import Ruling

NOTHING_FITS = "no token that the model may write fits the answer's grammar"


@dataclass(frozen=True)
class EngineSettings:
    """How much runs and waits at a time."""

    max_rows: int = 64
    """Rows that run together; a beam search takes one for each beginning it keeps."""
    chunk_tokens: int = 512
    """Tokens of prompts that are read in one step, beside the rows that write."""
    max_queue: int = 64
    """Requests of one tenant that may wait: what one has waiting keeps no other out."""
    max_queue_tokens: int = 1 << 20
    """Tokens that those of one tenant may come to hold, prompts and answers together."""
    draft: int = 0
    """Tokens guessed ahead by n-grams and checked in one pass; 0: none. The text is the same."""


class Engine:
    """Requests in, events out."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        eos_ids: Collection[int] = (),
        settings: EngineSettings | None = None,
    ) -> None:
        """eos_ids: what ends an answer, for whoever makes requests; each request carries its own."""
        self.runner, self.tokenizer, self.eos_ids = runner, tokenizer, frozenset(eos_ids)
        self.settings = settings or EngineSettings()
        self.queue: RequestQueue[RequestState] = RequestQueue(
            self.settings.max_queue, self.settings.max_queue_tokens, "requests"
        )
        self.scheduler = Scheduler(
            runner,
            self.queue,
            max_rows=self.settings.max_rows,
            chunk_tokens=self.settings.chunk_tokens,
            draft=self.settings.draft,
            refuse=self._fail,
        )
        self._pool = runner.free_tokens()
        silent = tokenizer.spelling.silent - tokenizer.control_ids
        unnamed = [*sorted(silent), *range(tokenizer.vocab_size, runner.vocab_size)]
        self._unnamed = torch.tensor([i for i in unnamed if i < runner.vocab_size], dtype=torch.int64)
        self._states: dict[Request, RequestState] = {}
        self._events: list[Event] = []
        self._n_made = self._n_drafted = self._n_kept = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._states or self._events)

    def submit(self, request: Request | RequestState) -> None:
        """Let a request wait its turn; raises Refused if it can never run, and Busy if the queue of its
        tenant is full. What was prepared is not checked again.
        """
        state = request if isinstance(request, RequestState) else self.prepare(request)
        self.queue.submit(state)
        self._states[state.request] = state

    def prepare(self, request: Request) -> RequestState:
        """Check a request without letting it wait; raises Refused, with the numbers, if it can never run."""
        n_prompt, most, beam = len(request.prompt), request.max_tokens, request.beam
        limit = self.runner.max_len
        # The length: the last token is made and never read.
        if n_prompt + most - 1 > limit:
            raise Refused(
                f"the prompt has {n_prompt} tokens and max_tokens is {most}: together {n_prompt + most},"
                f" where this model's limit (max_len) is {limit}; shorten the prompt or set less max_tokens",
                code="context_length_exceeded",
            )
        if beam > self.settings.max_rows:
            raise Refused(
                f"beam is {beam}; at most {self.settings.max_rows} rows run together here (max_rows)"
            )
        # The room: alone in the cache it must come to its end, whatever else waits meanwhile.
        whole = n_prompt + most if beam == 1 else beam * (n_prompt + most + HEADROOM)
        if whole > self._pool:
            raise Refused(
                f"the request may come to hold {whole:,} tokens, and the cache has room for {self._pool:,};"
                " shorten the prompt, set a smaller max_tokens, or give the cache more memory"
            )
        if len(request.prefix_tokens) >= most:
            raise Refused(
                f"the answer is to begin with {len(request.prefix_tokens)} tokens and max_tokens is {most};"
                f" set max_tokens to at least {len(request.prefix_tokens) + 1}"
            )
        # The beginning that the answer is given: tried on a copy, since a matcher cannot go back.
        trial = request.grammar.copy() if request.grammar is not None and request.prefix_tokens else None
        if trial is not None and not all(map(trial.accept, request.prefix_tokens)):
            raise Refused("what the answer is to begin with does not fit its grammar; leave one of them out")
        row = SamplingRow(
            request.params, vocab_size=self.runner.vocab_size, seed=request.seed, sample=request.sample,
            prompt=request.prompt, first=request.first, grammar=request.grammar,
            ruling=request.ruling if request.rules is not None else None,
        )  # fmt: skip
        return RequestState(request, row)

    def abort(self, request: Request) -> None:
        """End a request now, wherever it is, and free what it holds; does nothing if it has ended."""
        if request in self._states:
            self._end(self._states[request], "abort")
            self._events.append(Event(request, finish_reason="abort"))

    def _fail(self, state: RequestState, error: Exception) -> None:
        """End one request that went wrong."""
        state.request.error = error
        said = str(error) if isinstance(error, Refused) else f"the request failed ({type(error).__name__})"
        self._end(state, "error")
        self._events.append(Event(state.request, finish_reason="error", error=said))

    def _end(self, state: RequestState, reason: str | None = None) -> None:
        if reason is not None:
            state.request.finish_reason = reason  # type: ignore[assignment]
        if self._states.pop(state.request, None) is not None:
            self.scheduler.remove(state)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Read the next tokens of all requests that run; what came of it, and of aborts before it."""
        scheduled = self.scheduler.schedule()
        logits = self._run(scheduled)
        return self._finish(scheduled, logits)

    def _run(self, scheduled: list[ScheduledRequest]) -> Tensor:
        """Compute logits (sum of wanted, V); a request that the model fails on leaves the list and ends."""
        if not scheduled:
            return torch.empty(0, self.runner.vocab_size)
        started, n_read = time.perf_counter(), sum(chunk.n for item in scheduled for chunk in item.chunks)
        try:
            logits = self.runner.run([chunk for item in scheduled for chunk in item.chunks])
        except Exception as error:
            if len(scheduled) == 1:
                self._fail(scheduled.pop().state, error)
                return torch.empty(0, self.runner.vocab_size)
            each = [[item] for item in scheduled]
            logits = torch.cat([self._run(alone) for alone in each])
            scheduled[:] = [item for alone in each for item in alone]
            return logits
        self.queue.measure(n_read, time.perf_counter() - started)
        return logits

    def _finish(self, scheduled: list[ScheduledRequest], logits: Tensor) -> list[Event]:
        """Let every request that has logits take its next tokens; the events of this step."""
        writing, searching, at = [], [], 0
        for item in scheduled:
            if item.wanted and item.state.search is None:
                writing.append((item.state, range(at, at + item.wanted)))
            elif item.wanted:
                searching.append((item.state, range(at, at + item.wanted)))
            at += item.wanted
        # Both tell their events to `_events`, where aborts of the time before wait already.
        self._write(writing, logits)
        self._search(searching, logits)
        events, self._events = self._events, []
        return events

    # One token after the other

    def _write(self, writing: list[tuple[RequestState, range]], logits: Tensor) -> None:
        """Choose a token at every place that has logits, and let each request take those that are right."""
        if not writing:
            return
        states = [state for state, _ in writing]
        logits = _rows(logits, [i for _, places in writing for i in places])
        try:
            chosen = self._chosen(states, logits)
        except Exception as error:  # a grammar's own, say: find whose
            if len(states) == 1:
                self._fail(states[0], error)
            else:
                parts = logits.split([len(places) for _, places in writing])
                for (state, places), part in zip(writing, parts, strict=True):
                    self._write([(state, range(len(places)))], part)
            return
        for state, tokens, logprobs in chosen:
            try:
                self._take(state, tokens, logprobs)
            except Exception as error:
                self._fail(state, error)

    def _chosen(
        self, states: list[RequestState], logits: Tensor
    ) -> list[tuple[RequestState, list[int], list[RowLogprobs | None]]]:
        """For each request the tokens that it makes: the drafts that are right, and the one after them."""
        places = [
            Place(state.sampling, tuple(state.draft_tokens[:i]))
            for state in states
            for i in range(len(state.draft_tokens) + 1)
        ]
        tokens, wanted, slices = choose_rows(self._of_tokens(logits), places), [], []
        for state in states:
            begin = len(wanted)
            end = begin + len(state.draft_tokens) + 1
            given = state.request.prefix_tokens[len(state.request.tokens) :][: end - begin]
            tokens[begin : begin + len(given)] = given
            kept = begin + n_kept(state.draft_tokens, tokens[begin:end]) + 1
            wanted += [state.request.params.logprobs if i < kept else None for i in range(begin, end)]
            slices.append(slice(begin, kept))
        logprobs = logprobs_rows(logits, tokens, wanted)
        return [(state, tokens[of], logprobs[of]) for state, of in zip(states, slices, strict=True)]

    def _of_tokens(self, logits: Tensor) -> Tensor:
        """Logits (N, V) in which ids that are no token of the tokenizer are at -inf: none can be written."""
        if not len(self._unnamed):
            return logits
        return logits.index_fill(-1, self._unnamed.to(logits.device), -math.inf)

    def _take(self, state: RequestState, tokens: list[int], logprobs: list[RowLogprobs | None]) -> None:
        """Give a request its next tokens; its sequence ends with them and with no draft that was wrong."""
        request, sequence, draft_tokens = state.request, state.sequences[0], state.draft_tokens
        if tokens[-1] == FAILED:
            raise not_finite() if request.grammar is None else Refused(NOTHING_FITS)
        state.draft_tokens = []
        self._n_drafted, self._n_kept = self._n_drafted + len(draft_tokens), self._n_kept + len(tokens) - 1
        if len(tokens) <= len(draft_tokens):
            self.runner.truncate(sequence, len(sequence.tokens) - len(draft_tokens) + len(tokens) - 1)
        sequence.tokens.append(tokens[-1])
        piece, told = "", []
        for token, found in zip(tokens, logprobs, strict=True):
            state.sampling.push(token)
            if state.ngrams is not None:
                state.ngrams.push(token)
            text = self._push(request, token, found, told)
            if found is not None:
                request.logprobs.append(told[-1])
            piece += text
            if request.finish_reason is not None:
                break
        self._tell(state, piece, told)

    def _push(self, request: Request, token: int, found: RowLogprobs | None, told: list[TokenLogprob]) -> str:
        """Give a request its next token, add what to tell of it to `told`; the text that is now certain."""
        spell, writes, begun = self.tokenizer.token, request.decoder.writes, request.decoder.n_characters
        data = b"" if token in request.ends else writes(token)
        top = tuple(
            TokenLogprob(one, spell(one), value, bytes=tuple(writes(one)))
            for one, value in (() if found is None else found.top)
        )
        piece = request.push(token)
        logprob, span = math.nan if found is None else found.logprob, (begun, request.decoder.reach)
        told.append(TokenLogprob(token, spell(token), logprob, top, tuple(data), span))
        return piece

    def _tell(self, state: RequestState, piece: str, told: Sequence[TokenLogprob]) -> None:
        self._n_made += len(told)
        reason = state.request.finish_reason
        if reason is not None:
            self._end(state)
        self._events.append(Event(state.request, piece, tuple(told), reason))

    # Beam search

    def _search(self, searching: list[tuple[RequestState, range]], logits: Tensor) -> None:
        """Let every search grow by one token; those of one shape are ranked together."""
        shape = {
            state: (len(places), state.request.beam, len(state.request.ends)) for state, places in searching
        }
        ordered = sorted(searching, key=lambda one: shape[one[0]])
        for (_, beam, n_ends), group in groupby(ordered, key=lambda one: shape[one[0]]):
            members = list(group)
            scores = torch.tensor([[one.logprob for one in state.search.open] for state, _ in members])  # type: ignore[union-attr]
            rows = self._of_tokens(_rows(logits, [i for _, places in members for i in places]))
            # So many that enough are left when the best ones end.
            rulings = self._rulings([state for state, _ in members])
            values, choices = best_next(rows, scores.to(rows.device), beam * (1 + n_ends), rulings)
            for (state, _), value, choice in zip(members, values, choices, strict=True):
                try:
                    self._grow(state, value, choice)
                except Exception as error:
                    self._fail(state, error)

    def _rulings(self, states: list[RequestState]) -> list[Ruling]:
        """Say what each beginning of these searches must obey, in the order of sequences; empty: nothing."""
        if all(state.request.rules is None for state in states):
            return []
        return [
            state.request.ruling(sequence.tokens, len(sequence.tokens) - len(state.request.prompt))
            or Ruling()
            for state in states
            for sequence in state.sequences
        ]

    def _grow(self, state: RequestState, values: list[float], choices: list[int]) -> None:
        """One step of one search: its beginnings take the sequences of their parents, or forks of them."""
        search, request = state.search, state.request
        assert search is not None
        search.grow(values, choices, self.runner.vocab_size)
        if search.done:
            request.found = search.finished
            tokens = request.found[0].tokens
            told: list[TokenLogprob] = []
            piece = "".join([self._push(request, token, None, told) for token in tokens])
            self._tell(state, piece, told)
            return
        before, used = state.sequences, set()
        state.sequences = []
        for beginning in search.open:
            sequence = before[beginning.parent]
            state.sequences.append(self.runner.fork(sequence) if beginning.parent in used else sequence)
            used.add(beginning.parent)
        for place, sequence in enumerate(before):
            if place not in used:
                self.runner.close(sequence)
        for sequence, beginning in zip(state.sequences, search.open, strict=True):
            sequence.tokens.append(beginning.token)

    def load(self) -> dict[str, float]:
        """Figures of now (queued, running, rows, free tokens) and totals since the engine was made."""
        scheduler = self.scheduler
        return {
            "queued": len(self.queue),
            "running": len(scheduler.running),
            "rows": sum(len(state.sequences) for state in scheduler.running),
            "free_tokens": self.runner.free_tokens(),
            "cache_tokens": self._pool,
            "tokens_read": self.queue.n_read,
            "prefix_hits": scheduler.n_reused,
            "tokens_made": self._n_made,
            "drafted": self._n_drafted,
            "drafts_kept": self._n_kept,
            "put_back": scheduler.n_preempted,
            "steps": self.queue.n_steps,
        }


def not_finite() -> Refused:
    """Say that a model's numbers are no numbers: its fault, and not that of the request."""
    return Refused(
        "the model's logits are not finite: damaged weights, or a training that diverged",
        code="logits_not_finite",
    )


def _rows(logits: Tensor, places: list[int]) -> Tensor:
    """Return some rows of logits, without a copy where they lie side by side."""
    if places == list(range(places[0], places[-1] + 1)):
        return logits[places[0] : places[-1] + 1]
    return logits[torch.tensor(places, device=logits.device)]
