"""What goes on inside a model while it learns: a few figures every so often, and how they moved.

Between two steps the same few rows are read once more with their gradients recorded: gradient along the
residual stream, entropy of attention, units that nothing moves, load of experts, each by layer. No weight, no
gradient of a weight and no random number of training is touched. `look_at_run` draws the figures of a run.
Read next: recorder, insight/gradient_recorder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refused
from ..insight.gradient_recorder import record_gradients
from ..insight.gradients import gradient_flow
from ..insight.html import Picture
from ..insight.overview import Overview
from ..insight.reading import OF_RUN
from ..insight.svg import curves
from ..insight.text import spark
from ..units import counted
from .folder import RunFolder
from .report import Event, history

ROWS = 4
"""Rows of the first step's batch that are read each time; fewer where a micro-batch has fewer, so that a look
takes no more memory than a step.
"""
Figures = dict[str, dict[str, float]]

FIGURES = {
    "attention_entropy": (
        "Entropy of attention", "nats, mean over heads", False,
        "a mean over heads and a few rows: one head may sharpen while another spreads",
    ),
    "grad_norm": (
        "Gradient along the residual stream", "norm before each layer", True,
        "the gradient at the same few rows, not that of the batch that was learned from",
    ),
    "dead_units": (
        "Dead units", "share of the feed-forward", False,
        "units that no token of these rows moves; another text may move them",
    ),
    "router_load": (
        "Load of experts", "share of the busiest", False,
        "the busiest expert on these rows; an even load says nothing of what experts do",
    ),
}  # fmt: skip
"""Figure -> what it is called, its unit, whether its axis is logarithmic, what to keep in mind."""


def figures_of(objective: nn.Module, batch: Any, device: torch.device, at_once: int = ROWS) -> Figures:
    """Return the figures by layer of the first rows of a batch, whose objective is taken once more.

    at_once: the rows of a micro-batch. Raises Refused where what is seen does not agree with what the model
    computed.
    """
    plain: Any = getattr(objective, "module", objective)
    least = 2 if getattr(plain, "joint", False) else 1  # a pair alone has no negative
    rows = batch.split(max(least, min(ROWS, at_once)))[0].to(device)
    leaves: list[Tensor] = []

    def note(_: nn.Module, __: Any, out: Tensor) -> None:
        leaves.append(out if out.requires_grad else out.requires_grad_())  # of a frozen table

    with quiet(plain), torch.compiler.set_stance("force_eager"), record_gradients(plain.model) as kept:
        handle = plain.model.embed.register_forward_hook(note)
        try:
            loss = plain(rows) / max(1, rows.n_targets)
        finally:
            handle.remove()
        torch.autograd.grad(loss, leaves, allow_unused=True)
        if plain.model.config.cell and plain.model.config.kind == "decoder":
            return _of_recurrence(plain.model, rows.tokens[0])
    return kept.figures()


def _of_recurrence(model: nn.Module, text: Tensor) -> Figures:
    """Follow the gradient of a recurrence, which runs fused, by its own structure over one text."""
    flow = gradient_flow(model, text, answer=len(text) - 1)
    norms = flow.total.square().sum(-1).sqrt() / (len(text) - 1)
    return {"grad_norm": {str(layer): float(norm) for layer, norm in enumerate(norms[:-1])}}


@contextmanager
def quiet(objective: nn.Module) -> Iterator[None]:
    """Rest dropout meanwhile, and draw no random number that training would miss."""
    was_training = objective.training
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        objective.eval()
        try:
            yield
        finally:
            objective.train(was_training)


def look_at_run(path: Path) -> Overview:
    """Draw how the figures of a run moved, from its metrics.jsonl. Raises `Refused` where there are none."""
    folder = RunFolder(path)
    if not folder.metrics.is_file():
        raise Refused(f"{path}: no metrics.jsonl here; name a run's folder (runs/NAME), or a model and a"
                      f" text: transom look {path} 'a text'")  # fmt: skip
    events = [event for event in history(folder.metrics) if event["event"] == "inside"]
    if not events:
        raise Refused(
            f"{folder.metrics}: nothing was noted of the inside of this run; runs made from now on do"
        )
    pictures = [_picture(name, events) for name in FIGURES if any(name in event for event in events)]
    looks, steps = counted(len(events), "look"), counted(events[-1]["step"], "step")
    lead = f"{looks} in {steps}, always over the same rows."
    return Overview(f"How {path.resolve().name} moved", lead, pictures, events, OF_RUN)


def _picture(name: str, events: list[Event]) -> Picture:
    """Draw one figure over the steps, a curve for each layer."""
    title, unit, log, caveat = FIGURES[name]
    told = [event for event in events if name in event]
    layers = list(dict.fromkeys(layer for event in told for layer in event[name]))
    steps = [float(event["step"]) for event in told]
    moved = [(layer, [_number(event[name].get(layer)) for event in told]) for layer in layers]
    shown = _few(moved)
    drawn = curves([(_layer(layer), steps, values) for layer, values in shown], label=title, across="steps",
                   up=unit, log=log, width=620, height=240)  # fmt: skip
    lines = [
        f"  {_layer(layer):>12} {spark(values)}  {values[0]:.3g} to {values[-1]:.3g}"
        for layer, values in moved
    ]
    note = "" if len(shown) == len(moved) else f"{len(shown)} of {len(moved)} layers are drawn."
    names = {_layer(layer) for layer, _ in shown}
    few = [line for line, (layer, _) in zip(lines, moved, strict=True) if _layer(layer) in names]
    text, brief = ("\n".join([f"  {unit}", *some]) for some in (lines, few))
    fell = sum(values[-1] < values[0] for _, values in moved)
    found = f"{title}: lower at the end than at the start in {fell} of {len(moved)} layers."
    return Picture(title, drawn, text, caveat, note, finding=found, brief=brief)


MOST = 8
"""Curves in one frame."""


def _few(moved: list[tuple[str, list[float]]]) -> list[tuple[str, list[float]]]:
    """Take of many layers some, evenly, the first and the last among them."""
    if len(moved) <= MOST:
        return moved
    return [moved[round(i * (len(moved) - 1) / (MOST - 1))] for i in range(MOST)]


def _layer(name: str) -> str:
    return f"layer {name}" if name.isdigit() else name


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
