"""What a comparison found: one row for each member, as a table, as plain values, as a page with its figure.

Read next: compare_figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..output import write_whole
from ..training.evaluate import Score
from ..training.run import Run


@dataclass(frozen=True)
class Outcome:
    """How one member of a comparison did, and what that took."""

    name: str
    folder: str
    dim: int
    n_layers: int
    loss: float | None
    """Held-out, nats per `unit`; None when it was interrupted."""
    bits_per_byte: float | None
    scores: dict[str, float]
    """The task's own, such as BLEU or accuracy, by name."""
    parameters: int
    active_parameters: int
    multiplied: int
    """Parameters without tables that are only looked up."""
    flops_per_token: float
    """To learn from one token, forward and backward."""
    tokens_per_second: float
    """While learning: the median of all steps."""
    tokens: int
    steps: int
    seconds: float
    peak_memory_bytes: int
    watt_hours: float
    energy_method: str
    curve: list[tuple[float, int, float]]
    """Seconds, tokens and held-out loss at every measurement."""

    @classmethod
    def of(
        cls, name: str, run: Run, multiplied: int, score: Score | None, scores: dict[str, float]
    ) -> Outcome:
        """From a run's own records and its score on the held-out rows that all members share."""
        model, cost = run.ledger["model"], run.ledger["cost"]
        speeds = sorted(event["tokens_per_second"] for event in run.metrics if event["event"] == "step")
        curve = [
            (event["elapsed"], event["tokens"], event["loss"])
            for event in run.metrics
            if event["event"] == "held_out" and isinstance(event["loss"], float)
        ]
        if score is not None and curve:  # the run's own last measurement may be of other rows
            curve[-1] = (*curve[-1][:2], score.loss)
        return cls(
            name=name, folder=str(run.folder), dim=model["dim"], n_layers=model["n_layers"],
            loss=score.loss if score else None, bits_per_byte=score.bits_per_byte if score else None,
            scores=scores, parameters=model["parameters"],
            active_parameters=model["active_parameters"], multiplied=multiplied,
            flops_per_token=model["flops_per_token"],
            tokens_per_second=speeds[len(speeds) // 2] if speeds else 0.0, tokens=run.tokens, steps=run.step,
            seconds=run.seconds, peak_memory_bytes=cost["peak_memory_bytes"],
            watt_hours=cost["watt_hours"], energy_method=cost["energy_method"], curve=curve,
        )  # fmt: skip


Column = tuple[str, Callable[[Outcome], str]]


@dataclass(frozen=True)
class Comparison:
    """The members side by side. It prints itself."""

    protocol: str
    """What was equal, in one sentence."""
    unit: str
    """What the loss is counted by."""
    outcomes: tuple[Outcome, ...]
    missing: tuple[str, ...] = ()
    """Members that were asked for and not trained, since the comparison was stopped."""

    @property
    def best(self) -> Outcome | None:
        """The member with the lowest held-out loss."""
        done = [outcome for outcome in self.outcomes if outcome.loss is not None]
        return min(done, key=lambda outcome: outcome.loss or 0.0) if done else None

    @property
    def verdict(self) -> str:
        """Who learned most, and by how much."""
        done = sorted((o for o in self.outcomes if o.loss is not None), key=lambda o: o.loss or 0.0)
        left = f"; not trained: {', '.join(self.missing)}" if self.missing else ""
        if len(done) < 2:
            return f"nothing to compare yet{left}"
        first, second = done[0], done[1]
        ahead = (second.loss or 0.0) - (first.loss or 0.0)
        return (
            f"{first.name} learned most: {first.loss:.3f} nats per {self.unit}, {ahead:.3f} less than "
            f"{second.name}. One run each, so a small difference can be chance{left}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"protocol": self.protocol, "unit": self.unit, "verdict": self.verdict,
                "missing": list(self.missing),
                "members": [asdict(outcome) for outcome in self.outcomes]}  # fmt: skip

    def __str__(self) -> str:
        head, *rows = self._cells()
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            f"{row[0]:<{widths[0]}}"
            + "".join(f"  {cell:>{wide}}" for cell, wide in zip(row[1:], widths[1:], strict=True))
            for row in (head, *rows)
        ]
        return "\n".join([self.protocol, "", *lines, "", self.verdict])

    def markdown(self, figure: str) -> str:
        """A page of its own: the protocol, the table, the figure (a file beside it), where the runs lie."""
        head, *rows = self._cells()
        table = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        method = self.outcomes[0].energy_method if self.outcomes else ""
        return "\n".join([
            "# Comparison", "", self.protocol, "", *("| " + " | ".join(row) + " |" for row in table), "",
            f"{self.verdict}.", "", f"![Held-out loss over time and over tokens]({figure})", "",
            "All were scored on the same held-out rows at the end; the points before are each run's own "
            "samples. Tokens/s is the median of all steps. FLOPs are counted, to learn from one token, "
            f"forward and backward. Energy is {method}.", "",
            "Each run's settings and records lie in its own folder: "
            + ", ".join(f"`{Path(outcome.folder).name}/`" for outcome in self.outcomes) + ".", "",
        ])  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write compare.json, compare.md and compare.png into a folder, each whole or not at all."""
        from .compare_figure import draw_comparison

        folder.mkdir(parents=True, exist_ok=True)
        draw_comparison(self, folder / "compare.png")
        written = {
            "compare.json": json.dumps(self.to_dict(), indent=1) + "\n",
            "compare.md": self.markdown("compare.png"),
        }
        for name, text in written.items():
            write_whole(folder / name, text)

    def _cells(self) -> list[list[str]]:
        """The table as text, its head first; columns that say nothing are left out."""
        shown = self._columns()
        return [
            [name for name, _ in shown],
            *([cell(outcome) for _, cell in shown] for outcome in self.outcomes),
        ]

    def _columns(self) -> list[Column]:
        columns: list[Column] = [
            ("member", lambda o: o.name + " *" * (o is self.best)),
            (f"nats/{self.unit}", lambda o: "-" if o.loss is None else f"{o.loss:.3f}"),
        ]
        if any(outcome.bits_per_byte is not None for outcome in self.outcomes):
            columns.append(("bits/byte", lambda o: _number(o.bits_per_byte)))
        for name in dict.fromkeys(name for outcome in self.outcomes for name in outcome.scores):
            columns.append((name, lambda o, name=name: f"{o.scores[name]:.1f}" if name in o.scores else "-"))
        columns += [
            ("tokens/s", lambda o: f"{o.tokens_per_second:,.0f}"),
            ("memory", lambda o: f"{o.peak_memory_bytes / 1e6:,.0f} MB"),
            ("width", lambda o: f"{o.dim}"),
            ("parameters", lambda o: f"{o.parameters:,}"),
        ]
        if any(outcome.multiplied != outcome.parameters for outcome in self.outcomes):
            columns.append(("multiplied", lambda o: f"{o.multiplied:,}"))
        if any(outcome.active_parameters != outcome.parameters for outcome in self.outcomes):
            columns.append(("active", lambda o: f"{o.active_parameters:,}"))
        return [
            *columns,
            ("MFLOP/token", lambda o: f"{o.flops_per_token / 1e6:,.1f}"),
            ("tokens", lambda o: f"{o.tokens / 1e6:,.2f}M"),
            ("time", lambda o: f"{o.seconds:,.0f} s"),
            ("energy", lambda o: f"{o.watt_hours:.3g} Wh"),
        ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
