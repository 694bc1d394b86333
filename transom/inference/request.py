"""One request on its way from prompt to completion: its tokens, its text, and why it ended.

A request takes one token at a time and says which text is certain by now. Special tokens make no text;
bytes of a character and beginnings of a stop string wait until they are whole. Read next: engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from transom.data.decoding import StreamDecoder
from transom.sampling_params import SamplingParams

from .beam import EarlyStopping, Finished
from .stop import StopMatcher
from .token_rules import Ruling, TokenRules

FinishReason = Literal["stop", "length", "abort", "error"]


class Grammar(Protocol):
    """Tells which tokens may come next, and follows those that do; see structured."""

    @property
    def finished(self) -> bool: ...
    def mask(self, vocab_size: int) -> Tensor: ...
    def accept(self, token: int) -> bool: ...
    def copy(self) -> Grammar: ...


@dataclass(frozen=True)
class TokenLogprob:
    """One token and its natural log-probability; `top` holds the likeliest ones instead of it, best first."""

    token: int
    """Its id."""
    text: str
    """The token as text by itself."""
    logprob: float
    """In nats."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens in its place, as many as `logprobs` asked for."""
    bytes: tuple[int, ...] = ()
    """What it writes in its place; those of all tokens are the bytes of the text."""
    span: tuple[int, int] = (0, 0)
    """Which characters of the answer it writes or has a part in: from, to."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str
    """Without special tokens and without the stop string."""
    tokens: list[int]
    """Every token made, those of an end token or a stop string included."""
    finish_reason: FinishReason
    """'stop': an end token, a stop string or the end of a grammar; 'length': max_tokens."""
    stop_string: str | None
    """The stop string that ended it, if one did."""
    logprobs: list[TokenLogprob] | None
    """One entry per token, when asked for: by the model alone, before penalty, temperature and filters."""
    n_prompt_tokens: int
    """Tokens of the prompt, with what the tokenizer or the chat template puts around it."""
    seed: int
    """Makes the same text again, with the same prompt and settings."""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        ended = self.finish_reason if self.stop_string is None else f"stop at {self.stop_string!r}"
        counts = f"{self.n_prompt_tokens} + {len(self.tokens)} tokens"
        return f"Completion({self.text!r}, {counts}, ended by {ended}, seed {self.seed})"

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Event:
    """What one step of an engine brought to one request."""

    request: Any
    """The Request, or the TextRequest of an encoder."""
    piece: str = ""
    """The text that became certain; all pieces together are the completion's text."""
    tokens: tuple[TokenLogprob, ...] = ()
    """The tokens made in this step; a log-probability that nobody asked for is NaN."""
    finish_reason: FinishReason | None = None
    error: str | None = None
    """In words for whoever asked; `request.error` holds the exception."""
    answer: Any = None
    """Of an encoder: a Classification, or a vector (D,)."""


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
        decoder: StreamDecoder,
        first: frozenset[int] | None = None,
        prefix_tokens: Sequence[int] = (),
        source: list[int] | None = None,
        grammar: Grammar | None = None,
        stop_tokens: Mapping[int, str] | None = None,
        beam: int = 1,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        rules: TokenRules | None = None,
        tenant: str = "",
        adapter: str = "",
        id: str = "",
    ) -> None:
        """first: the tokens that may come first, each beginning with the prompt's last space; None: any.

        decoder: writes the answer, after the prompt or as a text of its own. prefix_tokens: it begins with
        these tokens and goes on after them. stop_tokens: control tokens that end it, with their names, though
        ends be ignored. source: what an encoder reads. beam: how many beginnings a search keeps
        (length_penalty and early_stopping: see `beam.BeamSearch`); 1 draws a token at a time. rules: what the
        folder forces and forbids. tenant: whose prefixes may be reused, and who shares fairly with whom.
        adapter: which of those over the model writes the answer; "": the model itself.
        """
        self.prompt, self.params, self.max_tokens = prompt, params, max_tokens
        self.seed, self.sample = seed, sample
        self.first, self.prefix_tokens = first, list(prefix_tokens)
        self.source, self.grammar = source, grammar
        self.beam, self.length_penalty = beam, length_penalty
        self.early_stopping: EarlyStopping = early_stopping
        self.rules = rules if rules else None
        self.tenant, self.adapter, self.id = tenant, adapter, id
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.found: list[Finished] = []
        """What a beam search ended with, the best first: that is the answer."""
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self._stop_tokens = dict(stop_tokens or {})
        self.ends = frozenset(self._stop_tokens) | (frozenset() if params.ignore_eos else frozenset(eos_ids))
        self.decoder, self._matcher = decoder, StopMatcher(params.stop)
        self.prefix_text = decoder.text(self.prefix_tokens)
        """The text of what it begins with."""
        self._pieces: list[str] = []

    def ruling(self, tokens: Sequence[int], n_made: int) -> Ruling | None:
        """Return what the folder's rules say of the token after these, the last `n_made` of which are new."""
        return None if self.rules is None else self.rules.at(tokens, n_made, self.max_tokens, self.ends)

    def push(self, token: int) -> str:
        """Take the next token, which its grammar has taken; return the text that became certain with it."""
        self.tokens.append(token)
        ended = token in self.ends
        text = "" if ended else self.decoder.push(token)
        piece = self._matcher.push(text)
        ended = ended or (self.grammar is not None and self.grammar.finished)
        if ended or len(self.tokens) == self.max_tokens:
            self.finish_reason = "stop" if ended else "length"
            piece += self._matcher.push(self.decoder.finish()) + self._matcher.finish()
        if self._matcher.found is not None:
            self.finish_reason = "stop"
        self._pieces.append(piece)
        return piece

    @property
    def text(self) -> str:
        """The text that is certain by now."""
        return "".join(self._pieces)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it, if one did."""
        if self._matcher.found is None and self.finish_reason == "stop" and self.tokens:
            return self._stop_tokens.get(self.tokens[-1])
        return self._matcher.found

    def completion(self) -> Completion:
        """Return the finished answer."""
        assert self.finish_reason is not None
        return Completion(
            text=self.text,
            tokens=self.tokens,
            finish_reason=self.finish_reason,
            stop_string=self.stop_string,
            logprobs=None if self.params.logprobs is None else self.logprobs,
            n_prompt_tokens=len(self.prompt),
            seed=self.seed,
        )
