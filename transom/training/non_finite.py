"""What to do when a loss or a gradient is not a number.

The check comes before the update, so weights never see it. The step is run once more: when it then comes out
finite, the machine is to blame; when not, the data or the optimizer, and the step is skipped. More than three
in a row, or one in a hundred, ends the run with a bundle that reproduces the step offline: `replay(bundle)`.
Source of the rerun: Megatron-LM's rerun state machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ..checkpoint.folder import commit, verify
from ..checkpoint.tensors import load_tensors, save_tensors
from ..errors import Refused
from ..model.build import build
from ..model.config import ModelConfig
from . import state
from .gradient import Gradient, step_seed
from .objectives import Classification, Contrast, LanguageModelling, Preference
from .parts import RunParts
from .report import finite

IN_A_ROW, WINDOW, SHARE = 3, 1000, 0.01
"""How many skipped steps are borne: so many in a row, and this share of the last `WINDOW` steps."""


class Skips:
    """The steps that were skipped, and whether there have been too many."""

    def __init__(self, steps: list[int] | None = None) -> None:
        self.steps = list(steps or [])

    def add(self, step: int) -> bool:
        """Count `step` as skipped; True while the run may go on."""
        self.steps.append(step)
        run = 0
        while run < len(self.steps) and self.steps[-1 - run] == step - run:
            run += 1
        recent = sum(s > step - WINDOW for s in self.steps)
        return run <= IN_A_ROW and recent <= max(IN_A_ROW, SHARE * WINDOW)


def judge(broken: Gradient, again: Gradient, skips: Skips, run: RunParts, micro_windows: int) -> None:
    """Deal with a step whose loss or gradient was not finite, and that was run `again`.

    Raises `Refused`, naming the bundle, when there have been too many.
    """
    step, report = run.position.step, run.report
    cause = next((n for n in reversed(broken.norms) if not broken.norms[n] < float("inf")), "the loss")
    what = f"step {step + 1}: not finite (loss {broken.loss}, first at {cause})"
    if again.is_finite:
        report("note", step, text=f"{what}; run again it was: suspect the machine's memory or processor")
        return
    may_go_on = skips.add(step)
    run.position.skipped = skips.steps
    text = f"{what}, again when repeated; the step is skipped, no weight was changed"
    report("skip", step, loss=broken.loss, grad_norm=broken.norm, cause=cause, text=text)
    if not may_go_on:
        bundle = write_bundle(broken, run, micro_windows)
        raise Refused(
            f"{what}, {len(skips.steps)} steps skipped: training has broken down. {bundle} holds what "
            f"reproduces it; the checkpoints before it are intact. Start again with a lower --optim.lr "
            f"or with --dtype float32"
        )


def write_bundle(broken: Gradient, run: RunParts, micro_windows: int) -> Path:
    """Commit the evidence of a step, the weights before it and its batch to a folder of the run."""
    step, batch = run.position.step, run.task.feed.batch(run.position.step)
    weights = state.gather(run.model, run.optimizers, run.world).model
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    evidence = {
        "model": asdict(run.model.config), "task": run.task.name, "dtype": run.choice.name,
        "step": step, "seed": run.settings.seed, "rank": 0, "window_ids": batch.ids.tolist(),
        "micro_windows": micro_windows, "n_targets": batch.n_targets, "loss": broken.loss,
        "grad_norms": broken.norms,  # the first that is not finite, from the head down, points at the cause
        "repeated": True,  # run again it was the same: data or optimizer, not the machine
    }  # fmt: skip
    path = run.folder.faults / f"step-{step:06d}"

    def write() -> None:
        with commit(path) as folder:
            save_tensors(folder / "weights.safetensors", weights, {})
            save_tensors(folder / "batch.safetensors", tensors, {})
            (folder / "evidence.json").write_text(json.dumps(finite(evidence), indent=1))

    run.world.on_rank_zero(write)
    return path


def replay(bundle: Path) -> dict[str, Any]:
    """Run the step of a bundle again, alone: {'loss', 'grad_norms'}; what was not finite then shows again."""
    verify(bundle)
    said = json.loads((bundle / "evidence.json").read_text())
    model = build(_config(said["model"])).train()
    objective = OBJECTIVES.get(said["task"], LanguageModelling)(model, getattr(torch, said["dtype"]))
    model.load_state_dict(load_tensors(bundle / "weights.safetensors"), strict=True)
    tensors = load_tensors(bundle / "batch.safetensors")
    rows = len(tensors["tokens"])
    total = 0.0
    for micro, start in enumerate(range(0, rows, said["micro_windows"])):
        torch.manual_seed(step_seed(said["seed"], said["step"], micro, said["rank"]))
        rows_of = {k: v[start : start + said["micro_windows"]] for k, v in tensors.items()}
        loss = objective(SimpleNamespace(**{**_ABSENT, **rows_of}))
        (loss / said["n_targets"]).backward()
        total += loss.item()
    norms = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": total / said["n_targets"], "grad_norms": norms}


_ABSENT = dict.fromkeys(("documents", "positions", "source_documents", "other_documents"))
OBJECTIVES: dict[str, Any] = {"classify": Classification, "embed": Contrast, "preference": Preference}
"""By task; all others predict tokens. Weights of classes and smoothing are left out: they are finite."""


def _config(said: dict[str, Any]) -> ModelConfig:
    known = {field.name for field in fields(ModelConfig)}
    return TypeAdapter(ModelConfig).validate_python({k: v for k, v in said.items() if k in known})
