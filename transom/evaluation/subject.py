"""A model as a trust report asks it: which of several answers it prefers, or what it writes.

A classifier prefers one of its labels; a language model one of the given continuations, by their likelihood
after the prompt, token by token as EleutherAI's lm-evaluation-harness does. Written answers are the likeliest
ones, through the model's own chat template where it has one. Read next: trust.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused
from ..inference.classifier import Classifier
from ..inference.generator import Generator
from ..inference.request import Completion
from ..inference.translator import Translator
from .likelihood import Row, Watch, likelihoods

ANSWER_TOKENS = 24
"""Most tokens of an answer to a short question."""
BRIEFLY = "Answer in a few words; if you do not know, say: I do not know."
FROM_TEXT = "Answer in a few words, from the text alone; if it does not say, say: I do not know."


class Choice(NamedTuple):
    """A prompt, and the answers of which one is preferred."""

    prompt: str
    options: tuple[str, ...]
    spoken: bool = False
    """Whether a language model is asked as a user asks it: through its chat template where it has one, else
    with a space before the answer. As it stands, where not."""


class Question(NamedTuple):
    """A question with its right answers; none where it has no answer."""

    id: str
    question: str
    answers: tuple[str, ...] = ()
    passage: str = ""
    cluster: str = ""
    control: bool = False
    """Whether it only shows that the model does the task."""


class Written(NamedTuple):
    """Answers to questions, and the seconds that they took."""

    answers: list[Completion]
    seconds: float


class Subject:
    """A model, and how it is asked."""

    def __init__(
        self, loaded: Classifier | Generator | Translator, name: str, watch: Watch | None = None
    ) -> None:
        """watch: is told how many tokens of how many are read."""
        self.loaded, self.name, self.watch = loaded, name, watch
        self.labels = loaded.labels if isinstance(loaded, Classifier) else ()

    def log_odds(self, choices: Sequence[Choice]) -> list[NDArray[np.float64]]:
        """The log-probability of each option (n,), choice by choice; of classes, they sum to 1.

        Raises Refused for a prompt that is too long, and for options that a classifier does not have.
        """
        if isinstance(self.loaded, Classifier):
            for one in choices:
                if strange := set(one.options) - set(self.labels):
                    raise Refused(
                        f"{self.name} has no class '{min(strange)}'; it knows {', '.join(self.labels[:6])}"
                    )
            found = self.loaded.classify([one.prompt for one in choices], cut=True)
            return [
                np.log(np.maximum([given.probabilities[name] for name in one.options], 1e-12))
                for given, one in zip(found, choices, strict=True)
            ]
        assert isinstance(self.loaded, Generator)
        rows = [self._row(one, option) for one in choices for option in one.options]
        nats = iter([-one.nats for one in likelihoods(self.loaded.model, rows, self.watch)])
        return [np.array([next(nats) for _ in one.options]) for one in choices]

    def probabilities(self, choices: Sequence[Choice]) -> list[NDArray[np.float64]]:
        """The same among the options alone: each sums to 1."""
        found = []
        for odds in self.log_odds(choices):
            raised = np.exp(odds - odds.max())
            found.append(raised / raised.sum())
        return found

    def write(self, asked: Sequence[Question], max_tokens: int = ANSWER_TOKENS) -> Written:
        """The likeliest answer to each question, from its passage where it has one; with the log-probability
        of its tokens. Raises Refused for a question that is too long.
        """
        assert isinstance(self.loaded, Generator)
        started, template, tokenizer = time.perf_counter(), self.loaded.template, self.loaded.tokenizer
        prompts: list[list[int]] = []
        for one in asked:
            if template is None:
                passage = f"{one.passage}\n" if one.passage else ""
                text = f"{passage}Question: {one.question}\nAnswer:"
                prompts.append([*tokenizer.frame[0], *tokenizer.encode(text)])
            else:
                said = (
                    f"Text: {one.passage}\n\n{one.question}\n{FROM_TEXT}"
                    if one.passage
                    else f"{one.question}\n{BRIEFLY}"
                )
                prompts.append(template.render([{"role": "user", "content": said}], tokenizer).tokens)
        room = self.loaded.model.config.max_len - max(map(len, prompts))
        if room < 1:
            longest = asked[max(range(len(prompts)), key=lambda i: len(prompts[i]))]
            raise Refused(f"{self.name} reads {self.loaded.model.config.max_len:,} tokens; question "
                          f"'{longest.question[:60]}' makes {max(map(len, prompts)):,}")  # fmt: skip
        stops = ["\n"] if template is None else list(template.stop)
        found = self.loaded.generate(
            prompts, max_tokens=min(max_tokens, room), temperature=0, stop=stops, logprobs=0
        )
        return Written(found, time.perf_counter() - started)

    def _row(self, one: Choice, option: str) -> Row:
        """An option after a prompt as tokens, cut as lm-evaluation-harness cuts them."""
        assert isinstance(self.loaded, Generator)
        tokenizer, most = self.loaded.tokenizer, self.loaded.model.config.max_len + 1
        before, prompt, template = list(tokenizer.frame[0]), one.prompt, self.loaded.template
        if one.spoken and template is not None:
            context = template.render([{"role": "user", "content": prompt}], tokenizer).tokens
            whole = [*context, *tokenizer.encode(option)]
        elif not prompt:
            begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
            context = [] if begin is None else [begin]
            own = [*before, *tokenizer.encode(option)]
            whole = own if own[:1] == context else [*context, *own]
        else:
            if one.spoken and not prompt[-1].isspace():
                option = f" {option}"
            bare = prompt.rstrip()
            context = [*before, *tokenizer.encode(bare)]
            whole = [*before, *tokenizer.encode(prompt + option)]
        judged = len(whole) - len(context)
        if judged < 1 or len(whole) > most:
            says = (
                "adds no token to its prompt"
                if judged < 1
                else f"makes {len(whole):,} tokens with its prompt"
            )
            raise Refused(f"'{option.strip()[:40]}' {says}; {self.name} reads {most - 1:,}")
        return Row(whole, judged)
