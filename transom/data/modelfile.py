"""A Modelfile: what Ollama is told of a model besides its GGUF file, chat template and all.

Ollama writes conversations by a template of Go. Ours is found by experiment: what the model's own template
writes before and after the words of each speaker is read off a few conversations with marks for words, and
believed only where putting those pieces together writes other conversations just so. Source:
docs/modelfile.md and docs/template.md of Ollama. Read next: chat_template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transom.data.chat_template import ChatTemplate
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused

PARAMETERS = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "num_ctx")
WORDS = {"system": "<what the system says>", "user": "<what the user says>", "assistant": "<the answer>"}


@dataclass(frozen=True)
class Scaffold:
    """What a template writes around the words of each speaker, and where an answer begins."""

    around: Mapping[str, tuple[str, str]]
    """Role -> before and after its words."""
    opening: str
    """Before everything (a begin token)."""
    answer: str
    """Where an answer begins."""
    default_system: str
    """The system text where none is given; empty: none."""
    begin: str
    """The begin token, where whoever reads the GGUF file puts it before a text by himself."""

    def write(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation that waits for an answer, as text."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        parts = [self.around[one["role"]][0] + one["content"] + self.around[one["role"]][1]
                 for one in messages]  # fmt: skip
        return self.opening + "".join(parts) + self.answer

    def in_go(self) -> str:
        """The template in Go's language, without a begin token that the reader of the GGUF file puts."""
        branches = [
            f'{{{{ if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for role, (before, after) in self.around.items()
        ]
        told = "{{ else }}".join(branches) + "{{ end }}" * len(branches)
        opening = self.opening.removeprefix(self.begin)
        return f"{opening}{{{{- range .Messages }}}}{told}{{{{ end }}}}{self.answer}"


def scaffold_of(template: ChatTemplate, tokenizer: Tokenizer) -> Scaffold | None:
    """What a template writes around words; None where that is not all that it does."""
    try:
        found = _read_off(template, tokenizer)
        if found is not None and all(
            found.write(talk) == template.text_of(talk, tokenizer) for talk in _conversations(found)
        ):
            return found
    except Refused:  # it turns a conversation down, one without a system text for instance
        pass
    return None


def _say(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": WORDS[role]} for role in roles]


def _conversations(scaffold: Scaffold) -> list[list[dict[str, str]]]:
    turns = ("user", "assistant", "user", "assistant", "user")
    talks = [_say("user"), _say(*turns)]
    return talks + [_say("system", *turns)] if "system" in scaffold.around else talks


def _read_off(template: ChatTemplate, tokenizer: Tokenizer) -> Scaffold | None:
    user, answer = WORDS["user"], WORDS["assistant"]
    waiting = template.text_of(_say("user"), tokenizer)
    silent = template.text_of(_say("user"), tokenizer, add_generation_prompt=False)
    first, _, after_user = silent.partition(user)
    ended = template.text_of(_say("user", "assistant"), tokenizer, add_generation_prompt=False)
    after_answer = ended.partition(answer)[2]
    between = ended.partition(user)[2].partition(answer)[0]
    more = template.text_of(_say("user", "assistant", "user"), tokenizer, add_generation_prompt=False)
    before_user = more.partition(answer)[2].partition(user)[0].removeprefix(after_answer)
    if not (waiting.startswith(silent) and between.startswith(after_user) and first.endswith(before_user)):
        return None
    opening = first.removesuffix(before_user)
    around = {"user": (before_user, after_user),
              "assistant": (between.removeprefix(after_user), after_answer)}  # fmt: skip
    default = template.default_system(tokenizer)
    begins = tokenizer.bos_id is not None and tokenizer.frame[0] == (tokenizer.bos_id,)
    begin = tokenizer.token(tokenizer.bos_id) if begins and tokenizer.bos_id is not None else ""
    if default is not None:
        told = template.text_of(_say("system", "user"), tokenizer, add_generation_prompt=False)
        before, _, rest = told.partition(WORDS["system"])
        after = rest.partition(user)[0].removesuffix(before_user)
        own = begin if default else opening
        own = own if before.startswith(own) else ""
        around = {"system": (before.removeprefix(own), after), **around}
        opening = own if default else opening
    return Scaffold(around, opening, waiting.removeprefix(silent), default or "", begin)


def modelfile(
    scaffold: Scaffold | None, *, file: str, stops: Sequence[str], parameters: Mapping[str, Any], chats: bool
) -> str:
    """The text of a Modelfile beside a GGUF file of this name.

    scaffold: None where a chat template is left to Ollama, which knows many by their text. parameters: names
    out of PARAMETERS. chats: whether the model has a chat template; one that has none goes on with a text.
    """
    lines = [f"FROM ./{file}"]
    if scaffold is not None:
        lines.append(f'TEMPLATE """{scaffold.in_go()}"""')
        if scaffold.default_system:
            lines.append(f'SYSTEM """{scaffold.default_system}"""')
    elif not chats:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"
