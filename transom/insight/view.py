"""Say what every view is: a frozen record of numbers, the line that says what it does not show, its picture.

A view is made by a pure function over a model and tokens; a picture is drawn of `to_dict()` alone, so what a
page shows, what a notebook shows and what a test reads are the same numbers.
Read next: token_probabilities, figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from torch import Tensor

from transom.errors import Refused

from .html import Picture, readable

Words = Callable[[Sequence[int]], list[str]]
"""Gives the texts of tokens."""


class View:
    """Base of the records; `caveat` is one line that stands beside every picture of it."""

    caveat: ClassVar[str]
    """What it does not show."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: tensors become lists, a number that is none becomes null."""
        kept = {field.name: plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"view": type(self).__name__, **kept, "caveat": self.caveat}

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens. Raises `Refused`."""
        raise Refused(f"there is no picture of a {type(self).__name__}; its numbers are in to_dict()")

    def picture(self, tokenizer: Any = None) -> Picture:
        """Draw it; without a tokenizer tokens are shown by their numbers. Raises `Refused`."""
        return self.draw(lambda tokens: readable(tokenizer, tokens))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return self.picture()._repr_mimebundle_()


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
