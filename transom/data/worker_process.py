"""A helper process that answers one question at a time and can be killed at any moment.

Work on material from outside (a chat template, a schema) may run for ever or ask for all memory. It is done
in another process with hard limits, kept between questions because starting one takes a tenth of a second.
Questions and answers are JSON, one line each; the next question starts a new process where one died.
Read next: template_worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

MAX_REPLY_BYTES = 64 << 20
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG")
"""The only variables of the environment that the process sees: no keys, no tokens."""


class Died(Exception):
    """The process was ended, by its own limits or for want of time, before it had answered."""


class WorkerProcess:
    """One script that is kept running; safe to use from several threads, which take turns."""

    def __init__(self, script: Path, *, seconds: float) -> None:
        """`seconds`: wall time for one answer, long enough for a busy machine; the script limits its CPU."""
        self.script, self.seconds = script, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Any] | None = None

    @property
    def pid(self) -> int | None:
        """The process that answers, if one is running."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The script's answer; raises Died where there is none."""
        line = json.dumps(question).encode() + b"\n"
        with self._lock:
            process = self._running()
            late = threading.Timer(self.seconds, process.kill)
            late.start()
            try:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline(MAX_REPLY_BYTES)
            except OSError:
                answer = b""
            finally:
                late.cancel()
                late.join()  # from here on it has killed the process or never will
            if not answer.endswith(b"\n"):
                self._stop()
                raise Died(f"{self.script.stem} ended without an answer")
            return json.loads(answer)

    def close(self) -> None:
        """End the process; the next question starts another."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        # -P: a file in the current folder is never taken for a module. Its own session: Ctrl-C is not for it.
        process = subprocess.Popen(
            [sys.executable, "-P", str(self.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            start_new_session=True,
        )
        self._process, self._end = process, weakref.finalize(self, _kill, process)
        assert process.stdout is not None
        process.stdout.readline()  # it says when it is ready: starting is not part of any answer's time
        return process

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was still to be written has no reader
            if pipe is not None:
                pipe.close()
    process.wait()
