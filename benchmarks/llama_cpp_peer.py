"""llama.cpp as a contender, through llama-cpp-python, on a folder of a Llama written as GGUF in bfloat16.

Neither package is a dependency: `missing` says what is not there. Greedy, all rows in one batch a step.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from transom.model.build import Model

LONGEST = 1024
"""Tokens that a row may come to hold."""
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Weights of a layer: their names in a folder of transformers -> in GGUF."""


def missing() -> str:
    """Which package is not installed, in words; empty: all are."""
    absent = [name for name in ("llama_cpp", "gguf") if find_spec(name) is None]
    return f"not there ({', '.join(absent)} not installed)" if absent else ""


def writer(folder: Path, model: Model, rows: int) -> Callable[[list[list[int]], int], list[list[int]]]:
    """Writes greedily after at most `rows` prompts of one length, as `engine_speed.Write`."""
    import llama_cpp as llama

    path = folder / "model.gguf"
    convert(folder, path, model)
    llama.llama_backend_init()
    handle = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    limits: Any = llama.llama_context_default_params()
    limits.n_ctx, limits.n_batch, limits.n_ubatch = LONGEST * rows, 2048, 512  # shared out evenly
    limits.n_seq_max = rows
    limits.n_threads = limits.n_threads_batch = torch.get_num_threads()
    context = llama.llama_init_from_model(handle, limits)
    vocab_size = model.config.vocab_size

    def step(tokens: list[list[int]], place: int) -> list[int]:
        """Read the same number of tokens of each row; the likeliest token after each."""
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
        best = [
            int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, at), (vocab_size,)).argmax())
            for at in wanted
        ]
        llama.llama_batch_free(batch)
        return best

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


def convert(folder: Path, path: Path, model: Model) -> None:
    """Write a folder of a Llama as a GGUF file without a vocabulary: bfloat16, norms in float32."""
    import gguf

    config = model.config
    file = gguf.GGUFWriter(path, "llama")
    file.add_block_count(config.n_layers)
    file.add_context_length(config.max_len)
    file.add_embedding_length(config.dim)
    file.add_feed_forward_length(config.ffn_dim)
    file.add_head_count(config.n_heads)
    file.add_head_count_kv(config.n_kv_heads)
    file.add_key_length(config.head_dim)
    file.add_value_length(config.head_dim)
    file.add_rope_dimension_count(config.head_dim)
    file.add_rope_freq_base(config.rope_theta)
    file.add_layer_norm_rms_eps(config.norm_eps)
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("no_vocab")
    file.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for part in sorted(folder.glob("*.safetensors")):
        for name, weight in load_file(part).items():
            heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(name.split(".")[-2])
            _add(file, gguf, _name(name), weight if heads is None else _interleaved(weight, heads))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def _name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}  # fmt: skip
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries and keys in the order of llama.cpp's rotary positions: pairs side by side."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _add(file: Any, gguf: Any, name: str, weight: torch.Tensor) -> None:
    if weight.ndim == 1:
        file.add_tensor(name, weight.float().numpy())
        return
    raw = weight.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    file.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
