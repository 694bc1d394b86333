"""From a source to token files, once: check, split, tokenizer, tokens, reference lines; kept and found again.

The one idea: the result is named after everything it depends on (files with size and time, settings), so the
same call returns at once, a changed file is prepared anew, and training can refuse when the data hash is not
the one it began with. Text is read three times as a stream (check, tokenizer, tokens) and never held. Read
next: tokens, order.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from transom.data import cache
from transom.data.check import Meter, OnProgress, Report, Survey, survey
from transom.data.documents import clean_cut
from transom.data.ngram_baselines import NgramBaselines, count_baselines
from transom.data.sources import Source
from transom.data.split import HELD_OUT, TRAIN, Piece, Split, split
from transom.data.tokenizer import Ids, Tokenizer, tokenizer_named, train_tokenizer
from transom.data.tokens import TokenFile, TokenWriter, disk_faults_named
from transom.data.vocabulary import bpe_size
from transom.data.words import n_cores
from transom.errors import Refused

VERSION = 3
SAMPLE_BYTES = 32 << 20
"""BPE is learned from at most this much text, spread over the whole of the training side."""

_BATCH_CHARACTERS = 1 << 21
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Corpus:
    """A source, ready to train on."""

    train: TokenFile
    held_out: TokenFile
    tokenizer: Tokenizer
    report: Report
    references: NgramBaselines
    data_hash: str
    """SHA-256 over every document's text in order; what a resumed run compares."""
    folder: Path
    reused: bool
    """Whether it had been prepared before."""


def prepare(
    source: Source,
    *,
    folder: Path,
    tokenizer: str | Path | Tokenizer = "bpe",
    vocab_size: int | None = None,
    val_fraction: float = 0.05,
    frame: str = "",
    on_progress: OnProgress | None = None,
) -> Corpus:
    """Make `source` ready to train on, below `folder`, or find it there from before.

    `tokenizer` is bpe, bytes, chars, a folder that holds one, or a Tokenizer. `vocab_size` is that of bpe, by
    the size of the text where it is None. `frame` is that of a tokenizer made here (see train_tokenizer); a
    given one without a mask gets one for the frame `text`. Two processes may call this at once: one works,
    the other waits.
    """
    known = tokenizer_named(tokenizer)
    if known is not None and frame == "text" and known.mask_id is None:
        known = known.framed_as(frame)
    kind = f"hash {known.hash}" if known is not None else str(tokenizer)
    settings = {
        "version": VERSION,
        "source": source.fingerprint(),
        "tokenizer": kind,
        "vocab_size": vocab_size if kind == "bpe" else None,
        "val_fraction": val_fraction,
    }
    if frame:
        settings["frame"] = frame
    corpus, reused = cache.once(
        Path(folder), settings, _found,
        lambda home: _made(source, home, settings, known, on_progress),
    )  # fmt: skip
    return replace(corpus, reused=reused)


def _found(home: Path, record: dict[str, Any]) -> Corpus:
    """What an earlier call left in `home`, verified."""
    tokenizer = Tokenizer.load(home)
    train, held_out = (
        TokenFile.open(home / name, tokenizer_hash=tokenizer.hash)
        for name in ("train.tokens", "held_out.tokens")
    )
    for file in (train, held_out):
        file.verify()
    report, lines = Report(**record["report"]), NgramBaselines.from_dict(record["references"])
    return Corpus(train, held_out, tokenizer, report, lines, record["data_hash"], home, reused=True)


def _made(
    source: Source,
    home: Path,
    settings: dict[str, Any],
    tokenizer: Tokenizer | None,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Prepare from the text into the folder `home`; gives the record of it."""
    facts = survey(source, on_progress=on_progress)
    halves = split(facts, settings["val_fraction"])
    if tokenizer is None:
        sample = _sample(source, facts, halves, settings["tokenizer"], on_progress)
        kind, size = settings["tokenizer"], settings["vocab_size"] or bpe_size(facts.report.n_bytes)
        tokenizer = train_tokenizer(kind, sample, size, frame=settings.get("frame", ""))
    with disk_faults_named(home):
        tokenizer.save(home)
    made = _tokenized(source, facts, halves, tokenizer, home, on_progress)
    files = [TokenFile.open(home / name) for name in ("train.tokens", "held_out.tokens")]
    lines = count_baselines(*files)
    _complete(facts.report, files, tokenizer, settings, made, halves, lines)
    return {
        "data_hash": facts.data_hash,
        "report": facts.report.to_dict(),
        "references": lines.to_dict(),
    }


def _sample(
    source: Source, facts: Survey, halves: Split, kind: str, on_progress: OnProgress | None
) -> Iterator[str]:
    """Training text to learn a vocabulary from: all of it for characters, an evenly spread share for BPE."""
    if kind == "bytes":
        return
    share = 1.0 if kind == "chars" else min(1.0, SAMPLE_BYTES / max(facts.report.n_bytes, 1))
    meter = Meter("tokenizer", facts.report.n_bytes, on_progress)
    owed = 0.0
    for piece in _pieces(source, halves):
        meter.add(len(piece.text))
        if piece.side != TRAIN:
            continue
        owed += share * len(piece.text)
        if share == 1.0:
            yield piece.text
        elif owed >= min(len(piece.text), 1 << 14):
            text = (
                piece.text[: clean_cut(piece.text, int(owed)) or int(owed)]
                if owed < len(piece.text)
                else piece.text
            )
            owed -= len(text)
            yield text
    meter.finish()


def _pieces(source: Source, halves: Split) -> Iterator[Piece]:
    for number, document in enumerate(source.documents()):
        yield from halves.pieces(number, document)


@dataclass
class _Made:
    """What came of tokenizing."""

    mb_per_s: float
    n_unknown: int


def _tokenized(
    source: Source,
    facts: Survey,
    halves: Split,
    tokenizer: Tokenizer,
    folder: Path,
    on_progress: OnProgress | None,
) -> _Made:
    """Encode every document into one token file for each side. Raises Refused when the text is no longer the
    same.
    """
    assert tokenizer.eos_id is not None
    meter = Meter("tokens", facts.report.n_bytes, on_progress)
    n_unknown = 0
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                TokenWriter(
                    folder / name,
                    eos_id=tokenizer.eos_id,
                    tokenizer_hash=tokenizer.hash,
                    bytes_per_token=tokenizer.bytes_per_token,
                )
            )
            for name in ("train.tokens", "held_out.tokens")
        ]
        reading = _Reading(source, halves)
        for piece, ids in _encoded(reading.pieces(), tokenizer):
            writer = writers[piece.side]
            if piece.opens:
                writer.begin()
            n_bytes = len(piece.text) if piece.text.isascii() else len(piece.text.encode())
            writer.extend(ids, n_bytes)
            meter.add(n_bytes)
            if tokenizer.unknown_id is not None:
                n_unknown += int((ids == tokenizer.unknown_id).sum())
        if reading.data_hash != facts.data_hash:
            raise Refused(
                f"{source.name}: the text changed while it was being read; start again when it is at rest"
            )
        for writer, side in zip(writers, ("learn from", "hold out"), strict=True):
            if writer.n_tokens < 2:
                raise Refused(
                    f"{source.name}: {facts.report.n_bytes:,} bytes are too little text to {side}; give more"
                )
            writer.commit(facts.data_hash)
    meter.finish()
    return _Made(meter.mb_per_s, n_unknown)


class _Reading:
    """The pieces of a source, with the hash of all that was read."""

    def __init__(self, source: Source, halves: Split) -> None:
        self.source, self.halves = source, halves
        self._whole = hashlib.sha256()

    @property
    def data_hash(self) -> str:
        return self._whole.hexdigest()

    def pieces(self) -> Iterator[Piece]:
        for number, document in enumerate(self.source.documents()):
            if number >= self.halves.n_documents:
                self._whole.update(b"more")
                return
            digest = hashlib.sha256()
            for piece in self.halves.pieces(number, document):
                digest.update(piece.text.encode())
                yield piece
            self._whole.update(digest.digest())


def _encoded(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[tuple[Piece, Ids]]:
    """Encode pieces in their order, in batches."""
    batches = in_batches(pieces, lambda piece: len(piece.text))
    encoded = ahead(batches, lambda batch: tokenizer.encode_arrays([piece.text for piece in batch]))
    for batch, ids in encoded:
        yield from zip(batch, ids, strict=True)


def ahead(batches: Iterator[Item], encode: Callable[[Item], Made]) -> Iterator[tuple[Item, Made]]:
    """Yield every batch with what `encode` makes of it: on all cores, while the next one is read."""
    with ThreadPoolExecutor(1) as thread:
        waiting: tuple[Item, Future[Made]] | None = None
        for batch in batches:
            begun = batch, thread.submit(encode, batch)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = begun
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def in_batches(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Lists of items that together have about two million characters, so many as `size_of` says."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _complete(
    report: Report,
    files: list[TokenFile],
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    made: _Made,
    halves: Split,
    lines: NgramBaselines,
) -> None:
    """Add to the report what was made, and say what a reader should know about it."""
    n_tokens = sum(file.n_tokens for file in files)
    report.tokens = {
        "n_tokens": n_tokens,
        "n_train": files[TRAIN].n_tokens,
        "n_held_out": files[HELD_OUT].n_tokens,
        "bytes_per_token": report.n_bytes / n_tokens,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.kind,
        "split": halves.says,
        "mb_per_s": round(made.mb_per_s, 1),
        "n_threads": n_cores(),
        "n_unknown": made.n_unknown,
    }
    wanted = settings["vocab_size"]
    if wanted is not None and tokenizer.vocab_size < wanted:
        size = f"{tokenizer.vocab_size:,}, not {wanted:,}"
        report.notes.append(f"the text yields a vocabulary of {size}: nothing else occurs twice")
    if settings["tokenizer"] == "bpe" and report.n_bytes > SAMPLE_BYTES:
        report.notes.append(f"the vocabulary was learned from {SAMPLE_BYTES >> 20} MB spread over the text")
    if made.n_unknown:
        report.notes.append(
            f"{made.n_unknown:,} held-out characters never occur in the training text: <|unk|>"
        )
    if not tokenizer.cuts_cleanly and report.n_bytes > report.n_documents << 18:
        report.notes.append(
            "long documents were cut for this foreign tokenizer, which may show where parts meet"
        )
    if lines.n_counted < files[TRAIN].n_tokens:
        report.notes.append(
            f"unigram and bigram were counted on {lines.n_counted:,} of {files[TRAIN].n_tokens:,} tokens"
        )
