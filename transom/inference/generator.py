"""From prompts to completions: the whole path of a call, in the order it happens.

All prompts of a call run as one batch. `Generator._steps` is the only loop: `generate` and `stream` both
read it, so a stream is the completion's text in pieces. A request's tokens depend on its own logits and
(seed, sample) alone; in a batch its logits differ from those alone by float rounding only, so its tokens
are the same unless two candidates tie within that rounding. Read next: sampling, request, runner.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.model.build import Model

from .arithmetic import describe
from .load import load as load
from .request import Completion, Request, TokenLogprob
from .runner import TorchRunner
from .sampling import SamplingParams, choose, penalize, top_logprobs, uniform

MAX_ROWS = 64  # sequences that run together; more prompts than this run one group after the other
DEFAULT_MAX_TOKENS = 128

Start = tuple[list[int], frozenset[int] | None]
"""Token ids to go on from, and which tokens may come first (None: any)."""
Prompt = str | Sequence[int]


class Stream(Iterator[str]):
    """Text as it is written; `completion` holds the whole once the stream has ended."""

    def __init__(self, request: Request, pieces: Iterator[tuple[Request, str]]) -> None:
        self.completion: Completion | None = None
        self._request, self._pieces = request, pieces

    def __next__(self) -> str:
        for _, piece in self._pieces:
            if piece:
                return piece
        if self._request.finish_reason is not None:  # else the run itself was refused
            self.completion = self._request.completion()
        raise StopIteration


class Generator:
    """A decoder with its tokenizer, ready to write."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, *, eos_ids: Sequence[int] = (), reason: str = ""
    ) -> None:
        """A model in eval mode. `eos_ids` end a completion, or else the tokenizer's own end token does."""
        self.model, self.tokenizer, self.reason = model, tokenizer, reason
        own_end = frozenset() if tokenizer.eos_id is None else frozenset([tokenizer.eos_id])
        self.eos_ids = frozenset(eos_ids) or own_end
        # What the folder's tokenizer puts before every text: a begin token (Llama, Mistral) or nothing.
        before = tokenizer.backend.encode("", add_special_tokens=True).ids[:1]
        self._opening = before if before == [tokenizer.bos_id] else []

    def __repr__(self) -> str:
        return describe(self.model, "Generator", self.reason)

    @overload
    def generate(self, prompt: Prompt, *, n: Literal[1] = 1, **settings: Any) -> Completion: ...
    @overload
    def generate(
        self, prompt: Prompt | Sequence[Prompt], *, n: int = 1, **settings: Any
    ) -> list[Completion]: ...
    def generate(
        self, prompt: Prompt | Sequence[Prompt], *, n: int = 1, **settings: Any
    ) -> Completion | list[Completion]:
        """Write on after one prompt, or after each of several; text or token ids.

        The settings are the fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p,
        repetition_penalty, seed, stop, logprobs, ignore_eos and n. One prompt with n = 1 gives a Completion,
        anything else a list, the n of the first prompt first. Raises Refused for what cannot be run.
        """
        prompts, several = self._prompts(prompt)
        requests = self._requests(prompts, SamplingParams.of({"n": n, **settings}))
        for _ in self._steps(requests):
            pass
        completions = [request.completion() for request in requests]
        return completions if several or len(completions) > 1 else completions[0]

    def stream(self, prompt: Prompt, **settings: Any) -> Stream:
        """The text that `generate` gives for one prompt and the same settings, piece by piece."""
        prompts, several = self._prompts(prompt)
        params = SamplingParams.of(settings)
        if several or params.n > 1:
            raise Refused("stream writes one completion of one prompt; generate writes several")
        request = self._requests(prompts, params)[0]
        return Stream(request, self._steps([request]))

    @torch.no_grad()
    def logits(self, prompt: Prompt) -> Tensor:
        """Scores of what follows each token of a text or of ids, by one plain pass: (L, V) float32."""
        prompts, several = self._prompts(prompt, whole=True)
        if several:
            raise Refused("logits reads one text or one list of token ids; call it once for each")
        (tokens, _), limit = prompts[0], self.model.config.max_len
        if len(tokens) > limit:
            raise Refused(f"the text has {len(tokens)} tokens; this model reads at most {limit} (max_len)")
        return self.model.logits(self.model(torch.tensor([tokens], device=self.model.embed.weight.device)))[0]

    def _prompts(self, prompt: Any, whole: bool = False) -> tuple[list[Start], bool]:
        """Prompts as token ids, and whether several were asked for; `whole` as for `_tokens`."""
        prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # a tensor or an array
        if not isinstance(prompt, str | Sequence) or isinstance(prompt, bytes):
            raise Refused(f"a prompt is a {type(prompt).__name__}; give text, token ids, or a list of either")
        if not prompt and not isinstance(prompt, str):
            raise Refused("the list of prompts is empty; give text, token ids, or a list of either")
        if isinstance(prompt, str) or all(isinstance(part, int) for part in prompt):
            return [self._tokens(prompt, "the prompt", whole)], False
        return [self._tokens(part, f"prompt {i}", whole) for i, part in enumerate(prompt)], True

    def _tokens(self, prompt: Any, name: str, whole: bool = False) -> Start:
        """One prompt as token ids, and the tokens that may come first (`Tokenizer.encode_prompt`) or None.

        An empty one starts where a new document does: after the end token. `whole` takes nothing back.
        """
        first = None
        if isinstance(prompt, str):
            text, first = (
                (self.tokenizer.encode(prompt), None) if whole else self.tokenizer.encode_prompt(prompt)
            )
            tokens = self._opening + text
        elif isinstance(prompt, Sequence) and all(type(token) is int for token in prompt):
            tokens = list(prompt)
        else:
            raise Refused(f"{name} is neither text nor a list of token ids")
        vocab_size, start = self.model.config.vocab_size, self.tokenizer.eos_id
        for place, token in enumerate(tokens):
            if not 0 <= token < vocab_size:
                known = f"this model's tokens are 0 to {vocab_size - 1}"
                raise Refused(f"{name} holds token {token} at place {place}; {known}")
        if not tokens and start is None:
            raise Refused(f"{name} is empty, and this tokenizer has no end token to start from")
        return tokens or [cast(int, start)], first

    def _requests(self, prompts: list[Start], params: SamplingParams) -> list[Request]:
        """One request for each prompt and sample; raises Refused with the numbers where one does not fit."""
        requests, limit = [], self.model.config.max_len
        for i, (prompt, first) in enumerate(prompts):
            room = limit - len(prompt)
            max_tokens = params.max_tokens or min(DEFAULT_MAX_TOKENS, max(room, 1))
            if max_tokens > room:
                name = f"prompt {i}" if len(prompts) > 1 else "the prompt"
                less = f" or set max_tokens to at most {room}" if room > 0 else ""
                raise Refused(
                    f"{name} has {len(prompt)} tokens and max_tokens is {max_tokens}: together"
                    f" {len(prompt) + max_tokens}, where this model's limit (max_len) is {limit};"
                    f" shorten the prompt by {max_tokens - room} tokens{less}"
                )
            fresh = 0 if params.greedy else secrets.randbits(31)  # greedy text draws nothing
            seed = fresh if params.seed is None else params.seed
            requests += [
                Request(
                    prompt,
                    params,
                    max_tokens=max_tokens,
                    seed=seed,
                    sample=sample,
                    eos_ids=self.eos_ids,
                    decoder=self.tokenizer.decoder(),
                    first=first,
                )
                for sample in range(params.n)
            ]
        return requests

    def _steps(self, requests: list[Request]) -> Iterator[tuple[Request, str]]:
        """One token of one request at a time, with the text that became certain with it."""
        for first in range(0, len(requests), MAX_ROWS):
            yield from self._run(requests[first : first + MAX_ROWS])

    def _run(self, active: list[Request]) -> Iterator[tuple[Request, str]]:
        """Prefill, then step the requests together until each has ended; those that have leave the batch."""
        places: dict[tuple[int, ...], int] = {}  # equal prompts are read once
        rows = [places.setdefault(tuple(request.prompt), len(places)) for request in active]
        capacity = max(len(request.prompt) + request.max_tokens for request in active)
        runner = TorchRunner(self.model, list(places), capacity)
        logits = runner.prefill()
        if not bool(logits.isfinite().all()):
            raise Refused("the model's logits are not finite: damaged weights, or a training that diverged")
        if len(places) < len(rows):
            runner.keep(rows)
            logits = logits[rows]
        seen = _seen(active, logits)
        while True:
            tokens = _next_tokens(logits, seen, active, self.tokenizer)
            for request, token in zip(active, tokens, strict=True):
                yield request, request.push(token)
            rows = [row for row, request in enumerate(active) if request.finish_reason is None]
            if not rows:
                return
            if len(rows) < len(active):
                active = [active[row] for row in rows]
                runner.keep(rows)
                seen = seen if seen is None else seen[rows]
            logits = runner.decode([request.tokens[-1] for request in active])


def _seen(requests: list[Request], logits: Tensor) -> Tensor | None:
    """(N, V) bool, True at the tokens of each prompt; None when no penalty needs it."""
    if requests[0].params.repetition_penalty == 1:
        return None
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    for row, request in enumerate(requests):
        seen[row, request.prompt] = True
    return seen


def _opened(logits: Tensor, requests: list[Request]) -> Tensor:
    """Logits (N, V) in which the very first token of a request is one that its prompt allows."""
    if all(request.first is None or request.tokens for request in requests):
        return logits
    logits = logits.clone()
    for row, request in enumerate(requests):
        if not request.tokens:
            logits[row] = Tokenizer.only_first(logits[row], request.first)
    return logits


@torch.inference_mode()
def _next_tokens(
    logits: Tensor, seen: Tensor | None, requests: list[Request], tokenizer: Tokenizer
) -> list[int]:
    """Choose each request's next token from logits (N, V), mark it in `seen`, note its log-probabilities."""
    params = requests[0].params  # the requests of one call share their settings
    raw, logits = logits, _opened(logits, requests)
    if seen is not None:
        logits = penalize(logits, seen, params.repetition_penalty)
    draws = [uniform(request.seed, request.sample, len(request.tokens)) for request in requests]
    tokens = choose(logits, params, torch.tensor(draws, dtype=torch.float64, device=logits.device))
    if seen is not None:
        seen.scatter_(1, tokens[:, None], True)
    if params.logprobs is not None:
        chosen, values, ids = (x.tolist() for x in top_logprobs(raw, tokens, params.logprobs))
        for row, (request, token) in enumerate(zip(requests, tokens.tolist(), strict=True)):
            best = zip(ids[row], values[row], strict=True)
            top = tuple(TokenLogprob(i, tokenizer.token(i), value) for i, value in best)
            request.logprobs.append(TokenLogprob(token, tokenizer.token(token), chosen[row], top))
    return tokens.tolist()
