"""What `transom.look` costs: nothing without a block, little inside one, and no n x n map at 8,192 tokens.

A decoder of SmolLM2-135M's shape with random weights, float32. Without a block: a copy that has been looked
at beside one that never was, in turns; the median ratio has a 95% interval, from the ranks of the rounds.
Inside: the same model with and without a block, and the bytes that the block keeps. Long: a look at 8,192
tokens, one row and the grid of all heads, with the process's peak memory.
"""

from __future__ import annotations

import argparse
import copy
import math
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import transom
from transom.hardware import use_threads
from transom.insight.look import Seen
from transom.model.build import build
from transom.model.config import ModelConfig

from .measure import in_turns, tell

SMOL = ModelConfig(
    49_152, 576, 30, 9, 3, head_dim=64, ffn_dim=1536, max_len=8192, tie_embeddings=True, rope_theta=100_000.0
)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("look_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--long", type=int, default=8192)
    parser.add_argument("--n-layers", type=int, default=SMOL.n_layers)
    asked = parser.parse_args(arguments)
    use_threads()
    model = build(SMOL.with_(n_layers=asked.n_layers)).eval()
    millions = model.n_parameters / 1e6
    with torch.no_grad():
        figures: dict[str, Any] = {"parameters": model.n_parameters}
        figures["long"] = long = at_length(model, asked.long)  # first: peak memory only ever grows
        figures["without"] = without = without_block(model, asked.length, asked.rounds)
        figures["inside"] = inside = inside_block(model, asked.length, asked.rounds)
    figures["graph_breaks"] = breaks = graph_breaks(model)
    lines = [
        f"{millions:.0f}M parameters, {torch.get_num_threads()} threads, {asked.rounds} rounds",
        f"without a block, {asked.length} tokens: {_said(without)} (limit 1.01), {breaks} graph breaks",
        f"inside a block, {asked.length} tokens: {_said(inside)} (limit 1.3), keeps"
        f" {inside['kept_mib']:.1f} MiB; query, key and normaliser alone are {inside['least_mib']:.1f}",
        f"{asked.long:,} tokens: forward {long['forward_s']:.1f} s, in a block {long['look_s']:.1f} s, a row"
        f" of all heads {1e3 * long['row_s']:.1f} ms, the grid of heads {long['grid_s']:.1f} s; peak"
        f" {long['peak_gib']:.2f} GiB; largest difference to the kernel {long['error']:.1e}",
    ]
    tell("look speed", lines, figures)


def without_block(model: nn.Module, length: int, rounds: int) -> dict[str, float]:
    """Forward time of a model that has been looked at, over that of one that never was."""
    after, never, tokens = copy.deepcopy(model), copy.deepcopy(model), _tokens(length)
    with transom.look(after, keep=("attention", "resid", "ffn")):
        after(tokens)
    return _ratio({"after": lambda: after(tokens), "never": lambda: never(tokens)}, rounds)


def inside_block(model: nn.Module, length: int, rounds: int) -> dict[str, float]:
    """Forward time inside a block over that without, and what the block keeps."""
    tokens = _tokens(length)

    def looked() -> Seen:
        with transom.look(model) as seen:
            model(tokens)
        return seen

    found = _ratio({"inside": looked, "without": lambda: model(tokens)}, rounds)
    kept = [call.kept for call in looked().calls]
    least = [[k.query, k.key, k.normaliser] for k in kept]
    every = [[*parts, *k.proof] for parts, k in zip(least, kept, strict=True)]
    return {**found, "kept_mib": _mib(every), "least_mib": _mib(least)}


def at_length(model: nn.Module, length: int) -> dict[str, float]:
    """A look at a long text: times, and the peak memory of the process."""
    tokens = _tokens(length)
    forward_s, _ = _timed(lambda: model(tokens))
    with transom.look(model) as seen:
        look_s, _ = _timed(lambda: model(tokens))
    last = model.config.n_layers - 1
    row_s, row = _timed(lambda: seen.attention(last, row=length - 1))
    grid_s, _ = _timed(seen.heads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "length": length, "forward_s": forward_s, "look_s": look_s, "row_s": row_s, "grid_s": grid_s,
        "peak_gib": peak, "error": row.error,
    }  # fmt: skip


def graph_breaks(model: nn.Module) -> int:
    """How often `torch.compile` has to leave the graph, after the model has been looked at."""
    return torch._dynamo.explain(model)(_tokens(16)).graph_break_count


def _ratio(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The first contender's time over the second's: the median of the rounds, and its 95% interval.

    The interval goes from one rank to another (the sign test turned round): a round that something else
    disturbed counts as one round, however slow it was.
    """
    slower, faster = in_turns(contenders, rounds).values()
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    low = max(0, math.floor((rounds - 1.96 * math.sqrt(rounds)) / 2))
    return {
        "median": statistics.median(ratios),
        "low": ratios[low],
        "high": ratios[-1 - low],
        "seconds": statistics.median(faster),
    }


def _said(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} x [{ratio['low']:.3f}, {ratio['high']:.3f}] of {ratio['seconds']:.2f} s"


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    out = run()
    return time.perf_counter() - started, out


def _mib(tensors: list[list[Tensor | None]]) -> float:
    """What tensors hold in memory, each storage once."""
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for y in tensors
        for x in y
        if x is not None
    }
    return sum(storages.values()) / 2**20


def _tokens(length: int) -> Tensor:
    return torch.randint(3, SMOL.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))
