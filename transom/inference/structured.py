"""Answers that are JSON of a given schema: which tokens may come next, token by token.

The one idea: a grammar (llguidance) over the bytes that each token writes. Every token that could still lead
to a text of the schema is allowed, and no other, so the model's own choice among them is never narrowed; the
end token is allowed once the text is complete. A schema from outside is tried out first in a process that may
be killed. Read next: structured_worker, sampling_rows.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from transom.data.documents import printable
from transom.data.resident import Died, Resident
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused

JSON_OBJECT: dict[str, Any] = {"type": "object"}
"""Any JSON object."""

MAX_BYTES, MAX_DEPTH = 64 << 10, 32
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

_REGEX = ("pattern", "patternProperties")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose values hold schemas by names that are not keywords."""
_DATA = ("enum", "const", "default", "examples", "required")
"""Keywords whose values are no schemas."""
_REFERENCE = re.compile(r"#(/(\$defs|definitions)/[^/]+)?")
_SIGNS = '{}[]",:-+.0123456789\\ eEtrufalsn'


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
        """Which tokens may come next: (V,) bool; none after the end and after an error."""
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
        """The same place in the grammar, to go on from independently."""
        other = Matcher(self._matcher.deep_copy(), self._end_ids, ended=self.finished)
        other.error = self.error
        return other


class Grammar:
    """A compiled schema, from which every answer gets its own matcher."""

    def __init__(self, start: LLMatcher, end_ids: frozenset[int]) -> None:
        self._start, self._end_ids = start, end_ids

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an answer."""
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
        if missing := [sign for sign in _SIGNS if not self._spells(sign)]:
            raise Refused(f"this tokenizer cannot write JSON: it has no {', '.join(missing)}")
        self._tokens = LLTokenizer(
            TokenizerWrapper(self._spelled),
            n_vocab=len(self._spelled.tokens),
            eos_token=sorted(self.end_ids),
            slices=LLTokenizer.json_slices(),
        )
        self._worker = Resident(Path(__file__).with_name("structured_worker.py"), seconds=WALL_SECONDS)
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, schema: dict[str, Any] | str, *, regex: bool = False) -> Grammar:
        """The grammar of a JSON schema, as a dict or as JSON text; `regex` allows `pattern` in it.

        Raises Refused for what is no schema, has keywords that cannot be kept to, or exceeds the limits.
        """
        schema, text = _checked(schema, regex)
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        for word in _words(schema):
            for sign in word:
                if not self._spells(sign):
                    raise Refused(f"schema: this tokenizer cannot write {sign!r}, which {word!r} needs")
        source = _source(schema)
        self._try_out(source)
        start = LLMatcher(self._tokens, source, limits=LLParserLimits(**LIMITS), log_level=0)
        if start.is_error():
            raise Refused(f"schema: {printable(start.get_error()[:300])}")
        grammar = Grammar(start, self.end_ids)
        with self._lock:
            self._kept[text] = grammar
            while sum(map(len, self._kept)) > CACHE_BYTES:
                self._kept.popitem(last=False)
        return grammar

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
        """Whether some way of writing this character exists."""
        return sign.encode() in self._spelled.known or all(
            bytes([byte]) in self._spelled.known for byte in sign.encode()
        )


def compile(schema: dict[str, Any] | str, tokenizer: Tokenizer, *, regex: bool = False) -> Grammar:
    """The grammar of one JSON schema; GrammarCompiler does many for the same tokenizer faster."""
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


def _source(schema: dict[str, Any]) -> str:
    """The grammar as llguidance reads it.

    Without no_forcing it would put the tokenizer's own tokens where the text is certain, which narrows the
    model's choice, and for SentencePiece begins every name with a space.
    """
    whole = json.dumps({**schema, "x-guidance": OPTIONS})
    return LLMatcher.grammar_from_lark(f'%llguidance {{"no_forcing": true}}\nstart: %json {whole}\n')


def _checked(schema: dict[str, Any] | str, regex: bool) -> tuple[dict[str, Any], str]:
    """A schema as an object and as JSON, within the limits."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
        size = len(text.encode())
        parsed = json.loads(text) if size <= MAX_BYTES else {}
        json.dumps(parsed, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    except RecursionError:
        raise Refused(f"schema: too deep; the limit is {MAX_DEPTH} levels") from None
    except (TypeError, ValueError) as error:
        raise Refused(f"schema: not JSON ({printable(str(error)[:80])})") from None
    if size > MAX_BYTES:
        raise Refused(f"schema: {size:,} bytes of JSON; the limit is {MAX_BYTES:,}")
    if not isinstance(parsed, dict):
        raise Refused(f"schema: a JSON {type(parsed).__name__}; a schema is an object")
    if (depth := _depth(parsed)) > MAX_DEPTH:
        raise Refused(f"schema: too deep, {depth} levels; the limit is {MAX_DEPTH} levels")
    for schema in _schemas(parsed):
        if "x-guidance" in schema or any(keyword in schema and not regex for keyword in _REGEX):
            keyword = next(key for key in ("x-guidance", *_REGEX) if key in schema)
            raise Refused(f"schema: '{keyword}' is not taken from requests; say what the value is without it")
        fewest, required = schema.get("minProperties", 0), schema.get("required", ())
        if (
            isinstance(fewest, int | float)
            and isinstance(required, list | tuple)
            and fewest > max(1, len(required))
        ):
            raise Refused("schema: minProperties cannot be kept to, as JSON may repeat a name; use required")
        reference = schema.get("$ref", "#")
        if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
            says = printable(repr(reference)[:80])
            raise Refused(f"schema: $ref is {says}; it must be '#', or '#/$defs/NAME' within the schema")
    return parsed, json.dumps(parsed, allow_nan=False)


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all schemas in it, those that references lead to included."""
    if isinstance(schema, list):
        for part in schema:
            yield from _schemas(part)
    elif isinstance(schema, dict):
        yield schema
        for keyword, value in schema.items():
            if keyword in _MAPS and isinstance(value, dict):
                yield from _schemas(list(value.values()))
            elif keyword not in _DATA:
                yield from _schemas(value)


def _words(schema: Any) -> Iterator[str]:
    """The strings that a text of this schema may have to hold: names and chosen values."""
    for part in _schemas(schema):
        names = part.get("properties")
        yield from names if isinstance(names, dict) else ()
        yield from _strings([part.get("required"), part.get("enum"), part.get("const")])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(part)


def _depth(value: Any) -> int:
    """How deep objects and lists are nested."""
    level, depth = [value], 0
    while nested := [part for part in level if isinstance(part, dict | list)]:
        level = [item for part in nested for item in (part.values() if isinstance(part, dict) else part)]
        depth += 1
    return depth
