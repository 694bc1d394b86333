"""The one kind of error a person should see: a mistake they can mend, said in one line.

`Refused` carries what is wrong, where, the limit and the fix. The command line prints it without a
traceback and exits with 2; in Python it is a `ValueError`. Its `code` is for whoever acts on the kind of
refusal: no program reads the words. Anything else that escapes is our own bug.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Literal

ALIKE = 0.7
"""From this ratio of difflib on, one name may be meant by another."""

Code = Literal["", "context_length_exceeded", "logits_not_finite", "memory_file"]
"""Kinds of refusals that somebody acts on; most are for people alone and have none."""


class Refused(ValueError):
    """A request that cannot be carried out as given: one line with the place, the limit and the fix.

    A `ValueError`. The command line prints the line without a traceback and exits with 2.
    """

    def __init__(self, message: str, *, code: Code = "") -> None:
        super().__init__(" ".join(message.split()))
        self.code: Code = code
        """The kind of refusal, for a program that acts on it; "" for most."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest of `names`, or an empty string when none is close."""
    close = get_close_matches(name, list(names), n=1, cutoff=ALIKE)
    return f"; did you mean '{close[0]}'?" if close else ""


def nearest_path(path: Path, fits: Callable[[Path], bool] = Path.exists) -> str:
    """The same for a path that is not there: the whole path of what stands beside it and is called alike.

    Endings count only between names that are alike without them; `fits`: which paths would do.
    """
    alike: list[str] = []
    with suppress(OSError, ValueError):  # a folder that is not there, or that nobody may look into
        alike = [
            one.name
            for one in path.parent.iterdir()
            if SequenceMatcher(None, one.stem, path.stem).ratio() >= ALIKE
            and one.name.isprintable()
            and fits(one)
        ]
    close = get_close_matches(path.name, sorted(alike), n=1, cutoff=0)
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""
