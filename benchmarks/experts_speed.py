"""Tokens per second of a training step: experts beside a dense feed-forward of equal active operations.

The same decoder twice, once with a feed-forward of width F, once with 8 experts of which a token goes through
two and a shared one, F / 3 wide each: the same multiplications a token, 3 times the feed-forward's weights.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from transom import hardware as machine
from transom.hardware import Hardware
from transom.model.build import build
from transom.model.config import SIZES, Experts, ModelConfig

from .measure import in_turns, median_ratio, tell
from .training_speed import stepper

WINDOWS = 16


def main(options: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks experts_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", default="nano", choices=SIZES)
    asked = parser.parse_args(options)
    machine.use_threads()
    machine.keep_memory()
    dtype = Hardware.detect().choose_dtype().dtype
    dense = ModelConfig(vocab_size=4096, **SIZES[asked.size], qk_norm=True)
    width = round(dense.ffn_dim / 3 / 8) * 8
    configs = {
        "dense": dense.with_(ffn_dim=3 * width),
        "8 experts, 2 active, 1 shared": dense.with_(experts=Experts(8, 2, width, n_shared=1)),
        "64 small experts, 8 active, 1 shared": dense.with_(
            experts=Experts(64, 8, max(8, dense.ffn_dim // 9 // 8 * 8), n_shared=1)
        ),
    }
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4096, (WINDOWS, dense.max_len + 1), generator=generator)
    batch = _Rows(tokens[:, :-1], tokens[:, 1:].contiguous())
    models = {name: build(config).train() for name, config in configs.items()}
    steps = {
        name: stepper(model, lambda model=model: model.loss(batch, dtype=dtype) / batch.targets.numel())
        for name, model in models.items()
    }
    seconds = in_turns(steps, asked.rounds)
    lines, figures = [], {}
    for name, model in models.items():
        speed = batch.targets.numel() / statistics.median(seconds[name])
        ratio = median_ratio(seconds["dense"], seconds[name])
        flops = model.flops_per_token(dense.max_len)
        lines.append(
            f"{name:<38} {speed:>9,.0f} tokens/s, {ratio:.2f} of dense; {model.n_parameters / 1e6:.1f}M "
            f"parameters, {model.n_active_parameters / 1e6:.1f}M active, {flops / 1e6:.1f} MFLOP a token"
        )
        figures[name] = {"tokens_per_second": speed, "ratio": ratio, "flops_per_token": flops}
    tell(f"experts, {asked.size}, {dtype}", lines, figures)


class _Rows:
    """A batch of full windows."""

    documents = positions = None

    def __init__(self, tokens: torch.Tensor, targets: torch.Tensor) -> None:
        self.tokens, self.targets = tokens, targets
