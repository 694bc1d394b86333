"""Running text as a task: predict the next token, or tokens that were masked.

The text is prepared once, by rank 0, and opened by all. Read next: task, data/prepare.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ..data.check import OnProgress, Progress
from ..data.masking import Masking
from ..data.order import Windows
from ..data.prepare import Corpus, prepare
from ..data.prepare_examples import PreparedExamples
from ..data.sources import open_source
from ..data.tokenizer import Tokenizer
from ..data.tokens import TokenFile
from ..errors import Refused
from ..model.build import build
from ..settings import TrainSettings
from .architecture import longest_row, model_config, windows_per_step
from .evaluate import EvalSet
from .folder import RunFolder
from .objectives import LanguageModelling
from .parallelism import World
from .pretrained import pretrained_config, pretrained_model, tokenizer_of
from .report import Report
from .run import ARROW
from .sample import DRAWN, fill, sample
from .task import Task
from .task_facts import TASK_FACTS

GENERATION = {"do_sample": True, **DRAWN}
"""What generation_config.json proposes to whoever uses the model: as samples are drawn along the way."""
Made = TypeVar("Made", Corpus, PreparedExamples[Any])
OPENING = 5, 24
"""Words, and characters where there is no space, of a text that a sample goes on from."""


def text_task(settings: TrainSettings, folder: RunFolder, world: World, report: Report) -> Task:
    """The task `lm` or `mlm` of some settings. Raises `Refused` for whatever is wrong with the text."""
    masked = settings.task == "mlm"
    corpus = prepare_text(settings, folder, world, report)
    tokenizer, name = corpus.tokenizer, settings.data.source
    if settings.model.weights:
        config = pretrained_config(settings, tokenizer, head="tokens")
        first = partial(pretrained_model, settings, config)
    else:
        ids: dict[str, int | None] = dict(
            pad_id=tokenizer.pad_id, bos_id=tokenizer.eos_id, eos_id=tokenizer.eos_id
        )
        config = model_config(settings.model, tokenizer.vocab_size, settings.task, (), **ids)
        first = partial(build, config)
    length = longest_row(settings, config)
    learned = Windows(corpus.train, length, settings.seed, name=f"{name} (to learn from)")
    held_out = Windows(corpus.held_out, length, settings.seed, name=f"{name} (held out)")
    both = [
        Masking(windows, tokenizer, settings.seed) if masked else windows for windows in (learned, held_out)
    ]
    n_windows = windows_per_step(settings, config, world.size, corpus.train.n_tokens)
    prompt = opening(corpus.held_out, tokenizer) if settings.prompt is None else settings.prompt
    writes = fill if masked else partial(sample, seed=settings.seed, max_tokens=settings.sample_tokens)
    shown = f"{prompt}{ARROW}" if masked else prompt
    return Task(
        name=settings.task,
        unit="masked token" if masked else "token",
        config=config,
        tokenizer=tokenizer,
        data_hash=corpus.data_hash,
        feed=WindowFeed(both[0], n_windows),
        eval_set=partial(_eval_set, both[1]),
        baselines=ngram_baselines(corpus, masked),
        build=first,
        objective=partial(LanguageModelling, smoothing=settings.optim.label_smoothing or 0.0),
        write=(lambda model: (shown, writes(model, tokenizer=tokenizer, prompt=prompt))) if prompt else None,
        facts={
            "documents": corpus.train.n_documents,
            "bytes": corpus.train.n_bytes,
            "train_tokens": corpus.train.n_tokens,
            "held_out_tokens": corpus.held_out.n_tokens,
        },
        generation={} if masked else GENERATION,
    )


def opening(held_out: TokenFile, tokenizer: Tokenizer) -> str:
    """The first words of the first held-out text that has letters; "" where none has."""
    n_words, n_characters = OPENING
    for start in held_out.starts[:100].tolist():
        ids = held_out.tokens[start + 1 : start + 1 + 4 * n_characters].tolist()
        ids = ids[: ids.index(held_out.eos_id)] if held_out.eos_id in ids else ids
        words = tokenizer.decode(ids).split("\n")
        line = next((line.strip() for line in words if any(map(str.isalpha, line))), "")
        if line:
            said = " ".join(line.split()[:n_words])
            return said if " " in said else said[:n_characters]
    return ""


class WindowFeed:
    """Full windows of running text: every row as long as every other."""

    def __init__(self, windows: Windows | Masking, n_windows: int) -> None:
        self.windows, self.n_rows, self.row_length = windows, n_windows, windows.length
        self.tokens_per_step = n_windows * windows.length
        self.steps_per_epoch = windows.n_windows / n_windows

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        """The windows of a step, or a rank's share of them."""
        return self.windows.batch(step, self.n_rows, rank, world)

    def trial(self, n_rows: int) -> Any:
        """So many windows of the first step."""
        return self.windows.batch(0, n_rows)


def _eval_set(windows: Windows | Masking, wanted: int, on_gpu: bool) -> EvalSet:
    return EvalSet.windows(windows, max(1, (32768 if on_gpu else 2048) // windows.length), wanted)


def prepare_text(settings: TrainSettings, folder: RunFolder, world: World, report: Report) -> Corpus:
    """Turn the source into token files below the run's folder (or data.cache), or find them there.

    Raises `Refused` for whatever is wrong with the text.
    """
    data = settings.data
    refuse_shared_input(settings, world)
    return on_all(
        world, report,
        lambda show: prepare(
            open_source(data.source, field=data.field, on_error=data.on_error),
            folder=data.cache or folder.data, tokenizer=tokenizer_of(settings, "bpe"),
            vocab_size=data.vocab_size, val_fraction=data.val_fraction,
            frame=TASK_FACTS[settings.task].frame, on_progress=show,
        ),
    )  # fmt: skip


def refuse_shared_input(settings: TrainSettings, world: World) -> None:
    """Raise `Refused` where several processes would read standard input."""
    if world.size > 1 and "-" in (settings.data.source, settings.data.target, settings.data.validation):
        raise Refused("standard input can be read by one process only; write it to a file and name that")


def on_all(world: World, report: Report, make: Callable[[OnProgress | None], Made]) -> Made:
    """The data that `make` prepares, on every rank; rank 0 goes first, so that the others find it."""

    def show(progress: Progress) -> None:
        report.preparing(progress.stage, progress.done, progress.total, progress.mb_per_s)

    made: list[Made] = []
    world.on_rank_zero(lambda: made.append(make(show if world.is_first else None)))
    data = made[0] if made else make(None)
    if data.reused:
        report("note", text=f"prepared before: {data.folder}")
    for line in str(data.report).splitlines():
        report("note", text=line)
    return data


def ngram_baselines(corpus: Corpus, masked: bool = False) -> dict[str, float]:
    """Nats per token of uniform, unigram and bigram on the held-out text.

    Of a masked token what follows is there to be read too, so no line of what precedes it stands beside it.
    """
    names = ("uniform", "unigram") if masked else ("uniform", "unigram", "bigram")
    return {name: getattr(corpus.references, name).nats_per_token for name in names}
