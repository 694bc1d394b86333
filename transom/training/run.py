"""What `train` returns: a run, where it lies on disk and how it went. It prints itself."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from ..units import format_time
from . import report
from .display import clock, one_line
from .task_facts import TASK_FACTS

if TYPE_CHECKING:
    from ..inference.load import Loaded

ARROW = " -> "
"""Between what a model was given and what it made of it, where that is not the same text."""


def task_of(folder: Path) -> str:
    """Return what the run in a folder learns, from its settings.toml."""
    import tomllib

    return tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8")).get("task", "lm")


def longer_command(folder: Path, seconds: float) -> str:
    """Return the command that gives the run in a folder three times the seconds that it has had."""
    longer = format_time(60 * math.ceil(3 * seconds / 60))
    return f"transom train --out {quote(str(folder))} --resume --budget {longer}"


def _first_words(text: str, most: int) -> str:
    """Cut a text after the last word that ends within `most` characters; one without spaces, inside."""
    if len(text) <= most:
        return text.strip()
    return (text[: most + 1].rpartition(" ")[0] or text[:most]).strip()


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run. It prints itself."""

    folder: Path
    """Where it lies, with settings, checkpoints, metrics and the model."""
    step: int
    """Optimizer steps taken."""
    tokens: int
    """Tokens learned from, those read several times counted each time."""
    loss: float | None
    """Held-out, nats per token; None when the run was interrupted before it was measured."""
    bits_per_byte: float | None
    """The same by the byte of the text, which compares among tokenizers; None where there is no such text."""
    references: dict[str, float]
    """Nats per token of uniform, unigram and bigram on the same text."""
    sentence: str
    """What the loss means, in plain words."""
    prompt: str
    """What the last sample goes on from."""
    sample: str
    """What the model made of `prompt` last."""
    seconds: float
    """Time that it took, over all its resumes."""
    weights_sha256: str
    """Hash of the weights, in hexadecimal digits: two runs that are equal to the last bit have the same."""
    task: str = "lm"
    """What it learned, by the names of `--task`."""
    unit: str = "token"
    """What the loss is counted by."""
    interrupted: bool = False
    """Stopped early by a signal, and saved."""
    soon: str = ""
    """The limit that ends an interrupted run after a tenth more, where its rate has not fallen yet."""

    @classmethod
    def of_nothing(cls, folder: Path, prompt: str) -> Run:
        """Make the run that was stopped while its data was still being prepared."""
        return cls(folder=folder, step=0, tokens=0, loss=None, bits_per_byte=None, references={}, sentence="",
                   prompt=prompt, sample="", seconds=0.0, weights_sha256="", interrupted=True)  # fmt: skip

    @classmethod
    def of_events(cls, folder: Path, task: str, events: Sequence[report.Event]) -> Run:
        """Return a finished run, from the events in its metrics.jsonl."""
        last = {event["event"]: event for event in events}
        end, sample = last["end"], last.get("sample", {})
        result = ("step", "tokens", "loss", "bits_per_byte", "sentence", "weights_sha256", "unit")
        return cls(
            folder=folder, references=last["start"]["references"], prompt=sample.get("prompt", ""),
            sample=sample.get("text", ""), seconds=end["elapsed"], task=task,
            **{name: end[name] for name in result},
        )  # fmt: skip

    @property
    def model_folder(self) -> Path:
        """The trained model, a Hugging Face folder."""
        return self.folder / "model"

    @cached_property
    def model(self) -> Loaded:
        """The trained model, as `transom.load` gives it. Raises `Refused` where none is kept."""
        from ..inference.load import load

        return load(self.model_folder)

    @property
    def resume_command(self) -> str:
        """What continues this run."""
        return f"transom train --out {quote(str(self.folder))} --resume"

    @property
    def next_command(self) -> str:
        """What uses this model, as it is typed; after an encoder that fills masks, what makes it useful."""
        if self.interrupted:
            return self.resume_command
        verb = TASK_FACTS[self.task].verb
        if verb is None:
            return f"transom train DATA --task classify --model.weights {quote(str(self.folder))}"
        if verb == "chat":
            return f"transom chat {quote(str(self.folder))}"
        given = self.prompt.removesuffix(ARROW)
        text = _first_words(one_line(given, len(given) * 2), 60)
        texts = " ".join(map(quote, [text] if text else ["a text", "and another"]))
        return f"transom {verb} {quote(str(self.folder))} {texts}"

    @property
    def remedy(self) -> str:
        """What may help a model of running text that something simpler is still ahead of, or ""."""
        lines = self.references.values()
        behind = bool(lines) and self.loss is not None and self.loss >= min(lines)
        if self.interrupted or not TASK_FACTS[self.task].running or not behind or "memoris" in self.sentence:
            return ""
        return (
            f"what may help: more time ({longer_command(self.folder, self.seconds)}), more text, or "
            "pretrained weights (--model.weights)"
        )

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The events of the run, from metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        return report.history(path) if path.exists() else []

    @property
    def ledger(self) -> dict[str, Any]:
        """What the run was made from and what it cost, from ledger.json."""
        path = self.folder / "ledger.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder), "model_folder": str(self.model_folder), "step": self.step,
            "tokens": self.tokens, "task": self.task, "loss": self.loss, "bits_per_byte": self.bits_per_byte,
            "references": self.references, "sentence": self.sentence, "prompt": self.prompt,
            "sample": self.sample, "seconds": self.seconds, "weights_sha256": self.weights_sha256,
            "interrupted": self.interrupted,
            "resume_command": self.resume_command if self.interrupted else None,
            "next_command": self.next_command,
        }  # fmt: skip

    def __str__(self) -> str:
        return f"{self.outcome}\n{self.ending}" if self.step else self.outcome

    @property
    def ending(self) -> str:
        """The last line: what to do next."""
        return f"{'go on with' if self.interrupted else 'next'}: {self.next_command}"

    @property
    def outcome(self) -> str:
        """How it went, in words."""
        if self.interrupted and not self.step:
            return "stopped before the first step; nothing to keep. Start it again the same way."
        steps = f"{self.step:,} step{'s' * (self.step != 1)}"
        done = f"{steps}, {self.tokens / 1e6:,.2f} million tokens, {clock(self.seconds)}"
        lines = [f"stopped early: {done}" if self.interrupted else f"trained: {done}"]
        if self.loss is not None:
            per_byte = f" ({self.bits_per_byte:.3f} bits per byte)" if self.bits_per_byte is not None else ""
            lines.append(f"held-out: {self.loss:.3f} nats per {self.unit}{per_byte}, {self.sentence}")
        if self.remedy:
            lines.append(self.remedy)
        if self.sample:
            lines.append(f"sample: {one_line(self.prompt + self.sample)}")
        lines.append(f"model: {self.model_folder}")
        if self.soon:
            end = f"{self.resume_command} {self.soon}"
            lines.append(f"the rate has not fallen yet; to end in a tenth more, where it gains most: {end}")
        return "\n".join(lines)
