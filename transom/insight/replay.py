"""A served answer read once more by the plain model, under `look`: the serving path carries no instrument.

What is served is packed and batched with others. In bfloat16 on a CPU each row has the bits that it has
alone (`model.aligned_attention`), but for rows that look back at a long shared beginning together;
elsewhere numbers may differ from those of one plain pass. So the log-probabilities of the replay are
compared with those at generation, and the difference is said. Read next: look.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transom.errors import Refused

from .look import Seen, look

AGREES = 0.02
"""Nats by which a token's log-probability may differ from the one at generation."""
ROWS = 64
"""Positions whose logits are held at a time."""


@dataclass(frozen=True, eq=False)
class Replay:
    """One plain pass over prompt and answer, and how near it is to what was served."""

    seen: Seen
    tokens: tuple[int, ...]
    logprobs: Tensor
    """(L,) float64: log p of each token given those before it; NaN for the first, which nothing predicts."""
    n_prompt: int
    generated: Tensor | None
    """(answer,) float64: log p of the answer's tokens as they were at generation, where that is known."""
    caveat: str = "the answer read again in one plain pass, not the pass that wrote it"

    @property
    def difference(self) -> float | None:
        """The largest difference to the log-probabilities at generation, in nats; None if unknown."""
        if self.generated is None:
            return None
        return float((self.logprobs[self.n_prompt :] - self.generated).abs().max())

    @property
    def agrees(self) -> bool:
        """Whether the replay is what was served, as far as its log-probabilities tell."""
        return self.difference is not None and self.difference <= AGREES

    def __str__(self) -> str:
        if self.difference is None:
            return "replay: no log-probabilities of the generation to compare with"
        verdict = (
            "agrees"
            if self.agrees
            else f"DIFFERS, above {AGREES:g}: what is shown may not be what was served"
        )
        return f"replay {verdict}: log-probabilities differ by up to {self.difference:.4f} nats"

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return {
            "tokens": list(self.tokens),
            "n_prompt": self.n_prompt,
            "logprobs": [None, *self.logprobs[1:].tolist()],
            "difference": self.difference,
            "agrees": self.agrees,
            "says": str(self),
            "caveat": self.caveat,
        }


@torch.no_grad()
def replay(
    model: Any,
    tokens: Sequence[int],
    *,
    n_prompt: int = 1,
    generated: Sequence[float] | None = None,
    source: Sequence[int] | None = None,
    layers: Iterable[int] | None = None,
    keep: str | Sequence[str] = ("attention",),
) -> Replay:
    """Read prompt and answer once, by the plain model, and keep what `look` keeps.

    tokens: prompt and answer, the first `n_prompt` of them the prompt. generated: log p of each token of the
    answer as it was written. source: what an encoder-decoder read. Raises Refused for what does not fit.
    """
    plain = model if isinstance(model, nn.Module) else model.model
    n_answer = len(tokens) - n_prompt
    if not 1 <= n_prompt <= len(tokens):
        raise Refused(f"n_prompt is {n_prompt} of {len(tokens)} tokens; give 1 to {len(tokens)}")
    if generated is not None and len(generated) != n_answer:
        raise Refused(
            f"{len(generated)} log-probabilities for an answer of {n_answer} tokens; give one for each"
        )
    limit = getattr(getattr(plain, "config", None), "max_len", None)
    if limit is not None and len(tokens) > limit:
        raise Refused(f"{len(tokens)} tokens to replay; this model reads at most {limit} (max_len)")
    ids = torch.tensor([list(tokens)], device=next(plain.parameters()).device)
    was_training = plain.training
    plain.eval()
    try:
        with look(plain, layers=layers, keep=keep) as seen:
            hidden, logits_of = _read(plain, ids, source)
    finally:
        plain.train(was_training)
    logprobs = torch.full((len(tokens),), torch.nan, dtype=torch.float64)
    for start in range(0, len(tokens) - 1, ROWS):
        rows = slice(start, min(start + ROWS, len(tokens) - 1))
        scores = logits_of(hidden[:, rows])[0].double().log_softmax(-1)
        wanted = ids[0, rows.start + 1 : rows.stop + 1, None]
        logprobs[rows.start + 1 : rows.stop + 1] = scores.gather(-1, wanted)[:, 0].cpu()
    told = None if generated is None else torch.tensor(list(generated), dtype=torch.float64)
    return Replay(seen, tuple(tokens), logprobs, n_prompt, told)


def _read(plain: nn.Module, ids: Tensor, source: Sequence[int] | None) -> tuple[Tensor, Any]:
    """Hidden states and what makes logits of them, of our models; of others the logits, as they are."""
    of_source = None if source is None else torch.tensor([list(source)], device=ids.device)
    if hasattr(plain, "logits"):
        named = {} if of_source is None else {"memory": plain.encode(of_source)}  # type: ignore[operator]
        return plain(ids, **named), plain.logits
    named = (
        {"decoder_input_ids": ids, "input_ids": of_source} if of_source is not None else {"input_ids": ids}
    )
    return plain(**named).logits, lambda logits: logits
