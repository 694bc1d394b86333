"""`transom ask`: find passages, judge whether they suffice, answer, and check what is said against them.

Without a model, and with a small one, the answer is sentences of the documents as they stand, or the few
words of the best one's passage that a reader chooses. A model of a thousand million parameters or more, or
one that is told to, writes its own words; each sentence is then held against the passages, and what none of
them carries is marked or dropped. Read next: evidence, judge, reader, writer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from transom.errors import Refused, nearest

from .answer import SILENT, Answer, Citation, Sentence, Stage, Unsupported
from .chunks import sentences
from .evidence import FEATURES, READ, Candidate, candidates, coverage, stems, weights
from .judge import Judge, judge_of
from .reader import Reader
from .search import Hit, KnowledgeBase, checked
from .store import Labels, Passage
from .writer import Writer

POOL = 30
"""Passages among which words are weighted."""
SOURCES = 5
"""Passages that a model reads."""
MOST_SENTENCES, NEARLY = 3, 0.9
"""Of an answer, and how near to the first one's confidence another has to come."""
SUPPORT = 0.6
"""The part of a sentence's words that its quote has to carry."""
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_CITED = re.compile(r"\s*\[(\d{1,2})\]")


def ask(
    base: KnowledgeBase,
    question: str,
    *,
    writer: Writer | None = None,
    reader: Reader | None = None,
    generate: bool = False,
    unsupported: Unsupported = "mark",
    labels: Labels = None,
    threshold: float | None = None,
) -> Answer:
    """Answer a question from an index.

    writer: a model that reads the passages. reader: a model that says in the fewest words of a passage what
    answers. generate: have it answer in its own words though it is small.
    unsupported: what becomes of a sentence that no passage carries. labels: what whoever asks may see; None:
    everything. threshold: in place of the index's own. Raises Refused for a question that is none, and with
    `fail` for an answer that is not supported.
    """
    if unsupported not in get_args(Unsupported):
        known = ", ".join(get_args(Unsupported))
        raise Refused(
            f"--unsupported {unsupported}: it is one of {known}{nearest(unsupported, get_args(Unsupported))}"
        )
    if generate and writer is None:
        raise Refused("an answer in other words needs a model that writes it: --model MODEL")
    if generate and reader is not None:
        raise Refused("--reader quotes, --generate writes in other words: leave out one of them")
    looked = Inquiry(base, question, labels=labels, threshold=threshold)
    if reader is not None:
        return looked.short(reader)
    if looked.silence or writer is None:
        return looked.quoted()
    read = looked.passages
    if generate or not writer.is_small:
        text, read = writer.answer(question, read)
        answer = looked.checked(text, read, unsupported)
    else:
        answer = looked.quoted()
    return weighed(answer, [writer.loss_without(*one) for one in looked.leavings(answer, read)])


class Inquiry:
    """A question on its way: what was found for it, and whether that suffices."""

    def __init__(
        self, base: KnowledgeBase, question: str, *, labels: Labels = None, threshold: float | None = None
    ) -> None:
        """Search, and judge; arguments as of `ask`."""
        checked(question)
        if threshold is not None and not 0 <= threshold <= 1:
            raise Refused(f"threshold is {threshold}; a probability lies between 0 and 1")
        judge = judge_of(base)
        self.question = question
        self.threshold = judge.threshold if threshold is None else threshold
        promised = threshold is None and base.reranker is None  # it was calibrated in the index's own order
        self.promise = judge.promise if promised else ""
        self.hits = base.search(question, POOL, labels=labels)
        self.ranked = rank(judge, candidates(base, question, self.hits))
        self.best = self.ranked[0][0] if self.ranked else 0.0
        self.stages = [_search_stage(self.hits), _sentence_stage(self.ranked, self.threshold)]
        self.passages = [hit.passage for hit in self.hits[:SOURCES]]
        """Those that a model reads."""

    @property
    def silence(self) -> str:
        """Why nothing is to be said; "" where something is."""
        if not self.ranked:
            what = "passage has a sentence to quote" if self.hits else "passage has anything of the question"
            return f"no {what}"
        if self.best < self.threshold:
            says = f"the best sentence answers with a probability of {self.best:.2f}"
            return f"{says}; below {self.threshold:.2f} nothing is said"
        return ""

    def quoted(self) -> Answer:
        """Sentences of the documents as they stand: the best, and those that come near to it."""
        if self.silence:
            return self._answer([], self.silence)
        chosen: list[Candidate] = []
        for confidence, one in self.ranked:
            if confidence < NEARLY * self.best or len(chosen) == MOST_SENTENCES:
                break
            if one.text not in [other.text for other in chosen]:
                chosen.append(one)
        said = []
        for one in chosen:
            passage = one.hit.passage
            citation = Citation(passage.document, one.start, one.end, one.text, 1.0, page=passage.page)
            said.append(Sentence(one.text, (citation,)))
        return self._answer(said)

    def short(self, reader: Reader) -> Answer:
        """The few words that a reader chooses of the best sentence's passage, quoted with their sentence."""
        if self.silence:
            return self._answer([], self.silence)
        passage = self.ranked[0][1].hit.passage
        span = reader.span(self.question, passage.text)
        if span is None:
            self.stages.append(Stage("the reader", [(passage.place, "it says that this does not answer")]))
            return self._answer([], f"the reader found nothing that answers in {passage.place}")
        words = passage.text[slice(*span)]
        self.stages.append(Stage("the reader", [(passage.place, f"it chose {words!r}")]))
        held = [one for one in sentences(passage.text) if one[0] < span[1] and span[0] < one[1]] or [span]
        start, end = min(held[0][0], span[0]), max(held[-1][1], span[1])
        quote = passage.text[start:end]
        first, last = passage.start + start, passage.start + end
        citation = Citation(passage.document, first, last, quote, 1.0, page=passage.page)
        return self._answer([Sentence(words, (citation,))])

    def checked(self, text: str, read: Sequence[Passage], unsupported: Unsupported) -> Answer:
        """A model's own sentences, each with the passages that carry it. Raises Refused as `ask` does."""
        self.stages.append(Stage("written by the model", [(text, "")]))
        if SILENT.rstrip(".").lower() in text.lower() or not text.strip():
            return self._answer([], "the model found no answer in the passages")
        rare = weights(text, [one.text for one in read])
        said, rows = [], []
        for start, end in sentences(text):
            words = _CITED.sub("", text[start:end]).strip()
            if not words:
                continue
            named = [int(number) - 1 for number in _CITED.findall(text[start:end])]
            found = [best_quote(words, one, rare) for one in read]
            most = max(range(len(read)), key=lambda at: found[at].support)
            named = [at for at in named if at < len(read) and found[at].support >= SUPPORT] or [most]
            citations = [found[at] for at in dict.fromkeys(named) if found[at].support >= SUPPORT]
            short = f"carried by none: the best has {found[most].support:.2f} of it, {SUPPORT:.2f} is needed"
            carried = f"carried by {', '.join(one.place for one in citations)}"
            rows.append((words, carried if citations else short))
            said.append(Sentence(words, tuple(citations)))
        self.stages.append(Stage("checked against the passages", rows))
        bare = [one for one in said if not one.supported]
        if bare and unsupported == "fail":
            raise Refused(
                f"no passage carries what the model wrote: {' '.join(bare[0].text.split())[:200]!r};"
                " --unsupported mark shows it, drop leaves it out"
            )
        if unsupported == "drop":
            said = [one for one in said if one.supported]
        return self._answer(said, "" if said else "no passage carries what the model wrote")

    def leavings(
        self, answer: Answer, read: Sequence[Passage]
    ) -> list[tuple[str, list[Passage], list[Passage], str]]:
        """What to ask a model for the `loo` of every citation, in their order (see `Writer.loss_without`):
        the question, the passages with the cited one, those without it, the sentence.
        """
        found = []
        for sentence in answer.sentences:
            for one in sentence.citations:
                cited = next(
                    hit.passage
                    for hit in self.hits
                    if hit.passage.document == one.document
                    and hit.passage.start <= one.start <= one.end <= hit.passage.end
                )
                others = [passage for passage in read if passage != cited]
                whole = list(read) if cited in read else [cited, *read]  # quoted from further down
                found.append((self.question, whole, others, sentence.text))
        return found

    def _answer(self, said: Sequence[Sentence], reason: str = "") -> Answer:
        looked = tuple(self.hits[:READ])
        return Answer(
            self.question, tuple(said), self.best, self.threshold, looked, reason, self.promise, self.stages
        )


def weighed(answer: Answer, losses: Sequence[float]) -> Answer:
    """The answer with the `loo` of every citation, in their order."""
    left = iter(losses)
    said = [
        replace(one, citations=tuple(replace(cited, loo=next(left)) for cited in one.citations))
        for one in answer.sentences
    ]
    return replace(answer, sentences=tuple(said))


def rank(judge: Judge, found: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
    """Candidates with their confidence, the best first."""
    scored = [(judge.confidence(one.features), one) for one in found]
    return sorted(scored, key=lambda pair: -pair[0])


def best_quote(sentence: str, passage: Passage, rare: dict[str, float]) -> Citation:
    """The sentence of a passage, or two in a row, that carries most of another one's words; rare: their
    weights.

    A number that the quote does not have is carried by nothing.
    """
    own = {stem: rare.get(stem, 1.0) for stem in stems(sentence)}
    spans = sentences(passage.text)
    spans += [(first[0], second[1]) for first, second in zip(spans, spans[1:], strict=False)]
    best = (0.0, 0, min(1, len(passage.text)))
    for start, end in spans:
        quote = passage.text[start:end]
        missing = {*_NUMBERS.findall(sentence)} - {*_NUMBERS.findall(quote)}
        support = 0.0 if missing else coverage(own, quote)
        best = max(best, (support, start, end), key=lambda one: (round(one[0], 6), one[1] - one[2]))
    support, start, end = best
    first, last = passage.start + start, passage.start + end
    return Citation(passage.document, first, last, passage.text[start:end], support, page=passage.page)


def _search_stage(hits: Sequence[Hit]) -> Stage:
    rows = []
    for place, hit in enumerate(hits):
        sides = [
            f"{name} {value:.3f}"
            for name, value in (("words", hit.words), ("vectors", hit.vectors), ("reranker", hit.reranker))
            if value is not None
        ]
        fate = "read" if place < READ else f"not read: the best {READ} are"
        rows.append((hit.passage.place, f"score {hit.score:.3f} ({', '.join(sides)}); {fate}"))
    return Stage("found", rows)


def _sentence_stage(ranked: Sequence[tuple[float, Candidate]], limit: float) -> Stage:
    rows = []
    for confidence, one in ranked[:POOL]:
        near = confidence >= NEARLY * ranked[0][0]
        fate = "below the threshold" if confidence < limit else "kept" if near else "not near the best"
        measured = ", ".join(f"{value:.2f}" for value in one.features)
        rows.append((" ".join(one.text.split())[:120], f"confidence {confidence:.3f} ({measured}); {fate}"))
    return Stage(f"sentences (confidence, and what it is made of: {', '.join(FEATURES)})", rows)
