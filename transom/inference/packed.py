"""Weights laid out once in the order in which a CPU's bfloat16 units read them.

PyTorch lays a matrix out anew for every product; a text read alone or a step of decoding is so little work
that this costs as much as the product itself. A packed model shares all with the model it was made of but for
a second copy of its matrices. Measured on 2 cores with AMX (torch 2.13, 2026-11-23): 2048 x 512 with 4 rows
0.064 ms against 0.101, with 1,024 rows 1.04 against 1.71; 58,101 x 512 with 32 rows 1.7 against 3.4; in
float32 a tenth is gained, so that is left alone. A step of a decoder of 135M
parameters, processor time of one thread: 36 ms against 48 for 1 row, 48 against 62 for 8. Source: oneDNN's
blocked layouts. Read next: runner.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transom.model.attention import Rule, SelfAttention
from transom.model.build import Model
from transom.model.cache import DecodeState, Memory
from transom.model.feedforward import ACTIVATIONS, FeedForward, Linear
from transom.model.losses import cap
from transom.model.positions import rotate
from transom.model.stack import Block, Turn

MAX_BYTES = 2 << 30
"""A model whose matrices take more than this keeps one copy of them."""


def packs(model: Model) -> bool:
    """Whether a packed copy is faster here: bfloat16 on a CPU that multiplies it, and not too large."""
    weight = model.embed.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and model.n_parameters * weight.element_size() <= MAX_BYTES
    )


class Packing:
    """A model as it is best run here: packed where that pays, and anew when its weights have changed."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._made: tuple[Any, Model] | None = None

    def current(self) -> Model:
        """The packed model, or the model itself where packing gains nothing."""
        if not packs(self.model):
            return self.model
        version = self.version()
        if self._made is None or self._made[0] != version:
            self._made = version, packed(self.model)
        return self._made[1]

    def version(self) -> list[tuple[int, int]]:
        """What differs once a weight has been changed or replaced."""
        return [(id(weight), weight._version) for weight in self.model.parameters()]


@torch.no_grad()
def packed(model: Model) -> Model:
    """A model that computes the same from packed matrices; other weights are the model's own."""
    twin = _twin(model)
    if model.config.head == "tokens":
        bias, softcap = model.head.bias, model.config.logit_softcap
        vocabulary = PackedLinear(model.output_weight, bias)  # type: ignore[arg-type]

        def logits(hidden: Tensor) -> Tensor:
            return cap(vocabulary(twin.head(hidden)).float(), softcap)

        twin.logits = logits
    return twin


def _twin(module: nn.Module) -> Any:
    """The same module over packed matrices, with fewer and larger products."""
    if isinstance(module, Linear):
        return PackedLinear(module.weight, module.bias)
    twin: Any = copy.copy(module)
    together = ("q_proj", "k_proj", "v_proj") if isinstance(module, SelfAttention) else ()
    twin._modules = {
        name: child if child is None else _twin(child)
        for name, child in module._modules.items()
        if name not in together
    }
    if isinstance(module, SelfAttention):
        _share_product(twin, module)
    elif isinstance(module, FeedForward):
        _fuse_activation(twin)
    elif isinstance(module, Block):
        twin.forward = partial(_through, twin)
    return twin


def _share_product(twin: Any, module: SelfAttention) -> None:
    """Queries, keys and values are one product, and where nothing norms them apart they turn together."""
    parts = (module.q_proj, module.k_proj, module.v_proj)
    bias = None if module.q_proj.bias is None else torch.cat([part.bias for part in parts])
    product = PackedLinear(torch.cat([part.weight for part in parts]), bias)
    widths = [part.out_features for part in parts]
    counts = [width // module.head_dim for width in widths]

    def heads(x: Tensor, turn: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        found = product(x).unflatten(-1, (-1, module.head_dim))
        if turn is None:
            return found.split(counts, dim=-2)
        asking, value = found.split((counts[0] + counts[1], counts[2]), dim=-2)
        return *rotate(asking, *turn).split(counts[:2], dim=-2), value

    twin.project = lambda x: product(x).split(widths, dim=-1)
    if not module.qk_norm:
        twin.heads = heads


def _fuse_activation(twin: Any) -> None:
    """The first product applies the activation, and a gate is multiplied with as the other is written."""
    fused = FUSED.get(twin.activation)
    if fused is not None:
        first = twin.gate_proj if twin.gated else twin.up_proj
        first.after, twin.activation = fused, nn.Identity()
    if twin.gated:
        twin.widen = lambda x: twin.up_proj(x, "mul", twin.activation(twin.gate_proj(x)))


def _through(
    block: Any, x: Tensor, rule: Rule, turn: Turn | None, state: DecodeState | None,
    memory: Memory | None = None, memory_rule: Rule | None = None,
) -> Tensor:  # fmt: skip
    """`Block.forward` where the last product of each branch adds the stream that it goes into."""

    def before(norm: nn.Module, x: Tensor) -> Tensor:
        return norm.forward(x) if block.norm_before else x

    def after(norm: nn.Module, x: Tensor) -> Tensor:
        return x if block.norm_before else norm.forward(x)

    attn, ffn = block.attn, block.ffn
    mixed = attn.mix(before(block.attn_norm, x), rule, turn, state)
    x = after(block.attn_norm, attn.o_proj(mixed, "add", x))
    if block.reads_source:
        mixed = block.cross_attn.mix(before(block.cross_norm, x), memory_rule, memory)
        x = after(block.cross_norm, block.cross_attn.o_proj(mixed, "add", x))
    found = before(block.ffn_norm, x)
    x = ffn.down_proj(ffn.widen(found), "add", x) if isinstance(ffn, FeedForward) else x + ffn(found)
    return after(block.ffn_norm, x)


FUSED = {
    ACTIVATIONS["silu"]: ("swish", ""),
    ACTIVATIONS["gelu"]: ("gelu", "none"),
    ACTIVATIONS["gelu_tanh"]: ("gelu", "tanh"),
    ACTIVATIONS["relu"]: ("relu", ""),
}
"""Activations that oneDNN applies to a product before it is written: its name for each, and the kind."""


class PackedLinear(nn.Module):
    """y = f(x W^T + b) in bfloat16 from a packed matrix, (..., in) -> (..., out); f: of FUSED, or none."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        self.bias = None if bias is None else bias.detach()
        self.after = ("none", "")
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor, how: str = "", other: Tensor | None = None) -> Tensor:
        """how: `add` or `mul` with `other` (..., out) before y is written."""
        if other is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.matrix, self.bias, how)
        return torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, self.after[0], [], self.after[1])

    __call__ = forward  # nobody hooks into it, and a step of decoding makes 150 calls
