"""What a run learns, as data: the batches of every step, the model, what it minimises, how it is measured.

A task prepares these for the one loop, which knows none of them by name. Next tokens and masked tokens are in
text_task, pairs of texts (translation, embedding) and classes in example_tasks, answers in conversation_task
and preference_task. Read next: loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from ..data.tokenizer import Tokenizer
from ..model.build import Model
from ..model.config import ModelConfig
from .evaluate import EvalSet
from .parallelism import World


class Feed(Protocol):
    """The batches to learn from: a pure function of (seed, step)."""

    @property
    def n_rows(self) -> int:
        """Rows of a step over all ranks; where rows are short and long, about so many."""
        ...

    @property
    def row_length(self) -> int:
        """Tokens of a row; where rows are short and long, the mean."""
        ...

    @property
    def tokens_per_step(self) -> int: ...
    @property
    def steps_per_epoch(self) -> float: ...
    def batch(self, step: int, rank: int = 0, world: int = 1, /) -> Any: ...
    def trial(self, n_rows: int, /) -> Any:
        """Rows to measure the speed with."""
        ...


Writes = Callable[[Model], tuple[str, str]]
"""Lets a model show what it can: (what it was given, what it made of it)."""


@dataclass(frozen=True)
class Task:
    """Everything that tells one run from another."""

    name: str
    unit: str
    """What a loss is counted by: token, masked token, target token, text."""
    config: ModelConfig
    tokenizer: Tokenizer
    data_hash: str
    feed: Feed
    eval_set: Callable[[int, bool], EvalSet]
    """About so many held-out rows, to be scored on a GPU or not."""
    baselines: dict[str, float]
    """Nats per unit that something simpler would reach on the held-out side."""
    build: Callable[[int], Model]
    """The model before the first step, from a seed."""
    objective: Callable[[Model, torch.dtype], nn.Module]
    write: Writes | None
    begin: Callable[[nn.Module, World], None] | None = None
    """Takes from the objective, before the first step, what is kept of the model as it was."""
    divisor: float | None = None
    """What a step's summed loss is divided by to learn, where steps of one mean would weigh a target by how
    few share its step: the targets of a mean step. None: those of the step."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The data in numbers, for the ledger."""
    generation: dict[str, Any] = field(default_factory=dict)
    """What generation_config.json proposes to whoever uses the model."""
