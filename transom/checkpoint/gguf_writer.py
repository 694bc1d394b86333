"""A model as a GGUF file: llama.cpp and what stands on it (Ollama, LM Studio) read it.

An architecture that computes exactly this model is looked for, never one that nearly does. Matrices are
packed as asked for, vectors and routers stay in float32; one tensor at a time is packed and written.
Source: docs/gguf.md of ggml; which tensors stay whole, llama-quant.cpp. Read next: gguf_families.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transom.data.gguf_file import ALIGNMENT, BLOCKS, FLOAT32, LIST, MAGIC, SCALARS, TEXT, VERSIONS
from transom.data.gguf_tokenizer import tokenizer_metadata
from transom.data.tokenizer import Tokenizer
from transom.model.build import Model

from .family import Stored, stored_tensors
from .generation import OF_GGUF
from .gguf_families import FACTORS, gguf_family_for, rope_factors
from .weight_mapping import to_stored

DTYPES = {
    "f32": ("F32", 0),
    "f16": ("F16", 1),
    "bf16": ("BF16", 32),
    "q8_0": ("Q8_0", 7),
    "q4_0": ("Q4_0", 2),
}
"""How matrices can be packed -> the type of their tensors, and the number of a file of mostly such."""
TABLES = {"Q4_0": "Q8_0"}
"""Packed so -> the table of embeddings and the head are packed so: half of what 4 bits lose is lost there."""
WHOLE = ("blk.#.ffn_gate_inp.weight",)
NUMBERS = {name: (number, weights) for number, (name, weights, _) in BLOCKS.items()}
OF_PYTHON = {bool: 7, int: 4, float: FLOAT32, str: TEXT}
"""Type of a value -> the type that is written; in a list, whole numbers have a sign."""


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written, and how it is packed."""

    name: str
    shape: tuple[int, ...]
    kind: str
    stored: Stored | None


def save_gguf(
    path: Path,
    model: Model,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any],
    *,
    dtype: str,
    name: str,
    ends: Collection[int] = (),
) -> list[str]:
    """Write a model; returns the names of matrices that could not be packed so, and are in F16.

    dtype: one of `DTYPES`. generation: what its folder says of how it writes. ends: all tokens that end a
    text. Raises Refused for a model that no architecture computes and for a tokenizer that llama.cpp has no
    rule for; then nothing is written.
    """
    family, config = gguf_family_for(model.config)
    weights = model.state_dict()
    shapes = {key: tuple(weight.shape) for key, weight in weights.items()}
    kind, file_type = DTYPES[dtype]
    plan = [_planned(one, kind) for one in stored_tensors(family, config, shapes)]
    factors = None
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        factors = rope_factors(config.rope_theta, config.head_dim, config.rope_scaling)
        plan.append(Planned(FACTORS, factors.shape, "F32", None))
    metadata = {
        "general.architecture": family.model_type,
        "general.type": "model",
        "general.name": name,
        "general.file_type": file_type,
        "general.quantization_version": 2,
        **{key: value for key, value in family.write(family, config).items() if value is not None},
        **tokenizer_metadata(tokenizer, config.vocab_size, ends),
        **{f"general.sampling.{key}": float(generation[ours]) if ours != "top_k" else int(generation[ours])
           for ours, key in OF_GGUF.items() if generation.get(ours) is not None},
    }  # fmt: skip
    with open(path, "wb") as file:
        file.write(_header(metadata, plan))
        for one in plan:
            tensor = torch.from_numpy(factors) if one.stored is None else to_stored(one.stored, weights)
            packed = _packed(tensor, one.kind)
            file.write(packed + bytes(-len(packed) % ALIGNMENT))
    return [one.name for one in plan if one.kind == "F16" != kind]


def _planned(stored: Stored, kind: str) -> Planned:
    """How one tensor is packed; a row that is no number of blocks stays in half precision."""
    generic = "blk.#." + stored.name.split(".", 2)[-1] if stored.name.startswith("blk.") else stored.name
    if len(stored.shape) == 1 or generic in WHOLE:
        kind = "F32"
    elif generic in ("token_embd.weight", "output.weight"):
        kind = TABLES.get(kind, kind)
    _, weights = NUMBERS[kind]
    return Planned(stored.name, stored.shape, "F16" if stored.shape[-1] % weights else kind, stored)


def _packed(tensor: Tensor, kind: str) -> bytes:
    from gguf import GGMLQuantizationType, quants

    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return quants.quantize(values, GGMLQuantizationType[kind]).tobytes()


def _header(metadata: Mapping[str, Any], plan: list[Planned]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(plan), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(value)]
    offset = 0
    for one in plan:
        number, weights = NUMBERS[one.kind]
        size = BLOCKS[number][2]
        axes = one.shape[::-1]
        parts += [_text(one.name), struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, number, offset)]
        n_bytes = int(np.prod(one.shape)) // weights * size
        offset += n_bytes + -n_bytes % ALIGNMENT
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value with its type in front."""
    if not isinstance(value, list):
        kind = OF_PYTHON[type(value)]
        packed = _text(value) if kind == TEXT else struct.pack("<" + SCALARS[kind], value)
        return struct.pack("<I", kind) + packed
    of = type(value[0]) if value else str
    kind = 5 if of is int else OF_PYTHON[of]
    items = map(_text, value) if kind == TEXT else [np.array(value, np.dtype(SCALARS[kind])).tobytes()]
    return struct.pack("<IIQ", LIST, kind, len(value)) + b"".join(items)
