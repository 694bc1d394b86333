"""Preferences to learn: a prompt with an answer that was chosen and one that was rejected, whatever the file.

The one idea: a pair is two conversations with the same prompt; what they share is never learned, what follows
is. Answers are texts, messages, or whole conversations, which part behind what both begin with (as Anthropic
HH has them). Pairs that open alike are held out together. Read next: conversations, answer_rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from transom.data.answer_rows import Talk
from transom.data.conversations import (
    Clean,
    Conversation,
    ConversationReader,
    ConversationSource,
    Fault,
    Message,
    json_of,
    messages_of,
    opened,
    with_system,
)
from transom.data.formats import Columns
from transom.data.rows import type_name

SIDES = ("chosen", "rejected")
ASKED = ("conversations", "prompt")
"""The fields that may hold what is asked, the first that does."""
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
"""What begins a turn of a conversation that is written as one text (Bai et al. 2022, Anthropic HH)."""


def open_preferences(
    source: str, *, fields: Columns | None = None, on_error: str = "error"
) -> ConversationSource:
    """Open preference pairs: JSON lines, an array, CSV, TSV, Parquet, standard input or a set of the hub.

    `fields` names columns for fields that are called otherwise. Raises Refused where none are found.
    """
    return opened(source, "preference", _PairReader, SIDES, both_talks, fields or {}, on_error)


def both_talks(example: Conversation) -> tuple[Talk, ...]:
    """The conversation that was chosen and the one that was rejected, as the template takes them: of what
    they share no answer is learned.
    """
    pair = json.loads(example.talk)
    shared = [{**one, "weight": 0} if one["role"] == "assistant" else one for one in pair["messages"]]
    return tuple(Talk([*shared, *pair[side]]) for side in SIDES)


class _PairReader(ConversationReader):
    """Reads all pairs of a file once."""

    def talk(self, values: dict[str, Any], clean: Clean) -> tuple[dict[str, Any], bool]:
        """The prompt of a row as messages and both answers, and whether to keep them. Raises Fault."""
        self.refuse_missing(values)
        try:
            prompt = self._prompt(values)
            sides = {side: self._answer(values, side, bool(prompt)) for side in SIDES}
            if any(said[0]["role"] != "assistant" for said in sides.values()):
                prompt, sides = self._parted(values, prompt, sides)
            if not prompt:
                raise Fault("pairs without a prompt", "it has no prompt", {"prompt": "..."})
            for side, said in sides.items():
                if said[0]["role"] != "assistant" or not said[0].get("weight", 1):
                    says = f"'{self.columns[side]}' has no message of the assistant behind the prompt"
                    raise Fault("pairs without an answer", says, {side: self.kind.example[side]})
            asked = next(self.columns[name] for name in (*ASKED, *SIDES) if name in self.columns)
            prompt, ok = self.cleaned(with_system(prompt, values), lambda *_: asked, clean)
            pair: dict[str, Any] = {"messages": prompt}
            for side, said in sides.items():
                pair[side], fit = self.cleaned(said, lambda *_, side=side: self.columns[side], clean)
                ok = ok and fit
            return pair, ok
        except Fault as fault:
            raise Fault(fault.kind, fault.says, {**values, **fault.mended}) from None

    def _prompt(self, values: Mapping[str, Any]) -> list[Message]:
        """What is asked, as messages; none where the answers hold it."""
        field = next((name for name in ASKED if values.get(name) not in (None, "", [])), None)
        if field is None:
            return []
        value = values[field]
        if isinstance(value, str) and field == "prompt":
            if not value.strip():
                says = f"'{self.columns[field]}' holds nothing but white space"
                raise Fault("empty fields", says, {field: self.kind.example["prompt"]})
            return _turns(value) or [{"role": "user", "content": value}]
        name = self.columns[field]
        return messages_of(json_of(value, name, self.kind.example), name, field, self.kind.example)

    def _answer(self, values: Mapping[str, Any], side: str, asked: bool) -> list[Message]:
        """One side, as messages: an answer, or a whole conversation."""
        value, name = values[side], self.columns[side]
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, str):
            if not value.strip():
                says = f"'{name}' holds nothing but white space"
                raise Fault("empty fields", says, {side: self.kind.example[side]})
            if not asked and (turns := _turns(value)):
                return turns
            if not asked:
                says = f"'{name}' is an answer, and there is no prompt"
                raise Fault("pairs without a prompt", says, {"prompt": self.kind.example["prompt"]})
            return [{"role": "assistant", "content": value}]
        if not isinstance(value, dict | list):
            says = f"'{name}' is {type_name(value)}, neither text nor messages"
            raise Fault("fields that are not text", says, {side: self.kind.example[side]})
        items = [value] if isinstance(value, dict) else value
        return messages_of(items, name, side, self.kind.example)

    def _parted(
        self, values: Mapping[str, Any], prompt: list[Message], sides: Mapping[str, list[Message]]
    ) -> tuple[list[Message], dict[str, list[Message]]]:
        """What two whole conversations share, and how each goes on. Raises Fault."""
        one, other = sides.values()
        most = min(len(one), len(other)) - 1
        n = next((at for at in range(most) if one[at] != other[at]), most)
        shared = one[:n]
        if prompt and not all(message in shared for message in prompt):
            says = f"'{self.columns['chosen']}' is a whole conversation, and does not begin with the prompt"
            raise Fault("prompts that differ", says, {side: self.kind.example[side] for side in SIDES})
        if any(said[n]["role"] != "assistant" for said in (one, other)):
            says = f"the two conversations part at a message of the {one[n]['role']}, not at an answer"
            mended = {"prompt": "...", **{side: said[-1]["content"] for side, said in sides.items()}}
            raise Fault("pairs with two prompts", says, mended)
        return shared, {side: said[n:] for side, said in sides.items()}


def _turns(text: str) -> list[Message]:
    """The messages of a conversation that is written as one text; none where it is not."""
    marks = list(TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip() or marks[0].group(1) != "Human":
        return []
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    said = [(roles[mark.group(1)], text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]
    return [{"role": role, "content": content.strip()} for role, content in said if content.strip()]
