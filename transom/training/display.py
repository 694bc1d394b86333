"""What a person sees while a run runs: a live view in a terminal, plain lines anywhere else.

It is a reader of events like `metrics.jsonl`; nothing depends on it. Everything goes to standard error, so
that standard output stays free for results.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Event = dict[str, Any]
"""One object of metrics.jsonl."""
FIRST_LINE, LAST_LINE = 1.0, 15.0
"""Seconds between plain lines: short at first, so that one sees it runs, longer later."""


class Display:
    """Shows events on standard error, as a context."""

    def __init__(self, visible: bool = True) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.visible = visible
        self.live: Live | None = None
        self._step: Event = {}
        self._sample: Event = {}
        self._next_line, self._gap = 0.0, FIRST_LINE

    def __enter__(self) -> Display:
        if self.visible and self.console.is_terminal and sys.stderr.isatty():
            self.live = Live(console=self.console, refresh_per_second=4, transient=False)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.update(self._view())
            self.live.stop()
            self.live = None

    def show(self, event: Event) -> None:
        """Take in one event."""
        if not self.visible:
            return
        kind = event["event"]
        if kind == "step":
            self._step = event
            self._line_now_and_then()
        elif kind == "held_out":
            self._say(held_out_line(event))
        elif kind == "sample":
            self._sample = event
            if self.live is None:
                self._say(f"sample | {one_line(event['prompt'] + event['text'])}")
        elif kind == "end" and self._step:
            self._say(speed_line(self._step))
        elif kind in ("note", "skip", "save_failed", "resume"):
            self._say(event["text"])
        if self.live is not None:
            self.live.update(self._view())

    def preparing(self, stage: str, done: int, total: int | None, mb_per_s: float) -> None:
        """Show the progress of preparing the data, in bytes."""
        share = f"{100 * done / total:.0f}%" if total else f"{done / 1e6:,.0f} MB"
        line = f"preparing: {stage} {share}, {mb_per_s:,.1f} MB/s"
        now = time.monotonic()
        if self.live is not None:
            self.live.update(Text(line, style="dim"))
        elif self.visible and now >= self._next_line:
            self._say(line)
            self._next_line = now + 5.0

    def _say(self, line: str) -> None:
        self.console.print(Text(printable(line)), soft_wrap=True)

    def _line_now_and_then(self) -> None:
        now = time.monotonic()
        if self.live is None and now >= self._next_line:
            self._say(step_line(self._step))
            self._next_line, self._gap = now + self._gap, min(LAST_LINE, self._gap * 1.4)

    def _view(self) -> RenderableType:
        if not self._step:
            return Text("starting ...", style="dim")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=1.0, completed=self._step["position"], width=32),
            Text(f"{100 * self._step['position']:.0f}%"),
            Text(f"{clock(self._step['left'])} left", style="bold"),
        )
        parts: list[RenderableType] = [bar, Text(step_line(self._step))]
        if self._sample:
            text = printable(self._sample["text"], keep_newlines=True)
            lines = (self._sample["prompt"] + text).splitlines()[:6]
            parts.append(Text("\n".join(lines), style="cyan"))
        return Group(*parts)


def step_line(step: Event) -> str:
    """`step 1,200 | loss 3.102 | 6,012 tokens/s | 3:21 left`."""
    speed, left = f"{step['tokens_per_second']:,.0f} tokens/s", f"{clock(step['left'])} left"
    return f"step {step['step']:,} | loss {step['loss']:.3f} | {speed} | {left}"


def speed_line(step: Event) -> str:
    """`speed | 6,012 tokens/s, 0.35 TFLOP/s: 44% of what this machine was measured to do`."""
    rate = f"speed | {step['tokens_per_second']:,.0f} tokens/s, {step['flops_per_second'] / 1e12:.2f} TFLOP/s"
    share = step.get("share_of_peak")
    return f"{rate}: {100 * share:.0f}% of what this machine was measured to do" if share else rate


def held_out_line(event: Event) -> str:
    """Return the held-out result in words."""
    per_byte = event.get("bits_per_byte")
    also = f", {per_byte:.3f} bits per byte" if per_byte is not None else ""
    return (
        f"held-out | step {event['step']:,} | {event['loss']:.3f} nats per {event['unit']}{also} | "
        f"{event['sentence']}"
    )


def clock(seconds: float) -> str:
    """3:21, or 1:02:03 from an hour on."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def one_line(text: str, limit: int = 160) -> str:
    """Text on one line, with its line breaks shown."""
    flat = text.replace("\n", "\\n")
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


def printable(text: str, keep_newlines: bool = False) -> str:
    """Text without control characters: what a model writes must not steer a terminal."""
    kept = "\n" if keep_newlines else ""
    return "".join(c if c.isprintable() or c in kept else "\ufffd" for c in text)
