"""What a run reports: one JSON object per event, in `metrics.jsonl`, on the screen, and to whoever listens.

Events: start, resume, note, step, held_out, sample, inside, save, save_failed, skip, end. Each has `event`,
`step` and `elapsed` (seconds). The file is only ever appended to; `history` reads it back, leaving out what a
later resume took back. TensorBoard and Weights & Biases can follow along. Read next: figure, display.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import Refused
from .display import Display, Event

SCALARS = {
    "step": ("loss", "lr", "grad_norm", "tokens_per_second", "share_of_peak"),
    "held_out": ("loss", "bits_per_byte"),
}
"""Which numbers of which event are sent to TensorBoard and W&B."""


class Report:
    """Takes each event of a run and passes it on, as a context; silent on ranks other than the first.

    quiet: nothing is shown on the screen.
    """

    def __init__(
        self, is_first: bool, on_event: Callable[[Event], None] | None = None, quiet: bool = False
    ) -> None:
        self.is_first = is_first
        self.on_event = on_event if is_first else None
        self.display = Display(visible=is_first and not quiet)
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


class Metrics:
    """Appends events to a run's `metrics.jsonl`, each flushed at once."""

    def __init__(self, folder: Path, log: Sequence[str], settings: dict[str, Any]) -> None:
        self.path = folder / "metrics.jsonl"
        mend(self.path)
        self._followers = [FOLLOWERS[name](folder, settings) for name in log]
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.broken: str | None = None
        """Why events can no longer be written (a full disk); training goes on without them."""

    def write(self, event: Event) -> None:
        """Append one event. A disk that is full costs the event, never the run."""
        try:
            self._file.write(json.dumps(finite(event), ensure_ascii=True) + "\n")
            self._file.flush()
        except OSError as error:
            self.broken = f"{self.path}: {error.strerror}"
        for follower in self._followers:
            follower.write(event)

    def close(self) -> None:
        """Close the file and whoever follows."""
        try:
            self._file.close()
        except OSError as error:
            self.broken = f"{self.path}: {error.strerror}"
        for follower in self._followers:
            follower.close()


def mend(path: Path) -> None:
    """Cut off a last line that a kill left half written."""
    if not path.is_file():
        return
    with open(path, "rb+") as file:
        end = file.seek(0, 2)
        tail = min(end, 1 << 20)
        file.seek(end - tail)
        kept = file.read(tail).rfind(b"\n") + 1
        if kept or tail == end:
            file.truncate(end - tail + kept)


def history(path: Path) -> list[Event]:
    """Return the events of a run as it finally went, without those that a later resume took back."""
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the torn last line of a killed run
            continue
        if event["event"] == "resume":
            events = [e for e in events if e["step"] <= event["step"]]
        events.append(event)
    return events


def finite(value: Any) -> Any:
    """JSON has no NaN: write such numbers as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


class TensorBoard:
    """Writes the numbers of a run for TensorBoard, into RUN/tensorboard."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, event: Event) -> None:
        for name in SCALARS.get(event["event"], ()):
            if event.get(name) is not None:
                self._writer.add_scalar(f"{event['event']}/{name}", event[name], event["step"])

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Sends the numbers of a run to Weights & Biases: network, so only when asked for by name."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        self._run: Any = wandb.init(project="transom", name=folder.name, dir=str(folder), config=settings)

    def write(self, event: Event) -> None:
        names = SCALARS.get(event["event"], ())
        numbers = {f"{event['event']}/{n}": event[n] for n in names if event.get(n) is not None}
        if numbers:
            self._run.log(numbers, step=event["step"])

    def close(self) -> None:
        self._run.finish()


FOLLOWERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_followers(log: Sequence[str]) -> None:
    """Refuse, before anything is spent, what run.log names but this machine has not."""
    for name in log:
        if find_spec(name) is None:
            raise Refused(f"log names {name}, which is not installed: pip install 'transom[{name}]'")
