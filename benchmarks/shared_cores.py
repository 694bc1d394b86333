"""Decoding by the CPU kernels where others want the cores too: one row, random, as large as SmolLM2-135M.

Tokens/s by one thread and by as many as PyTorch has: alone, beside a busy loop, beside one of the lowest
priority, and two engines of one process at once (tokens/s of both together).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import transom
from transom.checkpoint.huggingface import save_model
from transom.inference.generator import Generator
from transom.model.transformer import Transformer

from .engine_speed import SMOL, TINY, Write, of_transom
from .measure import numbers, tell

PROMPT, NEW = [7] * 16, 64
BESIDE = ("alone", "a busy loop", "a busy loop of the lowest priority", "another engine of the process")


@contextmanager
def busy(beside: str) -> Iterator[None]:
    """Another program at work meanwhile, where that is asked for."""
    if "loop" not in beside:
        yield
        return
    lowest = ["nice", "-n", "19"] if "lowest" in beside else []
    loop = subprocess.Popen([*lowest, sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)  # it begins with reading Python
        yield
    finally:
        loop.kill()
        loop.wait()


def rate(writers: list[Write]) -> float:
    """Tokens/s of all writers together, each in a thread."""
    threads = [threading.Thread(target=write, args=([PROMPT], NEW)) for write in writers]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(writers) * NEW / (time.perf_counter() - started)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("shared_cores", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a toy model: only to see that all runs")
    asked = parser.parse_args(arguments)
    most, lines, figures = torch.get_num_threads(), list[str](), dict[str, dict[str, float]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Transformer(TINY if asked.tiny else SMOL).to(torch.bfloat16)
        save_model(folder, model, numbers(model.config.vocab_size))
        generator = transom.load(folder, Generator, dtype="bfloat16")
        both = [of_transom(generator), of_transom(generator)]
        lines.append(f"{generator.runs_by}; medians of {asked.rounds} rounds")
        for n_threads in sorted({1, most}):
            torch.set_num_threads(n_threads)
            rates: dict[str, list[float]] = {beside: [] for beside in BESIDE}
            for round_number in range(asked.rounds + 1):  # the first only warms up
                for beside in BESIDE:
                    with busy(beside):
                        found = rate(both if "engine" in beside else both[:1])
                    rates[beside] += [found] * bool(round_number)
            said = {beside: statistics.median(found) for beside, found in rates.items()}
            figures[f"{n_threads} threads"] = said
            listed = ", ".join(f"{who} {found:,.0f}" for who, found in said.items())
            lines.append(f"{n_threads} threads: {listed} tokens/s")
    tell("shared cores", lines, figures)
