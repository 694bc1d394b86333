"""Structured output: what is drawn under the mask is JSON of the schema, and bombs are refused."""

from __future__ import annotations

import json
import os
import random
import signal
import string
import time
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import NASTY
from tests.data.test_chat_template import byte_level, sentencepiece_like
from tests.scale import scaled
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference.sampling_rows import FAILED, Place, SamplingRow, choose_rows
from transom.inference.structured import JSON_OBJECT, GrammarCompiler, Matcher, compile
from transom.sampling_params import SamplingParams

MAKERS = {
    "byte-level": byte_level,
    "metaspace": lambda: sentencepiece_like(legacy=False),
    "legacy": lambda: sentencepiece_like(legacy=True),
    "bytes": lambda: train_tokenizer("bytes", iter([]), 0),
    "chars": lambda: train_tokenizer("chars", iter([NASTY + string.printable]), 0),
}


@pytest.fixture(scope="module")
def compilers():
    made = {name: GrammarCompiler(make()) for name, make in MAKERS.items()}
    yield made
    for compiler in made.values():
        compiler.close()


def drawn(matcher: Matcher, tokenizer: Tokenizer, seed: int, wild: int = 60) -> list[int]:
    """Tokens drawn uniformly from what is allowed; after `wild` of them, those that lead to an end."""
    chance, tokens = random.Random(seed), []
    closing = [number for sign in '"}],:0' for number in tokenizer.encode(sign)[-1:]]
    while not matcher.finished:
        allowed = matcher.mask(tokenizer.vocab_size).nonzero()[:, 0].tolist()
        assert allowed, (tokenizer.decode(tokens), matcher.error)
        token = chance.choice(allowed)
        if len(tokens) > wild:
            ends = [t for t in (tokenizer.eos_id, *closing) if t in allowed]
            token = ends[0] if ends and chance.random() < 0.9 else token
        assert matcher.accept(token), matcher.error
        tokens.append(token)
        assert len(tokens) < 3000, tokenizer.decode(tokens)[-200:]
    return tokens


SCHEMAS: dict[str, dict[str, Any]] = {
    "any object": JSON_OBJECT,
    "fields": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "b\"l\\ue\n"]}, "maxItems": 4},
            "score": {"type": ["number", "null"]},
        },
        "required": ["name", "age", "score"],
        "additionalProperties": False,
    },
    "nested": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"anyOf": [{"type": "boolean"}, {"const": "leaf"}]},
                    "left": {"$ref": "#/$defs/tree"},
                    "pattern": {"type": "integer"},
                },
                "required": ["value"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    "array": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 5},
    "open": {"type": "object", "properties": {"n": {"const": 1}}, "additionalProperties": {"enum": [True]}},
    "choice": {"enum": ["yes", "no", 3, None, {"a": [1.5, "x"]}]},
    "date": {"type": "string", "format": "date"},
}  # fmt: skip


@settings(max_examples=scaled(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(SCHEMAS)), kind=st.sampled_from(sorted(MAKERS)), seed=st.integers(0, 2**31)
)
def test_every_text_drawn_under_the_mask_is_json_of_the_schema(compilers, name, kind, seed):
    compiler = compilers[kind]
    tokens = drawn(compiler.compile(SCHEMAS[name]).matcher(), compiler.tokenizer, seed)
    assert tokens.pop() == compiler.tokenizer.eos_id
    assert not compiler.tokenizer.control_ids & set(tokens)
    text = compiler.tokenizer.decode(tokens)
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(json.loads(text))


CLOSED = {"type": "object", "additionalProperties": False}
PARTS = st.deferred(
    lambda: st.one_of(
        st.sampled_from([{"type": kind} for kind in ("null", "boolean", "integer", "number", "string")]),
        st.fixed_dictionaries({"type": st.just("string"), "maxLength": st.integers(0, 5)}),
        st.integers(-99, 99).map(lambda n: {"type": "integer", "minimum": n, "maximum": n + 50}),
        st.lists(st.sampled_from(["a", "b b", 1, None]), min_size=1, max_size=3).map(lambda e: {"enum": e}),
        st.fixed_dictionaries({"anyOf": st.lists(PARTS, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"type": st.just("array"), "items": PARTS, "maxItems": st.integers(0, 3)}),
        st.dictionaries(st.sampled_from(["a", "b", "c d"]), PARTS, max_size=3).map(
            lambda p: {**CLOSED, "properties": p, "required": sorted(p)[::2]}
        ),
    )
)  # fmt: skip


@settings(max_examples=scaled(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=PARTS, kind=st.sampled_from(sorted(MAKERS)), seed=st.integers(0, 2**31))
def test_random_schemas_are_kept_to(compilers, schema, kind, seed):
    compiler = compilers[kind]
    tokens = drawn(compiler.compile(schema).matcher(), compiler.tokenizer, seed, wild=25)
    text = compiler.tokenizer.decode(tokens)
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("kind", MAKERS)
def test_no_text_of_the_schema_is_forbidden(compilers, kind):
    """Every way of cutting a valid text into tokens is allowed, token by token."""
    compiler = compilers[kind]
    tokenizer = compiler.tokenizer
    by_sign = {data.decode("latin-1"): number for number, data in enumerate(compiler._spelled.tokens)}
    value = {"name": "a b", "age": 7, "tags": ["red"], "score": -1.5e3}
    grammar = compiler.compile(SCHEMAS["fields"])
    for text in (json.dumps(value), json.dumps(value, indent=2), json.dumps(value, separators=(",", ":"))):
        ways = [[by_sign[sign] for sign in text]]
        if compiler.tokenizer.kind != "other":  # whose encoder puts a space before a text
            ways.append(tokenizer.encode(text))
        for tokens in ways:
            matcher = grammar.matcher()
            for token in tokens:
                assert matcher.mask(tokenizer.vocab_size)[token] and not matcher.complete
                assert matcher.accept(token)
            assert matcher.complete and not matcher.finished


def test_the_end_token_is_allowed_exactly_when_the_text_is_whole(compilers):
    compiler = compilers["byte-level"]
    tokenizer, end = compiler.tokenizer, compiler.tokenizer.eos_id
    matcher = compiler.compile({"type": "integer"}).matcher()
    assert not matcher.mask(tokenizer.vocab_size)[end]
    matcher.accept(tokenizer.encode("1")[0])
    assert matcher.mask(tokenizer.vocab_size)[end] and matcher.complete
    matcher.accept(tokenizer.encode("2")[0])
    other = matcher.copy()
    assert matcher.accept(end) and matcher.finished and matcher.complete
    assert not matcher.mask(tokenizer.vocab_size).any() and not matcher.accept(end)
    assert not other.finished and other.accept(tokenizer.encode("3")[0])
    assert not other.accept(tokenizer.encode("x")[0])
    assert other.error and not other.complete and not other.mask(tokenizer.vocab_size).any()


def test_a_name_has_one_spelling(compilers):
    """Escapes of what needs none would let a second value of a name past its schema."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "/": {"type": "integer"}}}
    grammar = compilers["bytes"].compile(schema)
    for text, allowed in (
        (r'{"a":1,"\u0061":"x"}', False),
        (r'{"a":1,"\/":"x"}', False),
        (r'{"a":1,"a":"x"}', False),
        (r'{"a":1,"b\n\"\\":"x"}', True),
    ):
        matcher = grammar.matcher()
        assert all(matcher.accept(byte) for byte in text.encode()) == allowed


def test_masks_are_as_wide_as_the_logits(compilers):
    compiler = compilers["bytes"]
    matcher = compiler.compile(JSON_OBJECT).matcher()
    wide, narrow = matcher.mask(1000), matcher.mask(130)
    assert wide.shape == (1000,) and not wide[258:].any() and torch.equal(wide[:130], narrow)


def test_other_end_tokens():
    tokenizer = byte_level()
    ends = [tokenizer.backend.token_to_id("<|eot_id|>"), tokenizer.backend.token_to_id("<|im_end|>")]
    compiler = GrammarCompiler(tokenizer, ends)
    matcher = compiler.compile({"const": 1}).matcher()
    assert matcher.accept(tokenizer.encode("1")[0])
    assert matcher.mask(tokenizer.vocab_size).nonzero()[:, 0].tolist() == sorted(ends)
    compiler.close()


BOMBS: dict[str, tuple[Any, str]] = {
    "loop": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "no text",
    ),
    "self": ({"$ref": "#"}, "no text"),
    "deep": ("[" * 60_000, "too deep"),
    "nested": ('{"anyOf":[' * 1000 + "{}" + "]}" * 1000, "too deep"),
    "large": ({"enum": ["x" * 100] * 1000}, "the limit is 65,536"),
    "product": (
        {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for i in range(9)]} for j in "abcdef"]},
        "schema",
    ),
    "regex": ({"type": "string", "pattern": "(a+)+$"}, "'pattern' is not taken"),
    "named regex": ({"properties": {"pattern": {"pattern": "^((a{1,100}){1,100}){1,100}$"}}}, "'pattern'"),
    "regex of names": ({"patternProperties": {"(a|b|c){1,100000}": {}}}, "'patternProperties'"),
    "hidden regex": ({"$ref": "#/default", "default": {"pattern": "(a+)+$"}}, "#/default"),
    "data as schema": ({"$ref": "#/const", "const": {"type": "string"}}, "$ref is '#/const'"),
    "settings": ({"type": "object", "x-guidance": {"whitespace_pattern": "(a+)+"}}, "'x-guidance'"),
    "file": ({"$ref": "file:///etc/passwd"}, "$ref is"),
    "repeated names": ({"type": "object", "minProperties": 2}, "minProperties cannot be kept to"),
    "not kept": ({"not": {"type": "integer"}}, "not"),
    "oneOf": ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
    "impossible": ({"type": "string", "minLength": 5, "maxLength": 3}, "Unsatisfiable"),
    "list": ("[]", "a JSON list"),
    "no JSON": ("{'a'", "not JSON"),
    "no number": ({"const": float("nan")}, "not JSON"),
    "surrogate": ({"const": "\ud800"}, "schema"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_limits(compilers, name):
    bomb, says = BOMBS[name]
    started = time.monotonic()
    with pytest.raises(Refused) as refused:
        compilers["bytes"].compile(bomb)
    assert says in str(refused.value) and len(str(refused.value)) < 500
    assert time.monotonic() - started < 10


LARGE: dict[str, dict[str, Any]] = {
    "1000 choices": {"anyOf": [{"properties": {f"k{i}": {"type": "null"}}} for i in range(1000)]},
    "1000 fields": {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1000)}},
    "long": {"type": "array", "items": {"type": "string", "maxLength": 10**9}, "minItems": 10**6},
    "5000 words": {"enum": [f"v{i}" for i in range(5000)]},
}


@pytest.mark.parametrize("name", LARGE)
def test_large_schemas_either_work_or_are_refused(compilers, name):
    compiler = compilers["bytes"]
    try:
        grammar = compiler.compile(LARGE[name])
    except Refused:
        return
    matcher, chance = grammar.matcher(), random.Random(0)
    started = time.process_time()
    for _ in range(20):
        allowed = matcher.mask(258).nonzero()[:, 0].tolist()
        if not allowed or not matcher.accept(chance.choice(allowed)) or matcher.finished:
            break
    assert time.process_time() - started < 5


KEYWORDS = (
    "type", "properties", "required", "items", "enum", "const", "anyOf", "allOf", "$ref", "$defs", "minimum",
    "maxLength", "minItems", "additionalProperties", "minProperties", "format", "prefixItems", "a",
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 9)
    | st.floats()
    | st.sampled_from(["string", "object", "#", "a"]),
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inside, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=scaled(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=4))
def test_any_json_is_compiled_or_refused(compilers, schema):
    try:
        grammar = compilers["bytes"].compile(schema)
    except Refused as refused:
        assert "schema: " in str(refused) and "\n" not in str(refused)
    else:
        assert grammar.matcher().mask(258).any()


def test_a_schema_that_kills_the_process_is_refused_and_the_next_is_compiled(monkeypatch):
    compiler = GrammarCompiler(MAKERS["bytes"]())
    compiler.compile({"type": "null"})
    os.kill(compiler._worker.pid, signal.SIGSTOP)  # no answer is ever in time
    monkeypatch.setattr(compiler._worker, "seconds", 0.1)
    with pytest.raises(Refused, match="2 s or 64 MB"):
        compiler.compile({"type": "boolean"})
    monkeypatch.undo()
    assert compiler.compile({"type": "boolean"}).matcher().mask(258).sum() == 2  # t and f
    compiler.close()


def test_grammars_are_kept_and_let_go(compilers, monkeypatch):
    compiler = compilers["chars"]
    first = compiler.compile({"const": "kept"})
    assert compiler.compile('{"const": "kept"}') is first
    monkeypatch.setattr("transom.inference.structured.CACHE_BYTES", 40)
    compiler.compile({"const": "another one"})
    assert compiler.compile({"const": "kept"}) is not first


def test_a_vocabulary_that_cannot_write_it_is_refused(compilers):
    with pytest.raises(Refused, match="cannot write JSON: it has no {"):
        compile(JSON_OBJECT, train_tokenizer("chars", iter(["abc"]), 0))
    with pytest.raises(Refused, match="cannot write 'ю'"):
        compilers["chars"].compile({"type": "object", "required": ["ю"]})


def test_rows_under_a_grammar_beside_others(compilers):
    compiler = compilers["bytes"]
    grammar = compiler.compile({"enum": ["ab"]})
    logits = torch.zeros(3, 258).index_fill(1, torch.tensor([ord("z")]), 9.0)
    free = SamplingRow(SamplingParams(temperature=0), vocab_size=258, seed=0)
    bound = SamplingRow(SamplingParams(temperature=0), vocab_size=258, seed=0, grammar=grammar.matcher())
    made = []
    for _ in range(5):
        free_token, token, ahead = choose_rows(logits, [free, bound, Place(bound, (34, 97))])
        assert free_token == ord("z")
        if not made:
            assert ahead == ord("b"), "the place after a draft that the grammar allows"
        made.append(token)
        bound.push(token)
    assert bytes(made[:4]) == b'"ab"' and made[4] == compiler.tokenizer.eos_id
    assert choose_rows(logits[:1], [bound]) == [FAILED], "after the end nothing is allowed"
