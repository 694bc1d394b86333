"""The tables of encoder-decoders: Marian, which is the 2017 Transformer, and T5.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5. Read next: huggingface.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from transom.errors import Refused
from transom.model.config import ModelConfig
from transom.model.positions import sinusoids

from .config_keys import ConfigKeys
from .config_labels import ACTIVATION_LABELS, ACTIVATIONS, even_share
from .family import Family, Rule, named

# --- Marian -------------------------------------------------------------------------------------------------

ALIKE = {
    "encoder_attention_heads": "decoder_attention_heads",
    "encoder_ffn_dim": "decoder_ffn_dim",
    "vocab_size": "decoder_vocab_size",
}
"""Keys of Marian that may differ between its two stacks, and may not here."""


def _read_marian(family: Family, keys: ConfigKeys) -> dict[str, Any]:
    values = {name: keys.count(key, default) for name, (key, default) in family.numbers.items()}
    for one, other in ALIKE.items():
        mine = values[next(name for name, (key, _) in family.numbers.items() if key == one)]
        if keys.count(other, mine) != mine:
            raise keys.refuse(other, f"{one} is {mine}, and only both alike are read")
    values["n_kv_heads"] = values["n_heads"]
    values["head_dim"] = even_share(values, keys, "encoder_attention_heads")
    values["activation"] = keys.choice("activation_function", "gelu", ACTIVATIONS)
    values["scale_embeddings"] = keys.flag("scale_embedding", False)
    values["dropout"] = keys.real("dropout", 0.1)
    values["start_id"] = _start(family, keys, values["vocab_size"])
    return values


def _start(family: Family, keys: ConfigKeys, vocab_size: int) -> int:
    """The token that a target begins with; raises Refused when there is none."""
    default = family.ids["decoder_start_token_id"]
    start = keys.token_id("decoder_start_token_id", default, vocab_size)
    if start is None:
        raise keys.refuse("decoder_start_token_id", "a target must begin with a token of the vocabulary")
    return start


def _write_marian(family: Family, config: ModelConfig) -> dict[str, Any]:
    values = {key: getattr(config, name) for name, (key, _) in family.numbers.items()}
    return values | {
        **{other: values[one] for one, other in ALIKE.items()},
        "activation_function": ACTIVATION_LABELS[config.activation],
        "scale_embedding": config.scale_embeddings,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "decoder_start_token_id": config.start_id,
        "forced_eos_token_id": config.eos_id,
        "is_encoder_decoder": True,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "tie_word_embeddings": True,
    }


def _stack(theirs: str, ours: str) -> dict[str, str]:
    """Names of one layer of either stack of Marian."""
    attention = {f"{theirs}.self_attn.{x}_proj": f"{ours}.attn.{x}_proj" for x in "qkv"}
    return attention | {
        f"{theirs}.self_attn.out_proj": f"{ours}.attn.o_proj",
        f"{theirs}.self_attn_layer_norm": f"{ours}.attn_norm",
        f"{theirs}.fc1": f"{ours}.ffn.up_proj",
        f"{theirs}.fc2": f"{ours}.ffn.down_proj",
        f"{theirs}.final_layer_norm": f"{ours}.ffn_norm",
    }


def _sines(config: ModelConfig) -> Tensor:
    """The table of positions that older folders store, (max_len, D)."""
    return sinusoids(torch.arange(config.max_len), config.dim, torch.float32)


CROSS = "model.decoder.layers.#.encoder_attn"
MARIAN = Family(
    model_type="marian",
    architectures={"MarianMTModel": "tokens"},
    prefix="model.",
    rules=named(
        {"model.shared": "embed"}
        | _stack("model.encoder.layers.#", "encoder.layers.#")
        | _stack("model.decoder.layers.#", "layers.#")
        | {f"{CROSS}.{x}_proj": f"layers.#.cross_attn.{x}_proj" for x in "qkv"}
        | {f"{CROSS}.out_proj": "layers.#.cross_attn.o_proj", f"{CROSS}_layer_norm": "layers.#.cross_norm"}
    )
    + (Rule("final_logits_bias", ("head.bias",), as_row=True),),
    numbers={
        "vocab_size": ("vocab_size", 58101),
        "dim": ("d_model", 1024),
        "n_encoder_layers": ("encoder_layers", 12),
        "n_layers": ("decoder_layers", 12),
        "n_heads": ("encoder_attention_heads", 16),
        "ffn_dim": ("encoder_ffn_dim", 4096),
        "max_len": ("max_position_embeddings", 1024),
    },
    parts=dict(
        kind="encoder-decoder",
        norm="layer",
        norm_position="after",
        norm_eps=1e-5,
        gated=False,
        position="sinusoidal",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        qk_norm=False,
        tie_embeddings=True,
        head_bias=True,
    ),  # fmt: skip
    read=_read_marian,
    write=_write_marian,
    ids={"pad_token_id": 58100, "eos_token_id": 0, "decoder_start_token_id": 58100},
    only={
        "is_encoder_decoder": (True,),
        "share_encoder_decoder_embeddings": (True,),
        "tie_word_embeddings": (True,),
        "static_position_embeddings": (True,),
        "normalize_before": (False,),
        "normalize_embedding": (False,),
        "add_final_layer_norm": (False,),
    },
    tied_copies={
        "lm_head.weight": "embed.weight",
        "model.encoder.embed_tokens.weight": "embed.weight",
        "model.decoder.embed_tokens.weight": "embed.weight",
    },
    derived_tensors=dict.fromkeys(
        ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"), _sines
    ),
)

# --- T5 -----------------------------------------------------------------------------------------------------

FORWARDS = {
    f"{gate}{theirs}": (ours, bool(gate)) for gate in ("", "gated-") for theirs, ours in ACTIVATIONS.items()
} | {"gated-gelu": ("gelu_tanh", True)}
"""feed_forward_proj -> activation and whether it is gated; `gated-gelu` has always meant the tanh form."""


def _read_t5(family: Family, keys: ConfigKeys) -> dict[str, Any]:
    values = {name: keys.count(key, default) for name, (key, default) in family.numbers.items()}
    values["n_layers"] = keys.count("num_decoder_layers", values["n_encoder_layers"])
    values["n_kv_heads"] = values["n_heads"]
    buckets, farthest = values["relative_buckets"], values["relative_max_distance"]
    if buckets < 4 or buckets % 2:
        raise keys.refuse("relative_attention_num_buckets", "an even number from 4 belongs there")
    if farthest <= buckets // 2:
        raise keys.refuse("relative_attention_max_distance", f"more than half of the {buckets} buckets")
    forward = keys.choice("feed_forward_proj", "relu", {name: name for name in FORWARDS})
    values["activation"], values["gated"] = FORWARDS[forward]
    spelled_out = keys.choice("dense_act_fn", forward.removeprefix("gated-"), ACTIVATIONS)
    if not keys.absent("dense_act_fn") and spelled_out != values["activation"]:
        raise keys.refuse("dense_act_fn", f"feed_forward_proj is {forward!r}")
    values["norm_eps"] = keys.real("layer_norm_epsilon", 1e-6)
    values["dropout"] = keys.real("dropout_rate", 0.1)
    values["tie_embeddings"] = keys.flag("tie_word_embeddings", True)
    scaled = keys.flag("scale_decoder_outputs", values["tie_embeddings"])
    values["logit_scale"] = values["dim"] ** -0.5 if scaled else 1.0
    values["start_id"] = _start(family, keys, values["vocab_size"])
    return values


def _write_t5(family: Family, config: ModelConfig) -> dict[str, Any]:
    forwards = (name for name, means in FORWARDS.items() if means == (config.activation, config.gated))
    forward = next(forwards, None)
    if forward is None:
        raise Refused(f"T5 has no name for a feed-forward with {config.activation}")
    return {key: getattr(config, name) for name, (key, _) in family.numbers.items()} | {
        "num_decoder_layers": config.n_layers,
        "feed_forward_proj": forward,
        "layer_norm_epsilon": config.norm_eps,
        "dropout_rate": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.logit_scale != 1.0,
        "decoder_start_token_id": config.start_id,
        "is_encoder_decoder": True,
    }


def _block(theirs: str, ours: str, forward: int) -> dict[str, str]:
    """Names of one layer of either stack of T5; `forward` is the place of the feed-forward in it."""
    attention = {f"{theirs}.layer.0.SelfAttention.{x}": f"{ours}.attn.{x}_proj" for x in "qkvo"}
    return attention | {
        f"{theirs}.layer.0.layer_norm": f"{ours}.attn_norm",
        f"{theirs}.layer.{forward}.DenseReluDense.wo": f"{ours}.ffn.down_proj",
        f"{theirs}.layer.{forward}.layer_norm": f"{ours}.ffn_norm",
    }


FORWARD = {
    "encoder.block.#.layer.1.DenseReluDense": "encoder.layers.#.ffn",
    "decoder.block.#.layer.2.DenseReluDense": "layers.#.ffn",
}
T5 = Family(
    model_type="t5",
    architectures={"T5ForConditionalGeneration": "tokens"},
    prefix="",
    rules=named(
        {
            "shared": "embed",
            "lm_head": "head",
            "encoder.final_layer_norm": "encoder.final_norm",
            "decoder.final_layer_norm": "final_norm",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "encoder.relative",
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias": "relative",
            "decoder.block.#.layer.1.layer_norm": "layers.#.cross_norm",
        }
        | _block("encoder.block.#", "encoder.layers.#", 1)
        | _block("decoder.block.#", "layers.#", 2)
        | {f"decoder.block.#.layer.1.EncDecAttention.{x}": f"layers.#.cross_attn.{x}_proj" for x in "qkvo"}
    )
    + named({f"{theirs}.wi": f"{ours}.up_proj" for theirs, ours in FORWARD.items()}, gated=False)
    + named({f"{theirs}.wi_0": f"{ours}.gate_proj" for theirs, ours in FORWARD.items()}, gated=True)
    + named({f"{theirs}.wi_1": f"{ours}.up_proj" for theirs, ours in FORWARD.items()}, gated=True),
    numbers={
        "vocab_size": ("vocab_size", 32128),
        "dim": ("d_model", 512),
        "head_dim": ("d_kv", 64),
        "ffn_dim": ("d_ff", 2048),
        "n_encoder_layers": ("num_layers", 6),
        "n_heads": ("num_heads", 8),
        "max_len": ("n_positions", 512),
        "relative_buckets": ("relative_attention_num_buckets", 32),
        "relative_max_distance": ("relative_attention_max_distance", 128),
    },
    parts=dict(
        kind="encoder-decoder",
        norm="rms",
        norm_position="before",
        position="relative",
        attn_scale=1.0,
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
        qk_norm=False,
        scale_embeddings=False,
    ),  # fmt: skip
    read=_read_t5,
    write=_write_t5,
    ids={"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    only={"is_encoder_decoder": (True,)},
    tied_copies={
        "lm_head.weight": "embed.weight",
        "encoder.embed_tokens.weight": "embed.weight",
        "decoder.embed_tokens.weight": "embed.weight",
    },
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
