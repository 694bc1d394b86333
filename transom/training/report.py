"""Where events go: into metrics.jsonl, onto the screen, and to whoever listens; from rank 0 alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from .display import Display
from .metrics import Event, Metrics


class Report:
    """Takes each event of a run and passes it on, as a context; silent on ranks other than the first."""

    def __init__(self, is_first: bool, on_event: Callable[[Event], None] | None = None) -> None:
        self.is_first = is_first
        self.on_event = on_event if is_first else None
        self.display = Display(visible=is_first)
        self.metrics: Metrics | None = None
        self._early: list[Event] = []
        self._open = ExitStack()

    def __enter__(self) -> Report:
        self._open.enter_context(self.display)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.metrics is not None:
            self.metrics.close()
        self._open.close()

    def write_to(self, metrics: Metrics) -> None:
        """Keep events from now on, and those that came before the run's folder was ready."""
        self.metrics = metrics
        for event in self._early:
            metrics.write(event)

    def __call__(self, event: str, step: int = 0, **facts: Any) -> None:
        """Report an event."""
        if not self.is_first:
            return
        said: Event = {"event": event, "step": step, **facts}
        if self.metrics is None:
            self._early.append(said)
        else:
            was_whole = self.metrics.broken is None
            self.metrics.write(said)
            if was_whole and self.metrics.broken is not None:
                self.display.show({"event": "note", "step": step, "text": f"warning: {self.metrics.broken}; "
                                   "events are no longer written, training goes on"})  # fmt: skip
        self.display.show(said)
        if self.on_event is not None:
            self.on_event(said)

    def preparing(self, stage: str, done: int, total: int | None, mb_per_s: float) -> None:
        """Show how far the preparation of the data is; not an event to keep."""
        if self.is_first:
            self.display.preparing(stage, done, total, mb_per_s)
