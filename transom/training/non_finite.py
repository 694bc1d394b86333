"""What to do when a loss or a gradient is not a number.

The check comes before the update, so weights never see it. The step is run once more: when it then comes out
finite, the machine is to blame; when not, the data or the optimizer, and the step is skipped. More than three
in a row, or one in a hundred, ends the run with a bundle that reproduces the step offline: `replay(bundle)`.
Source of the rerun: Megatron-LM's rerun state machine.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ..checkpoint.folder import NotSaved, commit, verify
from ..checkpoint.tensors import load_tensors, save_tensors
from ..model.build import Model, build
from ..model.config import ModelConfig
from .objectives import Classification, Contrast, LanguageModelling
from .task import Rows

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


@dataclass(frozen=True)
class Evidence:
    """Where a step went wrong: all that is needed to run it again."""

    step: int
    seed: int
    rank: int
    dtype: str
    window_ids: list[int]
    micro_windows: int
    n_targets: int
    loss: float
    grad_norms: dict[str, float]
    """Norm of the gradient of each weight; the first that is not finite, from the head down, points at the
    cause."""
    repeated: bool
    """Whether running the step again gave the same: then data or optimizer, otherwise the machine."""
    task: str = "lm"


def write_bundle(path: Path, evidence: Evidence, model: Model, weights: dict[str, Tensor],
                 batch: Rows) -> None:  # fmt: skip
    """Write the evidence, the weights before the step and its batch to a folder, committed."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    with commit(path) as folder:
        save_tensors(folder / "weights.safetensors", weights, {})
        save_tensors(folder / "batch.safetensors", tensors, {})
        said = {"model": asdict(model.config), **asdict(evidence)}
        (folder / "evidence.json").write_text(json.dumps(_text_for_nan(said), indent=1))


def replay(bundle: Path) -> dict[str, Any]:
    """Run the step of a bundle again, alone: {'loss', 'grad_norms'}; what was not finite then shows again."""
    from .gradient import step_seed

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


def assert_finite(weights: dict[str, Tensor]) -> None:
    """Raise `NotSaved` naming the first weight that is not finite: such weights are never committed."""
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise NotSaved(f"weight {name} is not finite; the last checkpoint stays, this one is not written")


_ABSENT = dict.fromkeys(("documents", "positions", "source_documents", "other_documents"))
OBJECTIVES: dict[str, Any] = {"classify": Classification, "embed": Contrast}
"""By task; all others predict tokens. Weights of classes and smoothing are left out: they are finite."""


def _config(said: dict[str, Any]) -> ModelConfig:
    known = {field.name for field in fields(ModelConfig)}
    return TypeAdapter(ModelConfig).validate_python({k: v for k, v in said.items() if k in known})


def _text_for_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _text_for_nan(item) for key, item in value.items()}
    return value
