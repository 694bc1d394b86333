"""Adapters over one base beside the base alone: processor time of a step of decoding, in turns.

A random Llama of the shape of SmolLM2-135M in bfloat16, by whatever runs it here (native kernels; with
TRANSOM_NATIVE=0 PyTorch), in one thread, so that no processor time is spent in waiting; 8 adapters, of rank 8
to queries and values (the default of PEFT) and of rank 16 to all linear layers (that of Transom); 1 and 8
rows, of one adapter, and each of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from transom.hardware import keep_memory
from transom.inference.adapters import shared
from transom.inference.native_runner import available, runner_for
from transom.inference.runner import BlockRunner, Chunk
from transom.model.build import Model
from transom.model.lora import Lora, adapted_layers, add_lora, linear_layers, named_by
from transom.model.transformer import Transformer

from .engine_speed import SMOL, TINY
from .measure import in_turns, median_ratio, tell

N = 8
KINDS = {"rank 8, q and v": (8, ("q_proj", "v_proj")), "rank 16, all": (16, ("all",))}
PROMPT = 64
STEPS = 2


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("adapter_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tiny", action="store_true", help="a toy model: only to see that all runs")
    asked = parser.parse_args(arguments)
    keep_memory()
    torch.set_num_threads(1)
    model = Transformer(TINY if asked.tiny else SMOL).to(torch.bfloat16).eval()
    plain, steps = runner_for(model, n_tokens=4096), dict[str, Callable[[], None]]()
    runners = {
        kind: runner_for(model, n_tokens=4096, adapters=adapters_to(model, *what))
        for kind, what in KINDS.items()
    }
    for n in (1, N):
        steps[f"base, {n}"] = step_of(plain, [""] * n)
        for kind, runner in runners.items():
            steps[f"{kind}: one, {n}"] = step_of(runner, ["a3"] * n)
    for kind, runner in runners.items():
        steps[f"{kind}: each its own, {N}"] = step_of(runner, [f"a{i}" for i in range(N)])
    seconds = in_turns(steps, asked.rounds, clock=time.process_time)
    lines, figures = [available(model)[1]], {}
    for name, found in seconds.items():
        base = seconds[f"base, {name.rpartition(', ')[2]}"]
        figures[name] = {"ms": 1e3 * statistics.median(found) / STEPS, "of_base": median_ratio(found, base)}
        lines.append(f"{name:34} {figures[name]['ms']:6.1f} ms  {figures[name]['of_base']:5.2f} of the base")
    tell("adapter speed", lines, figures)


def adapters_to(model: Model, rank: int, targets: tuple[str, ...]) -> dict[str, Model]:
    """N adapters with random numbers over one model, whose weights they share."""
    made: dict[str, Model] = {}
    for number in range(N):
        twin = shared(model)
        names = [name for target in targets for name in named_by(target, linear_layers(twin))]
        add_lora(twin, dict.fromkeys(names, Lora(rank, 2.0 * rank)), number)
        with torch.no_grad():
            for layer in adapted_layers(twin).values():
                layer.lora_A.data, layer.lora_B.data = layer.lora_A.float(), layer.lora_B.float()
                layer.lora_B.normal_(std=0.01, generator=torch.Generator().manual_seed(number))
        made[f"a{number}"] = twin.eval()
    return made


def step_of(runner: BlockRunner, adapters: list[str]) -> Callable[[], None]:
    """Some steps of decoding of rows, each read by its adapter, after a prompt that is read already."""
    rows = [runner.open([*range(100, 100 + PROMPT), i], adapter=name) for i, name in enumerate(adapters)]
    runner.run([Chunk(row, len(row.tokens) - row.n_read) for row in rows])

    def step() -> None:
        for _ in range(STEPS):
            for row in rows:
                row.tokens.append(7)
            runner.run([Chunk(row, 1) for row in rows])

    return step
