"""The bench: what this machine reaches, as a share of what it could reach.

Two limits are measured, then two jobs of one size of model, in one run: training is held against the largest
matrix product, decoding against reading every weight once for each step. Peers are measured in benchmarks/.
Read next: hardware.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .data.vocabulary import bpe_size
from .hardware import Hardware, keep_memory, use_threads
from .inference.native_runner import runner_for
from .inference.runner import Chunk
from .model.transformer import Transformer
from .settings import TrainSettings
from .training.architecture import model_config
from .training.forecast import plan

PROMPT, STEPS = 32, 48
"""Tokens read before, and steps timed, in each measurement of decoding."""


@dataclass(frozen=True)
class Rate:
    """One job's speed and its share of the machine's limit."""

    job: str
    dtype: str
    tokens_per_second: float
    share: float
    limit: str


@dataclass(frozen=True)
class Bench:
    """The machine's limits and the rates of one size of model."""

    device: str
    name: str
    flops: dict[str, float]
    """FLOP/s of a large matrix product, by arithmetic."""
    bandwidth: float
    """Bytes/s."""
    size: str
    parameters: int
    rates: list[Rate]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        products = ", ".join(f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in self.flops.items())
        lines = [
            f"{self.device}: {self.name}",
            f"matrix products: {products}; memory: {self.bandwidth / 1e9:,.1f} GB/s",
            f"{self.size}: {self.parameters / 1e6:,.2f} million parameters, random weights",
        ]
        for rate in self.rates:
            lines.append(
                f"  {rate.job:<18} {rate.dtype:<9} {rate.tokens_per_second:>12,.0f} tokens/s"
                f"  {100 * rate.share:3.0f}% of {rate.limit}"
            )
        return "\n".join(lines)


def measure(settings: TrainSettings) -> Bench:
    """Measure the machine and this size of model on it; about half a minute for `nano`. Raises Refused."""
    use_threads()
    keep_memory()
    hardware = Hardware.detect(settings.device)
    config = model_config(settings.model, settings.data.vocab_size or bpe_size())
    model = Transformer(config).eval()
    rates = [_training(settings, hardware, model)]
    for name in ("float32", "bfloat16"):
        model.to(hardware.device, getattr(torch, name))
        rates += [_decoding(model, batch, name, hardware) for batch in (1, 16)]
    flops = {name: hardware.peak_flops(name) for name in ("float32", "bfloat16")}
    bandwidth, size = hardware.bandwidth(), settings.model.size
    return Bench(hardware.device, hardware.name, flops, bandwidth, size, model.n_parameters, rates)


def _training(settings: TrainSettings, hardware: Hardware, model: Transformer) -> Rate:
    """The step that `transom plan` times, against the peak of the arithmetic that it chose."""
    speed = plan(settings).tokens_per_second
    dtype = hardware.choose_dtype(settings.dtype)
    limit = hardware.peak_flops(dtype.dtype) / model.flops_per_token(model.config.max_len)
    return Rate("training", dtype.name, speed, speed / limit, "the matrix products' peak")


def _decoding(model: Transformer, batch: int, dtype: str, hardware: Hardware) -> Rate:
    """Steps of `batch` rows, against reading weights and cached keys and values once for each step."""
    config = model.config
    n_prompt = min(PROMPT, config.max_len // 2)
    steps = min(STEPS, config.max_len - n_prompt)
    prompts = torch.randint(config.vocab_size, (batch, n_prompt)).tolist()
    runner = runner_for(model, n_tokens=batch * (n_prompt + 2 * STEPS), reuse=False)
    rows = [runner.open(prompt) for prompt in prompts]

    def step(n: int) -> None:
        logits = runner.run([Chunk(row, n) for row in rows])
        for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
            row.tokens.append(token)

    step(n_prompt)
    step(1)
    start = time.perf_counter()
    for _ in range(steps - 1):
        step(1)
    seconds = (time.perf_counter() - start) / (steps - 1)
    cached = 2 * config.n_layers * config.n_kv_heads * config.head_dim * (n_prompt + steps / 2) * batch
    read = (model.n_parameters + cached) * model.embed.weight.element_size()
    share = read / seconds / hardware.bandwidth()
    return Rate(f"decoding {batch} at once", dtype, batch / seconds, share, "the memory's bandwidth")
