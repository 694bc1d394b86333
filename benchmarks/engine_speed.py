"""The engine beside `transformers.generate` and llama.cpp: one random Llama of bfloat16 weights, the same for
all, computed in the type that `transom.load` chooses for this CPU; llama.cpp's are bf16 and q8_0.

Of the shape of SmolLM2-135M (30 layers, 576 wide, 9 and 3 heads, 49,152 tokens, tied): tokens/s of decoding
at batch 1, 8 and 32 and of reading a prompt of 512, each with its share of what the machine can do; and the
time to the first token of 16 chats that share 1,000 tokens, with and without reuse of prefixes. Where native
kernels run, the same by PyTorch stands beside them. `--experts`: of a Qwen3-MoE's shape, 8 experts a layer of
which a token goes through 2, 111M parameters, 36M of them active. `--cell lstm --dim 512 --layers 2`: a
recurrence with 8,192 tokens, by Transom alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import transom
from transom.checkpoint.huggingface import save_model
from transom.hardware import Hardware, keep_memory
from transom.inference.dtype import dtype_of
from transom.inference.engine import Engine, EngineSettings
from transom.inference.generator import Generator
from transom.inference.native_runner import available
from transom.model.build import build
from transom.model.config import Experts, ModelConfig
from transom.sampling_params import SamplingParams

from . import llama_cpp_peer
from .measure import in_turns, median_ratio, numbers, tell

BATCHES, PROMPT, NEW, LONG = (1, 8, 32), 16, 64, 512
CHATS, SHARED, OWN = 16, 1000, 24
SMOL = ModelConfig(49_152, 576, 30, 9, 3, head_dim=64, ffn_dim=1536, max_len=2048, tie_embeddings=True)
TINY = ModelConfig(512, 64, 2, 4, 2, head_dim=16, ffn_dim=96, max_len=2048, tie_embeddings=True)
EXPERTS = ModelConfig(8_192, 512, 8, 8, 4, head_dim=64, ffn_dim=1024, max_len=2048, qk_norm=True,
                      experts=Experts(8, 2, 1024, score="softmax", balance="loss"))  # fmt: skip

LIKELIEST, DRAWN = {"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9}
"""How a token is chosen."""
PAIRS = {"llama.cpp, q8_0": "Transom, int8"}
"""What a contender is compared with where that is not "Transom": numbers of as many bits."""

Write = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts of one length, and how many tokens to write after each -> those tokens."""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("engine_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a toy model: only to see that all runs")
    parser.add_argument("--experts", action="store_true", help="a mixture of experts")
    parser.add_argument("--cell", choices=("rnn", "gru", "lstm"), help="a recurrence")
    parser.add_argument("--dim", type=int, default=512, help="its width")
    parser.add_argument("--layers", type=int, default=1, help="its layers")
    parser.add_argument("--beside", nargs="*", help="contenders, by their names' beginnings; default: all")
    parser.add_argument("--sampled", action="store_true", help="tokens are drawn, not the likeliest")
    parser.add_argument("--busy", action="store_true", help="others are at work: one thread, processor time")
    asked = parser.parse_args(arguments)
    keep_memory()
    clock = time.process_time if asked.busy else time.perf_counter
    if asked.busy:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = TINY if asked.tiny else EXPERTS if asked.experts else SMOL
        if asked.cell:
            shape = dict(dim=asked.dim, n_layers=asked.layers, head_dim=asked.dim, ffn_dim=asked.dim)
            config = TINY.with_(cell=asked.cell, n_heads=1, n_kv_heads=1, vocab_size=8_192, **shape)
        model = build(config).to(torch.bfloat16)
        save_model(folder, model, numbers(model.config.vocab_size))
        generator = transom.load(folder, Generator)
        how = DRAWN if asked.sampled else LIKELIEST
        native = available(generator.model)[0] is not None
        missing = "it has no recurrences" if asked.cell else llama_cpp_peer.missing()
        contenders: dict[str, Callable[[], Write]] = {"Transom": lambda: of_transom(generator, how)}
        if not asked.cell:
            contenders["transformers"] = lambda: of_transformers(
                folder, generator.model.embed.weight.dtype, how
            )
        if native:
            contenders["Transom by PyTorch"] = lambda: of_transom(generator, how, "0")
            contenders["Transom, int8"] = lambda: of_transom(
                transom.load(folder, Generator, weights="int8"), how
            )
        if not missing:
            contenders["llama.cpp"] = lambda: llama_cpp_peer.writer(folder, max(BATCHES), how)
        if not missing and native:
            contenders["llama.cpp, q8_0"] = lambda: llama_cpp_peer.writer(folder, max(BATCHES), how, "q8_0")
        asked_for = tuple(contenders) if asked.beside is None else ("Transom,", *asked.beside)
        peers = {
            who: make() for who, make in contenders.items() if who == "Transom" or who.startswith(asked_for)
        }
        kind = f"{torch.get_num_threads()} threads, {generator.model.embed.weight.dtype}"
        lines = [
            f"{model.n_parameters / 1e6:.0f}M parameters, {kind}, medians of {asked.rounds} rounds"
            + (f"; llama.cpp: {missing}" if missing else "")
        ]
        figures: dict[str, Any] = {}
        for batch in BATCHES:
            _decoding(peers, generator, batch, asked.rounds, clock, lines, figures)
        _prefill(peers, generator, asked.rounds, clock, lines, figures)
        if asked.beside is None:
            _first_tokens(generator, asked.rounds, lines, figures)
    tell("engine speed", lines, figures)


def of_transom(generator: Generator, how: dict[str, float] = LIKELIEST, native: str | None = None) -> Write:
    """native: what TRANSOM_NATIVE is while its engine is made; None: as it is."""
    before = os.environ.get("TRANSOM_NATIVE")

    def write(prompts: list[list[int]], new: int) -> list[list[int]]:
        requests = [generator.request(prompt, _asked(new, how))[0] for prompt in prompts]
        for request in requests:
            engine.submit(request)
        while engine.busy:
            engine.step()
        return [request.tokens for request in requests]

    if native is not None:
        os.environ["TRANSOM_NATIVE"] = native
    engine = generator.engine(EngineSettings(), reuse=False)  # a prompt of an earlier round is read again
    if native is not None:
        os.environ.pop("TRANSOM_NATIVE")
        os.environ.update({} if before is None else {"TRANSOM_NATIVE": before})
    return write


def _asked(new: int, how: dict[str, float]) -> SamplingParams:
    return SamplingParams(**how, max_tokens=new, ignore_eos=True)  # type: ignore[arg-type]


def of_transformers(folder: Path, dtype: torch.dtype, how: dict[str, float]) -> Write:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    drawn: dict[str, Any] = (
        {"do_sample": False} if how == LIKELIEST else {"do_sample": True, **how, "top_k": 0}
    )

    def write(prompts: list[list[int]], new: int) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        with torch.inference_mode():
            made = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, min_new_tokens=new,
                **drawn,
            )  # fmt: skip
        return made[:, tokens.shape[1] :].tolist()

    return write


def _prompts(rows: int, length: int, vocab_size: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(rows)
    return torch.randint(vocab_size, (rows, length), generator=draw).tolist()


def _decoding(
    peers: dict[str, Write],
    generator: Generator,
    batch: int,
    rounds: int,
    clock: Callable[[], float],
    lines: list[str],
    figures: dict[str, Any],
) -> None:
    """Tokens a second of all rows together, the reading of their short prompts included."""
    prompts = _prompts(batch, PROMPT, generator.model.config.vocab_size)
    writes = {who: lambda write=write: write(prompts, NEW) for who, write in peers.items()}
    seconds = in_turns(writes, rounds, clock=clock)
    rates = {who: batch * NEW / statistics.median(taken) for who, taken in seconds.items()}
    limits = {
        who: batch / _least_seconds(generator, batch, 1, PROMPT + NEW // 2, bits_of(who)) for who in peers
    }
    _report(f"decoding, batch {batch}", "tokens/s", rates, seconds, limits, lines, figures)


def _prefill(
    peers: dict[str, Write],
    generator: Generator,
    rounds: int,
    clock: Callable[[], float],
    lines: list[str],
    figures: dict[str, Any],
) -> None:
    """Tokens a second of one long prompt, its first new token included."""
    prompts = _prompts(1, LONG, generator.model.config.vocab_size)
    writes = {who: lambda write=write: write(prompts, 1) for who, write in peers.items()}
    seconds = in_turns(writes, rounds, clock=clock)
    rates = {who: LONG / statistics.median(taken) for who, taken in seconds.items()}
    limits = {who: LONG / _least_seconds(generator, 1, LONG, LONG // 2, bits_of(who)) for who in peers}
    _report(f"prefill of {LONG}", "tokens/s", rates, seconds, limits, lines, figures)


def bits_of(who: str) -> float:
    """Of a weight, with its share of a scale; operations are of the model's type, which 8 bits can pass."""
    return 16 if who not in (*PAIRS, *PAIRS.values()) else 8.5


def _least_seconds(generator: Generator, rows: int, tokens: int, held: int, bits: float = 16) -> float:
    """What one step takes at best: reading weights and caches once, or the arithmetic, whichever is longer.

    rows: how many; tokens: read by each, looking back on `held` others on average. bits: of a weight.
    """
    config, model, hardware = generator.model.config, generator.model, Hardware.detect()
    held = 0 if config.cell else held
    cached = 2 * config.n_layers * config.n_kv_heads * config.head_dim * held * rows
    weights = active = model.n_active_parameters
    if config.experts is not None:  # of the idle ones those that other rows may meet
        n, k = config.experts.n_experts, config.experts.n_active
        weights += (model.n_parameters - active) * (min(n, rows * tokens * k) - k) // max(1, n - k)
    read = weights * bits / 8 + 2 * cached
    embedding = config.vocab_size * config.dim  # looked up for all, multiplied with for the last token only
    looking = 4 * config.n_layers * config.n_heads * config.head_dim * held
    flops = rows * (tokens * (2 * (active - embedding) + looking) + 2 * embedding)
    return max(read / hardware.bandwidth(), flops / hardware.peak_flops(dtype_of(model)))


def _report(
    what: str,
    unit: str,
    rates: dict[str, float],
    seconds: dict[str, list[float]],
    limits: dict[str, float],
    lines: list[str],
    figures: dict[str, Any],
) -> None:
    said = ", ".join(f"{who} {rate:,.0f} ({rate / limits[who]:.0%})" for who, rate in rates.items())
    ratios = {
        who: median_ratio(taken, seconds[PAIRS.get(who, "Transom")])
        for who, taken in seconds.items()
        if who != "Transom"
    }
    beside = ", ".join(
        f"{f'{PAIRS[who]} ' if who in PAIRS else ''}{ratio:.2f} x {who}" for who, ratio in ratios.items()
    )
    lines.append(f"{what:<20} {said} {unit} (of the machine's {limits['Transom']:,.0f}): {beside}")
    figures[what] = {**rates, "limits": limits, "ratios": ratios}


def _first_tokens(generator: Generator, rounds: int, lines: list[str], figures: dict[str, Any]) -> None:
    """Seconds until chats that come at once have their first token, on average, from an empty cache."""
    vocab_size, settings = generator.model.config.vocab_size, EngineSettings()
    prompts = [_prompts(1, SHARED, vocab_size)[0] + own for own in _prompts(CHATS, OWN, vocab_size)]
    waits: dict[bool, list[float]] = {True: [], False: []}
    for round_number in range(rounds + 1):
        for reuse in waits:
            engine = generator.engine(settings, n_tokens=2 * CHATS * (SHARED + OWN), reuse=reuse)
            mean = _mean_wait(engine, generator, prompts)
            if round_number:  # the first only warms up
                waits[reuse].append(mean)
    ratio = median_ratio(waits[True], waits[False])
    with_reuse, without = (statistics.median(waits[reuse]) for reuse in (True, False))
    lines.append(f"first token of {CHATS} chats that share {SHARED:,} tokens: {with_reuse:.2f} s with reuse,"
                 f" {without:.2f} s without: {ratio:.2f} of it")  # fmt: skip
    figures["first token"] = {"reuse": with_reuse, "none": without, "ratio": ratio}


def _mean_wait(engine: Engine, generator: Generator, prompts: list[list[int]]) -> float:
    waits, started = [], time.perf_counter()
    for prompt in prompts:
        engine.submit(generator.request(prompt, _asked(1, LIKELIEST))[0])
    while engine.busy:
        waits += [time.perf_counter() - started for event in engine.step() if event.finish_reason]
    return statistics.mean(waits)
