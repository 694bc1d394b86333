"""Ollama's template is read off the model's own, or left out; a Modelfile has every stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transom.data.chat_template import BUILTIN, ChatTemplate
from transom.data.modelfile import modelfile, scaffold_of
from transom.data.tokenizer import Tokenizer, train_tokenizer

TEMPLATES = Path(__file__).parent / "chat_templates"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("bytes", iter([""]), 258)


SMOLLM2 = """{% for message in messages %}
{%- if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are SmolLM<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
LLAMA3 = """{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""  # noqa: E501
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"""  # noqa: E501


def test_chatml_in_the_language_of_ollama(tokenizer: Tokenizer) -> None:
    found = scaffold_of(ChatTemplate(BUILTIN["chatml"]), tokenizer)
    assert found is not None
    assert found.around["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert found.in_go() == (
        '{{- range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else }}{{ if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}{{ end }}{{ end }}<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", [SMOLLM2, LLAMA3, MISTRAL, BUILTIN["chatml"], BUILTIN["plain"]])
def test_pieces_write_what_the_template_writes(text: str, tokenizer: Tokenizer) -> None:
    template = ChatTemplate(text)
    found = scaffold_of(template, tokenizer)
    assert found is not None
    talk = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "sure?"},
    ]
    assert found.write(talk) == template.text_of(talk, tokenizer)
    if "system" in found.around:
        brief = [{"role": "system", "content": "Be brief."}, *talk]
        assert found.write(brief) == template.text_of(brief, tokenizer)


def test_the_default_system_text_is_said(tokenizer: Tokenizer) -> None:
    found = scaffold_of(ChatTemplate(SMOLLM2), tokenizer)
    assert found is not None and found.default_system == "You are SmolLM"
    text = modelfile(found, file="model.gguf", stops=["<|im_end|>", 'a "b"'], parameters={"temperature": 0.2},
                     chats=True)  # fmt: skip
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{- range .Messages }}')
    assert text.endswith(
        'SYSTEM """You are SmolLM"""\nPARAMETER temperature 0.2\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "a \\"b\\""\n'
    )


def with_begin(tokenizer: Tokenizer, *, puts: bool) -> Tokenizer:
    """The same with <|im_start|> as begin token; puts: before every text."""
    spec = json.loads(tokenizer.json_text)
    spec["added_tokens"].append({**spec["added_tokens"][0], "content": "<|im_start|>", "id": 258})
    if puts:
        first = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        ids = {"<|im_start|>": {"id": "<|im_start|>", "ids": [258], "tokens": ["<|im_start|>"]}}
        spec["post_processor"] = {"type": "TemplateProcessing", "single": [first, text],
                                  "pair": [first, text, text], "special_tokens": ids}  # fmt: skip
    return Tokenizer(json.dumps(spec), {**tokenizer.config, "bos_token": "<|im_start|>"})


def test_a_begin_token_is_left_out_only_where_it_is_put_anyway(tokenizer: Tokenizer) -> None:
    found = scaffold_of(ChatTemplate(SMOLLM2), with_begin(tokenizer, puts=False))
    assert found is not None and "<|im_start|>system\n{{ .Content }}" in found.in_go()
    for puts, opening in ((False, "<|im_start|>{{- range"), (True, "{{- range")):
        found = scaffold_of(ChatTemplate(LLAMA3), with_begin(tokenizer, puts=puts))
        assert found is not None and found.in_go().startswith(opening)


@pytest.mark.parametrize("text", [
    "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.role }}{{ m.content | upper }}{% endfor %}",
    "{{ raise_exception('not today') }}",
    "{{ messages[-1].content }}",
])  # fmt: skip
def test_a_template_that_does_more_is_left_to_ollama(text: str, tokenizer: Tokenizer) -> None:
    assert scaffold_of(ChatTemplate(text), tokenizer) is None


def test_a_model_without_template_goes_on_with_a_text() -> None:
    text = modelfile(None, file="model.gguf", stops=["<|endoftext|>"], parameters={}, chats=False)
    assert text == 'FROM ./model.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER stop "<|endoftext|>"\n'
    assert "TEMPLATE" not in modelfile(None, file="model.gguf", stops=[], parameters={}, chats=True)
