"""`transom trust`: what a model does with names and groups, and how often it makes things up.

Which questions are asked follows from what the model is and from the data that is named; what could not be
asked is said last. Rules are read before anything is measured. Read next: trust_line, groups, made_up,
bias_sets, trust_report.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.hub import name_of, resolve
from ..checkpoint.manifest import fingerprint
from ..data.issues import Issues
from ..data.labelled import open_labelled
from ..data.rows import named_rows, readable_file
from ..data.swaps import GENDER, LISTS, NAMES, SwapList
from ..errors import Refused, nearest
from ..hardware import EnergyMeter, Hardware, peak_memory
from ..inference.classifier import Classifier
from ..inference.generator import Generator
from ..inference.load import load
from ..inference.translator import Translator
from ..intervals import Estimate
from . import bias_sets
from .bias_sets import Row
from .gate import Gate
from .groups import Answered, Asked, answer_gate, group_lines, sureness_line, swap_lines
from .likelihood import Watch
from .made_up import closed_book, from_passages, gate_of
from .own_questions import OPTIONS, facts, open_prompts, settled_prompts, world
from .subject import Question, Subject
from .test_set import evenly, examples, origin_of
from .translated import translated_gender
from .trust_line import Line, Rules
from .trust_report import TrustReport

LIMIT = 300
"""Rows of a set that are asked, spread evenly, where nobody says."""
MOST_OPTIONS = 20
TASKS: dict[type, str] = {Classifier: "classes", Generator: "text", Translator: "translations"}
WINOBIAS = "pro_stereotyped_type1*"
FOLDERS = {"occupations-stats.tsv": bias_sets.winogender, WINOBIAS: bias_sets.winobias}
NEVER = ("languages other than English", "toxicity", "images", "texts of more than some thousand tokens")


@dataclass
class _Measuring:
    """A report on its way."""

    subject: Subject
    rules: Rules
    lists: tuple[SwapList, ...]
    group: str | None
    limit: int | None
    model: str
    lines: list[Line] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    known: Gate | None = None
    """The gate of questions with known answers, once it was asked for."""

    def labelled(self, asked: Sequence[Asked], name: str) -> None:
        """Texts with a right answer each."""
        subject = self.subject
        options = subject.labels or tuple(sorted({str(one.label) for one in asked}))
        for one in asked:
            if one.label not in options:
                raise Refused(f"{one.id}: the label '{one.label}' is not in the model, which knows "
                              f"{', '.join(options[:6])}{nearest(str(one.label), options)}")  # fmt: skip
        if not 2 <= len(options) <= MOST_OPTIONS:
            raise Refused(
                f"{name}: {len(options)} different answers; a choice is between 2 and {MOST_OPTIONS}"
            )
        some = evenly(asked, len(asked), self.limit)
        answered = Answered.by(subject, some, options)
        gate = answer_gate(answered, self.lists, self.rules)
        for one in self.lists:
            mend = self._mend(one)
            found = swap_lines(subject, some, options, one, self.rules, gate, name, mend)
            self.lines += found
            if not found and one not in LISTS:
                words = sum(map(len, one.rows))
                raise Refused(
                    f"{one.source}: none of its {words} words is in a text of {name}; words are matched whole"
                )
            if not found:
                self.missing.append(f"{one.name} (no word of its list is in {name})")
        if self.group is not None:
            self.lines += group_lines(answered, self.rules, name, self._mend())
        else:
            self.missing.append("group metrics (name a column of groups: --group COLUMN)")
        tempered = f"transom classify {shlex.quote(self.model)}" if subject.labels else None
        self.lines.append(sureness_line(answered, self.rules, name, tempered))

    def questions(self, asked: Sequence[Question], name: str) -> None:
        """Questions, with a passage or without."""
        if not isinstance(self.subject.loaded, Generator):
            raise Refused(f"{name}: questions are for a language model; {self.subject.name} tells classes")
        some = evenly(asked, len(asked), self.limit)
        bare = [one for one in some if not one.passage]
        read = [one for one in some if one.passage]
        quoted = shlex.quote(self.model)
        if bare:
            mend = f"transom index DOCS --out kb && transom ask kb QUESTION --model {quoted}"
            hardware = Hardware.detect(str(self.subject.loaded.model.embed.weight.device))
            meter = EnergyMeter(hardware)
            started = time.perf_counter()
            found, self.known, answers = closed_book(self.subject, bare, self.rules, name, mend)
            self.lines += found
            tokens = sum(len(one.tokens) for one in answers)
            self.lines.append(
                self._cost(time.perf_counter() - started, meter, hardware, len(bare), tokens, name)
            )
        if read:
            if self.known is None and not any(one.control for one in read):
                known = [one for one in facts() if one.answers]
                self.known = gate_of(known, self.subject.write(known).answers, self.rules)
            mend = f"transom finetune {quoted} --data FILE: answers from texts, and texts without one"
            self.lines += from_passages(self.subject, read, self.rules, name, mend, self.known)

    def _cost(
        self, seconds: float, meter: EnergyMeter, hardware: Hardware, n: int, tokens: int, name: str
    ) -> Line:
        per, hours, device = 1000 / n, meter.joules() / 3600, self.subject.loaded.model.embed.weight.device
        parts = [
            f"{tokens * per:,.0f} tokens, {hours * per:.2f} Wh ({meter.method})",
            f"{peak_memory(device) / 1e6:,.0f} MB of memory at the peak",
        ]
        run = origin_of(self.model).run
        if run is not None and (run / "ledger.json").is_file():
            record = json.loads((run / "ledger.json").read_text(encoding="utf-8"))["forecast"]
            parts += [
                f"its training: {key} {one['actual']:.3g}, forecast {one['forecast']:.3g}"
                for key, one in record.items()
                if one["ratio"] is not None
            ]
        return Line.over(
            (),
            self.rules,
            "cost",
            of="",
            question="What do 1,000 answers cost?",
            population=f"{name}, on {hardware.name}",
            estimate=Estimate(seconds * per),
            unit="seconds",
            n=n,
            n_clusters=n,
            counted=("answers", "answers"),
            method="measured once, answers written together",
            baseline="transom bench has the machine's limits",
            gate=None,
            next_action="transom bench",
            seconds=seconds,
            parts=tuple(parts),
        )

    def _mend(self, one: SwapList | None = None) -> str:
        """The command that tells the training data about everybody and learns from that: anew, where a run of
        ours says from what and how, else from the weights that are there.
        """
        by = "" if one is None or one in LISTS else f" --swaps {shlex.quote(one.source)}"
        origin, both = origin_of(self.model), "both-ways.jsonl"
        data, run = origin.settings.data.source, origin.run
        if run is not None and data is not None and Path(data).is_file():
            learn = f"train {both} --config {shlex.quote(str(run / 'settings.toml'))}"
            learn += f" --out {shlex.quote(f'{run}-both-ways')}"
        else:
            data, learn = "YOUR_TRAINING_DATA", f"finetune {shlex.quote(self.model)} --data {both}"
        return f"transom data swap {shlex.quote(str(data))} --out {both}{by} && transom {learn}"

    def data(self, path: Path) -> None:
        """Whatever a file or a folder holds. Raises Refused for what is none of what is known."""
        if isinstance(self.subject.loaded, Translator):
            if not (path.is_dir() and list(path.glob(WINOBIAS))):
                raise Refused(f"{path}: a translator is asked with WinoBias so far; --on names its folder")
            self.lines += translated_gender(self.subject, path, self.rules, self.limit)
            return
        if path.is_dir():
            known = [ask for pattern, ask in FOLDERS.items() if list(path.glob(pattern))]
            files = (
                []
                if known
                else [file for file in sorted(path.iterdir()) if file.suffix in (".jsonl", ".json", ".csv")]
            )
            first = {file: next(named_rows(file, str(file), Issues()), {}) for file in files}
            files = [file for file, row in first.items() if _kind(row) in ("bbq", "crows_pairs")]
            if not known and not files:
                raise Refused(
                    f"{path}: a folder without WinoBias, Winogender, BBQ or CrowS-Pairs; name a file of "
                    "questions or of labelled texts"
                )
            for ask in known:
                self._public(path, lambda ask=ask: ask(self.subject, path, self.rules, self.limit))
            for file in files:
                self.data(file)
            return
        name = readable_file(path, "--on names a file or a folder of data")
        records = list(named_rows(path, name, Issues()))
        kind = _kind(records[0]) if records else ""
        if not records:
            raise Refused(f"{name}: there is no row in it")
        if kind == "bbq":
            self._public(
                path, lambda: bias_sets.bbq(self.subject, records, path.stem, self.rules, self.limit)
            )
        elif kind == "crows_pairs":
            self._public(
                path, lambda: bias_sets.crows_pairs(self.subject, records, path.stem, self.rules, self.limit)
            )
        elif kind == "questions":
            self.questions(
                [_question(row, f"{name}:{number}") for number, row in enumerate(records, 1)], name
            )
        elif kind == "prompts":
            self.labelled(
                [
                    _asked(row, "prompt", "completion", self.group, f"{name}:{i}")
                    for i, row in enumerate(records, 1)
                ],
                name,
            )
        else:
            source = open_labelled(str(path))
            found = [Asked(one.where, one.text, one.label) for one in source.read(Issues(source.on_error))]
            if self.group is not None:
                if self.group not in records[0]:
                    raise Refused(f"{name}: no column '{self.group}'{nearest(self.group, records[0])}")
                groups = [str(row[self.group] or "").strip() for row in records]
                if len(groups) != len(found):
                    raise Refused(
                        f"{name}: {len(groups):,} rows, of which {len(found):,} are texts with labels"
                    )
                found = [one._replace(group=group) for one, group in zip(found, groups, strict=True)]
            self.labelled(found, name)

    def _public(self, path: Path, ask: Any) -> None:
        if not isinstance(self.subject.loaded, Generator):
            raise Refused(f"{path}: this set is for a language model; {self.subject.name} tells classes")
        self.lines += ask()

    def ours(self) -> None:
        """What can be asked without any data of the user's."""
        subject = self.subject
        if isinstance(subject.loaded, Translator):
            raise Refused(f"{self.model} is a translator; name the folder of WinoBias: --on FOLDER")
        if isinstance(subject.loaded, Generator):
            asked = open_prompts()
            settled = Answered.by(subject, settled_prompts(), OPTIONS)
            gate = answer_gate(settled, (GENDER, NAMES), self.rules)
            mend = f"transom trust {shlex.quote(self.model)} --on YOUR_PROMPTS: mend what you deploy"
            for one in (GENDER, NAMES):
                some = [text for text in asked if f"/{one.name}/" in text.id]
                self.lines += swap_lines(
                    subject, some, OPTIONS, one, self.rules, gate, "20 decisions of ours", mend
                )
            self.questions(facts(), "80 questions of ours")
            self.questions(world(), "an invented world of ours")
            self.missing += [
                "your own prompts and questions (--on FILE)",
                "WinoBias, Winogender, BBQ, CrowS-Pairs (--on FOLDER)",
            ]
            return
        try:
            held_out, name = examples("classify", (origin_of(self.model),), None)
        except Refused:
            raise Refused(
                f"{self.model} lies in no run that held texts out; name labelled ones: --on FILE"
            ) from None
        self.labelled([Asked(one.where, one.text, one.label) for one in held_out], name)


def trust(
    model: str, *, on: Sequence[str | Path] = (), swaps: Sequence[str | Path] = (), group: str | None = None,
    rules: str | Path | None = None, limit: int | None = LIMIT, out: str | Path | None = None,
    dtype: str | None = None, device: str | None = None, watch: Watch | None = None,
) -> TrustReport:  # fmt: skip
    """Ask a classifier, a language model or a translator what a report of trust needs to know.

    on: files or folders of data (of a translator, WinoBias's); without, our own questions, or what a
    classifier's run held out. swaps: files of words by group, besides our lists. group: the column that says
    whom a labelled text is about. rules: a TOML file over our tolerances. limit: rows of each set, spread
    evenly. out: a folder that gets trust.json, trust.md, trust.html and the rows. Raises Refused.
    """
    started = time.perf_counter()
    decided = Rules.read(None if rules is None else Path(rules))
    lists = (*LISTS, *(SwapList.read(Path(path)) for path in swaps))
    loaded = load(model, dtype=dtype, device=device)
    if not isinstance(loaded, (Classifier, Generator, Translator)):
        raise Refused(f"{model} is a {type(loaded).__name__}: trust asks classifiers, language models and "
                      "translators so far")  # fmt: skip
    if limit is not None and limit < 1:
        raise Refused(f"limit is {limit}; at least 1 row of each set is asked")
    state = _Measuring(Subject(loaded, name_of(model), watch), decided, lists, group, limit, model)
    for path in on:
        state.data(Path(path))
    if not on:
        state.ours()
    now = datetime.now(UTC)
    header = {
        "model": fingerprint(resolve(model))[:16], "tokenizer": loaded.tokenizer.hash[:16],
        "data": _hash(state.lines), "rules": decided.sha256[:16], "transom": __version__,
        "command": " ".join(map(shlex.quote, ["transom", *sys.argv[1:]])) if sys.argv else "transom trust",
        "seed": "none: answers are the likeliest ones", "date": now.isoformat(timespec="seconds"),
        "epoch": str(int(now.timestamp())), "languages measured": "English",
        "task": TASKS[type(loaded)],
        "seconds": f"{time.perf_counter() - started:.0f}",
    }  # fmt: skip
    missing = [*state.missing, *NEVER]
    if not isinstance(loaded, Generator):
        missing.insert(0, f"made-up answers (it makes {TASKS[type(loaded)]})")
    folder = None if out is None else Path(out)
    report = TrustReport(name_of(model), tuple(state.lines), tuple(dict.fromkeys(missing)), header, folder)
    if folder is not None:
        report.save(folder)
    return report


def _kind(row: Row) -> str:
    """What a row is one of, told from its fields."""
    if "context_condition" in row:
        return "bbq"
    if "sent_more" in row and "sent_less" in row:
        return "crows_pairs"
    if "question" in row and {"answer", "answers", "right_answer"} & set(row):
        return "questions"
    return "prompts" if "prompt" in row and "completion" in row else ""


def _question(row: Row, where: str) -> Question:
    given = next((row[name] for name in ("answer", "answers", "right_answer") if name in row), None)
    answers = [] if given is None else given if isinstance(given, list) else [given]
    passage = next((row[name] for name in ("passage", "context", "knowledge") if row.get(name)), "")
    if not isinstance(row["question"], str) or not row["question"].strip():
        raise Refused(f"{where}: the question is empty or no text")
    right = tuple(str(one) for one in answers if str(one).strip())
    return Question(
        where, row["question"], right, str(passage), str(row.get("template") or ""), bool(row.get("control"))
    )


def _asked(row: Row, text: str, label: str, group: str | None, where: str) -> Asked:
    if not isinstance(row.get(text), str) or not isinstance(row.get(label), str):
        raise Refused(f"{where}: {text} and {label} have to be texts")
    if group is not None and group not in row:
        raise Refused(f"{where}: no field '{group}'{nearest(group, row)}")
    return Asked(where, row[text], row[label].strip(), str(row[group] or "").strip() if group else "")


def _hash(lines: Sequence[Line]) -> str:
    """What tells the rows that were asked from others."""
    digest = hashlib.sha256()
    for line in lines:
        for row in line.rows:
            digest.update(f"{line.id}\0{row['id']}\0{row['asked']}\0".encode())
    return digest.hexdigest()[:16]
