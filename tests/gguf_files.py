"""GGUF files for tests, written by the format's own package from models of transformers, as llama.cpp's
converter writes them: the oracle for what we read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

NORMAL, CONTROL = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
Adds = Callable[[gguf.GGUFWriter], None]


def small_vocabulary(file: gguf.GGUFWriter, size: int) -> None:
    """Byte-level BPE of `size` tokens: some letters, one merge, and the first three of them control."""
    letters = [chr(n) for n in range(ord("!"), ord("~") + 1)][: size - 4]
    tokens = ["<unk>", "<s>", "</s>", *letters]
    tokens += ["ab"] + [f"[PAD{n}]" for n in range(len(tokens) + 1, size)]
    kinds = [CONTROL] * 3 + [NORMAL] * (len(letters) + 1)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(tokens)
    file.add_token_types(kinds + [gguf.TokenType.UNUSED] * (size - len(kinds)))
    file.add_token_merges(["a b"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)


def write_model(
    path: Path,
    name: str,
    model: PreTrainedModel,
    kind: str = "F32",
    more: Adds | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a model of transformers as a GGUF file of an architecture, its matrices packed as `kind`.

    more: what else goes into the metadata. tensors: what other tensors there are.
    """
    config: Any = model.config
    file = gguf.GGUFWriter(path, name)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_key_length(head_dim)
    file.add_value_length(head_dim)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    if name == "qwen3moe":
        file.add_expert_count(config.num_experts)
        file.add_expert_used_count(config.num_experts_per_tok)
        file.add_expert_feed_forward_length(config.moe_intermediate_size)
    small_vocabulary(file, config.vocab_size)
    if more is not None:
        more(file)
    type_ = gguf.GGMLQuantizationType[kind]
    for theirs, values in renamed(name, model).items():
        matrix = values.ndim > 1 and not theirs.endswith("ffn_gate_inp.weight")
        as_type = type_ if matrix else gguf.GGMLQuantizationType.F32
        file.add_tensor(theirs, gguf.quantize(values, as_type), raw_dtype=as_type)
    for theirs, values in (tensors or {}).items():
        file.add_tensor(theirs, values)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def renamed(name: str, model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names and in its order of rows, by the maps of the package."""
    config: Any = model.config
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found: dict[str, np.ndarray] = {}
    for ours, weight in model.state_dict().items():
        if ours == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.float()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        n = heads.get(ours.split(".")[-2])
        if name == "llama" and n is not None:  # LlamaModel.permute of its converter
            shape = values.shape
            values = values.reshape(n, 2, shape[0] // n // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        whole, _, leaf = ours.rpartition(".")
        parts = {ours: values}
        if ours.endswith("experts.gate_up_proj"):
            gate, up = values.chunk(2, dim=1)
            parts = {f"{whole}.gate_proj.weight": gate, f"{whole}.up_proj.weight": up}
        elif ours.endswith("experts.down_proj"):
            parts = {f"{ours}.weight": values}
        for part, one in parts.items():
            theirs = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert theirs is not None, part
            found[theirs] = one.contiguous().numpy()
    return found


def dequantized(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """The same model with its matrices packed and unpacked again, row by row."""
    type_ = gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and not name.endswith("mlp.gate.weight"):
                values = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), type_), type_)
                weight.copy_(torch.from_numpy(values.reshape(weight.shape)))
    return model
