"""Tokens with their probabilities, as OpenAI's two shapes have them, and with their ids besides.

The page lets a person go on from another token, for which it needs ids; other clients do not mind them.
Read next: completions, chat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transom.data.tokenizer import Tokenizer
from transom.inference.request import TokenLogprob

IMPOSSIBLE = -9999.0
"""What OpenAI writes for a probability of zero, since JSON has no infinity."""


def chat_entries(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """One entry per token: `{token, token_id, logprob, bytes, top_logprobs}`."""
    return [
        {**_entry(tokenizer, token), "top_logprobs": [_entry(tokenizer, other) for other in token.top]}
        for token in tokens
    ]


def _entry(tokenizer: Tokenizer, token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "token_id": token.token,
        "logprob": _finite(token.logprob),
        "bytes": list(tokenizer.token_bytes(token.token)),
    }


def completion_entries(
    tokenizer: Tokenizer, tokens: Sequence[TokenLogprob], offset: int = 0
) -> tuple[dict[str, Any], int]:
    """The parallel lists of the older interface, with `content` as in chats, and where the text goes on."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    lists = {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [{other.text: _finite(other.logprob) for other in token.top} for token in tokens],
        "text_offset": offsets,
        "content": chat_entries(tokenizer, tokens),
    }
    return lists, offset


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else IMPOSSIBLE
