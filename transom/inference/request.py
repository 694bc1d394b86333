"""One request on its way from prompt to completion: its tokens, its text, and why it ended.

A request takes one token at a time and says which text is certain by now. Special tokens make no text;
bytes of a character and beginnings of a stop string wait until they are whole. Read next: generator.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from .sampling import SamplingParams
from .stop import StopMatcher

FinishReason = Literal["stop", "length"]


class TextDecoder(Protocol):
    """Turns tokens into text piece by piece, whole characters only."""

    def push(self, token: int, /) -> str: ...
    def finish(self) -> str: ...


@dataclass(frozen=True)
class TokenLogprob:
    """One token and its natural log-probability; `top` holds the likeliest ones instead of it, best first."""

    token: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str
    """Without special tokens and without the stop string."""
    tokens: list[int]
    """Every token made, those of an end token or a stop string included."""
    finish_reason: FinishReason
    """'stop': an end token or a stop string; 'length': max_tokens."""
    stop_string: str | None
    """The stop string that ended it, if one did."""
    logprobs: list[TokenLogprob] | None
    """One entry per token, when asked for: by the model alone, before penalty, temperature and filters."""
    n_prompt_tokens: int
    seed: int
    """Makes the same text again, with the same prompt and settings."""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        ended = self.finish_reason if self.stop_string is None else f"stop at {self.stop_string!r}"
        counts = f"{self.n_prompt_tokens} + {len(self.tokens)} tokens"
        return f"Completion({self.text!r}, {counts}, ended by {ended}, seed {self.seed})"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for JSON."""
        return asdict(self)


class Request:
    """A prompt, the settings of its answer, and the answer so far."""

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        max_tokens: int,
        seed: int,
        sample: int,
        eos_ids: Collection[int],
        decoder: TextDecoder,
        first: frozenset[int] | None = None,
    ) -> None:
        self.prompt, self.params, self.max_tokens = prompt, params, max_tokens
        self.seed, self.sample = seed, sample
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self._ends = () if params.ignore_eos else eos_ids
        self.first = first
        """The tokens that may come first, each beginning with the prompt's own last space; None: any."""
        self._decoder, self._matcher = decoder, StopMatcher(params.stop)
        self._pieces: list[str] = []

    def push(self, token: int) -> str:
        """Take the next token; return the text that became certain with it."""
        self.tokens.append(token)
        ended = token in self._ends
        text = "" if ended else self._decoder.push(token)
        if self.first is not None and len(self.tokens) == 1:
            text = text.removeprefix(" ")  # the prompt has written it already
        piece = self._matcher.push(text)
        if ended or len(self.tokens) == self.max_tokens:
            self.finish_reason = "stop" if ended else "length"
            piece += self._matcher.push(self._decoder.finish()) + self._matcher.finish()
        if self._matcher.found is not None:
            self.finish_reason = "stop"
        self._pieces.append(piece)
        return piece

    def completion(self) -> Completion:
        """The finished answer."""
        assert self.finish_reason is not None
        return Completion(
            text="".join(self._pieces),
            tokens=self.tokens,
            finish_reason=self.finish_reason,
            stop_string=self._matcher.found,
            logprobs=None if self.params.logprobs is None else self.logprobs,
            n_prompt_tokens=len(self.prompt),
            seed=self.seed,
        )
