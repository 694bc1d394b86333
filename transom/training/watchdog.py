"""Heartbeats between ranks: a rank that was killed or frozen ends the others, soon and with one message.

A collective alone would wait for its timeout and then blame a socket. Here every rank counts upwards in the
store that the launcher keeps, once a second, from a thread; a count that stands still names the lost rank. Of
the ranks that are left, the lowest prints the line and all end with exit code 1; `--max-restarts` takes over.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

EXIT_CODE = 1
GONE = "gone"


class Watchdog:
    """Beats for this rank and watches the others, in a thread, from construction to `close`."""

    def __init__(self, store: Any, rank: int, size: int, timeout: float, interval: float = 1.0) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.timeout, self.interval = timeout, min(interval, timeout / 5)
        self._seen: dict[int, tuple[str, float]] = {}
        self._closed = threading.Event()
        self.store.set(f"where/{rank}", f"pid {os.getpid()} on {socket.gethostname()}")
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say goodbye, so that nobody misses this rank."""
        self.stop()
        try:
            self.store.set(f"beat/{self.rank}", GONE)
        except Exception:  # the store ended first: nobody is left to be told
            return

    def stop(self) -> None:
        """Beat no more: a thread inside the store's C++ while Python shuts down would abort the process."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2 * self.interval + 1)

    def has_left(self, rank: int) -> bool:
        """Tell whether a rank said goodbye."""
        key = f"beat/{rank}"
        return self.store.check([key]) and self.store.get(key).decode() == GONE

    def explain(self, error: BaseException, patience: float = 6.0) -> None:
        """End this process because a collective failed, naming the rank whose heart stopped; does not
        return."""
        reason = self._error_of_other()
        deadline = time.monotonic() + min(patience, self.timeout)
        lost: list[int] = []
        while reason is None and not lost and time.monotonic() < deadline:
            time.sleep(self.interval)
            reason = self._error_of_other()
            lost = self._silent(4 * self.interval)
        self._end(lost, reason, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")

    def report(self, error: BaseException) -> None:
        """Tell the other ranks that this one ends by its own error, which it prints itself."""
        try:
            self.store.set("error", f"{self.rank}: {type(error).__name__}")
            self.store.set(f"error/{self.rank}", type(error).__name__)
        except Exception:  # the store ended first: nobody is left to be told
            return

    def first_said(self, patience: float = 3.0) -> bool:
        """Tell whether this is another rank than the first, and the first ends by its own error too."""
        deadline = time.monotonic() + patience
        while self.rank and time.monotonic() < deadline:
            try:
                if self.store.check(["error/0"]):
                    return True
            except Exception:  # the store ended, and with it the rank that keeps it: the first
                return True
            time.sleep(0.05)
        return False

    def end_last(self, patience: float = 1.0) -> None:
        """As the first rank, with which the store ends, wait until the others that refuse too have heard."""
        others, deadline = [f"error/{rank}" for rank in range(1, self.size)], time.monotonic() + patience
        while self.rank == 0 and time.monotonic() < deadline and not self.store.check(others):
            time.sleep(0.05)
        if self.rank == 0:
            time.sleep(0.2)  # they look for its word once more

    def _watch(self) -> None:
        count = 0
        while not self._closed.wait(self.interval):
            count += 1
            try:
                self.store.set(f"beat/{self.rank}", str(count))
                lost = self._silent(self.timeout)
            except Exception as error:
                if not self._closed.is_set():
                    self._end([], None, f"the launcher's store is gone ({type(error).__name__})")
                return
            if lost:
                self._end(lost, self._error_of_other(), "")

    def _silent(self, patience: float) -> list[int]:
        """Return the other ranks whose count has not moved for `patience` seconds."""
        now, silent = time.monotonic(), []
        for other in range(self.size):
            key = f"beat/{other}"
            if other == self.rank:
                continue
            count = self.store.get(key).decode() if self.store.check([key]) else ""
            last, since = self._seen.get(other, (None, now))
            if count != last:
                self._seen[other] = (count, now)
            elif count != GONE and now - since > patience:
                silent.append(other)
        return silent

    def _error_of_other(self) -> str | None:
        try:
            return self.store.get("error").decode() if self.store.check(["error"]) else None
        except Exception:  # without the store there is nothing to know
            return None

    def _end(self, lost: list[int], reason: str | None, detail: str) -> None:
        speaker = min(set(range(self.size)) - set(lost))
        if reason is None and self.rank == speaker:
            print(self._message(lost, detail), file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)

    def _message(self, lost: list[int], detail: str) -> str:
        if not lost:
            return f"transom: a rank was lost or a collective failed ({detail}); all ranks end"
        try:
            names = ", ".join(f"rank {r} ({self.store.get(f'where/{r}').decode()})" for r in lost)
        except Exception:  # the store ended with the rank that kept it
            names = ", ".join(f"rank {r}" for r in lost)
        return (
            f"transom: lost {names}: killed or frozen, no sign of life; all ranks end. Nothing committed is "
            f"lost: start again with --resume, or let torchrun --max-restarts do it"
        )
