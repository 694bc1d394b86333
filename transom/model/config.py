"""What a model is, as plain data: one flat record from which every layer is built.

A field says what is *there* (`norm="rms"`), never whose model it is; the names of families live in
`checkpoint/`. Shapes in this room: B batch, L query length, M key length, D width (`dim`), H query heads
(`n_heads`), G key-value heads (`n_kv_heads`), K head width (`head_dim`), F feed-forward width (`ffn_dim`),
V vocabulary (`vocab_size`). Read next: transformer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to reach past the length a model was first trained on.

    `linear` divides every position by `factor`. `llama3` divides only the slow frequencies, with a smooth
    passage between `low_freq_factor` and `high_freq_factor` wavelengths per `original_max_len` (Llama 3.1).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The shape and parts of one Transformer; every number that its weights depend on."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    max_len: int
    """The longest sequence, in tokens; with learned positions also the size of their table."""

    kind: Literal["decoder"] = "decoder"
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = "silu"
    gated: bool = True
    """Gated feed-forward: down(act(gate(x)) * up(x)); otherwise down(act(up(x)))."""
    norm: Literal["rms", "layer"] = "rms"
    norm_position: Literal["before", "after"] = "before"
    """Norm before each branch (pre-norm), or after the sum as in the 2017 paper (post-norm)."""
    norm_eps: float = 1e-6
    qk_norm: bool = False
    """RMS norm of every query and key head, before the rotation (Qwen3)."""
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    position: Literal["rotary", "learned", "sinusoidal", "none"] = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    """Sliding window: a query sees itself and the `window - 1` positions before it."""
    window_layers: tuple[bool, ...] | None = None
    """Which layers slide; None: all of them when `window` is set."""
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(D), as the 2017 paper does."""
    dropout: float = 0.0
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    """Squash logits to cap * tanh(logits / cap) (Gemma 2)."""
    pad_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_len")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs of channels")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; it must be at least 1")
        if self.window_layers is not None and len(self.window_layers) != self.n_layers:
            raise ValueError(f"window_layers names {len(self.window_layers)} layers of {self.n_layers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    def window_of(self, layer: int) -> int | None:
        """The sliding window of one layer, or None where it sees everything before it."""
        slides = self.window_layers is None or self.window_layers[layer]
        return self.window if slides else None

    def with_(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)


# The dial: the sizes a person chooses by name. GPT shapes as their family writes them: rotary positions,
# grouped queries, RMS norm, gated feed-forward of 8/3 D. Parameters without embeddings: 1.8M, 10.6M, 85M.
_SIZE_FIELDS = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_len")
SIZES: dict[str, dict[str, int]] = {
    "nano": dict(zip(_SIZE_FIELDS, (192, 4, 3, 3, 64, 512, 256), strict=True)),
    "mini": dict(zip(_SIZE_FIELDS, (384, 6, 6, 6, 64, 1024, 256), strict=True)),
    "small": dict(zip(_SIZE_FIELDS, (768, 12, 12, 12, 64, 2048, 1024), strict=True)),
}
