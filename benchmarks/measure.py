"""How every benchmark measures: contenders take turns, medians are compared, one JSON line comes last."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from transom.data.tokenizer import Tokenizer
from transom.hardware import Hardware

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def in_turns(
    contenders: dict[str, Callable[[], Any]],
    rounds: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, contenders one after the other in every round, so that drift meets all alike.

    Every other round goes backwards, so that nobody always comes after the same one. clock: of the wall, or
    `time.process_time` where others are at work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + warmups):
        for name, run in list(contenders.items())[:: 1 - 2 * (round_number % 2)]:
            started = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number >= warmups:
                seconds[name].append(clock() - started)
    return seconds


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """Median over rounds of the ratio of two contenders' times in the same round."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def numbers(n: int) -> Tokenizer:
    """A tokenizer of n tokens, called by their numbers: what random weights write can then be any of them."""
    words = {"type": "WordLevel", "vocab": {str(i): i for i in range(n)}, "unk_token": "0"}
    spaces = {"type": "WhitespaceSplit"}
    return Tokenizer(json.dumps({"version": "1.0", "pre_tokenizer": spaces, "model": words}), {})


def machine() -> str:
    """The machine in words, for beside a figure."""
    hardware = Hardware.detect()
    return f"{hardware.name}, {hardware.cores} cores, torch {torch.__version__}, {platform.system()}"


def tell(name: str, lines: list[str], figures: dict[str, Any]) -> None:
    """Print a benchmark's lines for a person and its figures as one line of JSON."""
    print(f"\n{name}  ({machine()})")
    for line in lines:
        print("  " + line)
    print(json.dumps({"benchmark": name, "machine": machine(), **figures}), flush=True)
