"""Tokens per second of greedy generation, one prompt: Transom beside `transformers.generate`.

A random Llama of the shape of `mini` (6 layers, 384 wide, 4,096 tokens), 16 tokens of prompt and 128 new
ones, float32 and bfloat16, the same folder read by both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial

import torch
from transformers import AutoModelForCausalLM

import transom
from transom.checkpoint.huggingface import save_model
from transom.model.config import SIZES, ModelConfig
from transom.model.transformer import Transformer

from .measure import in_turns, median_ratio, numbers, tell

PROMPT, NEW = 16, 128


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("generation_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args(arguments)
    prompt = torch.randint(4096, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    lines, figures = [f"{PROMPT} tokens of prompt, {NEW} new, medians of {asked.rounds}"], {}
    with tempfile.TemporaryDirectory() as folder:
        config = ModelConfig(vocab_size=4096, **SIZES["mini"]).with_(max_len=512)
        save_model(folder, Transformer(config), numbers(config.vocab_size))
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            theirs = partial(
                AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).generate,
                prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
            )  # fmt: skip
            ours = partial(
                transom.load(folder, dtype=name).generate,
                prompt[0].tolist(), max_tokens=NEW, temperature=0, ignore_eos=True,
            )  # fmt: skip
            seconds = in_turns({"transformers": theirs, "Transom": ours}, asked.rounds)
            rates = {who: NEW / statistics.median(taken) for who, taken in seconds.items()}
            ratio = median_ratio(seconds["transformers"], seconds["Transom"])
            figures[name] = {**rates, "ratio": ratio}
            said = ", ".join(f"{who} {rate:,.0f}" for who, rate in rates.items())
            lines.append(f"{name:<9} {said} tokens/s: {ratio:.2f} x")
    tell("generation speed", lines, figures)
