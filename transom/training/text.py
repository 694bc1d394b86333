"""The text of a run as tokens: prepared once, by rank 0, and opened by all."""

from __future__ import annotations

from ..data.check import Progress
from ..data.prepare import Corpus, prepare
from ..data.sources import open_source
from ..errors import Refused
from ..settings import DataSettings
from .folder import RunFolder
from .parallelism import World
from .report import Report


def prepare_data(settings: DataSettings, folder: RunFolder, world: World, report: Report) -> Corpus:
    """Turn the source into token files below the run's folder (or data.cache), or find them there.

    Raises `Refused` for whatever is wrong with the text.
    """
    if settings.source == "-" and world.size > 1:
        raise Refused("standard input can be read by one process only; write it to a file and name that")

    def made() -> Corpus:
        source = open_source(settings.source, field=settings.field, on_error=settings.on_error)
        return prepare(
            source, folder=settings.cache or folder.data, tokenizer=settings.tokenizer,
            vocab_size=settings.vocab_size, val_fraction=settings.val_fraction,
            on_progress=show if world.is_first else None,
        )  # fmt: skip

    def show(progress: Progress) -> None:
        report.preparing(progress.stage, progress.done, progress.total, progress.mb_per_s)

    corpus: list[Corpus] = []
    world.first(lambda: corpus.append(made()))
    if not corpus:
        corpus.append(made())
    for line in str(corpus[0].report).splitlines():
        report("note", text=line)
    return corpus[0]


def refuse_too_little(corpus: Corpus, source: str, length: int) -> None:
    """Raise `Refused` when the text to learn from, or that held out, is shorter than one window."""
    fewest = min(corpus.train.n_tokens, corpus.held_out.n_tokens)
    if fewest <= length:
        which = "to learn from" if corpus.train.n_tokens == fewest else "held out"
        raise Refused(
            f"{source}: the {fewest:,} tokens {which} are fewer than one window of {length:,} and its last "
            f"target; give more text, or a --model.max-len of at most {max(1, fewest - 1):,}"
        )


def reference_lines(corpus: Corpus) -> dict[str, float]:
    """Nats per token of uniform, unigram and bigram on the held-out text."""
    lines = corpus.references
    return {name: getattr(lines, name).nats_per_token for name in ("uniform", "unigram", "bigram")}
