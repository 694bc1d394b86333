"""How well a model answers conversations: the loss over the assistant's tokens alone, and what it writes.

Each model is asked by its own chat template, as it is when it is used; one that has none, by the other's.
Only the tokens of answers and of their ends count, as in learning. Read next: against.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.answer_rows import AnswerRow, Talk, answer_rows
from ..data.chat_template import ChatTemplate, template_to_learn
from ..data.conversations import Conversation
from ..data.preferences import SIDES, both_talks
from ..errors import Refused
from ..inference.generator import Generator
from ..inference.request import Completion
from .likelihood import Row, Watch, likelihoods
from .perplexity import TextScore
from .test_set import evenly

WRITTEN = 32
"""Conversations whose last answer is written anew, spread evenly."""
MAX_TOKENS = 128
"""Most tokens of an answer that is written: one that is longer does not count as ended."""


class Exchange(NamedTuple):
    """A conversation that ends with an answer."""

    where: str
    """file:line"""
    messages: list[dict[str, Any]]
    """All that comes before the last answer."""
    wanted: str
    """The last answer."""
    talk: Talk
    other: Talk | None = None
    """Of a pair of answers: the conversation with the rejected one."""

    @property
    def asked(self) -> str:
        """What was said last before the answer."""
        return str(self.messages[-1].get("content") or "")

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all answers that count."""
        said = [one for one in self.talk.messages if one["role"] == "assistant" and one.get("weight", 1)]
        return sum(len(str(one.get("content") or "").encode()) for one in said)


def exchanges(conversations: Sequence[Conversation]) -> list[Exchange]:
    """Return conversations up to their last answer; of pairs of answers the chosen one."""
    found = []
    for one in conversations:
        said, other = json.loads(one.talk), None
        messages = said["messages"]
        if SIDES[0] in said:
            chosen, other = both_talks(one)
            messages = list(chosen.messages)
        last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
        bare = [{k: v for k, v in message.items() if k != "weight"} for message in messages[:last]]
        talk = Talk(messages[: last + 1], said.get("tools"))
        found.append(Exchange(one.where, bare, str(messages[last].get("content") or ""), talk, other))
    return found


def within(asked: Sequence[Exchange], limit: int | None) -> list[Exchange]:
    """Return as many conversations, spread evenly, as have about `limit` characters; None: all."""
    total = sum(len(one.wanted) + sum(len(str(m.get("content"))) for m in one.messages) for one in asked)
    return evenly(asked, total, limit)


class Answerer:
    """A generator with the template that it is asked by."""

    def __init__(self, loaded: Generator, template: ChatTemplate | None = None) -> None:
        """template: for a model whose folder has none."""
        own = loaded.template or template
        self.template = template_to_learn(None, None, loaded.tokenizer) if own is None else own
        ends = [*loaded.eos_ids, *self.template.end_ids(loaded.tokenizer)]
        self.loaded = Generator(loaded.model, loaded.tokenizer, eos_ids=ends)

    def rows(self, talks: Sequence[Talk]) -> list[list[AnswerRow] | None]:
        """Write conversations as rows of tokens; None for one that cannot be written or is too long."""
        written = answer_rows(self.template, self.loaded.tokenizer, talks)
        longest = self.loaded.model.config.max_len
        return [
            None if isinstance(rows, Refused) or any(len(row.tokens) > longest for row in rows) else rows
            for rows in written
        ]

    def score(
        self, asked: Sequence[Exchange], rows: Sequence[list[AnswerRow]], *, model: str, test: str,
        watch: Watch | None = None,
    ) -> TextScore:  # fmt: skip
        """Return the nats of the answers in rows, conversation by conversation."""
        started = time.perf_counter()
        flat = [(number, row) for number, some in enumerate(rows) for row in some]
        firsts = [row.answers[0][0] for _, row in flat]
        judged = likelihoods(
            self.loaded.model,
            [Row(row.tokens, len(row.tokens) - first) for (_, row), first in zip(flat, firsts, strict=True)],
            watch,
        )
        found = np.zeros((len(asked), 3))
        found[:, 2] = [one.n_bytes for one in asked]
        for (number, row), first, one in zip(flat, firsts, judged, strict=True):
            for start, end in row.answers:
                found[number, :2] += -one.logprobs[start - first : end - first].sum(), end - start
        seconds, numbers = time.perf_counter() - started, np.arange(len(asked))
        return TextScore(model, test, found, numbers, seconds, of="conversations", unit="answer token")

    def write(self, asked: Sequence[Exchange]) -> list[Completion]:
        """Write the last answer of each conversation anew, greedily, together."""
        prompts = [
            self.template.render(one.messages, self.loaded.tokenizer, tools=one.talk.tools).tokens
            for one in asked
        ]
        room = self.loaded.model.config.max_len - max(map(len, prompts))
        settings: dict[str, Any] = dict(temperature=0, max_tokens=max(1, min(MAX_TOKENS, room)))
        return self.loaded.generate(prompts, stop=list(self.template.stop), **settings)


def answerers(pair: Sequence[Generator]) -> list[Answerer]:
    """Return both with their templates; one that has none is asked by the other's."""
    known = next((loaded.template for loaded in pair if loaded.template is not None), None)
    return [Answerer(loaded, known) for loaded in pair]


def score_answers(
    loaded: Generator,
    conversations: Sequence[Conversation],
    test: str,
    *,
    model: str,
    watch: Watch | None = None,
) -> TextScore:
    """Score a model on the answers of conversations. Raises Refused for one that it cannot read."""
    asked, answerer = exchanges(conversations), Answerer(loaded)
    rows = answerer.rows([one.talk for one in asked])
    if None in rows:
        longest = loaded.model.config.max_len
        raise Refused(
            f"{asked[rows.index(None)].where}: this conversation cannot be written for {model}, or has more "
            f"than the {longest:,} tokens that it reads; leave it out of the test"
        )
    return answerer.score(
        asked, [some for some in rows if some is not None], model=model, test=test, watch=watch
    )
