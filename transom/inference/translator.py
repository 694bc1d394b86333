"""Translation: sources in, the likeliest targets out; the whole path of a call, in the order it happens.

Every source becomes a request with a beam search of its own, and an engine runs as many of them together as
have room; sources of about one length start together. Read next: beam, sync_engine, engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from transom.checkpoint.generation import UNSAID, GenerationConfig
from transom.data.lines import split_lines
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.model.build import Model
from transom.sampling_params import SamplingParams

from .batching import as_list, framed, lines_of
from .beam import EarlyStopping
from .dtype import describe
from .engine import Engine, EngineSettings
from .native_runner import available, check_weights, runner_for
from .request import Request
from .sync_engine import SyncEngine, cache_tokens, sync_settings
from .token_rules import TokenRules

LONGER, MORE = 2, 10
"""Unless it is told, a target may have LONGER times the tokens of its source and MORE besides."""
MOST_BEAMS = 64
MAX_ROWS = 256
"""Beginnings that are written together; more sentences than fit wait their turn."""
BEAM, LENGTH_PENALTY = 4, 1.0
"""How many beginnings are kept and what lengths are divided by, where neither a call nor the folder says."""
GREEDY = SamplingParams(temperature=0, logprobs=0)
"""How a single beginning is written on: a search of width 1."""
CHUNK_TOKENS = 4096
"""Tokens of sources that are encoded together."""


@dataclass(frozen=True)
class Translation:
    """One text in another language."""

    text: str
    """Line by line as the source."""
    tokens: list[int]
    """As the model wrote them, the end token included."""
    logprob: float
    """The natural logarithm of the probability of all tokens together."""
    n_source_tokens: int
    """Tokens of the source, with what frames it."""
    finished: bool
    """Whether it ended by itself; otherwise max_tokens cut it."""
    mean_logprob: float = field(init=False)
    """`logprob` for each token: how sure the model is, comparable among lengths, of one model only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean_logprob", self.logprob / max(1, len(self.tokens)))

    def __str__(self) -> str:
        return self.text


BLANK = Translation("", [], 0.0, 0, True)
"""Of a blank line."""


def _joined(lines: list[Translation]) -> Translation:
    """Return the translation of a text from those of its lines; the probability is that of all of them."""
    return Translation(
        "\n".join(line.text for line in lines),
        [token for line in lines for token in line.tokens],
        math.fsum(line.logprob for line in lines),
        sum(line.n_source_tokens for line in lines),
        all(line.finished for line in lines),
    )


class Translator:
    """An encoder-decoder with its tokenizer, ready to translate.

    `model` is the nn.Module, `tokenizer` turns text into ids and back, `eos_ids` are the tokens that end a
    target.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        eos_ids: Sequence[int] = (),
        generation: GenerationConfig = UNSAID,
        reason: str = "",
        weights: str = "",
    ) -> None:
        """A model in eval mode. `eos_ids` end a target, or else the tokenizer's own end token does.

        generation: what its folder says of how it writes. weights: `int8`, `bfloat16`, or "": as the model
        has them. Raises Refused where it cannot have them.
        """
        check_weights(weights, model)
        self.weights = weights
        self.model, self.tokenizer, self.reason = model, tokenizer, reason
        self.generation, self._rules = generation, TokenRules(generation)
        own_end = frozenset() if tokenizer.eos_id is None else frozenset([tokenizer.eos_id])
        self.eos_ids = frozenset(eos_ids) or own_end
        start = generation.decoder_start_token_id
        start = model.config.start_id if start is None else start
        if start is None:
            raise Refused("the model's config names no token that a target begins with (start_id)")
        self.start_id = start
        self._local = SyncEngine(lambda: self.engine(sync_settings(MAX_ROWS, CHUNK_TOKENS)))

    def __repr__(self) -> str:
        return describe(self.model, "Translator", self.reason, self.runs_by)

    @property
    def runs_by(self) -> str:
        """What computes, and where that is PyTorch on a CPU, why."""
        return available(self.model, self.weights)[1]

    @property
    def beam(self) -> int:
        """How many beginnings are kept where a call does not say."""
        return min(self.generation.num_beams or BEAM, MOST_BEAMS)

    @overload
    def translate(
        self,
        texts: str,
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        max_tokens: int | None = None,
        early_stopping: EarlyStopping | None = None,
    ) -> Translation: ...
    @overload
    def translate(
        self,
        texts: Sequence[str],
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        max_tokens: int | None = None,
        early_stopping: EarlyStopping | None = None,
    ) -> list[Translation]: ...
    def translate(
        self,
        texts: str | Sequence[str],
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        max_tokens: int | None = None,
        early_stopping: EarlyStopping | None = None,
    ) -> Translation | list[Translation]:
        """The translation of one text, or of each of several.

        A text of several lines is translated line by line, and a blank line is blank in the answer too.

        beam: how many beginnings are kept at every step; 1 is greedy. length_penalty and early_stopping: as
        for `beam.BeamSearch`; None takes what the folder says (num_beams, length_penalty, early_stopping),
        else 4, 1.0 and False. max_tokens: most tokens of a target; None: 2 for each token of the source and
        10 more (at most what the folder says and the model has room for). Raises Refused where all is blank,
        and for a line that is longer than the model reads.
        """
        listed, several = as_list(texts)
        requests = self.requests(
            listed,
            beam=beam,
            length_penalty=length_penalty,
            max_tokens=max_tokens,
            early_stopping=early_stopping,
        )
        for _ in self._local.run(sorted(requests, key=lambda request: -len(request.source or ()))):
            pass
        answers = self.answers(listed, requests)
        return answers if several else answers[0]

    def forget(self) -> None:
        """Keep nothing of earlier calls, see `SyncEngine.forget`."""
        self._local.forget()

    def engine(
        self, settings: EngineSettings, *, n_tokens: int | None = None, deterministic: bool = False
    ) -> Engine:
        """A new engine for this model; n_tokens: room of its cache (None: of 1 GiB); see `runner_for`."""
        room = n_tokens or cache_tokens(self.model, settings.max_rows)
        runner = runner_for(self.model, n_tokens=room, deterministic=deterministic, weights=self.weights)
        return Engine(runner, self.tokenizer, eos_ids=self.eos_ids, settings=settings)

    def requests(
        self,
        texts: Sequence[str],
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        max_tokens: int | None = None,
        early_stopping: EarlyStopping | None = None,
        tenant: str = "",
        id: str = "",
    ) -> list[Request]:
        """Return a request for each line that is not blank, for an engine of this model; settings and
        refusals are `translate`'s.
        """
        # What the call leaves out is as the folder says, else as at the top of this file.
        said = self.generation
        beam = self.beam if beam is None else beam
        if length_penalty is None:
            length_penalty = LENGTH_PENALTY if said.length_penalty is None else said.length_penalty
        self._check(beam, length_penalty, max_tokens)
        limit = self.model.config.max_len
        most = min(limit, said.max_new_tokens or limit, (said.max_length or limit + 1) - 1)
        # A model learned from sentences, so each line is a source of its own; blank ones are left out here
        # and put back by `answers`.
        lines, names = lines_of(texts)
        if texts and not lines:
            what = "the text is" if len(texts) == 1 else f"all {len(texts)} texts are"
            raise Refused(f"{what} empty; leave it out")
        return [
            Request(
                [self.start_id],
                GREEDY,
                max_tokens=max_tokens or max(1, min(most, LONGER * len(ids) + MORE)),
                seed=0,
                sample=0,
                eos_ids=self.eos_ids,
                decoder=self.tokenizer.decoder(),
                source=ids.tolist(),
                beam=beam,
                length_penalty=length_penalty,
                early_stopping=said.early_stopping if early_stopping is None else early_stopping,
                rules=self._rules,
                tenant=tenant,
                id=id,
            )
            for ids in framed(self.tokenizer, lines, limit, names=names)
        ]

    def answers(self, texts: Sequence[str], requests: Sequence[Request]) -> list[Translation]:
        """The translation of each text, put together from those of its lines (`requests` of these texts)."""
        made = iter(requests)
        return [
            _joined([self._translation(next(made)) if line.strip() else BLANK for line in split_lines(text)])
            for text in texts
        ]

    def _translation(self, request: Request) -> Translation:
        """Return what became of a request that has ended by itself or at its length."""
        tokens = request.tokens
        forced = bool(self.generation.forced_eos_token_id) and len(tokens) == request.max_tokens
        finished = bool(tokens) and tokens[-1] in self.eos_ids and not forced
        if request.found:
            logprob = request.found[0].logprob
        else:
            logprob = math.fsum(one.logprob for one in request.logprobs)
        return Translation(request.text, tokens, logprob, len(request.source or ()), finished)

    def _check(self, beam: int, length_penalty: float, max_tokens: int | None) -> None:
        limit = self.model.config.max_len
        if type(beam) is not int or not 1 <= beam <= MOST_BEAMS:
            raise Refused(f"beam is {beam!r}; it must be a whole number from 1 (greedy) to {MOST_BEAMS}")
        if not isinstance(length_penalty, int | float) or not -10 <= length_penalty <= 10:
            raise Refused(f"length_penalty is {length_penalty!r}; it must be a number from -10 to 10")
        if max_tokens is not None and (type(max_tokens) is not int or not 1 <= max_tokens <= limit):
            raise Refused(
                f"max_tokens is {max_tokens!r}; it must be 1 to {limit}, this model's limit (max_len)"
            )
