"""Tokens per second of one optimizer step at 6 layers, 384 wide, context 256: Transom beside transformers.

The peer is `GPT2LMHeadModel` of the same shape with its default loss, in float32 and in bfloat16 autocast,
with fused AdamW. Ours takes the same AdamW step: once as that very GPT-2 (layer norm, GELU, learned
positions, biases), once as the decoder that `transom train` builds. Dropout is off everywhere.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from transom import hardware as machine
from transom.hardware import Hardware
from transom.model.config import SIZES, ModelConfig
from transom.model.transformer import Transformer

from .measure import in_turns, median_ratio, tell

WINDOWS, LENGTH = 16, 256


def gpt2_shape(vocab_size: int) -> ModelConfig:
    """GPT-2's parts at the size of `mini`."""
    return ModelConfig(
        vocab_size=vocab_size, dim=384, n_layers=6, n_heads=6, n_kv_heads=6, head_dim=64, ffn_dim=1536,
        max_len=LENGTH, activation="gelu_tanh", gated=False, norm="layer", norm_eps=1e-5, qkv_bias=True,
        out_bias=True, ffn_bias=True, position="learned",
    )  # fmt: skip


def stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One optimizer step of a model: forward, backward, update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def ours(
    config: ModelConfig, batch: SimpleNamespace, dtype: torch.dtype, compiled: bool = False
) -> Callable[[], None]:
    model = Transformer(config).train()
    if compiled:
        for layer in model.layers:
            layer.compile()
    return stepper(model, lambda: model.loss(batch, dtype=dtype) / batch.targets.numel())


def theirs(vocab_size: int, tokens: Tensor, autocast: bool) -> Callable[[], None]:
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=LENGTH, n_embd=384, n_layer=6, n_head=6,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return model(tokens, labels=tokens).loss

    return stepper(model, loss)


def where_time_goes(step: Callable[[], None]) -> list[str]:
    """Share of a step's processor time by operator, those above 2%."""
    with torch.profiler.profile() as profile:
        step()
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)
    return [
        f"  {event.self_cpu_time_total / total:>4.0%}  {event.key} ({event.count} calls)"
        for event in largest
        if event.self_cpu_time_total > 0.02 * total
    ]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("training_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--compile", action="store_true", help="also our decoder compiled (20 s to start)")
    parser.add_argument("--profile", action="store_true", help="also where our decoder's step goes")
    asked = parser.parse_args(arguments)
    machine.keep_memory()
    vocab_size = asked.vocab_size
    rows = torch.randint(vocab_size, (WINDOWS, LENGTH + 1))
    tokens = rows[:, :-1].contiguous()
    batch = SimpleNamespace(tokens=tokens, targets=rows[:, 1:].contiguous(), documents=None, positions=None)
    same, decoder = gpt2_shape(vocab_size), ModelConfig(vocab_size=vocab_size, qk_norm=True, **SIZES["mini"])
    bf16 = torch.bfloat16
    contenders = {
        "transformers GPT-2, float32": theirs(vocab_size, tokens, autocast=False),
        "transformers GPT-2, bfloat16 autocast": theirs(vocab_size, tokens, autocast=True),
        "Transom GPT-2 shape, float32": ours(same, batch, torch.float32),
        "Transom GPT-2 shape, bfloat16": ours(same, batch, bf16),
        "Transom decoder, bfloat16": ours(decoder, batch, bf16),
    }
    if asked.compile:
        contenders["Transom decoder, bfloat16, compiled"] = ours(decoder, batch, bf16, compiled=True)
    seconds = in_turns(contenders, asked.rounds, warmups=2)
    peak = Hardware.detect().peak_flops(bf16)
    base32, base16 = (seconds[f"transformers GPT-2, {kind}"] for kind in ("float32", "bfloat16 autocast"))
    flops = Transformer(same).flops_per_token(LENGTH) * tokens.numel()
    lines = [f"vocabulary {vocab_size:,}, {WINDOWS} windows of {LENGTH}, medians of {asked.rounds}"]
    figures = {}
    for name, taken in seconds.items():
        rate = tokens.numel() / statistics.median(taken)
        share = flops / statistics.median(taken) / peak
        ratios = median_ratio(base32, taken), median_ratio(base16, taken)
        lines.append(
            f"{name:<38}{rate:>8,.0f} tokens/s {ratios[0]:>6.2f} x float32 {ratios[1]:>6.2f} x autocast "
            f"{share:>5.0%} of the bf16 peak"
        )
        figures[name] = {"tokens_per_s": rate, "x_float32": ratios[0], "x_autocast": ratios[1]}
    if asked.profile:
        lines += [
            "our decoder's step, by operator:",
            *where_time_goes(contenders["Transom decoder, bfloat16"]),
        ]
    tell("training speed", lines, {"peak_bf16_flops": peak, "results": figures})
