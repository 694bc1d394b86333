"""What a client may ask of a look inside: an answer, what it answered, and one view of it.

The server keeps nothing of an answer, so all of it comes along. Read next: look.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from transom.server_settings import LimitSettings

from .chat_schema import Messages
from .errors import ApiError
from .schema import AtMost, Body, Few, Filled, Quick, TokenId, Tokens

Logprob = Annotated[float, Field(ge=-9999, le=0)]
ViewName = Literal["tokens", "heads", "attention", "lens", "gradient", "experts", "ablate"]
NEEDS = {
    "attention": ("layer", "head"),
    "ablate": ("layer", "head"),
    "lens": ("token",),
    "gradient": ("token",),
}
"""View -> the fields without which it cannot be drawn."""


class LookBody(Body):
    """`POST /look`."""

    view: ViewName
    messages: Messages | None = None
    """What was answered: the messages of a chat,"""
    prompt: str | Tokens | None = None
    """or a text that went on,"""
    source: Filled | None = None
    """or a text that was translated."""
    answer: Annotated[list[TokenId], Field(min_length=1), Quick, AtMost("look_tokens", "tokens")]
    """The tokens that were written."""
    logprobs: Annotated[list[Logprob] | None, Quick, AtMost("look_tokens", "numbers")] = None
    """How likely each was when it was written."""
    logprob: float | None = None
    """The same of the whole answer, where it is not known of each token."""
    kind: Literal["self", "cross", "encoder"] | None = None
    """Which attention of an encoder-decoder; by default the cross attention."""
    layer: Few | None = None
    head: Few | None = None
    token: Few | None = None
    """The place of a token, in the order in which the view `tokens` has them."""

    def check(self, limits: LimitSettings) -> None:
        given = [name for name in ("messages", "prompt", "source") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ApiError(400, "give messages, prompt or source, one of the three", param="messages")
        if self.logprobs is not None and len(self.logprobs) != len(self.answer):
            raise ApiError(400, f"logprobs has {len(self.logprobs)} numbers for {len(self.answer)} tokens of"
                           " answer; give one for each, or none", param="logprobs")  # fmt: skip
        for name in NEEDS.get(self.view, ()):
            if getattr(self, name) is None:
                raise ApiError(400, f"{name}: the view '{self.view}' needs this field", param=name,
                               code="missing_required_parameter")  # fmt: skip
