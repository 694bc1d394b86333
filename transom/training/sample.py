"""A few words from the model while it learns: the quickest way to see how far it is.

The plainest decoding there is, one token after the other. For real use see the engine in inference/, which
this room may not look at.
"""

from __future__ import annotations

import math

import torch

from ..data.tokenizer import Tokenizer
from ..model.transformer import Transformer


@torch.no_grad()
def sample(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 48,
    temperature: float = 0.7,
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
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    state = model.new_state(1, model.config.max_len, dtype)
    generator = torch.Generator().manual_seed(seed)
    written: list[int] = []
    tokens = torch.tensor([ids], device=device)
    while len(written) < min(max_tokens, room):
        hidden = model(tokens, state=state, dtype=dtype)
        scores = model.logits(hidden[0, -1]).cpu() / temperature
        if not scores.isfinite().all():
            break
        if first is not None and not written:
            others = torch.ones(len(scores), dtype=torch.bool)
            others[list(first)] = False
            scores = scores.masked_fill(others, -math.inf)
        token = int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
        if token in (tokenizer.eos_id, tokenizer.pad_id):
            break
        written.append(token)
        tokens = torch.tensor([[token]], device=device)
    model.train(was_training)
    text = tokenizer.decode(written)
    return text if first is None else text.removeprefix(" ")
