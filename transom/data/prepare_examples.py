"""From a source of pairs or labelled texts to rows of ids, ready to train on: split, vocabulary, framing.

The one idea: what is held out shares no text with what is learned from (pairs: on neither side), and what
does not fit the model is refused with its line, or left out and said where it is rare. All examples are held
in memory. Read next: examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from transom.data.example_report import ExampleReport, counted
from transom.data.examples import LabelledRows, PairRows
from transom.data.issues import MAX_SKIPPED
from transom.data.labelled import Labelled, LabelledSource
from transom.data.pairs import Pair, PairSource
from transom.data.prepare import SAMPLE_BYTES
from transom.data.ragged import Ragged
from transom.data.read_examples import (
    AllExamples,
    Example,
    classes_of,
    read_examples,
    refuse_unsplit,
    split_labelled,
    split_pairs,
)
from transom.data.tokenizer import Tokenizer, tokenizer_named, train_tokenizer
from transom.data.vocabulary import bpe_size
from transom.errors import Refused

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PreparedPairs:
    """Pairs, ready to train on."""

    train: PairRows
    held_out: PairRows
    train_pairs: list[Pair]
    """The texts of `train`, row by row."""
    held_out_pairs: list[Pair]
    tokenizer: Tokenizer
    report: ExampleReport
    data_hash: str
    """SHA-256 over all examples in order; what a resumed run compares."""


@dataclass(frozen=True)
class PreparedLabelled:
    """Labelled texts, ready to train on."""

    train: LabelledRows
    held_out: LabelledRows
    train_texts: list[Labelled]
    """The texts of `train`, row by row."""
    held_out_texts: list[Labelled]
    labels: tuple[str, ...]
    """The classes by number, sorted."""
    counts: dict[str, int]
    """Examples of each class to learn from."""
    tokenizer: Tokenizer
    report: ExampleReport
    data_hash: str
    """SHA-256 over all examples in order; what a resumed run compares."""


def prepare_pairs(
    train: PairSource,
    validation: PairSource | None = None,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    vocab_size: int | None = None,
    val_fraction: float = 0.05,
    max_len: int | None = None,
    frame: str = "target",
) -> PreparedPairs:
    """Make pairs ready for translation (frame `target`), or for embedding (frame `text`).

    `tokenizer` is bpe, bytes, chars, a folder or a Tokenizer; None is what suits the source. Without
    `validation` the source's own held-out part is taken, else a share of it. Raises Refused for whatever is
    wrong with the examples.
    """
    report = ExampleReport(train.name, "pair")
    read = read_examples(train, validation, val_fraction, report, split_pairs)
    refuse_unsplit(read, report)
    pairs = read.examples
    sides = {"source": [pair.source for pair in pairs], "target": [pair.target for pair in pairs]}
    made = _tokenizer(tokenizer or train.tokenizer, read.texts(sides), vocab_size, frame)
    rows = _framed(sides, made, report)
    keep = _fitting(rows, read, max_len, report)
    n_bytes = np.array([len(pair.target.encode()) for pair in pairs], dtype=np.int64)

    def part(chosen: Mask) -> PairRows:
        at = np.flatnonzero(chosen)
        return PairRows(rows["source"].take(at), rows["target"].take(at), n_bytes[at])

    learned, held_out = _parts(read, keep, rows, made, report)
    _note_known_texts(report, sides["source"], read.held_out)
    return PreparedPairs(
        part(learned), part(held_out), _chosen(pairs, learned), _chosen(pairs, held_out), made, report,
        read.data_hash,
    )  # fmt: skip


def prepare_labelled(
    train: LabelledSource,
    validation: LabelledSource | None = None,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    vocab_size: int | None = None,
    val_fraction: float = 0.05,
    max_len: int | None = None,
    frame: str = "text",
    cut: bool = False,
) -> PreparedLabelled:
    """Make labelled texts ready for classification; arguments as in prepare_pairs.

    Texts of more than `max_len` tokens lose their ends where `cut` says so; then a note tells how many.

    A share that is held out is taken from each class alike, and no class wholly. Raises Refused for one class
    only, labels of the validation that never occur in training, and whatever else is wrong with the examples.
    """
    report = ExampleReport(train.name, "text")
    read = read_examples(train, validation, val_fraction, report, split_labelled)
    examples = read.examples
    labels = classes_of(read, train.name, report)
    refuse_unsplit(read, report)
    sides = {"text": [example.text for example in examples]}
    made = _tokenizer(tokenizer or train.tokenizer, read.texts(sides), vocab_size, frame)
    rows = _framed(sides, made, report)
    if cut and max_len is not None:
        rows["text"] = _cut(rows["text"], max_len, made, report)
    keep = _fitting(rows, read, max_len, report)
    numbers = {label: number for number, label in enumerate(labels)}
    classes = np.array([numbers[example.label] for example in examples], dtype=np.int64)
    learned, held_out = _parts(read, keep, rows, made, report)
    counts = np.bincount(classes[learned], minlength=len(labels))
    report.counts = dict(zip(labels, counts.tolist(), strict=True))
    _note_known_texts(report, sides["text"], read.held_out)
    _note_contradictions(report, examples)

    def part(chosen: Mask) -> LabelledRows:
        return LabelledRows(rows["text"].take(np.flatnonzero(chosen)), classes[chosen])

    return PreparedLabelled(
        part(learned), part(held_out), _chosen(examples, learned), _chosen(examples, held_out), labels,
        report.counts, made, report, read.data_hash,
    )  # fmt: skip


def _chosen(examples: list[Example], mask: Mask) -> list[Example]:
    return [examples[at] for at in np.flatnonzero(mask)]


# Tokens


def _tokenizer(
    spec: str | Path | Tokenizer, texts: Iterable[str], vocab_size: int | None, frame: str
) -> Tokenizer:
    """The tokenizer that is named, or made from the texts; for targets it always writes an end."""
    known = tokenizer_named(spec, ends=frame == "target")
    if known is None:
        return train_tokenizer(str(spec), _sample(texts, str(spec)), vocab_size or bpe_size(), frame=frame)
    return known.framed_as(frame) if frame == "target" and not known.frame[1] else known


def _sample(texts: Iterable[str], kind: str) -> Iterator[str]:
    """All texts for characters; for BPE an evenly spread share when they are many."""
    if kind == "bytes":
        return
    held = list(texts)
    stride = 1 if kind == "chars" else -(-sum(map(len, held)) // SAMPLE_BYTES)
    yield from held[:: max(1, stride)]


def _framed(sides: dict[str, list[str]], tokenizer: Tokenizer, report: ExampleReport) -> dict[str, Ragged]:
    """The framed ids of every side."""
    rows = {side: Ragged.of(tokenizer.framed_many(texts)) for side, texts in sides.items()}
    report.lengths = {
        side: (float(ragged.lengths.mean()), int(ragged.lengths.max())) for side, ragged in rows.items()
    }
    report.tokenizer, report.vocab_size = tokenizer.kind, tokenizer.vocab_size
    return rows


def _cut(rows: Ragged, max_len: int, tokenizer: Tokenizer, report: ExampleReport) -> Ragged:
    """Rows of at most `max_len` tokens, the frame's end kept, as `inference/batching.framed` cuts them."""
    after = len(tokenizer.frame[1])
    over = rows.lengths > max_len
    if not over.any():
        return rows
    lost, held = int((rows.lengths[over] - max_len).sum()), int(rows.lengths[over].sum())
    report.notes.append(
        f"{int(over.sum()):,} of {counted(len(rows), report.noun)} are longer than {max_len:,} tokens and "
        f"are cut there: they lose {100 * lost / held:.0f}% of their tokens"
    )
    kept = [rows[row] for row in range(len(rows))]
    for row in np.flatnonzero(over).tolist():
        ids = kept[row]
        kept[row] = np.concatenate([ids[: max_len - after], ids[len(ids) - after :]])
    return Ragged.of(kept)


def _fitting(rows: dict[str, Ragged], read: AllExamples, max_len: int | None, report: ExampleReport) -> Mask:
    """Which examples fit into `max_len` tokens; Refused when more than 1% of a source do not."""
    lengths = np.stack([ragged.lengths for ragged in rows.values()], axis=1)
    if max_len is None:
        return np.ones(len(lengths), dtype=np.bool_)
    longest = lengths.max(axis=1)
    for part in (slice(0, read.n_own), slice(read.n_own, None)):
        over = np.flatnonzero(longest[part] > max_len) + (part.start or 0)
        total = len(longest[part])
        if not len(over):
            continue
        first = read.examples[int(over[0])].where
        if len(over) > MAX_SKIPPED * total:
            has = " and ".join(
                f"{n:,} {side}" for side, n in zip(rows, lengths[over[0]].tolist(), strict=True)
            )
            enough = int(np.sort(longest[part])[total - 1 - int(MAX_SKIPPED * total)])
            raise Refused(
                f"{first}: {has} tokens, the limit is {max_len:,}; {len(over):,} of "
                f"{counted(total, report.noun)} ({100 * len(over) / total:.1f}%, at most 1% may) are longer: "
                f"set --model.max-len to {enough:,}, or shorten them"
                + (" (--data.too-long cut)" if report.noun == "text" else "")
            )
        report.n_over_long += len(over)
        report.first_over_long = report.first_over_long or first
    report.max_len = max_len
    return longest <= max_len


def _parts(
    read: AllExamples, keep: Mask, rows: dict[str, Ragged], tokenizer: Tokenizer, report: ExampleReport
) -> tuple[Mask, Mask]:
    """Which examples are learned from and which are measured on, counted in the report."""
    learned, held_out = ~read.held_out & keep, read.held_out & keep
    report.n_train, report.n_held_out = int(learned.sum()), int(held_out.sum())
    if tokenizer.unknown_id is not None:
        for ragged in rows.values():
            held = np.repeat(held_out, ragged.lengths)
            report.n_unknown += int((ragged.flat[held] == tokenizer.unknown_id).sum())
    return learned, held_out


# What a reader should know


def _note_known_texts(report: ExampleReport, texts: Sequence[str], held_out: Mask) -> None:
    learned = {text for text, held in zip(texts, held_out.tolist(), strict=True) if not held}
    known = sum(text in learned for text, held in zip(texts, held_out.tolist(), strict=True) if held)
    if known:
        total = int(held_out.sum())
        report.notes.append(
            f"{known:,} of {total:,} held-out texts also stand among those to learn from, which flatters the "
            "score"
        )


def _note_contradictions(report: ExampleReport, examples: Sequence[Labelled]) -> None:
    seen: dict[str, str] = {}
    unclear = {
        example.text for example in examples if seen.setdefault(example.text, example.label) != example.label
    }
    if unclear:
        first = next(example.where for example in examples if example.text in unclear)
        report.notes.append(
            f"{counted(len(unclear), 'text')} with more than one label, first at {first}: "
            "nobody can get them all right"
        )
