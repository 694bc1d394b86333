"""A few words from the model while it learns: the quickest way to see how far it is.

The plainest decoding there is, one token after the other. For real use see the engine in inference/, which
this room may not look at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..data.tokenizer import Tokenizer
from ..model.build import Model
from ..model.cache import Memory

DRAWN = {"temperature": 0.8, "top_p": 0.95}
"""How running text is drawn, here and by whoever uses the model."""


@contextmanager
def resting(model: Model) -> Iterator[torch.device]:
    """The model in evaluation for a moment, without gradients; yields its device."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model.embed.weight.device
    finally:
        model.train(was_training)


def sample(
    model: Model,
    *,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int = 48,
    temperature: float = DRAWN["temperature"],
    top_p: float = DRAWN["top_p"],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Continue `prompt` and return the continuation; the same seed gives the same text."""
    ids, first = tokenizer.encode_prompt(prompt)
    if not ids and tokenizer.eos_id is not None:
        ids = [tokenizer.eos_id]  # it opens every document
    room = model.config.max_len - len(ids)
    if room < 1 or not ids:
        return ""
    generator = torch.Generator().manual_seed(seed)

    def pick(scores: Tensor, written: list[int]) -> int:
        shares = tokenizer.only_first(scores / temperature, None if written else first).softmax(-1)
        ranked, order = shares.sort(descending=True)
        ranked[ranked.cumsum(-1) - ranked > top_p] = 0
        return int(order[torch.multinomial(ranked, 1, generator=generator)])

    written = _written(model, tokenizer, ids, min(max_tokens, room), dtype, pick)
    return tokenizer.decode(written, after=ids, spaced=first is not None)


def translated(
    model: Model, *, tokenizer: Tokenizer, source: str, dtype: torch.dtype = torch.float32
) -> tuple[str, float]:
    """The likeliest next token, again and again: a plain greedy translation, and how likely the model finds
    it as a whole, its end included.
    """
    with resting(model) as device:
        tokens = torch.tensor([tokenizer.framed(source)], device=device)
        memory = model.encode(tokens, dtype=dtype)
    start, longest = model.config.start_id, min(model.config.max_len, 2 * tokens.shape[1] + 20)
    assert start is not None

    nats: list[float] = []

    def likeliest(scores: Tensor, _: list[int]) -> int:
        nats.append(-float(scores.float().log_softmax(-1).max()))
        return int(scores.argmax())

    written = _written(model, tokenizer, [start], longest, dtype, likeliest, memory)
    return tokenizer.decode(written), math.exp(-sum(nats))


def _written(
    model: Model,
    tokenizer: Tokenizer,
    ids: list[int],
    most: int,
    dtype: torch.dtype,
    pick: Callable[[Tensor, list[int]], int],
    memory: Memory | None = None,
) -> list[int]:
    """The tokens that `pick` chooses one after the other, up to an end token or a broken score."""
    written: list[int] = []
    with resting(model) as device:
        state = model.new_state(1, len(ids) + most, dtype, memory)
        tokens = torch.tensor([ids], device=device)
        while len(written) < most:
            hidden = model(tokens, state=state, dtype=dtype)  # type: ignore[arg-type]
            scores = model.logits(hidden[0, -1]).cpu()
            if not scores.isfinite().all():
                break
            token = pick(scores, written)
            if token in (tokenizer.eos_id, tokenizer.pad_id):
                break
            written.append(token)
            tokens = torch.tensor([[token]], device=device)
    return written


def fill(
    model: Model, *, tokenizer: Tokenizer, prompt: str, seed: int = 0, dtype: torch.dtype = torch.float32
) -> str:
    """What a masked language model puts in the place of the last token of `prompt`, likeliest first."""
    ids = tokenizer.framed(prompt.rstrip())
    n_after = len(tokenizer.frame[1])
    if tokenizer.mask_id is None or len(ids) < n_after + 2:
        return ""
    place = len(ids) - n_after - 1
    ids[place] = tokenizer.mask_id
    with resting(model) as device:
        hidden = model(torch.tensor([ids], device=device), dtype=dtype)
        best = model.logits(hidden[0, place]).topk(5).indices.tolist()
    return " | ".join(tokenizer.token(number).strip() for number in best)


def classified(model: Model, *, tokenizer: Tokenizer, text: str, dtype: torch.dtype = torch.float32) -> str:
    """The likeliest class of a text, with its probability."""
    with resting(model) as device:
        tokens = torch.tensor([tokenizer.framed(text)[: model.config.max_len]], device=device)
        shares = model.label_logits(model(tokens, dtype=dtype))[0].softmax(-1)  # type: ignore[union-attr]
    best = int(shares.argmax())
    return f"{model.config.labels[best]} ({float(shares[best]):.2f})"
