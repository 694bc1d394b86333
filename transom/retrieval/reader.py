"""A language model as an extractive reader: of a passage, the few words in a row that answer.

It may write nothing but words of the passage as they stand there, or that the documents do not say; among
these the choice is its own (a grammar over the tokens, see transom.inference.structured). Small models have
to be taught it: `write_examples` makes of labelled questions what `transom finetune` learns from. Read next:
ask.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.errors import Refused
from transom.output import writable, write_whole

from .answer import SILENT
from .questions import read_labelled
from .search import KnowledgeBase

if TYPE_CHECKING:
    from transom.inference.generator import Generator

MOST_TOKENS = 48
"""Of a short answer."""
LOOKED = 5
"""Passages among which an example finds the one that holds its answer."""
SILENT_EVERY = 3
"""Of how many questions one also gives a passage that does not answer."""
SYSTEM = (
    "You find the answer to a question in a text. Answer with words of the text, as they stand there and as"
    f" few as answer. If the text does not say, write: {SILENT}"
)
Message = dict[str, str]


class Reader:
    """A generator that finds a short answer in a passage."""

    def __init__(self, generator: Generator) -> None:
        """Raises Refused for a model without a chat template."""
        if generator.template is None:
            raise Refused(
                "a reader needs a chat template, and this model's folder has none; leave out --reader"
            )
        self.generator = generator

    def span(self, question: str, text: str) -> tuple[int, int] | None:
        """Where in a text the words stand that answer (from, to); None: it says that the text does not."""
        grammar = self.generator.grammars.compile_quote(text, SILENT)
        said = self.generator.chat(
            asked(question, text), grammar=grammar, max_tokens=MOST_TOKENS, temperature=0
        ).text.strip()
        start = text.find(said) if said else -1
        return None if start < 0 else (start, start + len(said))


def asked(question: str, text: str) -> list[Message]:
    """The conversation that asks for the few words of a text that answer."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f'Text:\n"""\n{text}\n"""\n\nQuestion: {question}'},
    ]


@dataclass(frozen=True)
class Examples:
    """What a reader can learn from, as it was written."""

    path: str
    n_answers: int
    n_silent: int
    n_left: int

    def __str__(self) -> str:
        left = (
            f"; {self.n_left:,} answers stand in none of the first {LOOKED} passages" if self.n_left else ""
        )
        return (
            f"{self.path}: {self.n_answers:,} passages with their answers and {self.n_silent:,} that do not"
            f" answer{left}; next: transom finetune MODEL --data {self.path}"
        )

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


def write_examples(
    path: str | Path, labelled: str | Path, out: str | Path, *, embedder: str | None = None
) -> Examples:
    """Write conversations that a reader learns from, of labelled questions on an index.

    Of each question the best passage that holds its answer; of each without one, and of every third, the best
    passage that does not, where the right words are that the documents do not say. Raises Refused.
    """
    place, base = writable(out, "--examples"), KnowledgeBase.open(path, embedder=embedder)
    rows: list[list[Message]] = []
    n_answers = n_left = 0
    for number, row in enumerate(read_labelled(Path(labelled))):
        passages = [hit.passage for hit in base.search(row.question, LOOKED)]
        holds = [row.answer is not None and row.answer in one.text and row.document in (None, one.document)
                 for one in passages]  # fmt: skip
        if any(holds):
            n_answers += 1
            rows.append(_example(row.question, passages[holds.index(True)].text, row.answer or ""))
        n_left += row.answer is not None and not any(holds)
        if not all(holds) and (row.answer is None or number % SILENT_EVERY == 0):
            rows.append(_example(row.question, passages[holds.index(False)].text, SILENT))
    if not n_answers:
        raise Refused(f"{labelled}: no answer stands word for word in what is found for its question")
    write_whole(place, "".join(json.dumps({"messages": row}) + "\n" for row in rows), "--examples")
    return Examples(str(out), n_answers, len(rows) - n_answers, n_left)


def _example(question: str, text: str, answer: str) -> list[Message]:
    return [*asked(question, text), {"role": "assistant", "content": answer}]
