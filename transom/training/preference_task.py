"""Pairs of answers as a task: make the chosen one likelier than the rejected, by DPO or ORPO.

Conversations in all else: the same data, template and masks, so only the tokens of answers count. A row is a
pair, and a step's loss the sum over its pairs divided once by how many there are. Read next: objectives,
reference, data/preferences.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from ..data.examples import PreferenceRows, Preferences
from ..errors import Refused
from ..settings import TrainSettings
from .architecture import texts_of_step
from .conversation_task import to_answer
from .example_tasks import eval_set, facts_of, prepared
from .folder import RunFolder
from .objectives import Preference
from .parallelism import World
from .reference import keep_reference
from .report import Report
from .task import Task

SCORED = 4
"""Times as many pairs are measured with as examples of other tasks: a share of pairs is a coarse measure."""


def preference_task(settings: TrainSettings, folder: RunFolder, world: World, report: Report) -> Task:
    """Prefer the chosen of two answers, with a decoder. Raises `Refused`."""
    asked, smoothing = settings.preference, settings.optim.label_smoothing or 0.0
    dpo = asked.loss == "dpo"
    if smoothing and not (dpo and smoothing < 0.5):
        raise Refused(
            f"optim.label_smoothing is {smoothing:g}: with --preference.loss dpo it is the share of pairs "
            "that are the wrong way round, below 0.5; orpo has none"
        )
    made = prepared(settings, folder, world, report)
    answers = to_answer(settings, made)
    if dpo and not settings.model.weights:
        report("note", text="warning: the model begins from nothing, so it learns to prefer answers that it "
               "cannot give; teach it to answer first (--task sft), and go on from that "
               "(--model.weights)")  # fmt: skip
    tokens = tokens_of_step(settings, made.train)
    learned, held_out = (
        Preferences(rows, tokens, settings.seed, pad_id=answers.pad_id, least_rows=least)
        for rows, least in ((made.train, world.size), (made.held_out, 1))
    )
    parts = {"train": learned, "held_out": held_out}

    def begin(objective: Any, world: World) -> None:
        keep_reference(objective, parts, made.folder, world, report)

    return Task(
        name="preference", unit="pair", config=answers.config, tokenizer=answers.tokenizer,
        data_hash=made.data_hash, feed=learned, build=answers.build,
        eval_set=lambda wanted, on_gpu: eval_set(held_out)(SCORED * wanted, on_gpu),
        baselines={"indifference": math.log(2)} if dpo else {},
        objective=partial(Preference, loss=asked.loss, beta=asked.beta, smoothing=smoothing),
        write=answers.write, begin=begin if dpo else None, facts=facts_of(made),
        generation=answers.generation,
    )  # fmt: skip


def tokens_of_step(settings: TrainSettings, rows: PreferenceRows) -> int:
    """Tokens of an optimizer step: as asked for, else those of as many pairs as are asked for or by rule."""
    n_pairs = texts_of_step(settings, len(rows))
    if n_pairs is None:
        return settings.batch.tokens or 1
    return max(1, round(n_pairs * float((rows.chosen.tokens.lengths + rows.rejected.tokens.lengths).mean())))
