"""The score of an answer: how likely a model finds one token, a whole answer, or this token rather than that.

Attribution, ablation and patching all take the same score many times, of a model or a text that was
changed a little; here it is said once, as data. `logits_at` is the one door to the scores of a model, ours or
one that gives `.logits`. Read next: module_finder, attribution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refused
from ..model.recurrent import Recurrent
from ..model.transformer import Transformer

ROWS = 16
"""Changed copies of a text that go through a model at once."""


@dataclass(frozen=True)
class AnswerScore:
    """log p of an answer to a text, or by how much it is likelier than another (logit difference)."""

    tokens: tuple[int, ...]
    targets: tuple[tuple[int, int], ...]
    """(position, token): what the scores at a position should name; of a classifier, (any, class)."""
    foil: int | None = None
    """Rather than which other token, where one is asked for."""
    source: tuple[int, ...] | None = None
    """What an encoder-decoder reads."""

    def __str__(self) -> str:
        rather = "" if self.foil is None else f" rather than {self.foil}"
        return ", ".join(f"token {token}{rather} after position {place}" for place, token in self.targets)

    @property
    def positions(self) -> list[int]:
        return [place for place, _ in self.targets]

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that an answer is put down to: the source where there is one."""
        return self.tokens if self.source is None else self.source

    def score(self, logits: Tensor) -> Tensor:
        """Logits at `positions`, (B, n, V), -> log p(answer) or log p(target) - log p(foil), (B,) float64."""
        logs = logits.double().log_softmax(-1)
        index = torch.arange(len(self.targets), device=logs.device)
        score = logs[:, index, [token for _, token in self.targets]].sum(-1)
        return score if self.foil is None else score - logs[:, 0, self.foil]

    def of(self, model: nn.Module, rows: Tensor | None = None) -> Tensor:
        """The score of each row of tokens (B, L), by default of the text itself: (B,) float64."""
        rows = self.rows(model) if rows is None else rows
        source = self.source_rows(model, rows.shape[0])
        return self.score(logits_at(model, rows, self.positions, source))

    def rows(self, model: nn.Module, n: int = 1) -> Tensor:
        """The text n times, (n, L), where the model lives."""
        return torch.tensor([self.tokens], device=device_of(model)).expand(n, -1)

    def source_rows(self, model: nn.Module, n: int = 1) -> Tensor | None:
        """The source n times, (n, M)."""
        if self.source is None:
            return None
        return torch.tensor([self.source], device=device_of(model)).expand(n, -1)

    def without(self, unit: Sequence[int]) -> AnswerScore:
        """The same score of a text from which the tokens at some positions of `read` are taken away.

        Raises `Refused` where nothing is left that the answer could come after.
        """
        gone = set(unit)
        left = tuple(token for place, token in enumerate(self.read) if place not in gone)
        moved = self.targets
        if self.source is None:
            moved = tuple((place - sum(g <= place for g in gone), token) for place, token in self.targets)
        if not left or any(place < 0 for place, _ in moved):
            raise Refused(f"without the tokens at {sorted(gone)} nothing is left to ask about ({self}); take "
                          "fewer away, or ask about a later position (at)")  # fmt: skip
        if self.source is not None:
            return replace(self, source=left)
        return replace(self, tokens=left, targets=moved)


def answer_score(
    model: nn.Module,
    tokens: Tensor | Sequence[int],
    *,
    target: int | None = None,
    foil: int | None = None,
    at: int = -1,
    answer: int = 0,
    source: Tensor | Sequence[int] | None = None,
) -> AnswerScore:
    """Score an answer to tokens (L,): the token after `at`, or the last `answer` tokens as they stand.

    target: by default what the model itself finds most likely there (of a classifier, its class). foil: ask
    for target rather than this one. source (M,): what an encoder-decoder reads. Raises `Refused`.
    """
    ids = tuple(int(token) for token in torch.as_tensor(tokens).flatten().tolist())
    read = None if source is None else tuple(int(t) for t in torch.as_tensor(source).flatten().tolist())
    if not ids:
        raise Refused("a text of no tokens has nothing to look at; give at least one")
    if not -len(ids) <= at < len(ids):
        raise Refused(f"at is {at}; the text has positions 0 to {len(ids) - 1}")
    if not 0 <= answer < len(ids):
        last = len(ids) - 1
        raise Refused(f"answer is {answer}; of {len(ids)} tokens the last 0 to {last} can be an answer")
    if answer and (target is not None or foil is not None):
        raise Refused("answer takes the tokens that stand there; leave out target and foil, or answer")
    if answer:
        first = len(ids) - answer
        return AnswerScore(ids, tuple((p - 1, ids[p]) for p in range(first, len(ids))), None, read)
    asked = AnswerScore(ids, ((at % len(ids), 0 if target is None else target),), foil, read)
    with torch.no_grad():
        scores = logits_at(model, asked.rows(model), asked.positions, asked.source_rows(model))[0, 0]
    for name, token in (("target", target), ("foil", foil)):
        if token is not None and not 0 <= token < len(scores):
            raise Refused(f"{name} is {token}; this model scores 0 to {len(scores) - 1}")
    if target is not None:
        return asked
    return replace(asked, targets=((asked.positions[0], int(scores.argmax())),))


def logits_at(
    model: nn.Module, tokens: Tensor, positions: Sequence[int] | None = None, source: Tensor | None = None
) -> Tensor:
    """Scores (B, n, V) float32 of rows (B, L) at n positions, or at all; of a classifier (B, 1, C)."""
    if not isinstance(model, (Transformer, Recurrent)):
        if source is not None:
            raise Refused("a source is read by models of Transom; load this folder with transom.load")
        out: Any = model(input_ids=tokens)
        logits = getattr(out, "logits", out)
        return (logits if positions is None else logits[:, list(positions)]).float()
    hidden = hidden_of(model, tokens, source)
    if model.config.head == "classify":
        return model.label_logits(hidden)[:, None]  # type: ignore[operator]
    if model.config.head != "tokens":
        can = model.config.head
        raise Refused(f"this model's head can {can}: it gives no probability of tokens to ask for")
    return model.logits(hidden if positions is None else hidden[:, list(positions)])


def hidden_of(model: Transformer | Recurrent, tokens: Tensor, source: Tensor | None = None) -> Tensor:
    """Hidden states (B, L, D) of rows (B, L), with what an encoder-decoder reads, (B, M)."""
    if (source is None) == (model.config.kind == "encoder-decoder"):
        needs = "an encoder-decoder answers to a source; give source=, the tokens it reads"
        raise Refused(needs if source is None else "only an encoder-decoder reads a source; leave source out")
    longest = max(tokens.shape[1], 0 if source is None else source.shape[1])
    if longest > model.config.max_len:
        raise Refused(f"{longest} tokens in a row; this model reads at most {model.config.max_len}")
    memory = None if source is None else model.encode(source)
    return model(tokens, memory=memory)


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of a model live."""
    return next(iter(model.parameters())).device


def chunks(n: int, size: int = ROWS) -> Iterable[range]:
    """0 .. n-1 in runs of at most `size`."""
    return (range(start, min(start + size, n)) for start in range(0, n, size))
