"""LoRA: a linear map that stays as it is, and a product of two thin matrices beside it that learns.

y = x W^T + b + scale * x A^T B^T with A (rank, in) drawn and B (out, rank) zero, so that a model with fresh
adapters is the model without them, bit by bit. DoRA learns the length of each row of W + scale * B A besides.
Linear layers are wrapped from outside: no part of a model knows of it, the names of its weights stay.
Sources: Hu et al. 2021 (arXiv:2106.09685); Kalajdzievski 2023 (rank-stabilised, arXiv:2312.03732); Liu et al.
2024 (DoRA, arXiv:2402.09353). Read next: layers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Linear, dropout


@dataclass(frozen=True)
class Lora:
    """How one linear layer is adapted."""

    rank: int = 16
    """The width between the two matrices; 0 adapts nothing."""
    alpha: float = 32.0
    """What scales their product: alpha / rank, or alpha / sqrt(rank) where `rslora`."""
    rslora: bool = False
    dora: bool = False
    """Learn the length of each row of the weights, and its direction by the two matrices."""
    dropout: float = 0.0
    """Share of what the two matrices read that is dropped in training."""

    @property
    def scale(self) -> float:
        """What the product of the two matrices counts."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoraLinear(Linear):
    """A linear map (..., in) -> (..., out) with an adapter; its own weight and bias are those of `base`."""

    lora_magnitude: nn.Parameter | None

    def __init__(self, base: nn.Linear, lora: Lora) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias, self.lora = base.weight, base.bias, lora
        like = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.zeros(lora.rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, lora.rank, **like))
        self.lora_magnitude = nn.Parameter(self.row_lengths()) if lora.dora else None

    def forward(self, input: Tensor) -> Tensor:
        # Where no gradient is taken the thin products are exact, and their sum with the other is rounded
        # once; else a float32 copy of what each layer reads would be kept for the way back.
        learns = self.training or torch.is_grad_enabled()
        kind = input.dtype if learns else torch.promote_types(input.dtype, torch.float32)
        dropped = self.training and self.lora.dropout > 0
        if kind == input.dtype and not dropped and self.lora_magnitude is None:
            return self._in_one(input)
        own = super().forward(input)
        read = dropout(input, self.lora.dropout, self.training).to(kind)
        change = F.linear(F.linear(read, self.lora_A.to(kind)), (self.lora.scale * self.lora_B).to(kind))
        if self.lora_magnitude is not None:
            gain = self.gain().to(kind)
            bare = own if self.bias is None else own - self.bias.to(kind)
            change = gain * change + (gain - 1) * bare  # nothing at all before anything is learned
        return (own + change).to(own.dtype)

    def _in_one(self, input: Tensor) -> Tensor:
        kind, bias = input.dtype, None if self.bias is None else self.bias.to(input.dtype)
        thin = self.lora_A.to(kind), (self.lora.scale * self.lora_B).to(kind)
        x = input.reshape(-1, self.in_features)
        found: Tensor = _BothProducts.apply(x, self.weight.to(kind), bias, *thin)  # type: ignore[assignment]
        return found.view(*input.shape[:-1], self.out_features)

    def product(self) -> Tensor:
        """What is added to the weight, before any gain: scale * B A (out, in), in float32 at least."""
        wide = torch.promote_types(self.lora_B.dtype, torch.float32)
        return self.lora.scale * (self.lora_B.to(wide) @ self.lora_A.to(wide))

    @torch.no_grad()
    def row_lengths(self) -> Tensor:
        """The length of each row of the weight with its product: (out,). No gradient goes through it (DoRA,
        section 4.3).
        """
        if not self.lora.rank:
            return torch.linalg.vector_norm(self.weight, dim=1)
        return torch.linalg.vector_norm(self.weight + self.product().to(self.weight.dtype), dim=1)

    def gain(self) -> Tensor:
        """What DoRA multiplies each output with, but for its bias: (out,)."""
        assert self.lora_magnitude is not None
        return self.lora_magnitude / self.row_lengths()

    @torch.no_grad()
    def merged(self) -> Linear:
        """One linear layer that computes the same; its weight is rounded once, to the type that it had."""
        plain = Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        weight = self.weight + self.product()
        if self.lora_magnitude is not None:
            weight = self.gain()[:, None] * weight
        plain.weight = nn.Parameter(weight.to(self.weight.dtype))
        plain.bias = self.bias
        return plain.train(self.training)


class _BothProducts(torch.autograd.Function):
    """x W^T + b + x A^T B^T of x (N, in): the thin product is added where the other one is written, and so is
    its gradient. Apart, each way would be a pass over memory more, 7% of a step of SmolLM2's (median of 10 in
    turns, 4 rows of 256), and in bfloat16 the gradients of A would be 4.8% off instead of 2.8%.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        read = x @ A.T
        ctx.save_for_backward(x, weight, A, B, read)
        return F.linear(x, weight, bias).addmm_(read, B.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), needed = grads, ctx.needs_input_grad
        x, weight, A, B, read = ctx.saved_tensors
        of_read = grad @ B
        return (
            (grad @ weight).addmm_(of_read, A) if needed[0] else None,
            grad.T @ x if needed[1] else None,
            grad.sum(0) if needed[2] else None,
            of_read.T @ x if needed[3] else None,
            grad.T @ read if needed[4] else None,
        )


# --- the adapters of a model


def linear_layers(model: nn.Module) -> dict[str, Linear]:
    """The linear layers that can be adapted, by their dotted names: all but those of the head."""
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, Linear) and name.split(".")[0] != "head"
    }


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Those that are, by their dotted names."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLinear)}


def named_by(target: str, names: Collection[str]) -> list[str]:
    """The layers that a target names: those whose dotted name ends with it (`q_proj`, `cross_attn.q_proj`),
    or `all`.
    """
    return [name for name in names if target == "all" or f".{name}".endswith(f".{target}")]


def add_lora(model: nn.Module, layers: Mapping[str, Lora], seed: int = 0) -> None:
    """Wrap the linear layers of these dotted names, in place; A is drawn from `seed`, B is zero.

    A is uniform in +-1 / sqrt(in), as in the authors' code and in PEFT.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, lora in layers.items():
        if not lora.rank:
            continue
        wrapped = LoraLinear(_layer(model, name), lora)
        with torch.no_grad():
            if not wrapped.lora_A.is_meta:
                drawn = torch.rand(wrapped.lora_A.shape, generator=generator)
                wrapped.lora_A.copy_((2 * drawn - 1) / math.sqrt(wrapped.in_features))
        _put(model, name, wrapped)


def merge_lora(model: nn.Module) -> None:
    """Put what the adapters have learned into the weights, in place; no adapter is left."""
    for name, wrapped in adapted_layers(model).items():
        _put(model, name, wrapped.merged())


def only_adapters_learn(model: nn.Module, besides: str = "") -> None:
    """Let nothing learn but the adapters, and what stands under the name `besides` (a new head)."""
    for name, weight in model.named_parameters():
        is_new = bool(besides) and name.startswith(f"{besides}.")
        weight.requires_grad_(is_new or name.rpartition(".")[2].startswith("lora_"))


def frozen_matrices(model: nn.Module) -> list[Linear]:
    """The linear layers whose weight does not learn and need not be exact: DoRA measures its own."""
    layers = linear_layers(model).values()
    measured = [layer for layer in layers if isinstance(layer, LoraLinear) and layer.lora.dora]
    return [layer for layer in layers if not layer.weight.requires_grad and layer not in measured]


def hold_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the matrices that do not learn in the type that they multiply in: the same bits of every product,
    in half the memory and without a cast each time.
    """
    for layer in frozen_matrices(model):
        layer.weight.data = layer.weight.data.to(dtype)


def _layer(model: nn.Module, name: str) -> Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, Linear), name
    return layer


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    above, _, own = name.rpartition(".")
    setattr(model.get_submodule(above), own, layer)
