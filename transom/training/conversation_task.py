"""Conversations as a task: learn the answers, with everything before them as context.

Only the tokens of answers and of their ends carry loss. Several conversations share a row, and none sees
another; a step's loss is the sum over its answers divided once by their tokens. Read next: data/answer_rows,
data/packing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..checkpoint.generation import SAMPLED, load_generation
from ..checkpoint.hub import resolve
from ..data.chat_template import ChatTemplate
from ..data.examples import ConversationRows
from ..data.packing import Conversations
from ..data.prepare_examples import PreparedExamples
from ..data.tokenizer import Tokenizer
from ..errors import Refused
from ..model.build import Model
from ..model.config import ModelConfig
from ..settings import TrainSettings
from .architecture import texts_of_step
from .example_tasks import AT_ONCE, eval_set, facts_of, first_model, preparation, prepared
from .folder import RunFolder
from .objectives import LanguageModelling
from .parallelism import World
from .report import Report
from .run import ARROW
from .sample import answered
from .task import Task, Writes


@dataclass(frozen=True)
class Answers:
    """What a task needs that teaches a model to answer."""

    tokenizer: Tokenizer
    """With the template that the model will be asked by."""
    config: ModelConfig
    build: Callable[[int], Model]
    pad_id: int
    """What stands, unread, behind shorter rows."""
    write: Writes | None
    generation: dict[str, Any]


def conversation_task(settings: TrainSettings, folder: RunFolder, world: World, report: Report) -> Task:
    """Answer as the assistant of conversations does, with a decoder. Raises `Refused`."""
    made = prepared(settings, folder, world, report)
    answers = to_answer(settings, made)
    n_texts = texts_of_step(settings, len(made.train)) or max(
        1, round((settings.batch.tokens or 0) / float(made.train.tokens.lengths.mean()))
    )
    learned, held_out = (
        Conversations(rows, n, settings.seed, pad_id=answers.pad_id, least_rows=least)
        for rows, n, least in ((made.train, n_texts, world.size), (made.held_out, n_texts, 1))
    )
    return Task(
        name="sft", unit="answer token", config=answers.config, tokenizer=answers.tokenizer,
        data_hash=made.data_hash, feed=learned, eval_set=eval_set(held_out), build=answers.build,
        baselines=answer_baselines(made.train, made.held_out, answers.tokenizer),
        objective=partial(LanguageModelling, smoothing=settings.optim.label_smoothing or 0.0),
        write=answers.write, facts=facts_of(made), generation=answers.generation,
    )  # fmt: skip


def to_answer(settings: TrainSettings, made: PreparedExamples[Any]) -> Answers:
    """The model that learns to answer, a decoder, and what goes with it. Raises `Refused`."""
    template = preparation(settings.task, settings).template
    assert template is not None
    tokenizer = with_template(made.tokenizer, template)
    ids = dict(pad_id=tokenizer.pad_id, bos_id=tokenizer.eos_id, eos_id=tokenizer.eos_id)
    config, first = first_model(settings, tokenizer, {"head": "tokens"}, (), ids)
    if config.kind != "decoder":
        raise Refused(
            f"{settings.model.weights} is an {config.kind}, which cannot learn to answer; begin with a "
            "decoder, or let it classify or embed (--task)"
        )
    pad = next((one for one in (config.pad_id, tokenizer.pad_id, config.eos_id) if one is not None), 0)
    return Answers(
        tokenizer, config, first, pad, _writes(settings, tokenizer, template, made.shown[0]),
        _generation(settings, tokenizer, template),
    )  # fmt: skip


def with_template(tokenizer: Tokenizer, template: ChatTemplate) -> Tokenizer:
    """The tokenizer with the template that its model will be asked by, unless its folder has that."""
    if template.text in str(tokenizer.config.get("chat_template")):
        return tokenizer
    return Tokenizer(tokenizer.json_text, {**tokenizer.config, "chat_template": template.text})


def answer_baselines(
    train: ConversationRows, held_out: ConversationRows, tokenizer: Tokenizer
) -> dict[str, float]:
    """Nats per answer token of guessing evenly, and of knowing how frequent each token is (add-one)."""
    counts = np.ones(tokenizer.vocab_size)
    for first in range(0, len(train.learned), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        counts += np.bincount(train.tokens.flat[part][train.learned[part]], minlength=len(counts))
    shares = counts / counts.sum()
    said = held_out.tokens.flat[held_out.learned]
    return {"uniform": math.log(len(counts)), "unigram": float(-np.log(shares[said]).mean())}


def _writes(
    settings: TrainSettings, tokenizer: Tokenizer, template: ChatTemplate, shown: str
) -> Writes | None:
    """Let a model answer the prompt that was asked for, else the first conversation that is held out."""
    said: Sequence[Mapping[str, Any]] = [{"role": "user", "content": settings.prompt}]
    if settings.prompt is None:
        talk = json.loads(shown)
        said = talk["messages"]
        if "chosen" not in talk:
            said = said[: max(at for at, message in enumerate(said) if message["role"] == "assistant")]
    elif not settings.prompt:
        return None
    asked = f"{said[-1]['content']}{ARROW}"

    def write(model: Any) -> tuple[str, str]:
        return asked, answered(
            model, tokenizer=tokenizer, template=template, messages=said, max_tokens=settings.sample_tokens
        )

    return write


def _generation(settings: TrainSettings, tokenizer: Tokenizer, template: ChatTemplate) -> dict[str, Any]:
    """What generation_config.json says: every token that ends an answer, and how the base's were drawn."""
    base = load_generation(resolve(settings.model.weights)) if settings.model.weights else {}
    ends = [*template.end_ids(tokenizer), *base.get("eos_token_id", ()), tokenizer.eos_id]
    drawn = {name: base[name] for name in ("do_sample", *SAMPLED, "repetition_penalty") if name in base}
    return {**drawn, "eos_token_id": list(dict.fromkeys(one for one in ends if one is not None))}
