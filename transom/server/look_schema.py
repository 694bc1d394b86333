"""What a client may ask of a look inside: an answer, what it answered, and one view of it.

The server keeps nothing of an answer, so all of it comes along. Read next: look.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from transom.errors import nearest
from transom.insight.overview import SIDES
from transom.server_settings import LimitSettings

from .chat_schema import Messages
from .errors import ApiError
from .schema import AtMost, Body, Few, Filled, Quick, TokenId, Tokens

Logprob = Annotated[float, Field(ge=-9999, le=0)]
SERVED = {side.name: side for side in SIDES if side.served}
"""Views that insight draws as they are shown; in the others one walks about."""
NEEDS = {
    "opening": (),
    "tokens": (),
    "heads": (),
    "attention": ("layer", "head"),
    "ablate": ("layer", "head"),
    **{name: ("token",) if side.served == "token" else () for name, side in SERVED.items()},
}
"""View -> the fields without which it cannot be drawn."""


class LookBody(Body):
    """`POST /look`."""

    view: Annotated[str, Field(json_schema_extra={"enum": list(NEEDS)})]
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
        if self.view not in NEEDS:
            raise ApiError(400, f"view is {ascii(self.view[:40])}{nearest(self.view[:40], NEEDS)}; it can be"
                           f" {', '.join(NEEDS)}", param="view")  # fmt: skip
        for name in NEEDS[self.view]:
            if getattr(self, name) is None:
                raise ApiError(400, f"{name}: the view '{self.view}' needs this field", param=name,
                               code="missing_required_parameter")  # fmt: skip
