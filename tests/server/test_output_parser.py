"""Answers taken apart: reasoning, content and calls, whole and in pieces of any size."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transom.server.output_parser import OutputParser, ParsedOutput, parsed
from transom.server.tool_calls import HERMES, LLAMA, MISTRAL, CallSyntax, syntax_of

CALL = '<tool_call>\n{"name": "f", "arguments": {"city": "Zürich"}}\n</tool_call>'
ANSWERS: dict[str, tuple[CallSyntax | None, str, str, str, list[str]]] = {
    "text": (HERMES, "Plain text.\n", "", "Plain text.\n", []),
    "call": (HERMES, CALL, "", "", ["f"]),
    "text and call": (HERMES, f"Well. {CALL}\n", "", "Well.", ["f"]),
    "two calls": (HERMES, f"{CALL}\n{CALL}", "", "", ["f", "f"]),
    "text between and after": (HERMES, f"One {CALL} two {CALL} three", "", "One two three", ["f", "f"]),
    "not closed": (HERMES, CALL.removesuffix("\n</tool_call>"), "", "", ["f"]),
    "thought": (HERMES, "<think>\nhm\n</think>\n\nyes", "hm", "yes", []),
    "thought and called": (HERMES, f"\n<think>hm</think>\nWell.\n{CALL}", "hm", "Well.", ["f"]),
    "only thought": (HERMES, "<think>hm, so", "hm, so", "", []),
    "a thought that is none": (HERMES, "Say <think>hm</think>", "", "Say <think>hm</think>", []),
    "no tools": (None, CALL, "", CALL, []),
    "Mistral's list": (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": 1}}]',
        "",
        "",
        ["f", "g"],
    ),
    "Mistral's names": (MISTRAL, 'So: [TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{}', "", "So:", ["f", "g"]),
    "Llama's bare object": (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", "", ["f"]),
    "Llama's two": (LLAMA, '{"name": "f", "parameters": {}}; {"name": "g"}', "", "", ["f", "g"]),
    "Llama's token": (LLAMA, 'So <|python_tag|>{"name": "f", "parameters": {}}', "", "So", ["f"]),
    "Llama's answer in JSON": (LLAMA, '{"name": "Ann", "age": 5}', "", '{"name": "Ann", "age": 5}', []),
}  # fmt: skip


def reader(syntax: CallSyntax | None, **more: Any) -> OutputParser:
    return OutputParser(syntax=syntax, names=("f", "g"), thinks=True, **more)


def in_pieces(parser: OutputParser, text: str, size: int) -> ParsedOutput:
    said = ParsedOutput()
    for at in range(0, len(text), size):
        said.add(parser.push(text[at : at + size]))
    said.add(parser.finish())
    return said


def plain(said: ParsedOutput) -> tuple[str, str, list[tuple[str, str]]]:
    return said.reasoning, said.content, [tuple(call["function"].values()) for call in said.calls]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_taken_apart(name: str, size: int):
    syntax, text, reasoning, content, called = ANSWERS[name]
    said = in_pieces(reader(syntax), text, size)
    assert (said.reasoning, said.content) == (reasoning, content)
    assert [call["function"]["name"] for call in said.calls] == called


PARTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, "<", " ", "\n", "a", "{}",
         '{"name": "f"}', "<|python_tag|>", "[TOOL_CALLS]"]  # fmt: skip


@given(
    st.lists(st.sampled_from(PARTS), max_size=12),
    st.integers(1, 7),
    st.sampled_from([HERMES, MISTRAL, LLAMA, None]),
    st.booleans(),
)  # fmt: skip
def test_pieces_are_the_whole(parts: list[str], size: int, syntax: CallSyntax | None, opened: bool):
    text = "".join(parts)
    whole = parsed(reader(syntax, opened=opened), text)
    assert plain(in_pieces(reader(syntax, opened=opened), text, size)) == plain(whole)


@given(st.text(alphabet="<tool_ca/>{}[TOOL_S] \n", max_size=80), st.sampled_from([HERMES, MISTRAL, LLAMA]))
@example(" {", LLAMA)
def test_text_without_a_call_is_told_as_it_is(text: str, syntax: CallSyntax):
    assert parsed(OutputParser(syntax=syntax, names=("f",)), text) == ParsedOutput(content=text)


def test_a_call_has_its_arguments_as_json():
    call = parsed(reader(HERMES), CALL).calls[0]
    assert call["function"] == {"name": "f", "arguments": '{"city": "Zürich"}'}
    assert call["type"] == "function" and call["id"].startswith("call_")
    short = parsed(reader(MISTRAL), '[TOOL_CALLS] [{"name": "f", "arguments": {}}]').calls[0]["id"]
    assert len(short) == 9 and short.isalnum()  # or its template turns the conversation down


def test_one_call_where_one_is_wanted():
    said = parsed(OutputParser(syntax=HERMES, names=("f",), parallel=False), f"{CALL}{CALL}")
    assert len(said.calls) == 1 and not said.content


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "<tool_call>",
        "<tool_call>{</tool_call>",
        "<tool_call>[]</tool_call>",
        "</tool_call><tool_call>",
        '<tool_call>{"name": 5}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"half": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "f\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>',
        "<tool_call>" * 50 + "[" * 50_000,
    ],
)
def test_what_is_no_call_stays_text(text: str):
    assert parsed(reader(HERMES), text) == ParsedOutput(content=text)


def test_text_that_cannot_begin_a_call_goes_out_at_once():
    parser = reader(HERMES)
    told = [parser.push(piece).content for piece in ("The", " crow", " <", "to", "ol", " is", " <tool_call>")]
    assert told == ["The", " crow", "", "", "", " <tool is", ""]
    assert reader(LLAMA).push('{"age": 5, "name": "Ann", "more": 6}').content != ""


LONG = {
    "white space": " " * 90_000,
    "openers": "<tool_call>" * 9_000,
    "calls of nothing": "<tool_call></tool_call> " * 5_000,
    "half markers": "<tool_call" * 9_000,
    "thought": "<think>" + " \n" * 45_000,
    "brackets": "[" * 90_000,
    "braces": "{" + " " * 90_000,
    "names": "[TOOL_CALLS]" + "f" * 90_000,
    "digits": '<tool_call>{"name": ' + "1" * 90_000 + "</tool_call>",
}


@pytest.mark.parametrize("syntax", [HERMES, MISTRAL, LLAMA], ids=["Hermes", "Mistral", "Llama"])
@pytest.mark.parametrize("name", LONG)
def test_taking_apart_is_linear_in_the_text(name: str, syntax: CallSyntax):
    for size in (16, 1 << 20):
        began = time.process_time()
        in_pieces(reader(syntax), LONG[name], size)
        assert time.process_time() - began < 1  # quadratic time would be minutes


@pytest.mark.parametrize(
    ("template", "syntax"),
    [
        ("{{ '<tool_call>' + (call | tojson) + '</tool_call>' }} \"parameters\": ", HERMES),
        ("{{ '[TOOL_CALLS] [' }}", MISTRAL),
        ("{{ '<|python_tag|>' }}", LLAMA),
        ('{{ \'{"name": "\' + name + \'", "parameters": \' }}', LLAMA),
        ("{{ message.content }}", HERMES),
    ],
)
def test_the_template_says_how_calls_are_written(template: str, syntax: CallSyntax):
    assert syntax_of(template) is syntax


def test_what_is_told_is_json():
    for name in ANSWERS:
        syntax, text, *_ = ANSWERS[name]
        for call in parsed(reader(syntax), text).calls:
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
