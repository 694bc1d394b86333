"""The tables of GGUF architectures: which metadata holds which number, where weights stand under what name.

They are tables like those of model folders, over the keys of the metadata instead of `config.json`, and among
the keys stand the names of the tensors that are there, since those say what a key says elsewhere (a head of
its own, biases). A key of the architecture that no table uses is refused by name. Source: llama-model.cpp and
models/*.cpp of llama.cpp, constants.py of gguf. Read next: family, gguf_weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from transom.data.documents import printable
from transom.data.gguf_file import read_gguf
from transom.errors import Refused, nearest
from transom.model.config import Experts, ModelConfig, RopeScaling
from transom.model.positions import rotary_frequencies

from .config_keys import ConfigKeys
from .family import Family, Rule, canonical, named
from .gguf_weights import open_gguf

FACTORS = "rope_freqs.weight"
"""A tensor (K/2,): by how much each rotary frequency is slowed down (Llama 3.1)."""
WITHOUT_MEANING = ("rope.scaling.finetuned", "tensor_data_layout", "vocab_size")
"""Keys that change nothing of what is computed."""
ONLY: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    "rope.scaling.attn_factor": (1.0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
}
"""Keys with the values that are computed here; one that is left out is always such a value."""
PARTS = dict(
    norm="rms", norm_position="before", gated=True, activation="silu", position="rotary",
    scale_embeddings=False,
)  # fmt: skip
IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}
LENGTHS = tuple(2**n for n in range(10, 20))
"""Lengths that a model with Llama 3.1's scaling was first trained on, looked for among these."""


def _rules(heads: str | None, kv_heads: str | None) -> tuple[Rule, ...]:
    """Where weights stand. heads: fields that count those whose rows lie in llama.cpp's order, if any."""
    plain = {
        "token_embd": "embed",
        "blk.#.attn_norm": "layers.#.attn_norm",
        "blk.#.attn_v": "layers.#.attn.v_proj",
        "blk.#.attn_output": "layers.#.attn.o_proj",
        "blk.#.attn_q_norm": "layers.#.attn.q_norm",
        "blk.#.attn_k_norm": "layers.#.attn.k_norm",
        "blk.#.ffn_norm": "layers.#.ffn_norm",
        "blk.#.ffn_gate": "layers.#.ffn.gate_proj",
        "blk.#.ffn_up": "layers.#.ffn.up_proj",
        "blk.#.ffn_down": "layers.#.ffn.down_proj",
        "blk.#.ffn_gate_inp": "layers.#.ffn.router",
        "blk.#.ffn_gate_exps.weight": "layers.#.ffn.experts.gate_proj",
        "blk.#.ffn_up_exps.weight": "layers.#.ffn.experts.up_proj",
        "blk.#.ffn_down_exps.weight": "layers.#.ffn.experts.down_proj",
        "output_norm": "final_norm",
        "output": "head",
    }
    return (
        *named(plain),
        Rule("blk.#.attn_q", ("layers.#.attn.q_proj",), interleaved=heads),
        Rule("blk.#.attn_k", ("layers.#.attn.k_proj",), interleaved=kv_heads),
    )


def _family(name: str, parts: dict[str, Any], *, interleaved: bool = False, experts: bool = False) -> Family:
    """The table of one architecture; interleaved: its rotary positions turn neighbours, not halves."""
    keys = {
        "dim": "embedding_length",
        "n_layers": "block_count",
        "n_heads": "attention.head_count",
        "n_kv_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "max_len": "context_length",
        **({} if experts else {"ffn_dim": "feed_forward_length"}),
    }
    return Family(
        model_type=name,
        architectures={name: "tokens"},
        prefix="",
        rules=_rules("n_heads", "n_kv_heads") if interleaved else _rules(None, None),
        numbers={field: (f"{name}.{key}", None) for field, key in keys.items()},
        parts=PARTS | parts,
        read=_read,
        write=_write,
        ignored=r"rope_freqs\.weight",
    )


def _read(family: Family, keys: ConfigKeys) -> dict[str, Any]:
    name = family.model_type
    for key, allowed in ONLY.items():
        full = f"{name}.{key}"
        if not keys.absent(full) and keys.get(full) not in allowed:
            raise keys.refuse(full, f"only {' or '.join(map(repr, allowed))} is computed")
    values = {field: keys.count(key, default) for field, (key, default) in family.numbers.items()}
    for field in ("dim", "n_layers", "n_heads", "max_len", "ffn_dim"):
        if values.get(field, 1) is None:
            raise keys.refuse(family.numbers[field][0], "every model has one")
    values["n_kv_heads"] = values["n_kv_heads"] or values["n_heads"]
    values["head_dim"] = values["head_dim"] or max(1, values["dim"] // values["n_heads"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.count(f"{name}.{key}", values["head_dim"]) != values["head_dim"]:
            raise keys.refuse(f"{name}.{key}", f"only the width of a head, {values['head_dim']}, is computed")
    values["vocab_size"] = keys.count(VOCABULARY, None)
    values["norm_eps"] = keys.real(f"{name}.attention.layer_norm_rms_epsilon", None)
    if values["norm_eps"] is None:
        raise keys.refuse(f"{name}.attention.layer_norm_rms_epsilon", "every model has one")
    values["tie_embeddings"] = not keys.flag("output.weight", False)
    for field, tensor in BIASES.items():
        if field not in family.parts:
            values[field] = keys.flag(tensor, False)
    values |= _read_rope(name, keys, values)
    if "ffn_dim" in values:
        for key in ("expert_count", "expert_used_count"):
            if keys.count(f"{name}.{key}", 0, 0):
                raise keys.refuse(f"{name}.{key}", f"experts are read of {QWEN3_MOE.model_type} only")
    else:
        values["experts"] = _read_experts(name, keys)
        values["ffn_dim"] = values["experts"].ffn_dim
        keys.get(f"{name}.feed_forward_length")  # of layers that have no experts, and there are none
    return values


VOCABULARY = "tokens"
"""Among the keys: the rows of the table of embeddings."""
BIASES = {
    "qkv_bias": "blk.0.attn_q.bias",
    "out_bias": "blk.0.attn_output.bias",
    "ffn_bias": "blk.0.ffn_up.bias",
}
"""Field -> the tensor whose presence says it."""


def _read_rope(name: str, keys: ConfigKeys, values: Mapping[str, Any]) -> dict[str, Any]:
    theta = keys.real(f"{name}.rope.freq_base", 10_000.0)
    kinds = {"none": "none", "linear": "linear"}
    kind = keys.choice(f"{name}.rope.scaling.type", "linear", kinds)
    factor = keys.real(f"{name}.rope.scaling.factor", None) or keys.real(f"{name}.rope.scale_linear", None)
    keys.get(f"{name}.rope.scaling.original_context_length")  # what a factor of 1 stretches is no matter
    factors, scaling = keys.get(FACTORS), None
    if factors is not None:
        scaling = _llama3(keys, factors, theta, values["head_dim"])
    elif kind == "linear" and factor not in (None, 1.0):
        scaling = RopeScaling("linear", factor)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _llama3(keys: ConfigKeys, factors: np.ndarray, theta: float, head_dim: int) -> RopeScaling | None:
    """The scaling whose factors a file holds; they follow from four numbers, of which it holds none."""
    if factors.shape == (head_dim // 2,) and np.isfinite(factors).all():
        if (factors == 1).all():
            return None
        for length in LENGTHS:
            scaling = RopeScaling("llama3", round(float(factors.max()), 4), 1.0, 4.0, length)
            if np.allclose(rope_factors(theta, head_dim, scaling), factors, rtol=1e-4):
                return scaling
    raise Refused(f"{keys.where}: {FACTORS} is not what Llama 3.1's scaling gives; no other is computed")


def rope_factors(theta: float, head_dim: int, scaling: RopeScaling) -> np.ndarray:
    """By how much each rotary frequency is slowed down: (K/2,) float32."""
    plain = ModelConfig(1, 1, 1, 1, 1, head_dim, 1, 1, rope_theta=theta)
    stretched = replace(plain, rope_scaling=scaling)
    return (rotary_frequencies(plain) / rotary_frequencies(stretched)).numpy()


def _read_experts(name: str, keys: ConfigKeys) -> Experts:
    least = {"expert_count": 2, "expert_used_count": 1, "expert_feed_forward_length": 1}
    numbers = [keys.count(f"{name}.{key}", None, one) for key, one in least.items()]
    if None in numbers:
        missing = list(least)[numbers.index(None)]
        raise keys.refuse(f"{name}.{missing}", "a model with experts has one")
    return Experts(*numbers, score="softmax", normalize=True, balance="none")


def _write(family: Family, config: ModelConfig) -> dict[str, Any]:
    name, experts, scaling = family.model_type, config.experts, config.rope_scaling
    said: dict[str, Any] = {key: getattr(config, field) for field, (key, _) in family.numbers.items()}
    said |= {
        f"{name}.attention.value_length": config.head_dim,
        f"{name}.rope.dimension_count": config.head_dim,
        f"{name}.rope.freq_base": float(config.rope_theta),
        f"{name}.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        f"{name}.feed_forward_length": config.ffn_dim,
        f"{name}.vocab_size": config.vocab_size,
    }
    if scaling is not None and scaling.kind == "linear":
        said |= {f"{name}.rope.scaling.type": "linear", f"{name}.rope.scaling.factor": float(scaling.factor)}
    if experts is not None:
        said |= {
            f"{name}.expert_count": experts.n_experts,
            f"{name}.expert_used_count": experts.n_active,
            f"{name}.expert_feed_forward_length": experts.ffn_dim,
        }
    for field, other in IDS.items():
        if (number := getattr(config, f"{field}_id")) is not None:
            said[f"tokenizer.ggml.{other}_token_id"] = number
    return said


NO_BIAS = dict(qkv_bias=False, out_bias=False, ffn_bias=False)
LLAMA = _family("llama", dict(qk_norm=False), interleaved=True)
QWEN2 = _family("qwen2", NO_BIAS | dict(qk_norm=False, qkv_bias=True))
QWEN3 = _family("qwen3", NO_BIAS | dict(qk_norm=True))
QWEN3_MOE = _family("qwen3moe", NO_BIAS | dict(qk_norm=True), experts=True)
ARCHITECTURES = {family.model_type: family for family in (LLAMA, QWEN2, QWEN3, QWEN3_MOE)}


def load_gguf_config(path: Path) -> tuple[ModelConfig, Family]:
    """What the metadata of a file describes, and its architecture's table; raises Refused, naming the key."""
    file = read_gguf(path)
    family = ARCHITECTURES.get(file.architecture)
    values: dict[str, Any] = dict.fromkeys(file.tensors, True) | file.metadata
    if "token_embd.weight" in file.tensors:
        values[VOCABULARY] = file.tensors["token_embd.weight"].shape[0]
    if FACTORS in file.tensors:
        with open_gguf(path) as weights:
            values[FACTORS] = weights.get_tensor(FACTORS).numpy()
    keys = ConfigKeys(values, printable(path))
    if family is None:
        close = nearest(file.architecture, ARCHITECTURES)
        raise keys.refuse("general.architecture", f"read are {', '.join(ARCHITECTURES)}{close}")
    if VOCABULARY not in values:
        raise Refused(f"{keys.where}: it has no tensor token_embd.weight; a vocabulary alone is no model")
    config = _config(family, keys)
    prefix = f"{family.model_type}."
    known = keys.used | {prefix + key for key in WITHOUT_MEANING}
    for key in file.metadata:
        if key.startswith(prefix) and key not in known:
            raise keys.refuse(key, "what that would change is not computed here")
    return config, family


def _config(family: Family, keys: ConfigKeys) -> ModelConfig:
    values = dict(family.parts) | family.read(family, keys)
    for field, other in IDS.items():
        values[f"{field}_id"] = keys.token_id(f"tokenizer.ggml.{other}_token_id", None, values["vocab_size"])
    try:
        return canonical(ModelConfig(**values))
    except ValueError as error:
        raise Refused(f"{keys.where}: {error}") from None


def gguf_family_for(config: ModelConfig) -> tuple[Family, ModelConfig]:
    """The architecture that computes exactly what a config says, and the config that its file is read as.

    What only training uses (dropout, the loss that balances experts) is left out. Raises Refused where no
    architecture does.
    """
    experts = config.experts
    if experts is not None and experts.balance == "loss":
        experts = replace(experts, balance="none")
    wanted = canonical(config.with_(dropout=0.0, experts=experts))
    for family in ARCHITECTURES.values():
        if wanted.kind != "decoder" or wanted.cell is not None:
            break
        said = family.write(family, wanted) | {VOCABULARY: wanted.vocab_size}
        said |= {BIASES[field]: True for field in BIASES if getattr(wanted, field)}
        said |= {} if wanted.tie_embeddings else {"output.weight": True}
        if wanted.rope_scaling is not None and wanted.rope_scaling.kind == "llama3":
            said[FACTORS] = rope_factors(wanted.rope_theta, wanted.head_dim, wanted.rope_scaling)
        try:
            if all(getattr(wanted, name) == value for name, value in family.parts.items()) and (
                _config(family, ConfigKeys(said, "GGUF")) == wanted
            ):
                return family, wanted
        except Refused:
            continue
    kind = wanted.cell or ("decoder of this shape" if wanted.kind == "decoder" else wanted.kind)
    raise Refused(f"GGUF has no architecture here that computes this {kind}; --to hf writes it")
