"""Tools for a template that writes none: described once, nothing of the conversation lost."""

from __future__ import annotations

import json

import pytest

from transom.server.tool_calls import HERMES, calls_in
from transom.server.tools_in_words import in_call_order, in_words, writes_tools

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": "é"}'}}
TALK = [
    {"role": "user", "content": "2 and 2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "4"},
]


@pytest.mark.parametrize("template", ["{% if tools %}", "{{- tools | tojson }}", "{%- for tool in tools -%}"])
def test_a_template_that_writes_tools_is_told_by_their_name(template: str):
    assert writes_tools(template) and not writes_tools(template.replace("tools", "toolset"))


def test_what_is_described_goes_below_the_templates_own_text():
    system, *rest = in_words(TALK, [TOOL], "Be kind.")
    assert system["role"] == "system" and system["content"].startswith("Be kind.\n\n# Tools")
    assert json.dumps(TOOL) in system["content"] and len(rest) == 3
    given = in_words([{"role": "system", "content": "Be brief."}, *TALK], [TOOL], "Be kind.")
    assert given[0]["content"].startswith("Be brief.\n\n# Tools") and len(given) == 4
    untold = in_words(TALK, [TOOL], None)
    assert untold[0]["role"] == "user" and untold[0]["content"].endswith("\n\n2 and 2?") and len(untold) == 3


def test_calls_and_results_are_written_and_read_back():
    _, called, result = in_words(TALK, None, "")
    assert called["role"] == "assistant" and result["role"] == "user" and "4" in result["content"]
    written = called["content"].removeprefix(HERMES.opener).removesuffix(HERMES.closer)
    first, second = written.split(f"{HERMES.closer}\n{HERMES.opener}")
    for one in (first, second):
        (found,) = calls_in(one, HERMES)
        assert json.loads(found["function"]["arguments"]) == {"a": 2, "b": "é"}


def test_results_stand_in_the_order_of_their_calls():
    calls = [{**CALL, "id": name} for name in "abc"]
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in "cab"]
    talk = [TALK[0], {"role": "assistant", "tool_calls": calls}, *results, TALK[0], *TALK[1:]]
    ordered = in_call_order(talk)
    assert [message["content"] for message in ordered[2:5]] == ["a", "b", "c"]
    assert ordered[:2] == talk[:2] and ordered[5:] == talk[5:]
