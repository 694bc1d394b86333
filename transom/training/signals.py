"""How a person or a scheduler ends a run early: SIGINT (Ctrl-C) and SIGTERM.

The first signal asks: the step in hand is finished, the run is saved, the process ends with 0. A second one
ends it at once with 128 + its number. While nothing of the run exists yet (data being prepared), the first
signal ends the waiting straight away: there is nothing to save.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal came while there was nothing to save."""


class StopSignals:
    """Tells whether somebody asked the run to stop; a context in which signals ask instead of kill."""

    def __init__(self) -> None:
        self.requested = False
        self.quiet = False
        """With several processes the launcher signals all of them; a line from each would only be noise."""
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python delivers signals to the main thread only; elsewhere (a server, a notebook's worker) they stay
        # as is.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
        if self._interruptible:
            raise Interrupted
        if self.quiet:
            return
        line = "\ntransom: finishing this step, then saving; a second signal ends at once without\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises `Interrupted` wherever the program is."""
        if self.requested:
            raise Interrupted
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False
