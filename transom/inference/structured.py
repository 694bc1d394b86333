"""Answers that are JSON of a given schema, or calls of tools: which tokens may come next, token by token.

The one idea: a grammar (llguidance) over the bytes that each token writes. Every token that could still lead
to a text of the schema is allowed, and no other, so the model's own choice among them is never narrowed; the
end token is allowed once the text is complete. A schema from outside is tried out first in a process that may
be killed. Read next: schemas, structured_worker, sampling_rows.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from transom.data.documents import printable
from transom.data.tokenizer import Tokenizer
from transom.data.worker_process import Died, WorkerProcess
from transom.errors import Refused

from .schemas import MAX_BYTES, checked_schema, kept_to, words

JSON_OBJECT: dict[str, Any] = {"type": "object"}
"""Any JSON object."""

WALL_SECONDS = 10.0
CACHE_BYTES = 1 << 20
"""Of schemas, which is what the size of their grammars goes with."""

LIMITS = {"max_lexer_states": 20_000, "max_grammar_size": 100_000, "verbose_errors": False}
"""A lexer state takes 1 to 2 kB and is made when it is first met."""
OPTIONS = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"\n?[ \t]{0,24}",
    "json_allowed_escapes": '"\\\\bfnrt',
}
"""White space between parts as people write JSON, but never without end; and one way only to write a name, so
that "\\u0061" is no way around what the schema says of "a".
"""

_SIGNS = '{}[]",:-+.0123456789\\ eEtrufalsn'


class Stretch(NamedTuple):
    """A stretch of an answer: a text, JSON of a schema, a text."""

    begin: str
    schema: dict[str, Any]
    end: str


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: LLMatcher, end_ids: frozenset[int], *, ended: bool = False) -> None:
        self._matcher, self._end_ids = matcher, end_ids
        self.finished = ended
        """Whether the end token was taken; nothing is allowed any more."""
        self.error = ""
        """Why nothing is allowed any more, where a token was not allowed or a limit was met."""

    @property
    def complete(self) -> bool:
        """Whether the text so far is a whole JSON text of the schema."""
        return not self.error and (self.finished or self._matcher.is_accepting())

    def mask(self, vocab_size: int) -> Tensor:
        """Return which tokens may come next: (V,) bool; none after the end and after an error."""
        allowed = torch.zeros(vocab_size, dtype=torch.bool)
        if not self.finished and not self.error:
            bias = bytearray(self._matcher.compute_logit_bias())
            if self._matcher.is_error():
                self.error = self._matcher.get_error() or "the grammar met a limit"
                return allowed
            known = torch.frombuffer(bias, dtype=torch.uint8)[:vocab_size] != 0
            allowed[: len(known)] = known
        return allowed

    def accept(self, token: int) -> bool:
        """Take the next token; False, and nothing is allowed from then on, where it was not allowed."""
        if self.finished or self.error:
            return False
        if not self._matcher.consume_token(token):
            self.error = self._matcher.get_error() or f"token {token} was not allowed"
            return False
        self.finished = token in self._end_ids
        return True

    def copy(self) -> Matcher:
        """Return the same place in the grammar, to go on from independently."""
        other = Matcher(self._matcher.deep_copy(), self._end_ids, ended=self.finished)
        other.error = self.error
        return other


class Grammar:
    """A compiled schema, from which every answer gets its own matcher."""

    def __init__(self, start: LLMatcher, end_ids: frozenset[int]) -> None:
        self._start, self._end_ids = start, end_ids

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of an answer."""
        return Matcher(self._start.deep_copy(), self._end_ids)


class GrammarCompiler:
    """Schemas to grammars for one tokenizer; keeps those used last. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int] = ()) -> None:
        """`end_ids` end an answer, or else the tokenizer's own end token does. Takes a second for 100,000
        tokens. Raises Refused for a tokenizer that cannot write JSON.
        """
        own_end = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self.end_ids = frozenset(end_ids) or frozenset(own_end)
        if not self.end_ids:
            raise Refused("structured output needs an end token, and this tokenizer names none")
        self.tokenizer = tokenizer
        self._spelled = _Vocabulary(tokenizer, sorted(self.end_ids))
        self._reserved = {name: id for id, name in tokenizer.reserved.items()}
        self._markers = tokenizer.reserved.keys() - tokenizer.control_ids - self.end_ids
        if missing := [sign for sign in _SIGNS if not self._spells(sign)]:
            raise Refused(f"this tokenizer cannot write JSON: it has no {', '.join(missing)}")
        self._tokens = LLTokenizer(
            TokenizerWrapper(self._spelled),
            n_vocab=len(self._spelled.tokens),
            eos_token=sorted(self.end_ids),
            slices=LLTokenizer.json_slices(),
        )
        self._worker = WorkerProcess(Path(__file__).with_name("structured_worker.py"), seconds=WALL_SECONDS)
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, schema: dict[str, Any] | str, *, regex: bool = False) -> Grammar:
        """Return the grammar of a JSON schema, as a dict or as JSON text; `regex` allows `pattern` in it.

        Raises Refused for what is no schema, has keywords that cannot be kept to, or exceeds the limits.
        """
        return self.compile_choice([Stretch("", checked_schema(schema, regex), "")], regex=regex)

    def compile_choice(
        self, choice: Sequence[Stretch], *, after: str | None = None, regex: bool = False
    ) -> Grammar:
        """Return the grammar of one of several stretches; a control token named in one stands for that token.

        after: text is free, but what follows this marker is one of the stretches, which begin with it; where
        it is empty, an answer that begins with a brace is one. Raises Refused as `compile` does.
        """
        checked = [Stretch(one.begin, kept_to(checked_schema(one.schema, regex)), one.end) for one in choice]
        source = _source(checked, after, self._reserved, self._markers)
        with self._lock:
            if source in self._kept:
                self._kept.move_to_end(source)
                return self._kept[source]
        if len(source) > 2 * MAX_BYTES:
            raise Refused(f"the schemas of all tools have more than {2 * MAX_BYTES:,} bytes; give fewer")
        for one in checked:
            for word in [*words(one.schema), one.begin, one.end]:
                for sign in word:
                    if not self._spells(sign):
                        raise Refused(f"schema: this tokenizer cannot write {sign!r}, which {word!r} needs")
        self._try_out(_source(checked, after))
        grammar = self._started(source, "schema")
        with self._lock:
            self._kept[source] = grammar
            while sum(map(len, self._kept)) > CACHE_BYTES:
                self._kept.popitem(last=False)
        return grammar

    def compile_quote(self, text: str, otherwise: str) -> Grammar:
        """Return the grammar of some words in a row of a text, as they stand there, or of `otherwise` whole.

        Raises Refused for a text that exceeds the limits.
        """
        rules = [
            '%llguidance {"no_forcing": true}',
            f"start: QUOTE | {json.dumps(otherwise)}",
            f'QUOTE: %regex {{ "substring_words": {json.dumps(text)} }}',
        ]
        return self._started(LLMatcher.grammar_from_lark("\n".join([*rules, ""])), "the text")

    def _started(self, source: str, name: str) -> Grammar:
        start = LLMatcher(self._tokens, source, limits=LLParserLimits(**LIMITS), log_level=0)
        if start.is_error():
            raise Refused(f"{name}: {printable(start.get_error()[:300])}")
        return Grammar(start, self.end_ids)

    def close(self) -> None:
        """End the process that tries schemas out; the next schema starts another."""
        self._worker.close()

    def _try_out(self, source: str) -> None:
        try:
            answer = self._worker.ask({"grammar": source, "limits": LIMITS})
        except Died:
            answer = {"refused": "it takes more than 2 s or 64 MB to compile; make it smaller"}
        if "refused" in answer:
            says = answer["refused"].partition("failed to compile JSON schema: ")
            raise Refused(f"schema: {printable((says[2] or says[0]).splitlines()[0][:300])}")

    def _spells(self, sign: str) -> bool:
        """Return whether some way of writing this character exists."""
        return sign.encode() in self._spelled.known or all(
            bytes([byte]) in self._spelled.known for byte in sign.encode()
        )


def compile(schema: dict[str, Any] | str, tokenizer: Tokenizer, *, regex: bool = False) -> Grammar:
    """Return the grammar of one JSON schema; GrammarCompiler does many for the same tokenizer faster."""
    compiler = GrammarCompiler(tokenizer)
    try:
        return compiler.compile(schema, regex=regex)
    finally:
        compiler.close()


class _Vocabulary:
    """A tokenizer as llguidance sees it: the bytes of every token; a first byte of 0xFF marks control."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = end_ids[0], None
        spelled = tokenizer.spelling.within
        self.known = frozenset(spelled)
        hidden = tokenizer.reserved.keys() | {i for i, data in enumerate(spelled) if not data} | set(end_ids)
        if tokenizer.unknown_id is not None:
            hidden |= {tokenizer.unknown_id}
        self.special_token_ids = sorted(hidden)
        self.tokens = [b"\xff<%d>" % i if i in hidden else data for i, data in enumerate(spelled)]
        size = max(len(spelled), 1 + max(end_ids))
        self.tokens += [b"\xff<%d>" % i for i in range(len(spelled), size)]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "ignore") if isinstance(text, bytes) else text)


def _source(
    choice: Sequence[Stretch],
    after: str | None,
    reserved: Mapping[str, int] = MappingProxyType({}),
    markers: Collection[int] = (),
) -> str:
    """Return the grammar as llguidance reads it.

    Without no_forcing it would put the tokenizer's own tokens where the text is certain, which narrows the
    model's choice, and for SentencePiece begins every name with a space. reserved: tokens by name that no
    text spells; markers: those of them that free text may hold.
    """
    names = [f"stretch_{place}" for place in range(len(choice))]
    one = " | ".join(names)
    others = ",".join(str(id) for id in sorted(markers) if id != reserved.get(after or ""))
    free = f"(TEXT <[{others}]>)*" if others else ""
    anything = r"TEXT: /(.|\n)*/"
    if after is None:
        rules = [f"start: {one}"]
    elif not after:
        rules = [f"start: {one} | TEXT?", r"TEXT: /\s*[^{\s](.|\n)*/"]
    elif after in reserved:
        rules = [
            f"start: (marked)* {free} TEXT",
            f"marked: {free} TEXT <[{reserved[after]}]> ({one})",
            anything,
        ]
    else:
        marker = f"marker[lazy]: TEXT {_literal(after, {})}"
        rules = [
            f"start: (marked)* {free} tail",
            f"marked: {free} marker ({one})",
            "tail: TEXT",
            marker,
            anything,
        ]
    for name, stretch in zip(names, choice, strict=True):
        begin = stretch.begin.removeprefix(after or "")
        whole = json.dumps({**stretch.schema, "x-guidance": OPTIONS})
        parts = [_literal(begin, reserved), f"%json {whole}", _literal(stretch.end, reserved)]
        rules.append(f"{name}: {' '.join(part for part in parts if part)}")
    return LLMatcher.grammar_from_lark("\n".join(['%llguidance {"no_forcing": true}', *rules, ""]))


def _literal(text: str, reserved: Mapping[str, int]) -> str:
    """Return a text as the grammar has it: strings, and reserved tokens by their numbers."""
    names = "|".join(map(re.escape, sorted(reserved, key=len, reverse=True)))
    parts = re.split(f"({names})", text) if names else [text]
    said = (
        f"<[{reserved[part]}]>" if part in reserved else json.dumps(part, ensure_ascii=False)
        for part in parts
        if part
    )
    return " ".join(said)
