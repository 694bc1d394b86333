"""ledger.json: what a run was made from, what it cost, and how good the forecast was.

Enough to repeat the run and to account for it: data and tokenizer by hash, seed, versions, machine; tokens,
floating-point operations, watt-hours (with the method that gave them), peak memory; forecast beside actual.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import memory
from .forecast import Forecast

if TYPE_CHECKING:
    from .milestones import Milestones


def versions() -> dict[str, str]:
    """Of everything that decides the numbers of a run."""
    packages = {}
    for name in ("transom", "torch", "numpy", "tokenizers", "safetensors"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "source tree"
    return {"python": platform.python_version(), **packages}


def account(run: Milestones) -> dict[str, Any]:
    """A run's account so far, for ledger.json and the model card."""
    position, task, config = run.position, run.task, run.model.config
    tokens, seconds = position.tokens, run.clock.elapsed()
    flops = tokens * run.model.flops_per_token(task.feed.row_length)
    watt_hours, peak = run.joules() / 3600, memory.peak(run.world.device)
    score = run.score
    return {
        "name": run.folder.path.name,
        "data": {
            "source": run.settings.data.source, "hash": task.data_hash, **task.facts,
            "tokenizer_hash": position.tokenizer_hash, "skipped_windows": position.skipped,
        },
        "task": task.name, "unit": task.unit, "begun_from": run.settings.model.weights,
        "format": run.architecture,
        "model": {"parameters": run.model.n_parameters,
                  "active_parameters": run.model.n_active_parameters,
                  "flops_per_token": run.model.flops_per_token(task.feed.row_length), **asdict(config)},
        "seed": run.settings.seed,
        "versions": position.versions,
        "hardware": {**run.hardware.to_dict(), "processes": run.world.size,
                     "parallel": run.world.kind},
        "dtype": {"name": run.choice.name, "reason": run.choice.reason},
        "micro_batch": {"windows": run.micro.windows, "reason": run.micro.reason},
        "cost": {
            "steps": position.step, "tokens": tokens, "epochs": position.step / task.feed.steps_per_epoch,
            "seconds": seconds, "flops": flops, "watt_hours": watt_hours,
            "energy_method": run.energy.method,
            "peak_memory_bytes": peak,
        },
        "result": {
            "loss": score.loss if score else None,
            "bits_per_byte": score.bits_per_byte if score else None,
            "tokens_scored": score.n_targets if score else 0,
            "whole": run.chosen is None and run.at_end.whole,
            "step": run.chosen.step if run.chosen else position.step,
            "sentence": run.sentence,
            "references": run.baselines,
        },
        "forecast": grade(run.expected, {
            "steps": position.step, "tokens": tokens, "seconds": seconds, "flops": flops,
            "watt_hours": watt_hours, "memory_bytes": peak,
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


def write(path: Path, ledger: dict[str, Any]) -> None:
    """Write the ledger, whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(ledger, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
