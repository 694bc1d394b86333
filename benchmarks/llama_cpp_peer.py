"""llama.cpp as a contender, through llama-cpp-python, on a folder of a Llama written as GGUF.

It is no dependency: `missing` says that it is not there. All rows in one batch a step.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transom.checkpoint.gguf_writer import save_gguf
from transom.checkpoint.huggingface import load_model
from transom.data.tokenizer import train_tokenizer

LONGEST = 1024
"""Tokens that a row may come to hold."""


def missing() -> str:
    """That the package is not installed, in words; empty: it is."""
    return "" if find_spec("llama_cpp") else "not there (llama_cpp not installed)"


def writer(
    folder: Path, rows: int, how: dict[str, float], dtype: str = "bf16"
) -> Callable[[list[list[int]], int], list[list[int]]]:
    """Writes after at most `rows` prompts of one length, as `engine_speed.Write`.

    how: temperature, and top_p where that is not 0: then llama.cpp's own sampler draws. dtype: of the file.
    """
    import llama_cpp as llama

    path = folder / f"{dtype}.gguf"
    model = load_model(folder)
    # GGUF knows no tokenizer of numbers; none is asked for here, and what bytes leave over becomes padding.
    tokenizer = train_tokenizer("bytes", iter(["text"]), 258)
    save_gguf(path, model, tokenizer, {}, dtype=dtype, name="peer")
    llama.llama_backend_init()
    handle = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    limits: Any = llama.llama_context_default_params()
    limits.n_ctx, limits.n_batch, limits.n_ubatch = LONGEST * rows, 2048, 512  # shared out evenly
    limits.n_seq_max = rows
    limits.n_threads = limits.n_threads_batch = torch.get_num_threads()
    context = llama.llama_init_from_model(handle, limits)
    vocab_size = model.config.vocab_size
    sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    if how["temperature"]:
        llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_temp(how["temperature"]))
        llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_top_p(how["top_p"], 1))
        llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_dist(0))

    def choose(at: int) -> int:
        if how["temperature"]:
            return llama.llama_sampler_sample(sampler, context, at)
        return int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, at), (vocab_size,)).argmax())

    def step(tokens: list[list[int]], place: int) -> list[int]:
        """Read the same number of tokens of each row; the token after each."""
        batch = llama.llama_batch_init(sum(map(len, tokens)), 0, 1)
        wanted = []
        for row, read in enumerate(tokens):
            for i, token in enumerate(read):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, place + i
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                batch.logits[at] = int(i == len(read) - 1)
                wanted += [at] if batch.logits[at] else []
                batch.n_tokens += 1
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode a batch")
        chosen = [choose(at) for at in wanted]
        llama.llama_batch_free(batch)
        return chosen

    def write(prompts: list[list[int]], new: int) -> list[list[int]]:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        made = [[token] for token in step(prompts, 0)]
        for n in range(1, new):
            for row, token in zip(
                made, step([row[-1:] for row in made], len(prompts[0]) + n - 1), strict=True
            ):
                row.append(token)
        return made

    return write
