"""Tokens with their probabilities, as OpenAI's two shapes have them, and with their ids besides.

The page lets a person go on from another token, for which it needs ids; other clients do not mind them.
Read next: completions, chat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transom.inference.request import TokenLogprob

IMPOSSIBLE = -9999.0
"""What OpenAI writes for a probability of zero, since JSON has no infinity."""


def chat_entries(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return one entry per token: `{token, token_id, logprob, bytes, top_logprobs}`."""
    return [{**_entry(token), "top_logprobs": [_entry(other) for other in token.top]} for token in tokens]


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "token_id": token.token,
        "logprob": _finite(token.logprob),
        "bytes": list(token.bytes),
    }


def completion_entries(tokens: Sequence[TokenLogprob], n_given: int = 0) -> dict[str, Any]:
    """Return the parallel lists of the older interface, with `content` as in chats.

    text_offset: where the first character stands that a token has a part in, in a text that leaves out the
    first `n_given` characters of the answer.
    """
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [{other.text: _finite(other.logprob) for other in token.top} for token in tokens],
        "text_offset": [token.span[0] - n_given for token in tokens],
        "content": chat_entries(tokens),
    }


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else IMPOSSIBLE
