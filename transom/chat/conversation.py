"""A conversation: what was said, what of it still fits the model, and how to go back.

The one idea: nothing is dropped in silence. `fits` keeps the system text and the newest turns, drops whole
turns from the oldest on, and says which and why, in tokens; a message that does not fit alone is refused
with the numbers. Read next: memory, terminal.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from transom.data.chat_template import ChatTemplate
from transom.data.documents import printable
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.output import write_whole
from transom.units import counted

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """Something that one side said."""

    role: Role
    content: str


@dataclass(frozen=True)
class ContextWindow:
    """What the model will read: the prompt, and which messages are in it."""

    tokens: list[int]
    """The rendered prompt, the opening of the answer included."""
    messages: list[Message]
    """The messages in it, the system text first."""
    n_dropped: int
    """Messages left out, counted from the oldest."""
    max_tokens: int
    """Tokens left free for the answer."""
    limit: int
    """What the model reads and writes together."""

    @property
    def used(self) -> int:
        """Tokens spoken for: the prompt and the room for the answer."""
        return len(self.tokens) + self.max_tokens

    def __str__(self) -> str:
        n_said = sum(message.role != "system" for message in self.messages)
        kept = f"{n_said} message{'s' * (n_said != 1)} kept"
        dropped = f", the oldest {self.n_dropped} dropped" if self.n_dropped else ", none dropped"
        return (
            f"{len(self.tokens):,} of {self.limit:,} tokens read, {self.max_tokens:,} left for the answer:"
            f" {kept}{dropped}"
        )


class Conversation:
    """A system text and the messages said, the user's and the assistant's."""

    def __init__(self, system: str = "", messages: Sequence[Message] = ()) -> None:
        self.system, self.messages = system, list(messages)

    def say(self, text: str) -> None:
        """The user says something. Refused while the last message still waits for its answer."""
        if self.messages and self.messages[-1].role == "user":
            raise Refused("the last message has no answer yet; answer or edit it first")
        self.messages.append(Message("user", text))

    def answer(self, text: str) -> None:
        """The assistant answers the last message."""
        if not self.messages or self.messages[-1].role != "user":
            raise Refused("there is no message to answer; say something first")
        self.messages.append(Message("assistant", text))

    def edit(self, place: int, text: str) -> int:
        """Say message `place` differently and forget everything after it; how many messages that were."""
        if not 0 <= place < len(self.messages) or self.messages[place].role != "user":
            theirs = [i for i, message in enumerate(self.messages) if message.role == "user"]
            known = f"those are {', '.join(map(str, theirs))}" if theirs else "there is none yet"
            raise Refused(f"message {place} is not one of yours, and only yours can be edited; {known}")
        n_after = len(self.messages) - place - 1
        self.messages[place:] = [Message("user", text)]
        return n_after

    def regenerate(self) -> str:
        """Take the last answer back, so that its question waits for one again; the answer that was."""
        if not self.messages or self.messages[-1].role != "assistant":
            raise Refused("there is no answer to take back; say something first")
        return self.messages.pop().content

    def fits(
        self, template: ChatTemplate, tokenizer: Tokenizer, max_len: int, max_tokens: int, *, note: str = ""
    ) -> ContextWindow:
        """The prompt for the next answer: the system text and note, and as many of the newest turns as fit.

        A turn is a user's message with what was answered to it. The note goes below the system text, or below
        the template's own where none is given (a small model that loses that answers nonsense); where the
        template takes none, above the last message. max_len: what the model reads and writes together;
        max_tokens of it stay free. Refused where even the newest turn does not fit.
        """
        starts = [i for i, message in enumerate(self.messages) if message.role == "user"]
        if not starts:
            raise Refused("nothing was said yet; say something first")
        system, messages = self.system, self.messages
        if note:
            default = template.default_system(tokenizer)
            if default is None and not system:
                last = starts[-1]
                asked = Message("user", f"{note}\n\n{messages[last].content}")
                messages = [*messages[:last], asked, *messages[last + 1 :]]
            else:
                system = "\n\n".join(text for text in (system or default, note) if text)
        head = [Message("system", system)] if system else []

        def prompt(start: int) -> list[int]:
            said = [asdict(message) for message in head + messages[start:]]
            return template.render(said, tokenizer, add_generation_prompt=True).tokens

        # Fewer turns make a shorter prompt, so the first start that fits is found by halving.
        room = max_len - max_tokens
        first = bisect_left(starts, True, key=lambda start: len(prompt(start)) <= room)
        if first == len(starts):
            raise Refused(_too_long(len(prompt(starts[-1])), max_tokens, max_len))
        start = starts[first]
        return ContextWindow(prompt(start), head + messages[start:], start, max_tokens, max_len)

    # On disk

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"system": self.system, "messages": [asdict(message) for message in self.messages]}

    def save(self, path: str | Path) -> None:
        """Write it as JSON, for `load` and for people; the file is there whole or as it was before.

        Refused where a file lies there that is no conversation of ours: it would be lost.
        """
        path = Path(path)
        value = self.to_dict()
        if path.exists():
            try:
                self.load(path)
            except Refused:
                raise Refused(
                    f"{printable(path)}: is there already and holds no conversation; name another file"
                ) from None
        try:
            content = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError as error:
            raise Refused(f"{printable(path)}: cannot be written ({printable(str(error))})") from None
        write_whole(path, content, "/save")

    @classmethod
    def load(cls, path: str | Path) -> Conversation:
        """Read what `save` wrote. Refused where the file is missing or says something else."""
        try:
            value = json.loads(Path(path).read_bytes())
            return cls(_text(value["system"]), [_message(one) for one in value["messages"]])
        except OSError as error:
            raise Refused(f"{printable(path)}: cannot be read ({printable(error.strerror)})") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Refused(f"{printable(path)}: not a conversation that was saved here") from None


def _message(value: Any) -> Message:
    if value["role"] not in ("user", "assistant"):
        raise ValueError(value["role"])
    return Message(value["role"], _text(value["content"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _too_long(n_prompt: int, max_tokens: int, limit: int) -> str:
    over = n_prompt + max_tokens - limit
    less = f" or set max_tokens to at most {limit - n_prompt}" if n_prompt < limit else ""
    return (
        f"the last message makes a prompt of {counted(n_prompt, 'token')}, and max_tokens is {max_tokens}:"
        f" together {n_prompt + max_tokens}, where this model's limit (max_len) is {limit}; shorten it by"
        f" {counted(over, 'token')}{less}"
    )
