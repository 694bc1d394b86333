"""ledger.json: what a run was made from, what it cost, and how good the forecast was.

Enough to repeat the run and to account for it: data and tokenizer by hash, seed, versions, machine; tokens,
floating-point operations, watt-hours (with the method that gave them), peak memory; forecast beside actual.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from .evaluate import Score
from .forecast import Forecast
from .micro_batch import MicroBatch
from .parts import RunParts


def versions() -> dict[str, str]:
    """Return the versions of everything that decides the numbers of a run."""
    packages = {}
    for name in ("transom", "torch", "numpy", "tokenizers", "safetensors"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "source tree"
    return {"python": platform.python_version(), **packages}


@dataclass(frozen=True)
class RunFacts:
    """What came of a run, beside what it was made of: all that its account is written from."""

    run: RunParts
    micro: MicroBatch
    seconds: float
    joules: float
    peak_memory: int
    score: Score | None
    sentence: str
    """What that says, in words."""
    whole: bool
    """Whether all of the held-out side was scored."""
    weights_step: int
    """The step whose weights the model folder gets."""


def account(facts: RunFacts) -> dict[str, Any]:
    """Write a run's account so far, for ledger.json and the model card."""
    run, score, seconds = facts.run, facts.score, facts.seconds
    position, task, model = run.position, run.task, run.model
    tokens, flops_per_token = position.tokens, model.flops_per_token(task.feed.row_length)
    flops, watt_hours = tokens * flops_per_token, facts.joules / 3600
    return {
        # What it was made from: enough to repeat it.
        "name": run.folder.path.name,
        "data": {
            "source": run.settings.data.source, "hash": task.data_hash, **task.facts,
            "tokenizer_hash": position.tokenizer_hash, "skipped_windows": position.skipped,
        },
        "task": task.name, "unit": task.unit, "begun_from": run.settings.model.weights,
        "method": {"name": run.settings.method, "learned": run.expected.learned,
                   **(run.settings.lora.to_dict() if run.settings.method == "lora" else {})},
        "format": run.architecture, "card": run.settings.card.model_dump(),
        "model": {"parameters": model.n_parameters, "active_parameters": model.n_active_parameters,
                  "flops_per_token": flops_per_token, **asdict(model.config)},
        "seed": run.settings.seed,
        "versions": position.versions,
        "hardware": {**run.hardware.to_dict(), "processes": run.world.size, "parallel": run.world.kind},
        "dtype": {"name": run.choice.name, "reason": run.choice.reason},
        "micro_batch": {"windows": facts.micro.windows, "reason": facts.micro.reason},

        # What it cost, what came of it, and how near the forecast was.
        "cost": {
            "steps": position.step, "tokens": tokens, "epochs": position.step / task.feed.steps_per_epoch,
            "seconds": seconds, "flops": flops, "watt_hours": watt_hours,
            "energy_method": run.energy.method, "peak_memory_bytes": facts.peak_memory,
        },
        "result": {
            "loss": score.loss if score else None,
            "bits_per_byte": score.bits_per_byte if score else None,
            "tokens_scored": score.n_targets if score else 0,
            "whole": facts.whole, "step": facts.weights_step, "sentence": facts.sentence,
            "references": task.baselines,
        },
        "forecast": grade(run.expected, {
            "steps": position.step, "tokens": tokens, "seconds": seconds, "flops": flops,
            "watt_hours": watt_hours, "memory_bytes": facts.peak_memory,
            "tokens_per_second": tokens / max(seconds, 1e-9),
        }),
    }  # fmt: skip


def grade(forecast: Forecast, actual: dict[str, float]) -> dict[str, Any]:
    """Forecast beside actual, with the ratio actual / forecast of each."""
    expected = forecast.to_dict()
    return {
        name: {
            "forecast": expected[name],
            "actual": value,
            "ratio": round(value / expected[name], 4) if expected[name] else None,
        }
        for name, value in actual.items()
    }
