"""From prompts to completions: the whole path of a call, in the order it happens.

Prompts become requests, and an engine runs them together; `generate` and `stream` read the same events, so a
stream is the completion's text in pieces. A request's tokens depend on its own logits and (seed, sample)
alone; beside others its logits differ from those alone by float rounding only, so its tokens are the same
unless two candidates tie within that rounding. Read next: request, sync_engine, engine.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Unpack, cast, overload

import torch
from torch import Tensor

from transom.checkpoint.generation import UNSAID, GenerationConfig
from transom.checkpoint.manifest import fingerprint
from transom.data.chat_template import ChatTemplate
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.model.build import Model
from transom.sampling_params import Sampling, SamplingParams, by_name
from transom.units import counted

from .adapters import on_base
from .dtype import describe
from .engine import Engine, EngineSettings
from .native_runner import available, check_weights, runner_for
from .request import Completion, Event, Grammar, Request
from .sync_engine import SyncEngine, cache_tokens, sync_settings
from .token_rules import TokenRules

if TYPE_CHECKING:
    from .structured import GrammarCompiler

DEFAULT_MAX_TOKENS = 128
ANSWER_TOKENS = 256
"""Room for an answer unless told otherwise, or a quarter of what the model reads if that is less."""
MAX_ROWS = 64
"""Completions that are written together; more than this wait their turn."""

Start = tuple[list[int], frozenset[int] | None]
"""Token ids to go on from, and which tokens may come first (None: any)."""
Prompt = str | Sequence[int]


class CompiledGrammar(Protocol):
    """A grammar of which every answer takes a matcher of its own (structured.Grammar)."""

    def matcher(self) -> Grammar: ...


class Stream(Iterator[str]):
    """Text as it is written: an iterator of its pieces (str)."""

    def __init__(self, request: Request, events: Iterator[Event]) -> None:
        self.completion: Completion | None = None
        """The whole, once the stream has ended."""
        self._request, self._events = request, events

    def __next__(self) -> str:
        for event in self._events:
            if event.piece:
                return event.piece
        if self._request.finish_reason in ("stop", "length"):  # else it went wrong
            self.completion = self._request.completion()
        raise StopIteration

    def close(self) -> None:
        """End it before its time, as a generator's: nothing more is computed for it."""
        self._events = iter(())  # whoever runs them hears that nobody reads them any more


class Generator:
    """A decoder with its tokenizer, ready to write.

    `model` is the nn.Module, whose hidden states are (B, L, D) and whose logits (B, L, V); `tokenizer` turns
    text into ids and back; `folder` is where both came from; `eos_ids` are the tokens that end a text.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        eos_ids: Sequence[int] = (),
        generation: GenerationConfig = UNSAID,
        folder: Path | None = None,
        reason: str = "",
        adapters: Mapping[str, Path] = MappingProxyType({}),
        base: Path | None = None,
        weights: str = "",
    ) -> None:
        """A model in eval mode. `eos_ids` end a completion, or else the tokenizer's own end token does.

        generation: what its folder says of how it writes; a call's own settings come first. folder: where
        its chat template lies, if it has one. adapters: by name, folders of adapters over this model, which
        was loaded from `base`; each is a Generator of its own then, and all work together in one engine.
        weights: `int8`, `bfloat16`, or "": as the model has them. Raises Refused where it cannot have them.
        """
        check_weights(weights, model)
        self.weights = weights
        self.model, self.tokenizer, self.folder, self.reason = model, tokenizer, folder, reason
        self.generation, self._rules = generation, TokenRules(generation)
        own_end = frozenset() if tokenizer.eos_id is None else frozenset([tokenizer.eos_id])
        self.eos_ids = frozenset(eos_ids) or own_end
        # What the folder's tokenizer puts before every text: a begin token (Llama, Mistral) or nothing.
        before = tokenizer.backend.encode("", add_special_tokens=True).ids[:1]
        self._opening = before if before == [tokenizer.bos_id] else []
        self._local = SyncEngine(lambda: self.engine(sync_settings(MAX_ROWS)))
        self.adapter = ""
        """Its own name, where it is one over another model."""
        self.adapters: dict[str, Generator] = {}
        """Those over this model, by name."""
        if base is not None:
            known = fingerprint(base)
            self.adapters = {name: self._adapted(name, base, known, at) for name, at in adapters.items()}

    def _adapted(self, name: str, base: Path, base_hash: str, folder: Path) -> Generator:
        """The same with an adapter, whose template counts if it has one; raises Refused for another base."""
        one = copy.copy(self)
        one.adapter, one.adapters, one.model = name, {}, on_base(self.model, base, base_hash, folder)
        if (folder / "tokenizer.json").exists():
            if Tokenizer.load(folder).hash != self.tokenizer.hash:
                raise Refused(
                    f"{folder}: its tokenizer is not that of {base}; adapters over one base share it"
                )
            one.folder = folder
        one.engine = self.engine
        return one

    def __repr__(self) -> str:
        return describe(self.model, "Generator", self.reason, self.runs_by)

    @property
    def runs_by(self) -> str:
        """What computes its logits, and where that is PyTorch on a CPU, why."""
        return available(self.model, self.weights)[1]

    @overload
    def generate(
        self, prompt: str | list[int], *, n: Literal[1] = 1, **settings: Unpack[Sampling]
    ) -> Completion: ...
    @overload
    def generate(
        self, prompt: Prompt | Sequence[Prompt], *, n: int = 1, **settings: Unpack[Sampling]
    ) -> list[Completion]: ...
    @by_name
    def generate(
        self, prompt: Prompt | Sequence[Prompt], *, n: int = 1, **settings: Unpack[Sampling]
    ) -> Completion | list[Completion]:
        """Write on after one prompt, or after each of several; text or token ids. A question to a model that
        was taught to answer belongs into `chat`.

        The settings are the fields of `SamplingParams`, which says what each means; what is left out is as
        the folder's generation_config.json says. One prompt with n = 1 gives a Completion (its `text`,
        `tokens`, `finish_reason`, `logprobs`), anything else a list of them, the n of the first prompt first.
        Raises Refused for what cannot be run.
        """
        prompts, several = self._prompts(prompt)
        requests = self._requests(prompts, self.params({"n": n, **settings}))
        for _ in self._local.run(requests):
            pass
        completions = [request.completion() for request in requests]
        return completions if several or len(completions) > 1 else completions[0]

    @by_name
    def stream(self, prompt: Prompt, *, continues: bool = True, **settings: Unpack[Sampling]) -> Stream:
        """The text that `generate` gives for one prompt and the same settings, as an iterator of its pieces
        (str); `continues` as for `request`. Its `completion` is the Completion, once all were taken.
        """
        prompts, several = self._prompts(prompt)
        params = self.params(settings)
        if several or params.n > 1:
            raise Refused("stream writes one completion of one prompt; generate writes several")
        request = self._requests(prompts, params, continues=continues)[0]
        return Stream(request, self._local.run([request]))

    @by_name
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        grammar: CompiledGrammar | None = None,
        **settings: Unpack[Sampling],
    ) -> Completion:
        """The answer to what a user says, or to a conversation: [{"role": "user", "content": "Hello"}, ...],
        by the chat template of the model's folder; a Completion, whose `text` is the answer.

        Nothing is kept: to go on, give all messages again, with {"role": "assistant", "content": the answer}
        and what the user says next. Settings as for `generate`; without max_tokens an answer has room for
        `answer_tokens`. Raises Refused where the folder has no template, and for what does not fit.
        """
        if self.template is None:
            raise Refused(
                "this model's folder has no chat template: it goes on with a text and was not taught to"
                " answer; use generate"
            )
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        prompt = self.template.render(said, self.tokenizer).tokens
        room = max(1, self.model.config.max_len - len(prompt))
        stops = settings.get("stop", ())
        settings["stop"] = [*self.template.stop, *([stops] if isinstance(stops, str) else stops)]
        params = self.params({"max_tokens": min(self.answer_tokens, room), **settings}, chat=True)
        if params.n > 1:
            raise Refused("chat gives one answer; call it once for each, with seeds of their own")
        (request,) = self._requests([(prompt, None)], params, continues=False, grammar=grammar)
        if not params.ignore_eos:
            request.ends |= self.template.end_ids(self.tokenizer)
        for _ in self._local.run([request]):
            pass
        return request.completion()

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template of the folder, if it has one."""
        return None if self.folder is None else ChatTemplate.from_folder(self.folder)

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """What makes grammars of schemas and texts, for answers that keep to them."""
        from .structured import GrammarCompiler

        ends = frozenset() if self.template is None else self.template.end_ids(self.tokenizer)
        return GrammarCompiler(self.tokenizer, sorted(self.eos_ids | ends))

    @property
    def answer_tokens(self) -> int:
        """Most tokens of an answer in a conversation, where nobody says."""
        return min(self.generation.max_new_tokens or ANSWER_TOKENS, self.model.config.max_len // 4)

    def params(self, settings: Mapping[str, Any], *, chat: bool = False) -> SamplingParams:
        """Settings by name, those left out as the folder says (`GenerationConfig.draws`); raises Refused for
        one out of its limits.
        """
        return SamplingParams.of(self.generation.draws(settings, chat=chat))

    def forget(self) -> None:
        """Keep nothing of earlier calls, see `SyncEngine.forget`."""
        self._local.forget()

    def engine(
        self,
        settings: EngineSettings,
        *,
        n_tokens: int | None = None,
        reuse: bool = True,
        deterministic: bool = False,
    ) -> Engine:
        """A new engine for this model; n_tokens: room of its cache (None: of 1 GiB); see `runner_for`."""
        room = n_tokens or cache_tokens(self.model, settings.max_rows)
        adapters = {name: one.model for name, one in self.adapters.items()}
        runner = runner_for(
            self.model, n_tokens=room, reuse=reuse, deterministic=deterministic, adapters=adapters,
            weights=self.weights,
        )  # fmt: skip
        return Engine(runner, self.tokenizer, eos_ids=self.eos_ids, settings=settings)

    def request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        continues: bool = True,
        prefix_tokens: Sequence[int] = (),
        grammar: CompiledGrammar | None = None,
        tenant: str = "",
        id: str = "",
        markers: Mapping[int, str] = MappingProxyType({}),
    ) -> list[Request]:
        """Return the requests of one prompt, one for each of `params.n` answers, for an engine of this model.

        continues: the answer's text goes on from the prompt's, so that the two are `decode` of all ids; a
        message in a conversation is a text of its own. prefix_tokens: each answer begins with them and goes
        on after them; they count as made. markers: tokens without text of their own that stand in it by name.
        The rest is as for `Request`. Raises Refused, with the numbers, where it does not fit.
        """
        prompts, several = self._prompts(prompt)
        if several:
            raise Refused("a request has one prompt: text, or a list of token ids")
        self._check_known(prefix_tokens, "the beginning of the answer")
        return self._requests(
            prompts,
            params,
            continues=continues,
            prefix_tokens=prefix_tokens,
            grammar=grammar,
            tenant=tenant,
            id=id,
            markers=markers,
        )

    @torch.no_grad()
    def logits(self, prompt: Prompt) -> Tensor:
        """Scores of what follows each token of a text or of ids, by one plain pass: (L, V) float32.

        Raises Refused for several texts, and for one that is longer than the model reads.
        """
        prompts, several = self._prompts(prompt, whole=True)
        if several:
            raise Refused("logits reads one text or one list of token ids; call it once for each")
        (tokens, _), limit = prompts[0], self.model.config.max_len
        if len(tokens) > limit:
            raise Refused(f"the text has {len(tokens)} tokens; this model reads at most {limit} (max_len)")
        return self.model.logits(self.model(torch.tensor([tokens], device=self.model.embed.weight.device)))[0]

    def _prompts(self, prompt: Any, whole: bool = False) -> tuple[list[Start], bool]:
        """Return prompts as token ids, and whether several were asked for; `whole` as for `_tokens`."""
        prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # a tensor or an array
        if not isinstance(prompt, str | Sequence) or isinstance(prompt, bytes):
            raise Refused(f"a prompt is a {type(prompt).__name__}; give text, token ids, or a list of either")
        if not prompt and not isinstance(prompt, str):
            raise Refused("the list of prompts is empty; give text, token ids, or a list of either")
        if isinstance(prompt, str) or all(isinstance(part, int) for part in prompt):
            return [self._tokens(prompt, "the prompt", whole)], False
        return [self._tokens(part, f"prompt {i}", whole) for i, part in enumerate(prompt)], True

    def _tokens(self, prompt: Any, name: str, whole: bool = False) -> Start:
        """Return one prompt as token ids, and the tokens that may come first (`Tokenizer.encode_prompt`) or
        None.

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
        self._check_known(tokens, name)
        start = self.tokenizer.eos_id
        if not tokens and start is None:
            raise Refused(f"{name} is empty, and this tokenizer has no end token to start from")
        return tokens or [cast(int, start)], first

    def _check_known(self, tokens: Sequence[int], name: str) -> None:
        vocab_size = self.model.config.vocab_size
        for place, token in enumerate(tokens):
            if not 0 <= token < vocab_size:
                known = f"this model's tokens are 0 to {vocab_size - 1}"
                raise Refused(f"{name} holds token {token} at place {place}; {known}")

    def _requests(
        self,
        prompts: list[Start],
        params: SamplingParams,
        *,
        continues: bool = True,
        prefix_tokens: Sequence[int] = (),
        grammar: CompiledGrammar | None = None,
        tenant: str = "",
        id: str = "",
        markers: Mapping[int, str] = MappingProxyType({}),
    ) -> list[Request]:
        """One request for each prompt and sample; raises Refused with the numbers where one does not fit."""
        requests: list[Request] = []
        # A control token writes nothing, so a stop that names one is not to be found in the text.
        named = {stop.strip(): stop for stop in params.stop}
        control = self.tokenizer.control.items()
        stop_tokens = {number: named[name] for number, name in control if name in named}
        for i, (prompt, first) in enumerate(prompts):
            name = f"prompt {i}" if len(prompts) > 1 else "the prompt"
            max_tokens = self._max_tokens(len(prompt), params, len(prefix_tokens), name)
            # All samples of a prompt share its seed: their number tells their draws apart.
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
                    decoder=self.tokenizer.decoder(
                        prompt if continues else (), spaced=first is not None, markers=markers
                    ),
                    first=first,
                    prefix_tokens=prefix_tokens,
                    grammar=None if grammar is None else grammar.matcher(),
                    stop_tokens=stop_tokens,
                    rules=self._rules,
                    tenant=tenant,
                    adapter=self.adapter,
                    id=id,
                )
                for sample in range(params.n)
            ]
        return requests

    def _max_tokens(self, n_prompt: int, params: SamplingParams, n_prefix: int, name: str) -> int:
        """Return how many tokens an answer may have; raises Refused where they do not fit."""
        limit = self.model.config.max_len
        room = limit - n_prompt
        most = self.generation.max_new_tokens or DEFAULT_MAX_TOKENS
        most = min(n_prefix + most, max(min(room, (self.generation.max_length or limit) - n_prompt), 1))
        max_tokens = params.max_tokens or most
        if max_tokens > room:
            excess, ways = max_tokens - room, []
            if excess < n_prompt:
                ways.append(f"shorten the prompt by {counted(excess, 'token')}")
            if room > 0:
                ways.append(f"set max_tokens to at most {room}")
            ways = ways or [f"shorten the prompt and set max_tokens below {limit}"]
            raise Refused(
                f"{name} has {counted(n_prompt, 'token')} and max_tokens is {max_tokens}: together"
                f" {n_prompt + max_tokens}, where this model's limit (max_len) is {limit};"
                f" {' or '.join(ways)}",
                code="context_length_exceeded",
            )
        return max_tokens
