"""Examples as a task: translate, tell classes, bring texts that belong together near each other.

Examples are prepared once, by rank 0 first, and every rank holds them; a batch is a pure function of (seed,
step). Read next: task, data/prepare_examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from ..checkpoint.hub import resolve
from ..checkpoint.huggingface import load_config
from ..data.chat_template import ChatTemplate, template_to_learn
from ..data.conversations import open_conversations
from ..data.dates import DATES
from ..data.examples import Classification, Embedding, LabelledRows, Order, PairRows, Translation
from ..data.formats import named_fields
from ..data.labelled import open_labelled
from ..data.pairs import open_pairs
from ..data.preferences import open_preferences
from ..data.prepare_examples import Preparation, PreparedExamples
from ..data.tokenizer import Tokenizer, tokenizer_named
from ..data.triples import CONTRASTIVE, TRIPLES, contrast_columns, open_triples
from ..errors import Refused
from ..model.build import Model, build
from ..model.config import SIZES, ModelConfig
from ..settings import DataSettings, TrainSettings
from . import objectives
from .architecture import longest_row, model_config, texts_of_step
from .evaluate import LEAST_BATCHES, EvalSet
from .folder import RunFolder
from .parallelism import World
from .pretrained import pretrained_config, pretrained_model, tokenizer_of
from .report import Report
from .run import ARROW
from .sample import classified, translated
from .task import Task
from .task_facts import TASK_FACTS
from .text_task import on_all, refuse_shared_input

AT_ONCE = 1 << 20
"""Tokens counted at once, where there may be more than fit into memory."""
SMOOTHING = 0.1
"""Of labels, to translate (Vaswani et al. 2017)."""
UNEVEN = 3.0
"""Classes are weighed when the largest has so many times as many examples as the smallest."""


def translate_task(settings: TrainSettings, folder: RunFolder, world: World, report: Report) -> Task:
    """Translate: pairs of a source and a target through an encoder-decoder. Raises `Refused`."""
    made = prepared(settings, folder, world, report)
    tokenizer = made.tokenizer
    if tokenizer.config.get("sources_only"):
        raise Refused(
            f"{settings.model.weights or settings.data.tokenizer}: source and target are spelled by two"
            " SentencePiece models there; it can translate, but learn only with one tokenizer for both"
        )
    start = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id
    ids = dict(pad_id=tokenizer.pad_id, bos_id=None, eos_id=tokenizer.eos_id, start_id=start)
    config, first = first_model(settings, tokenizer, {"head": "tokens"}, (), ids)
    assert config.start_id is not None and config.pad_id is not None
    learned, held_out = (
        Translation(
            rows, _tokens_of_step(settings, made.train), settings.seed,
            start_id=config.start_id, pad_id=config.pad_id, least_rows=n,
        )
        for rows, n in ((made.train, world.size), (made.held_out, 1))
    )  # fmt: skip
    asked = settings.optim.label_smoothing
    smoothing = SMOOTHING if asked is None else asked
    source, target = made.shown
    own = {"example": source} if settings.data.source == DATES else {}  # nobody's text, so it may be served
    return Task(
        name=settings.task, unit="target token", config=config, tokenizer=tokenizer, data_hash=made.data_hash,
        feed=learned, eval_set=eval_set(held_out), build=first,
        baselines=target_baselines(made.train, made.held_out, tokenizer),
        objective=partial(objectives.LanguageModelling, smoothing=smoothing),
        write=lambda model: (
            f"{source}{ARROW}",
            "{} ({:.0%} sure of all of it; wanted: {})".format(
                *translated(model, tokenizer=tokenizer, source=source), target
            ),
        ),
        facts=facts_of(made) | own,
        generation={"num_beams": 4, "max_length": config.max_len},
    )  # fmt: skip


def classify_task(settings: TrainSettings, folder: RunFolder, world: World, report: Report) -> Task:
    """Tell the class of a text with an encoder. Raises `Refused`."""
    made = prepared(settings, folder, world, report)
    tokenizer = made.tokenizer
    ids = dict(pad_id=tokenizer.pad_id, bos_id=tokenizer.eos_id, eos_id=tokenizer.eos_id)
    head = {"head": "classify", "labels": made.labels}
    config, first = first_model(settings, tokenizer, head, made.labels, ids)
    learned, held_out = (
        Classification(rows, _tokens_of_step(settings, made.train), settings.seed,
                       pad_id=config.pad_id or 0, least_rows=n)
        for rows, n in ((made.train, world.size), (made.held_out, 1))
    )  # fmt: skip
    counts = np.bincount(made.train.labels, minlength=len(made.labels))
    weights, said = class_weights(counts, settings.optim.class_weights)
    report("note", text=f"classes: {said}")
    empty = [label for label, count in zip(made.labels, counts, strict=True) if not count]
    if empty:
        named = ", ".join(repr(label) for label in empty[:5]) + (" and more" if len(empty) > 5 else "")
        report("note", text=f"warning: no example of {named} is left to learn from, so it will never be the "
               "answer; give more of it, or let long texts be cut (--data.too-long cut)")  # fmt: skip
    text, label = made.shown
    return Task(
        name=settings.task, unit="text", config=config, tokenizer=tokenizer, data_hash=made.data_hash,
        feed=learned, eval_set=eval_set(held_out), build=first,
        baselines=class_baselines(counts, made.held_out.labels),
        objective=partial(
            objectives.Classification, weights=weights, smoothing=settings.optim.label_smoothing or 0.0
        ),
        write=lambda model: (
            f"{text}{ARROW}",
            f"{classified(model, tokenizer=tokenizer, text=text)}, labelled {label}",
        ),
        divisor=learned.n_examples / learned.steps_per_epoch,
        facts=facts_of(made),
    )  # fmt: skip


def embed_task(settings: TrainSettings, folder: RunFolder, world: World, report: Report) -> Task:
    """Bring the two texts of a pair near each other, with an encoder. Raises `Refused`."""
    made = prepared(settings, folder, world, report)
    tokenizer = made.tokenizer
    ids = dict(pad_id=tokenizer.pad_id, bos_id=tokenizer.eos_id, eos_id=tokenizer.eos_id)
    head = {"head": "embed", "pooling": "mean", "normalize": True}
    config, first = first_model(settings, tokenizer, head, (), ids)
    learned, held_out = (
        Embedding(rows, _tokens_of_step(settings, made.train), settings.seed, pad_id=config.pad_id or 0,
                  least_rows=n)
        for rows, n in ((made.train, 2 * world.size), (made.held_out, 2))
    )  # fmt: skip
    return Task(
        name=settings.task, unit="text", config=config, tokenizer=tokenizer, data_hash=made.data_hash,
        feed=learned, eval_set=eval_set(held_out), baselines={"chance": chance(held_out)}, build=first,
        objective=objectives.Contrast, write=None, facts=facts_of(made),
    )  # fmt: skip


# --- the parts that they share


def sources_of(task: str, settings: TrainSettings) -> tuple[Any, Any]:
    """The examples of a task to learn from, and those to measure with where they are named."""
    return SOURCES[task](settings.data)


def _labelled(data: DataSettings) -> tuple[Any, Any]:
    texts = partial(open_labelled, text_field=data.field, label_field=data.label, on_error=data.on_error)
    return texts(data.source), None if data.validation is None else texts(data.validation)


def _talks(open_talks: Callable[..., Any], data: DataSettings) -> tuple[Any, Any]:
    talks = partial(open_talks, fields=named_fields(data.map), on_error=data.on_error)
    return talks(data.source), None if data.validation is None else talks(data.validation)


def _pairs(data: DataSettings) -> tuple[Any, Any]:
    if (data.field is None) != (data.target_field is None):
        raise Refused(
            "--data.field and --data.target-field name the two sides of a pair; give both, or neither"
        )
    fields = None if data.field is None or data.target_field is None else (data.field, data.target_field)
    train = open_pairs(data.source, data.target, fields=fields, on_error=data.on_error)
    if data.validation is None:
        return train, None
    if (data.target is None) != (data.validation_target is None):
        raise Refused(
            "the pairs stand in two files, so name both: --data.validation and --data.validation-target"
        )
    return train, open_pairs(data.validation, data.validation_target, fields=fields, on_error=data.on_error)


def _contrasts(data: DataSettings) -> tuple[Any, Any]:
    """Triples where there is a column of negatives, else pairs."""
    given = {name: column for name, column in named_fields(data.map).items() if name in CONTRASTIVE}
    sides = {"anchor": data.field, "positive": data.target_field}
    given = {**{name: column for name, column in sides.items() if column is not None}, **given}
    if data.target is not None or not (kind := contrast_columns(data.source, given)):
        return _pairs(data)
    if kind.kind.name != TRIPLES:
        columns = {"field": kind.columns["anchor"], "target_field": kind.columns["positive"]}
        return _pairs(data.with_(columns))
    triples = partial(open_triples, fields=given, on_error=data.on_error)
    return triples(data.source), None if data.validation is None else triples(data.validation)


SOURCES: dict[str, Callable[[DataSettings], tuple[Any, Any]]] = {
    "translate": _pairs,
    "classify": _labelled,
    "embed": _contrasts,
    "sft": partial(_talks, open_conversations),
    "preference": partial(_talks, open_preferences),
}
"""What opens the examples of a task."""


def preparation(task: str, settings: TrainSettings) -> Preparation[Any]:
    """How the examples of a task are made ready. Raises `Refused`."""
    train, validation = sources_of(task, settings)
    data = settings.data
    tokenizer = tokenizer_of(settings, train.tokenizer)
    return Preparation(
        train, validation, tokenizer=tokenizer, vocab_size=data.vocab_size, val_fraction=data.val_fraction,
        max_len=longest(settings), too_long=data.too_long, frame=TASK_FACTS[task].frame or None,
        template=None if train.talks is None else _template(settings, tokenizer),
    )  # fmt: skip


def _template(settings: TrainSettings, tokenizer: str) -> ChatTemplate:
    """What writes the conversations that are learned."""
    weights = settings.model.weights
    known = tokenizer_named(tokenizer, ends=False)
    return template_to_learn(resolve(weights) if weights else None, settings.data.chat_template, known)


def longest(settings: TrainSettings) -> int:
    """The longest text in tokens: as asked for, else that of the pretrained weights, else of the size."""
    if settings.model.max_len is not None:
        return settings.model.max_len
    if settings.model.weights:
        return longest_row(settings, load_config(resolve(settings.model.weights))[0])
    return SIZES[settings.model.size]["max_len"]


def _tokens_of_step(settings: TrainSettings, learned: PairRows | LabelledRows) -> int:
    """Tokens of a step: of so many examples, where these are counted, else as asked for, else by rule."""
    if (n_texts := texts_of_step(settings, len(learned))) is not None:
        sides = [learned.text] if isinstance(learned, LabelledRows) else learned.sides
        return max(1, round(n_texts * sum(float(side.lengths.mean()) for side in sides)))
    tokens = settings.batch.tokens or TASK_FACTS[settings.task].tokens
    assert tokens is not None, f"{settings.task} is not learned from examples"
    return tokens


def first_model(
    settings: TrainSettings,
    tokenizer: Tokenizer,
    head: dict[str, Any],
    labels: tuple[str, ...],
    ids: dict[str, int | None],
) -> tuple[ModelConfig, Callable[[int], Model]]:
    """The config, and what makes the first weights: from nothing, or from those that are given."""
    if settings.model.weights:
        config = pretrained_config(settings, tokenizer, **head)
        return config, partial(pretrained_model, settings, config)
    config = model_config(settings.model, tokenizer.vocab_size, settings.task, labels, **ids)
    return config, partial(build, config)


def prepared(
    settings: TrainSettings, folder: RunFolder, world: World, report: Report
) -> PreparedExamples[Any]:
    """The examples of a run, prepared once below its folder (or data.cache)."""
    refuse_shared_input(settings, world)
    way = preparation(settings.task, settings)
    return on_all(world, report, lambda show: way.once(settings.data.cache or folder.data, show))


def eval_set(held_out: Order[Any]) -> Callable[[int, bool], EvalSet]:
    few = int(held_out.order.lengths.sum()) // LEAST_BATCHES
    return lambda wanted, on_gpu: EvalSet.examples(held_out, min(few, 32768 if on_gpu else 4096), wanted)


def facts_of(made: Any) -> dict[str, Any]:
    return {"examples": len(made.train), "held_out_examples": len(made.held_out), **made.report.to_dict()}


def class_weights(counts: np.ndarray, asked: str) -> tuple[torch.Tensor | None, str]:
    """How much an example of each class counts, its mean over the examples being 1; and that in words.

    balanced: every class as much as every other. auto: the square root of that, where the largest class is
    at least three times the smallest. 1 of a class without examples.
    """
    there = counts > 0
    uneven = float(counts.max() / counts[there].min())
    share = f"the largest has {uneven:.1f} times the examples of the smallest"
    if asked == "none" or (asked == "auto" and uneven < UNEVEN):
        return None, f"{share}; all examples count alike"
    weights = np.ones(len(counts))
    weights[there] = counts[there] ** (-1.0 if asked == "balanced" else -0.5)
    weights[there] *= counts.sum() / (weights * counts).sum()
    spread = f"weights {weights[there].min():.2f} to {weights[there].max():.2f} (--optim.class-weights)"
    return torch.tensor(
        weights, dtype=torch.float32
    ), f"{share}; examples of rare classes count more, {spread}"


def chance(pairs: Embedding) -> float:
    """Nats per pair of guessing evenly among all that may be the partner, in the batches to measure with."""
    candidates = [~objectives.no_negatives(batch.texts) for batch in pairs.eval_batches(0)]
    ways = [counts for may in candidates for counts in (may.sum(1), may[:, : len(may)].sum(0))]
    return float(torch.cat(ways).double().log().mean())


def class_baselines(counts: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Nats per text of guessing evenly, and of knowing how frequent each class is."""
    shares = np.maximum(counts, 0.5) / counts.sum()  # a class that was not seen counts as half an example
    return {"uniform": math.log(len(counts)), "class shares": float(-np.log(shares[held_out]).mean())}


def target_baselines(train: PairRows, held_out: PairRows, tokenizer: Tokenizer) -> dict[str, float]:
    """Nats per target token of guessing evenly, and of knowing how frequent each token is (add-one)."""
    counts = np.ones(tokenizer.vocab_size)
    for first in range(0, len(train.target.flat), AT_ONCE):
        counts += np.bincount(train.target.flat[first : first + AT_ONCE], minlength=tokenizer.vocab_size)
    shares = counts / counts.sum()
    return {
        "uniform": math.log(tokenizer.vocab_size),
        "unigram": float(-np.log(shares[held_out.target.flat]).mean()),
    }
