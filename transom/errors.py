"""The one kind of error a person should see: a mistake they can mend, said in one line.

`Refused` carries what is wrong, where, the limit and the fix. The command line prints it without a
traceback and exits with 2; in Python it is a `ValueError`. Anything else that escapes is our own bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Refused(ValueError):
    """A request that cannot be carried out as given: one line with the place, the limit and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest of `names`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
