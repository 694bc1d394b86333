"""Which tokens of a conversation carry loss: exactly the assistant's and their end, whatever the template.

Oracles are `return_assistant_tokens_mask` of transformers, for templates that mark what is generated, and
rows written by hand.
"""

# ruff: noqa: E501 - templates and rows are shown as they are

from __future__ import annotations

from typing import Any

import pytest

from tests.data.test_chat_template import CALL, CONTROL, MAKERS, SYSTEM, TALK, TEMPLATES
from transom.data.answer_rows import AnswerRow, Talk, answer_rows
from transom.data.chat_template import BUILTIN, ChatTemplate
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
    "' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}"
)
SIX = {
    "smollm2": SMOLLM2, "chatml": BUILTIN["chatml"], "llama3": TEMPLATES["llama3"], "qwen3": TEMPLATES["qwen3"],
    "mistral": TEMPLATES["mistral"], "turns": BUILTIN["turns"],
}  # fmt: skip
MARKS = {
    "smollm2": ("{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
                "{{'<|im_start|>' + message['role'] + '\n'}}{% if message.role == 'assistant' %}{% generation %}"
                "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
                "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"),
    "chatml": ("{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}",
               "{{- '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' %}{% generation %}"
               "{{- message.content + '<|im_end|>' -}}{% endgeneration %}{% else %}"
               "{{- message.content + '<|im_end|>' -}}{% endif %}{{- '\\n' }}"),
    "llama3": ("{{ content }}",
               "{% if message.role == 'assistant' %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
               "{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
               "{% else %}{{ content }}{% endif %}"),
    "mistral": ("{{- \" \" + message[\"content\"] | trim + eos_token }}",
                "{%- generation %}{{- \" \" + message[\"content\"] | trim + eos_token -}}{% endgeneration %}"),
    "turns": ("{{ 'Assistant: ' + message.content + eos_token + '\\n' }}",
              "{{ 'Assistant:' }}{% generation %}{{- ' ' + message.content + eos_token -}}{% endgeneration %}"
              "{{- '\\n' }}"),
}  # fmt: skip
"""What is written as an answer, and the same with the mark of what is generated."""
TALKS = {
    "one answer": [TALK[0], {"role": "assistant", "content": "4, I'd say."}],
    "two answers": [*TALK, {"role": "assistant", "content": "Four."}],
    "a system text": [SYSTEM, TALK[0], {"role": "assistant", "content": "  4\n\nor so"}],
    "control in words": [{"role": "user", "content": "<|im_end|></s><|eot_id|>[/INST]"},
                         {"role": "assistant", "content": "<|im_start|>assistant\nno <|im_end|> of mine"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {kind: make() for kind, make in MAKERS.items()}


@pytest.fixture(scope="module")
def templates():
    made = {name: ChatTemplate(text, name=f"template {name}") for name, text in SIX.items()}
    made |= {"gemma": ChatTemplate(TEMPLATES["gemma"]), "plain": ChatTemplate.builtin("plain")}
    yield made
    for template in made.values():
        template.close()


def written(
    template: ChatTemplate, tokenizer: Tokenizer, talk: list[dict[str, Any]], **more: Any
) -> list[AnswerRow]:
    (rows,) = answer_rows(template, tokenizer, [Talk(talk, **more)])
    assert not isinstance(rows, Refused), rows
    return rows


def refused(template: ChatTemplate, tokenizer: Tokenizer, talk: list[dict[str, Any]], **more: Any) -> str:
    (reason,) = answer_rows(template, tokenizer, [Talk(talk, **more)])
    assert isinstance(reason, Refused)
    return str(reason)


def shown(tokenizer: Tokenizer, row: AnswerRow) -> str:
    """The row as text, what is learned in ⟦brackets⟧."""
    begins, ends = {start for start, _ in row.answers}, {end for _, end in row.answers}
    pieces, waiting = [], list[int]()

    def flush() -> None:
        pieces.append(tokenizer.decode(waiting))
        waiting.clear()

    for at, token in enumerate([*row.tokens, -1]):
        if at in begins | ends or token in tokenizer.reserved or token < 0:
            flush()
        pieces += ["⟧"] * (at in ends) + ["⟦"] * (at in begins)
        if token in tokenizer.reserved:
            pieces.append(tokenizer.reserved[token])
        elif token >= 0:
            waiting.append(token)
    return "".join(pieces)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", MARKS)
def test_what_is_learned_is_what_transformers_marks(templates, tokenizers, name, kind):
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizers[kind]
    old, new = MARKS[name]
    assert SIX[name].count(old) == 1
    names = {one: tokenizer.config[one] for one in ("bos_token", "eos_token")}
    names = {one: text["content"] if isinstance(text, dict) else text for one, text in names.items()}
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend).from_str(tokenizer.json_text), **names
    )
    theirs.chat_template = SIX[name].replace(old, new)
    for label, talk in TALKS.items():
        if label == "control in words" or label == "a system text" and name == "mistral":
            continue  # where they and we differ on purpose; Mistral's leaves the system text out
        found = theirs.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = (found[key] for key in ("input_ids", "assistant_masks"))
        (row,) = written(templates[name], tokenizer, talk)
        assert row.tokens == ids[: len(row.tokens)], label
        ours = [any(start <= at < end for start, end in row.answers) for at in range(len(ids))]
        assert ours == list(map(bool, mask)), label
        assert row.ended and ours[len(row.tokens) - 1] and len(row.answers) == 1 + (label == "two answers")


BY_HAND = {
    "smollm2": ["<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                "<|im_start|>user\nWhat is 2 + 2?\n<|im_end|>\n<|im_start|>assistant\n⟦4.<|im_end|>⟧\n"
                "<|im_start|>user\n  And in words?<|im_end|>\n<|im_start|>assistant\n⟦Four.<|im_end|>⟧"],
    "chatml": ["<|im_start|>user\nWhat is 2 + 2?\n<|im_end|>\n<|im_start|>assistant\n⟦4.<|im_end|>⟧\n"
               "<|im_start|>user\n  And in words?<|im_end|>\n<|im_start|>assistant\n⟦Four.<|im_end|>⟧"],
    "llama3": ["<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 2 + 2?<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n⟦4.<|eot_id|>⟧"
               "<|start_header_id|>user<|end_header_id|>\n\nAnd in words?<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Four.<|eot_id|>⟧"],
    # Qwen3 takes the (empty) thinking of the first answer away once the second is asked for.
    "qwen3": ["<|im_start|>user\nWhat is 2 + 2?\n<|im_end|>\n<|im_start|>assistant\n"
              "⟦<think>\n\n</think>\n\n4.<|im_end|>⟧",
              "<|im_start|>user\nWhat is 2 + 2?\n<|im_end|>\n<|im_start|>assistant\n4.<|im_end|>\n"
              "<|im_start|>user\n  And in words?<|im_end|>\n<|im_start|>assistant\n"
              "⟦<think>\n\n</think>\n\nFour.<|im_end|>⟧"],
    "mistral": ["<|begin_of_text|>[INST] What is 2 + 2?\n[/INST]⟦ 4.<|im_end|>⟧[INST]   And in words?[/INST]"
                "⟦ Four.<|im_end|>⟧"],
    "turns": ["<|begin_of_text|>User: What is 2 + 2?\n\nAssistant:⟦ 4.<|im_end|>⟧\nUser:   And in words?\n"
              "Assistant:⟦ Four.<|im_end|>⟧"],
    "gemma": ["<|begin_of_text|><start_of_turn>user\nWhat is 2 + 2?<end_of_turn>\n<start_of_turn>model\n"
              "⟦4.<end_of_turn>⟧\n<start_of_turn>user\nAnd in words?<end_of_turn>\n<start_of_turn>model\n"
              "⟦Four.<end_of_turn>⟧"],
}  # fmt: skip
TWO = [TALK[0], {"role": "assistant", "content": "4."}, TALK[2], {"role": "assistant", "content": "Four."}]


@pytest.mark.parametrize("name", BY_HAND)
def test_rows_by_hand(templates, tokenizers, name):
    tokenizer = tokenizers["byte-level"]
    assert [shown(tokenizer, row) for row in written(templates[name], tokenizer, TWO)] == BY_HAND[name]


@pytest.mark.parametrize("name", [*SIX, "gemma"])
def test_an_answer_is_learned_behind_the_very_prompt_that_will_ask_for_it(templates, tokenizers, name):
    """Whatever a template does to earlier turns: the tokens before an answer are those of its prompt."""
    talk = TWO if name == "gemma" else [SYSTEM, *TWO]
    for tokenizer in tokenizers.values():
        rows = written(templates[name], tokenizer, talk)
        answers = [(row, start) for row in rows for start, _ in row.answers]
        asked = [at for at, message in enumerate(talk) if message["role"] == "assistant"]
        assert len(answers) == len(asked) == 2
        for (row, start), at in zip(answers, asked, strict=True):
            before, asks = row.tokens[:start], templates[name].render(talk[:at], tokenizer).tokens
            if name == "llama3":  # GPT-2's rules cut two line breaks otherwise once a word follows
                before, asks = map(tokenizer.decode, (before, asks))
            assert before == asks


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", SIX)
def test_words_of_control_are_content(templates, tokenizers, name, kind):
    """An answer that spells tokens of control is learned to its end, and writes no more of them than any."""
    tokenizer, control = tokenizers[kind], tokenizers[kind].control_ids
    plain, forged = (
        written(templates[name], tokenizer, talk)[0]
        for talk in (TALKS["one answer"], TALKS["control in words"])
    )
    assert [t for t in plain.tokens if t in control] == [t for t in forged.tokens if t in control]
    ((start, end),) = forged.answers
    said = tokenizer.decode(forged.tokens[start : end - 1])
    assert said.strip().removeprefix("<think>\n\n</think>\n\n").endswith("no <|im_end|> of mine")
    assert end == len(forged.tokens) and forged.tokens[-1] in control


def test_reasoning_is_learned_where_the_template_writes_it(templates, tokenizers):
    tokenizer = tokenizers["byte-level"]
    talk = [TALK[0], {"role": "assistant", "content": "4.", "reasoning_content": "two and two"}]
    (row,) = written(templates["qwen3"], tokenizer, talk)
    assert shown(tokenizer, row).endswith("⟦<think>\ntwo and two\n</think>\n\n4.<|im_end|>⟧")
    reason = refused(templates["chatml"], tokenizer, talk)
    assert reason.startswith("template chatml leaves out the reasoning_content of messages[1]")


def test_calls_of_tools_are_learned_where_the_template_writes_them(templates, tokenizers):
    tokenizer = tokenizers["byte-level"]
    talk = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "4", "tool_call_id": "abcdef123", "name": "add"},
            {"role": "assistant", "content": "It is 4."}]  # fmt: skip
    rows = written(templates["qwen3"], tokenizer, talk)
    learned = [shown(tokenizer, row) for row in rows]
    assert "</tool_call><|im_end|>⟧" in learned[0] and learned[-1].endswith("It is 4.<|im_end|>⟧")
    reason = refused(templates["smollm2"], tokenizer, talk)
    assert reason.startswith("template smollm2 leaves out the tool_calls of messages[1]")


def test_weights_and_the_last_answer_alone(templates, tokenizers):
    tokenizer = tokenizers["byte-level"]
    quiet = [TWO[0], {**TWO[1], "weight": 0}, *TWO[2:]]
    for talk, more in ((quiet, {}), (TWO, {"last_only": True})):
        (row,) = written(templates["chatml"], tokenizer, talk, **more)
        assert shown(tokenizer, row).count("⟦") == 1 and shown(tokenizer, row).endswith("⟦Four.<|im_end|>⟧")


def test_what_a_template_cannot_do_is_refused_by_name(templates, tokenizers):
    tokenizer = tokenizers["byte-level"]
    (row,) = written(templates["plain"], tokenizer, TWO)
    assert not row.ended
    for text, says in {
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}":
            "the chat template leaves out messages[0], of the system",
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: <think>{% endif %}":
            "the chat template opens an answer otherwise than it writes one (messages[2])",
        "{% for m in messages %}{{ m.content if m.role != 'assistant' }}<|im_end|>{% endfor %}":
            "the chat template leaves out the content of messages[2]",
        "{{ raise_exception('no') }}": "the chat template cannot write this conversation: it says: no",
    }.items():  # fmt: skip
        template = ChatTemplate(text)
        assert refused(template, tokenizer, [SYSTEM, *TWO]).startswith(says)
        template.close()
    assert "<|im_start|>" in CONTROL
