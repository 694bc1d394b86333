"""Conversations as rows of tokens, and which of them are an answer's: those alone carry loss.

The one idea: an answer is what the template writes behind the prompt that a model is given for it, up to the
control token that ends it; so what is learned is what will be asked for, whatever the template. Where a
template writes earlier turns otherwise once later ones follow (Qwen3 takes their thinking away, Mistral moves
the system text), one row cannot hold them all, and each such answer gets a row of its own. Nothing is
searched for in the text of a message. Read next: chat_template, conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from transom.data.chat_template import ChatTemplate, Written
from transom.data.documents import printable
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused

Span = tuple[int, int]


@dataclass(frozen=True)
class AnswerRow:
    """Tokens up to the end of the last answer that is learned."""

    tokens: list[int]
    answers: list[Span]
    """Where each answer's tokens begin and end, the token that ends it included."""
    ended: bool
    """Whether a control token ends every answer."""


class Talk(NamedTuple):
    """A conversation to be written: its messages, and what else the template is told."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    last_only: bool = False
    """Whether the last answer alone is learned."""


@dataclass
class _Row:
    """A row while it is put together, in characters."""

    text: str
    scaffold: list[Span]
    answers: list[Span]
    ended: bool


def answer_rows(
    template: ChatTemplate, tokenizer: Tokenizer, talks: Sequence[Talk]
) -> list[list[AnswerRow] | Refused]:
    """Write conversations as rows: of most one, of some a row for several of its answers.

    In the place of a conversation that the template cannot write, or writes without what is in it, stands the
    reason.
    """
    ends = {tokenizer.control[one] for one in template.end_ids(tokenizer)}
    written: list[list[_Row] | Refused] = []
    for talk in talks:
        try:
            written.append(_written(template, tokenizer, talk, ends))
        except Refused as refused:
            written.append(refused)
    rows = [row for one in written if not isinstance(one, Refused) for row in one]
    texts = [(row.text, row.scaffold) for row in rows]
    encoded = iter(template.spelling(tokenizer).encode_spans(texts, [row.answers for row in rows]))
    return [
        one if isinstance(one, Refused) else [AnswerRow(*next(encoded), ended=row.ended) for row in one]
        for one in written
    ]


def _written(template: ChatTemplate, tokenizer: Tokenizer, talk: Talk, ends: set[str]) -> list[_Row]:
    """The rows of one conversation; `ends` are the control tokens that end an answer. Raises Refused."""
    places = [at for at, message in enumerate(talk.messages) if message["role"] == "assistant"]
    learned = [at for at in places if talk.messages[at].get("weight", 1)]
    learned = learned[-1:] if talk.last_only else learned
    if not learned:
        raise Refused("no message of the assistant is to be learned")
    messages = [{k: v for k, v in one.items() if k != "weight"} for one in talk.messages]
    write = partial(template.write, messages, tokenizer, tools=talk.tools)
    found = write([stop for at in learned for stop in ((at, True), (at + 1, False))])
    spelling, rows = template.spelling(tokenizer), list[_Row]()
    for at, prompt, whole in zip(learned, found[::2], found[1::2], strict=True):
        start = len(prompt.text)
        if not whole.text.startswith(prompt.text):
            start = _behind_opening(prompt, whole, write([(at, False)])[0], at, template.name)
        _refuse_dropped(prompt.text, whole.text[start:], messages, at, template.name)
        said = max([start, *(end for begin, end in _content(whole) if end > begin)])
        controls = spelling.controls(whole, said)
        closed = [place for name, place in controls if name in ends] or [place for _, place in controls[-1:]]
        end = closed[0] if closed else len(whole.text)

        # The answer behind its prompt, which may be what the row holds already, and goes on from.
        own = [(max(a, start), min(b, end)) for a, b in whole.scaffold if b > start and a < end]
        shift, opened = len(prompt.text) - start, len(prompt.text)
        row = _Row(
            prompt.text + whole.text[start:end],
            [(a, b) for a, b in prompt.scaffold] + [(a + shift, b + shift) for a, b in own],
            [(opened, opened + end - start)],
            bool(closed),
        )
        if rows and prompt.text.startswith(rows[-1].text):
            earlier = rows.pop()
            row.answers, row.ended = earlier.answers + row.answers, earlier.ended and row.ended
        rows.append(row)
    return rows


def _behind_opening(prompt: Written, whole: Written, before: Written, at: int, name: str) -> int:
    """Where in `whole`, which does not begin with the prompt, the answer at message `at` begins: behind what
    opens it there as in the prompt. Raises Refused.
    """
    opening = prompt.text[len(before.text) :] if prompt.text.startswith(before.text) else None
    span = _message_span(whole, at)
    if opening is not None and span is not None and whole.text[span[0] : span[1]].startswith(opening):
        return span[0] + len(opening)
    raise Refused(
        f"{name} opens an answer otherwise than it writes one (messages[{at}]): what a model would be asked "
        "is not what it would learn; take another by --data.chat-template (chatml, turns or a file)"
    )


def _message_span(written: Written, at: int) -> Span | None:
    """Where a message is written, where that is one stretch to the end of the text."""
    ends = [*(place for place, _ in written.marks[1:]), len(written.text)]
    spans = [(place, end) for (place, owner), end in zip(written.marks, ends, strict=False) if owner == at]
    spans = [span for span in spans if span[1] > span[0]]
    return (spans[0][0], spans[-1][1]) if spans else None


def _content(written: Written) -> list[Span]:
    """(start, end) of what the template did not write itself."""
    starts, ends = [start for start, _ in written.scaffold], [end for _, end in written.scaffold]
    return list(zip([0, *ends], [*starts, len(written.text)], strict=True))


def _refuse_dropped(
    prompt: str, answer: str, messages: Sequence[Mapping[str, Any]], at: int, name: str
) -> None:
    """Raise Refused where a template leaves out what is to be read or learned."""
    fix = "leave it out of the data, or take another by --data.chat-template (chatml, turns or a file)"
    for number, message in enumerate(messages[:at]):
        kept = message["role"] not in ("system", "user") or _has(prompt, message.get("content"))
        if not kept:
            raise Refused(f"{name} leaves out messages[{number}], of the {message['role']}; {fix}")
    message = messages[at]
    calls = [call["function"]["name"] for call in message.get("tool_calls") or ()]
    parts = {"reasoning_content": message.get("reasoning_content"), "tool_calls": calls and calls[-1]}
    thought = "</think>" in (message.get("content") or "")  # which a template may move
    parts |= {} if thought else {"content": message.get("content")}
    for field, text in parts.items():
        if text and not _has(answer, text):
            if field != "content":  # none of ours has a place for it
                fix = (
                    "leave it out of the data, or name a file that has a place for it by --data.chat-template"
                )
            raise Refused(f"{name} leaves out the {field} of messages[{at}]; {printable(fix)}")


def _has(text: str, content: Any) -> bool:
    """Whether a content stands in a text, whatever space is around it; a list of parts is not looked for."""
    return not isinstance(content, str) or content.strip() in text
