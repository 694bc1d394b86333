"""Data looked at before anything is learned from it: `transom data check`.

It goes the way of a run (the same task, the same refusals, the same rows) and stops before the first step.
What would hurt a run or its data's owners in silence is a finding: what is cut, what is there twice, what
stands on both sides of the split, personal data. Read next: tasks, data/answer_rows, data/personal.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..data.answer_rows import AnswerRow, answer_rows
from ..data.check import survey
from ..data.documents import printable
from ..data.duplicates import Duplicates
from ..data.example_source import ExampleSource
from ..data.example_split import digest_of
from ..data.issues import MAX_SKIPPED
from ..data.personal import PersonalData
from ..data.prepare_examples import PreparedExamples
from ..data.sources import open_source
from ..data.tokenizer import Tokenizer
from ..errors import Refused
from ..settings import TrainSettings
from ..units import counted
from .example_tasks import preparation
from .report import Report as Events
from .task_facts import TASK_FACTS
from .tasks import choose_task

SHOWN = 2
"""Examples that are shown."""
LOOKED_AT = 64
"""Examples among which one that is cut is looked for."""
SHOWN_CHARACTERS = 1_200
"""Of one that is shown; from the middle of a longer one the rest is left out."""
NO_LIMIT = 1 << 30
COLOURS = {"context": "\x1b[90m", "learned": "\x1b[32m", "cut": "\x1b[31m"}
MARKS = {"context": ("", ""), "learned": ("[[", "]]"), "cut": ("{{", "}}")}
"""What stands around a stretch where a terminal has no colour."""


class Stretch(NamedTuple):
    """A piece of an example."""

    kind: str
    """context, learned or cut."""
    text: str


@dataclass
class DataCheck:
    """What a run would learn from, and what is wrong with it."""

    task: str
    says: str
    """The report of preparing, in words."""
    facts: dict[str, Any]
    examples: list[list[Stretch]]
    personal: PersonalData
    findings: list[str] = field(default_factory=list)
    """What a person should look at, a sentence each."""
    stops: bool = False
    """Whether a run would stop for one of them."""
    coloured: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "task": self.task, "findings": self.findings, "stops": self.stops, **self.facts,
            "personal": self.personal.counts,
            "examples": [[part._asdict() for part in example] for example in self.examples],
        }  # fmt: skip

    def __str__(self) -> str:
        lines = []
        for number, example in enumerate(self.examples, start=1):
            lines += [f"example {number}:", self._drawn(example), ""]
        if self.examples and any(part.kind == "learned" for one in self.examples for part in one):
            lines += [f"({self._legend()})", ""]
        lines += [self.says, f"personal   {self.personal}"]
        lines += [f"finding    {one}" for one in self.findings] or ["findings   none"]
        return "\n".join(lines)

    def _drawn(self, example: Sequence[Stretch]) -> str:
        return "".join(self._marked(part) for part in example)

    def _marked(self, part: Stretch) -> str:
        before, after = (COLOURS[part.kind], "\x1b[0m") if self.coloured else MARKS[part.kind]
        return f"{before}{part.text}{after}"

    def _legend(self) -> str:
        return ", ".join(self._marked(Stretch(kind, kind)) for kind in COLOURS)


def check_data(settings: TrainSettings) -> DataCheck:
    """Look at the data of a run; nothing is learned or kept. Raises `Refused` for what cannot be read."""
    with Events(is_first=False) as silent:
        settings = choose_task(settings, silent)
    if TASK_FACTS[settings.task].running:
        return _check_text(settings)
    if (
        TASK_FACTS[settings.task].verb == "chat" and not settings.model.weights
    ):  # whose tokens they would be is not known
        limit = settings.model.max_len or NO_LIMIT
        settings = settings.with_({"data.tokenizer": "bytes", "model.max_len": limit})
    way = preparation(settings.task, settings)
    may_cut = "too_long" in TASK_FACTS[settings.task].data
    way = dataclasses.replace(way, too_long=way.too_long or ("cut" if may_cut else "drop"))
    with tempfile.TemporaryDirectory() as folder:
        made = way.once(Path(folder))
        found = _look(made.sources)
        check = DataCheck(
            settings.task, str(made.report), {**made.report.to_dict(), **found.facts()},
            _examples(settings, made), found.personal, coloured=_has_colour(),
        )  # fmt: skip
        check.findings += [*_of_report(settings, made), *found.findings(made.report.noun)]
        check.stops = _stops(settings, made)
        check.says += f"\ncopies     {found.copies(made.report.noun)}"
    return check


def _check_text(settings: TrainSettings) -> DataCheck:
    """Running text: what its check says, and personal data."""
    data = settings.data
    source = open_source(data.source, field=data.field, on_error=data.on_error)
    report, personal, shown = survey(source).report, PersonalData(), list[list[Stretch]]()
    for document in source.documents():
        text = "".join(document.parts)
        personal.look(text, document.place)
        if len(shown) < SHOWN:
            shown.append(_shortened([Stretch("learned", text)]))
    findings = _personal(personal)
    if copies := report.n_exact_duplicates + report.n_near_duplicates:
        findings.insert(0, f"{counted(copies, 'document')} stand there more than once, exactly or nearly")
    if report.faults:
        findings.insert(0, "bad text: " + ", ".join(report.faults))
    return DataCheck(
        settings.task, str(report), report.to_dict(), shown, personal, findings, coloured=_has_colour()
    )  # fmt: skip


@dataclass
class _Looked:
    """One reading of all examples."""

    n: int
    n_exact: int
    """Examples that are there before, word for word."""
    n_same: int
    """Examples whose question, or text, is there before."""
    n_near: int
    n_leaked: int
    """Examples of the validation whose question is learned from."""
    n_held_out: int
    personal: PersonalData

    def facts(self) -> dict[str, Any]:
        return {"copies": self.n_exact, "same_questions": self.n_same, "near_copies": self.n_near,
                "leaked": self.n_leaked}  # fmt: skip

    def copies(self, noun: str) -> str:
        words = f"{self.n_exact:,} of {counted(self.n, noun)} stand there more than once, "
        words += f"{self.n_same:,} ask or say what another does, {self.n_near:,} nearly"
        sides = "none: what is equal is held out together" if not self.n_held_out else f"{self.n_leaked:,}"
        return f"{words}; on both sides of the split {sides}"

    def findings(self, noun: str) -> Iterator[str]:
        if self.n_exact:
            yield f"{counted(self.n_exact, noun)} stand there more than once: leave the copies out"
        if self.n_leaked:
            yield f"{self.n_leaked:,} of {counted(self.n_held_out, noun)} to measure with are learned too"
        yield from _personal(self.personal)


def _look(sources: Sequence[ExampleSource[Any]]) -> _Looked:
    """Read all examples once more: copies, leaks, personal data."""
    personal, near = PersonalData(), Duplicates()
    known: list[set[bytes]] = [set(), set()]
    whole = set[bytes]()
    n = n_exact = n_same = n_leaked = n_held_out = 0
    for part, source in enumerate(sources):
        for example in source.examples():
            n += 1
            texts = source.texts(example)
            for text in texts:
                personal.look(text, example[-1])
            digest = digest_of("\0".join(texts + [example[1]] * source.has_classes))
            n_exact += digest in whole
            whole.add(digest)
            identity = digest_of(source.identity(example)[0])
            n_same += identity in known[part]
            known[part].add(identity)
            near.add(int.from_bytes(digest, "big"), "\n".join(texts).encode()[:8192])
            if part:
                n_held_out += 1
                n_leaked += identity in known[0]
    return _Looked(n, n_exact, n_same - n_exact, near.groups()[1], n_leaked, n_held_out, personal)


def _personal(personal: PersonalData) -> list[str]:
    return [f"personal data: {personal}; a model may repeat it word for word"] if personal.counts else []


def _stops(settings: TrainSettings, made: PreparedExamples[Any]) -> bool:
    """Whether a run would stop for so many examples that are too long."""
    report = made.report
    n_long = max(report.n_cut, report.n_over_long)
    return not settings.data.too_long and n_long > MAX_SKIPPED * (report.n_train + report.n_held_out)


def _of_report(settings: TrainSettings, made: PreparedExamples[Any]) -> Iterator[str]:
    """What preparing found."""
    report = made.report
    n = report.n_train + report.n_held_out
    if report.n_cut:
        share = report.n_cut / n
        chosen = "" if not _stops(settings, made) else (
            "; a run stops until --data.too-long cut or drop, or --model.max-len, says what is to be done"
        )  # fmt: skip
        yield (
            f"{report.n_cut:,} of {counted(n, report.noun)} ({100 * share:.1f}%) are longer than "
            f"{report.max_len:,} tokens and lose {100 * report.lost:.0f}% of "
            f"their {'answers' if made.sources[0].talks else 'tokens'}{chosen}"
        )
    if report.n_over_long:
        yield f"{report.n_over_long:,} of {counted(n, report.noun)} are longer than {report.max_len:,} tokens"
    if report.faults:
        yield f"{report.n_skipped:,} rows left out: {', '.join(report.faults)}"
    for note in report.notes:
        if "more than one label" in note or "control character" in note:
            yield note


# --- what is shown


def _examples(settings: TrainSettings, made: PreparedExamples[Any]) -> list[list[Stretch]]:
    """The first examples: of conversations with their tokens, else as text."""
    source = made.sources[0]
    if source.talks is None:
        first = itertools.islice(source.examples(), SHOWN)
        return [
            _shortened(
                [
                    Stretch("context", f"{example[0]}\n"),
                    Stretch("learned", str(example[1])),
                    *(Stretch("context", f"\nnot: {negative}") for negative in example[2:-1]),
                ]
            )  # fmt: skip
            for example in first
        ]
    template = preparation(settings.task, settings).template
    assert template is not None
    limit = made.report.max_len or NO_LIMIT
    first = itertools.islice(source.examples(), LOOKED_AT)
    talks = [talk for example in first for talk in source.talks(example)]  # of a pair both answers
    written = answer_rows(template, made.tokenizer, talks)
    rows = [row for found in written if not isinstance(found, Refused) for row in found]
    longest = max(range(len(rows)), key=lambda at: len(rows[at].tokens))
    second = longest if len(rows[longest].tokens) > limit else 1  # one that is cut tells more
    return [
        _shortened(_stretches(made.tokenizer, rows[at], limit))
        for at in sorted({0, min(second, len(rows) - 1)})
    ]


def _stretches(tokenizer: Tokenizer, row: AnswerRow, limit: int) -> list[Stretch]:
    """A row as stretches of one kind each, control tokens by their names."""
    learned = {at for start, end in row.answers for at in range(start, end)}
    kinds = [
        "cut" if at >= limit else "learned" if at in learned else "context" for at in range(len(row.tokens))
    ]
    stretches, at = list[Stretch](), 0
    for kind, group in itertools.groupby(kinds):
        n = len(list(group))
        stretches.append(Stretch(kind, _spelled(tokenizer, row.tokens[at : at + n])))
        at += n
    return stretches


def _spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Ids as text, with the names of control tokens."""
    text = ""
    for control, group in itertools.groupby(ids, key=lambda one: one in tokenizer.reserved):
        part = list(group)
        text += "".join(tokenizer.reserved[one] for one in part) if control else tokenizer.decode(part)
    return text


def _shortened(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Stretches that a terminal can show, of about `SHOWN_CHARACTERS`: each gives up its middle alike."""
    total = sum(len(part.text) for part in stretches)
    share = min(1.0, SHOWN_CHARACTERS / max(1, total))
    short = []
    for kind, text in stretches:
        most = max(40, round(share * len(text)))
        if len(text) > most + 10:
            text = f"{text[: most // 2]} ... {text[len(text) - most // 2 :]}"
        short.append(Stretch(kind, "\n".join(map(printable, text.split("\n")))))
    return short


def _has_colour() -> bool:
    """Whether stdout shows colours, as https://no-color.org has it."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
