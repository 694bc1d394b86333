"""From a source of pairs, labelled texts, conversations or preferences to rows of ids on disk, once: kept,
found again.

The one idea: as with text (prepare), examples are read as a stream (survey, tokenizer, tokens), never held;
the rows lie in memory-mapped files, beside what says which are held out and why rows are missing. What is
held out shares no text with what is learned from (pairs: on neither side), and what does not fit the model is
refused with its line, or left out and said where it is rare. Read next: examples.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, Literal

import numpy as np
import numpy.typing as npt

from transom.data import cache
from transom.data.answer_rows import AnswerRow, answer_rows
from transom.data.chat_template import ChatTemplate
from transom.data.check import Meter, OnProgress
from transom.data.example_report import ExampleReport
from transom.data.example_source import Example, ExampleSource, hashed_bytes
from transom.data.example_survey import ExampleSurvey, survey_examples
from transom.data.examples import ConversationRows, LabelledRows, PairRows, PreferenceRows
from transom.data.issues import MAX_SKIPPED
from transom.data.prepare import SAMPLE_BYTES, ahead, in_batches
from transom.data.ragged import Ragged
from transom.data.tokenizer import Tokenizer, tokenizer_named, train_tokenizer
from transom.data.tokens import TokenFile, TokenWriter, disk_faults_named
from transom.data.vocabulary import bpe_size
from transom.errors import Refused
from transom.units import counted

VERSION = 1
PARTS = ("train", "held_out")
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PreparedExamples(Generic[Example]):
    """Pairs, labelled texts, conversations or preferences, ready to train on."""

    train: Any
    """PairRows, LabelledRows, ConversationRows or PreferenceRows, through the memory map."""
    held_out: Any
    labels: tuple[str, ...]
    """The classes by number, sorted; none for pairs."""
    tokenizer: Tokenizer
    report: ExampleReport
    data_hash: str
    """SHA-256 over all examples in order; what a resumed run compares."""
    shown: tuple[str, str]
    """The first held-out example: source and target, text and label, or a conversation as JSON and its
    opening."""
    numbers: tuple[Numbers, Numbers]
    """Which examples, counted from 0, the rows to learn from and those held out are of."""
    sources: tuple[ExampleSource[Example], ...]
    folder: Path
    reused: bool = False
    """Whether it had been prepared before."""

    @property
    def counts(self) -> dict[str, int]:
        """Class -> examples to learn from."""
        return self.report.counts

    @cached_property
    def _examples(self) -> tuple[list[Example], list[Example]]:
        parts: tuple[list[Example], list[Example]] = [], []
        side = np.full(1 + max(int(numbers.max()) for numbers in self.numbers), -1, dtype=np.int8)
        for part, numbers in enumerate(self.numbers):
            side[numbers] = part
        examples = itertools.chain.from_iterable(source.examples() for source in self.sources)
        for part, example in zip(side.tolist(), examples, strict=False):  # one that has a row at least
            if part >= 0:
                parts[part].append(example)
        return parts

    @property
    def train_examples(self) -> list[Example]:
        """The texts of `train`, row by row, read once more from the source."""
        return self._examples[0]

    @property
    def held_out_examples(self) -> list[Example]:
        """The texts of `held_out`."""
        return self._examples[1]


@dataclass(frozen=True)
class Preparation(Generic[Example]):
    """How examples are made ready: everything that decides about the rows."""

    train: ExampleSource[Example]
    validation: ExampleSource[Example] | None = None
    """What is measured on; without it the source's own held-out part, else a share of it: of classes from
    each alike, and of none wholly."""
    tokenizer: str | Path | Tokenizer | None = None
    """bpe, bytes, chars, a folder or a Tokenizer; None is what suits the source."""
    vocab_size: int | None = None
    val_fraction: float = 0.05
    max_len: int | None = None
    """Longer ones, in tokens, are left out, or refused when they are more than 1%."""
    frame: str | None = None
    """`target` for translation (the default for pairs), `text` for embedding and classification; of
    conversations none."""
    too_long: Literal["cut", "drop"] | None = None
    """What else is done with those of more than `max_len` tokens: they lose their ends, or all of them are
    left out, however many; either is noted."""
    template: ChatTemplate | None = None
    """What writes conversations."""

    def once(self, folder: Path | None, on_progress: OnProgress | None = None) -> PreparedExamples[Example]:
        """Make the examples ready below `folder`, or find them there; without one in a temporary folder.

        Raises Refused for whatever is wrong with the examples: for a single class, for labels of the
        validation that never occur in training, for more than 1% that are too long.
        """
        home = Path(tempfile.mkdtemp(prefix="transom-rows-")) if folder is None else Path(folder)
        try:
            make = partial(self._make, on_progress=on_progress)
            made, reused = cache.once(home, self._settings, self._find, make)
        except BaseException:
            if folder is None:
                shutil.rmtree(home, ignore_errors=True)
            raise
        made = replace(made, reused=reused)
        if folder is None:
            weakref.finalize(made, shutil.rmtree, home, ignore_errors=True)
        return made

    def found(self, folder: Path | None) -> PreparedExamples[Example] | None:
        """What `once` made of the same before, or None."""
        return None if folder is None else cache.found(Path(folder), self._settings, self._find)

    @cached_property
    def sources(self) -> tuple[ExampleSource[Example], ...]:
        """What is read: the examples to learn from, and those to measure on where they are apart."""
        validation = self.validation or self.train.held_out
        return (self.train,) if validation is None else (self.train, validation)

    @cached_property
    def framed(self) -> str:
        """The frame that was asked for, or that suits the examples."""
        suits = "" if self.train.talks is not None else "text" if self.train.has_classes else "target"
        return self.frame or suits

    @cached_property
    def known(self) -> Tokenizer | None:
        """The tokenizer, where it need not be made of the examples."""
        known = tokenizer_named(self.tokenizer or self.train.tokenizer, ends=self.framed == "target")
        ends = known is None or self.framed != "target" or known.frame[1]
        return known if known is None or ends else known.framed_as(self.framed)

    @property
    def kind(self) -> str:
        """What the tokenizer is called in the key: bpe, bytes, chars, or its hash."""
        asked = self.tokenizer or self.train.tokenizer
        return str(asked) if self.known is None else f"hash {self.known.hash}"

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "sources": [source.fingerprint() for source in self.sources],
            "tokenizer": self.kind,
            "vocab_size": self.vocab_size if self.kind == "bpe" else None,
            "val_fraction": self.val_fraction if len(self.sources) == 1 else None,
            "frame": self.framed,
            "max_len": self.max_len,
            "too_long": self.too_long,
            "template": None if self.template is None else self.template.all_text,
        }

    def files_of(self, home: Path, part: str) -> list[Path]:
        """The token files of a part, one for each side."""
        return [home / f"{part}.{side}.tokens" for side in self.train.sides]

    def _find(self, home: Path, record: cache.Record) -> PreparedExamples[Example]:
        """What was made in a folder, verified, with its rows memory-mapped."""
        tokenizer = self.known or Tokenizer.load(home)
        rows, numbers = [], []
        for part in PARTS:
            sides = []
            for path in self.files_of(home, part):
                file = TokenFile.open(path, tokenizer_hash=tokenizer.hash)
                file.verify()
                sides.append(file.rows())
            beside = [_loaded(home / f"{part}.{name}.npy", record) for name in ("beside", "numbers")]
            if self.train.talks is not None:
                learned = [
                    _loaded(path.with_suffix(".learned.npy"), record) for path in self.files_of(home, part)
                ]
                written = [
                    ConversationRows(side, flags.view(np.bool_), n_bytes)
                    for side, flags, n_bytes in zip(sides, learned, beside[0].T, strict=True)
                ]
                rows.append(PreferenceRows(*written) if len(written) == 2 else written[0])
            elif self.train.has_classes:
                rows.append(LabelledRows(sides[0], beside[0]))
            else:
                rows.append(PairRows(sides[0], sides[1], beside[0], *sides[2:]))
            numbers.append(beside[1])
        one, other = record["shown"]
        return PreparedExamples(
            rows[0], rows[1], tuple(record["labels"]), tokenizer, ExampleReport(**record["report"]),
            record["data_hash"], (one, other), (numbers[0], numbers[1]), self.sources, home,
        )  # fmt: skip

    def _make(self, home: Path, on_progress: OnProgress | None) -> cache.Record:
        """Read the examples, make their vocabulary and write their rows; gives the record of it."""
        report = ExampleReport(self.train.name, self.train.noun)
        facts = survey_examples(self.sources, self.val_fraction, report, Meter("check", None, on_progress))
        total = int(facts.characters.sum(dtype=np.int64))
        tokenizer = self.known or self._made_of(facts, Meter("tokenizer", total, on_progress))
        report.tokenizer, report.vocab_size = tokenizer.kind, tokenizer.vocab_size
        with disk_faults_named(home):
            tokenizer.save(home)
        writing = _Writing(self, facts, tokenizer, report, Meter("tokens", total, on_progress))
        hashes = writing.write(home)
        return {
            "data_hash": facts.data_hash,
            "labels": list(facts.labels),
            "shown": list(writing.shown),
            "report": report.to_dict(),
            "files": hashes,
        }

    def _made_of(self, facts: ExampleSurvey[Any], meter: Meter) -> Tokenizer:
        """A vocabulary of the texts to learn from: of all for characters, for BPE of a share of many."""
        total = int(facts.characters[~facts.held_out].sum(dtype=np.int64))
        stride = 1 if self.kind == "chars" else max(1, -(-total // SAMPLE_BYTES))
        texts = () if self.kind == "bytes" else facts.learned_texts(meter)
        sample = itertools.islice(texts, 0, None, stride)
        return train_tokenizer(self.kind, sample, self.vocab_size or bpe_size(), frame=self.framed)


@dataclass(frozen=True)
class _Encoded:
    """The rows of a batch of examples."""

    sides: list[Ragged]
    owners: Numbers
    """(rows,) which example of the batch each is of."""
    learned: list[Ragged] | None = None
    """Of conversations, beside every id of every side: 1 where it carries loss."""


@dataclass
class _Writing:
    """The rows on their way to the disk, and what is counted meanwhile."""

    making: Preparation[Any]
    facts: ExampleSurvey[Any]
    tokenizer: Tokenizer
    report: ExampleReport
    meter: Meter
    shown: tuple[str, str] = ("", "")
    n_cut: int = 0
    """Examples whose end was cut off."""
    n_answerless: int = 0
    """Conversations of which no answer is left."""
    n_equal: int = 0
    """Pairs of which both sides are equal, which say nothing."""
    n_lost: int = 0
    """Tokens of them that went."""
    n_cut_tokens: int = 0
    """Tokens that they had; of conversations only those of answers are counted."""

    def __post_init__(self) -> None:
        self.sides = self.making.train.sides
        self.longest, self.of_own = array("I"), array("B")
        """Tokens of every row's longest side, and whether it is of the source itself."""
        self.first_over: dict[int, tuple[str, Numbers]] = {}
        """Source -> the place and lengths of its first example that is too long."""
        self.lengths = np.zeros((2, len(self.sides)), dtype=np.int64)
        """Sum and maximum for every side."""
        self.beside, self.numbers = (array("q"), array("q")), (array("q"), array("q"))
        self.learned = [[array("B") for _ in self.sides] for _ in PARTS]

    def write(self, home: Path) -> dict[str, str]:
        """Encode all examples into the files of both parts; gives the hashes of those beside the tokens."""
        facts, report = self.facts, self.report
        n_unclear, unclear_at = facts.contradictions() if facts.labels else (0, -1)
        unclear_where, whole, first = "", hashlib.sha256(), 0
        with contextlib.ExitStack() as stack:
            writers = [
                [stack.enter_context(self._writer(path)) for path in self.making.files_of(home, part)]
                for part in PARTS
            ]
            batches = in_batches(facts.examples(), lambda example: len(example[0]) + len(example[1]))
            for batch, encoded in ahead(batches, self._encoded):
                whole.update(b"".join(map(hashed_bytes, batch)))
                if first + len(batch) > len(facts.held_out):
                    break
                if first <= unclear_at < first + len(batch):
                    unclear_where = batch[unclear_at - first][2]
                self._write(batch, first, encoded, writers)
                first += len(batch)
            if whole.hexdigest() != facts.data_hash:
                raise Refused(
                    f"{report.name}: the text changed while it was being read; start again when it is at rest"
                )
            self._complete()
            for side in itertools.chain.from_iterable(writers):
                side.commit(facts.data_hash)
        if known := facts.held_out_that_are_known():
            report.notes.append(
                f"{known:,} of {int(facts.held_out.sum()):,} held-out texts also stand among those to learn "
                "from, which flatters the score"
            )
        if n_unclear:
            report.notes.append(
                f"{counted(n_unclear, 'text')} with more than one label, first at {unclear_where}: "
                "nobody can get them all right"
            )
        self.meter.finish()
        talks, hashes = self.making.train.talks is not None, {}
        for part, beside, numbers, learned in zip(
            PARTS, self.beside, self.numbers, self.learned, strict=True
        ):
            arrays = {home / f"{part}.numbers.npy": np.asarray(numbers)}
            arrays[home / f"{part}.beside.npy"] = np.asarray(beside).reshape(-1, *([len(self.sides)] * talks))
            for path, flags in zip(self.making.files_of(home, part), learned if talks else (), strict=talks):
                arrays[path.with_suffix(".learned.npy")] = np.asarray(flags)
            hashes |= {path.name: _saved(path, array) for path, array in arrays.items()}
        return hashes

    def _writer(self, path: Path) -> TokenWriter:
        return TokenWriter(
            path, eos_id=self.tokenizer.eos_id or 0, tokenizer_hash=self.tokenizer.hash,
            bytes_per_token=self.tokenizer.bytes_per_token,
        )  # fmt: skip

    def _encoded(self, batch: Sequence[Any]) -> _Encoded:
        """The framed ids of every side, or the conversations as the template writes them."""
        if self.making.train.talks is not None:
            return self._written(batch)
        texts = [example[at] for at in range(len(self.sides)) for example in batch]
        ids = self.tokenizer.framed_many(texts)
        sides = [Ragged.of(ids[at : at + len(batch)]) for at in range(0, len(ids), len(batch))]
        return _Encoded(sides, np.arange(len(batch)))

    def _written(self, batch: Sequence[Any]) -> _Encoded:
        """Conversations as rows, with what of them is learned. Raises Refused for one that cannot be."""
        train, template = self.making.train, self.making.template
        assert train.talks is not None and template is not None
        talks = [talk for example in batch for talk in train.talks(example)]
        found = iter(answer_rows(template, self.tokenizer, talks))
        rows: list[list[Any]] = [[] for _ in self.sides]
        masks: list[list[Any]] = [[] for _ in self.sides]
        owners = array("q")
        for at, example in enumerate(batch):
            sides = [self._answers(example[-1], next(found)) for _ in self.sides]
            if len(sides) > 1 and any(len(side) > 1 for side in sides):
                raise Refused(
                    f"{example[-1]}: {template.name} writes the earlier of several answers otherwise once "
                    "the last follows, so they are not one text; part the pair behind them, or take another "
                    "by --data.chat-template (turns, chatml or a file)"
                )
            for side, written in enumerate(sides):
                for row in written:
                    mask = np.zeros(len(row.tokens), dtype=np.uint8)
                    for start, end in row.answers:
                        mask[start:end] = 1
                    rows[side].append(np.array(row.tokens, dtype=np.uint32))
                    masks[side].append(mask)
            owners.extend([at] * len(sides[0]))
        return _Encoded(list(map(Ragged.of, rows)), np.asarray(owners), list(map(Ragged.of, masks)))

    def _answers(self, where: str, found: list[AnswerRow] | Refused) -> list[AnswerRow]:
        """The rows of a conversation. Raises Refused where it has none, or none that ends."""
        template = self.making.template
        assert template is not None
        if isinstance(found, Refused):
            raise Refused(f"{where}: {found}")
        if not all(row.ended for row in found):
            raise Refused(
                f"{where}: {template.name} writes no token that ends an answer, so a model would never "
                "learn to stop; take another by --data.chat-template (turns, chatml or a file)"
            )
        return found

    def _write(
        self, batch: Sequence[Any], first: int, encoded: _Encoded, writers: list[list[TokenWriter]]
    ) -> None:
        """Write the rows of a batch whose first example is number `first`, those that fit."""
        max_len, tokenizer, facts = self.making.max_len, self.tokenizer, self.facts
        sides, owners, learned = encoded.sides, encoded.owners, encoded.learned
        lengths = np.stack([side.lengths for side in sides], axis=1)
        self.lengths[0] += lengths.sum(axis=0)
        self.lengths[1] = np.maximum(self.lengths[1], lengths.max(axis=0))
        if max_len is not None and self.making.too_long == "cut" and (lengths > max_len).any():
            sides, learned = self._cut(max_len, lengths, sides, learned)
            lengths = np.stack([side.lengths for side in sides], axis=1)
        longest = lengths.max(axis=1)
        self.longest.extend(longest.tolist())
        self.of_own.extend((first + owners < facts.n_own).tolist())
        fits = np.ones(len(owners), dtype=np.bool_) if max_len is None else longest <= max_len
        for at in np.flatnonzero(~fits).tolist():
            number = int(owners[at])
            self.first_over.setdefault(int(first + number >= facts.n_own), (batch[number][-1], lengths[at]))

        # What stands beside a row: the bytes of a target or of answers, or the number of a class.
        if learned is not None:
            written = [
                tokenizer.bytes_per_token[one.flat] * flags.flat
                for one, flags in zip(sides, learned, strict=True)
            ]
            beside = np.stack([_sums(*one) for one in zip(learned, written, strict=True)], axis=1)
            answered = np.min([_sums(flags, flags.flat) for flags in learned], axis=0) > 0
            self.n_answerless += int((fits & ~answered).sum())
            fits &= answered
            if len(sides) > 1:
                equal = np.array([np.array_equal(sides[0][at], sides[1][at]) for at in range(len(owners))])
                self.n_equal += int((fits & equal).sum())
                fits &= ~equal
        elif facts.labels:
            beside = facts.classes[first : first + len(batch)]
        else:
            beside = np.array([len(example[1].encode()) for example in batch], dtype=np.int64)
        held_out = facts.held_out[first + owners]
        for part, chosen in enumerate((~held_out & fits, held_out & fits)):
            at = np.flatnonzero(chosen)
            rows = [side.take(at) for side in sides]
            for writer, row in zip(writers[part], rows, strict=True):
                writer.add_rows(row)
            for kept, side in zip(self.learned[part], learned or (), strict=False):
                flags = side.take(at).flat.astype(np.uint8)
                kept.frombytes(flags.tobytes())
                self.report.n_tokens += len(flags)
                self.report.n_learned += int(flags.sum())
            self.beside[part].extend(beside[at].ravel().tolist())
            self.numbers[part].extend((first + owners[at]).tolist())
            if part and tokenizer.unknown_id is not None:
                self.report.n_unknown += sum(int((row.flat == tokenizer.unknown_id).sum()) for row in rows)
            if part and len(at) and not self.shown[0]:
                self.shown = tuple(batch[int(owners[at[0]])][:2])
        self.meter.add(int(facts.characters[first : first + len(batch)].sum(dtype=np.int64)))

    def _cut(
        self, max_len: int, lengths: Numbers, sides: list[Ragged], learned: list[Ragged] | None
    ) -> tuple[list[Ragged], list[Ragged] | None]:
        """Rows of at most `max_len` ids, and what of them is learned; what goes is counted."""
        over = lengths[lengths > max_len]
        self.n_cut += int((lengths > max_len).any(axis=1).sum())
        after = 0 if learned is not None else len(self.tokenizer.frame[1])
        cut = [side.cut(max_len, after) for side in sides]
        if learned is None:
            self.n_cut_tokens += int(over.sum())
            self.n_lost += int((over - max_len).sum())
            return cut, None
        kept = [flags.cut(max_len, 0) for flags in learned]
        for flags, left, shortened in zip(learned, kept, (lengths > max_len).T, strict=True):
            had, has = _sums(flags, flags.flat), _sums(left, left.flat)
            self.n_cut_tokens += int(had[shortened].sum())
            self.n_lost += int((had - has)[shortened].sum())
        return cut, kept

    def _complete(self) -> None:
        """Say in the report what was made; refuse where more than 1% of a source does not fit."""
        report, facts, max_len = self.report, self.facts, self.making.max_len
        n = len(self.longest)
        report.lengths = {
            side: (total / n, most)
            for side, (total, most) in zip(self.sides, self.lengths.T.tolist(), strict=True)
        }
        report.max_len = max_len
        if self.n_cut:
            report.n_cut, report.lost = self.n_cut, self.n_lost / max(1, self.n_cut_tokens)
            report.notes.append(
                f"{self.n_cut:,} of {counted(n, report.noun)} are longer than {max_len:,} tokens and "
                f"are cut there: they lose {100 * report.lost:.0f}% of their "
                f"{'tokens' if self.making.train.talks is None else 'answers'}"
            )
        if self.n_answerless:
            report.notes.append(f"{self.n_answerless:,} whose prompt alone is longer than that are left out")
        if self.n_equal:
            report.notes.append(f"{self.n_equal:,} whose two answers are equal say nothing and are left out")
        longest, of_own = np.asarray(self.longest), np.asarray(self.of_own, dtype=np.bool_)
        for part, (where, lengths) in sorted(self.first_over.items()):
            of_part = longest[~of_own if part else of_own]
            self._refuse_over_long(of_part, where, lengths)
            report.n_over_long += int((of_part > (max_len or 0)).sum())
            report.first_over_long = report.first_over_long or where
        report.n_train, report.n_held_out = map(len, self.numbers)
        if not (report.n_train and report.n_held_out):
            what = "hold out" if report.n_train else "learn from"
            if not report.first_over_long:
                why = f": {report.notes[-1]}" if report.notes else ""
                raise Refused(f"{report.name}: no {report.noun} is left to {what}{why}; give others")
            raise Refused(
                f"{report.name}: every {report.noun} to {what} is longer than {max_len:,} tokens, first at "
                f"{report.first_over_long}; raise --model.max-len, or shorten them"
            )
        if facts.labels:
            counts = np.bincount(np.asarray(self.beside[0]), minlength=len(facts.labels))
            report.counts = dict(zip(facts.labels, counts.tolist(), strict=True))

    def _refuse_over_long(self, longest: npt.NDArray[np.uint32], first: str, lengths: Numbers) -> None:
        """Raise Refused when more than 1% of a source does not fit; `first` is the place of the first."""
        train, max_len, total = self.making.train, self.making.max_len or 0, len(longest)
        n_over = int((longest > max_len).sum())
        if n_over <= MAX_SKIPPED * total or self.making.too_long == "drop":
            return
        has = " and ".join(f"{n:,} {side}" for side, n in zip(self.sides, lengths.tolist(), strict=True))
        may_cut = train.talks is not None or self.making.framed == "text"
        enough = int(np.sort(longest)[total - 1 - int(MAX_SKIPPED * total)])
        raise Refused(
            f"{first}: {has} tokens, the limit is {max_len:,}; {n_over:,} of "
            f"{counted(total, self.report.noun)} ({100 * n_over / total:.1f}%, at most 1% may) are longer: "
            f"set --model.max-len to {enough:,}, or shorten them"
            + (" (--data.too-long cut or drop)" if may_cut else "")
        )


def _sums(rows: Ragged, values: npt.NDArray[Any]) -> Numbers:
    """The sum of the values (ids,) beside the ids of every row, none of which is empty."""
    return np.add.reduceat(values.astype(np.int64), rows.starts[:-1]) if len(rows) else np.zeros(0, np.int64)


def _saved(path: Path, numbers: npt.NDArray[Any]) -> str:
    """Write numbers as a .npy file; gives the hash of its bytes."""
    with disk_faults_named(path):
        np.save(path, numbers, allow_pickle=False)
    return _hash_of(path)


def _loaded(path: Path, record: cache.Record) -> Numbers:
    """Numbers of a .npy file, memory-mapped. Raises ValueError when they are not what was written."""
    if _hash_of(path) != record["files"][path.name]:
        raise ValueError(f"{path} is not what was written")
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
