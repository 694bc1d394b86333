"""Weights laid out once in the order in which a CPU's bfloat16 units read them.

PyTorch lays a matrix out anew for every product; a text read alone or a step of decoding is so little work
that this costs as much as the product itself. A packed model shares all with the model it was made of but
for a second copy of its matrices. Measured on 2 cores with AMX (torch 2.13, 2026-11-23): 2048 x 512 with 4
rows 0.064 ms against 0.101, with 1,024 rows 1.04 against 1.71; 58,101 x 512 with 32 rows 1.7 against 3.4;
in float32 a tenth is gained, so that is left alone. A step of a decoder of 135M parameters, processor time
of one thread: 36 ms against 48 for 1 row, 48 against 62 for 8. Nothing is fused with a product: a sum that
is rounded once where the plain model rounds twice is another number, and what was served could not be read
again. Source: oneDNN's blocked layouts. Read next: runner.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from transom.model.attention import SelfAttention
from transom.model.build import Model
from transom.model.layers import Linear
from transom.model.losses import cap
from transom.model.positions import rotate
from transom.model.scores import in_two_parts, multiplies_bfloat16

from .adapters import ThinProducts, side_by_side, thin_products, with_adapters

HALF_MAX = torch.finfo(torch.float16).max
LONG = 1024
"""Sums of more terms are cut by oneDNN where there is one row alone: it is read twice, which costs 6 of 44
microseconds, so that its bits are those that it has beside others."""
MAX_BYTES = 2 << 30
"""A model whose matrices take more than this keeps one copy of them."""


def packs(model: Model) -> bool:
    """Say whether a packed copy is faster here: bfloat16 on a CPU that multiplies it, and not too large."""
    weight = model.embed.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and multiplies_bfloat16()
        and model.n_parameters * weight.element_size() <= MAX_BYTES
    )


class Packing:
    """A model as it is best run here: packed where that pays, and anew when its weights have changed."""

    def __init__(self, model: Model, adapters: Mapping[str, Model] | None = None) -> None:
        """adapters: by name, over this model (`adapters.on_base`)."""
        self.model, self.adapters = model, dict(adapters or {})
        self._made: tuple[Any, Model] | None = None

    def current(self) -> Model:
        """Return the packed model, or the model itself where packing gains nothing; with its adapters."""
        if not (packs(self.model) or self.adapters):
            return self.model
        version = self.version()
        if self._made is None or self._made[0] != version:
            made = with_adapters(self.model, self.adapters) if self.adapters else self.model
            self._made = version, packed(made) if packs(self.model) else made
        return self._made[1]

    def version(self) -> list[tuple[Any, ...]]:
        """Return what differs once a weight has been changed, replaced, moved or cast."""
        return version_of(self.model.parameters())


def version_of(weights: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """Return what differs once one of these has been changed, replaced, moved or cast."""
    return [(id(weight), weight._version, weight.data_ptr(), weight.dtype) for weight in weights]


@torch.no_grad()
def packed(model: Model) -> Model:
    """Return a model that computes the same from packed matrices; other weights are the model's own."""
    twin = _twin(model)
    if model.config.head == "tokens":
        softcap = model.config.logit_softcap
        vocabulary = PackedVocabulary(model.output_weight, model.head.bias)  # type: ignore[arg-type]

        def logits(hidden: Tensor) -> Tensor:
            return cap(vocabulary(twin.head(hidden)), softcap)

        twin.logits = logits
    return twin


def _twin(module: nn.Module) -> Any:
    """Return the same module over packed matrices, with fewer and larger products."""
    if isinstance(module, Linear):
        return PackedLinear(module.weight, module.bias, thin_products(module))
    twin: Any = copy.copy(module)
    together = ("q_proj", "k_proj", "v_proj") if isinstance(module, SelfAttention) else ()
    twin._modules = {
        name: child if child is None else _twin(child)
        for name, child in module._modules.items()
        if name not in together
    }
    if isinstance(module, SelfAttention):
        _share_product(twin, module)
    return twin


def _share_product(twin: Any, module: SelfAttention) -> None:
    """Queries, keys and values are one product, and where nothing norms them apart they turn together."""
    parts = (module.q_proj, module.k_proj, module.v_proj)
    bias = None if module.q_proj.bias is None else torch.cat([part.bias for part in parts])
    widths = [part.out_features for part in parts]
    thin = side_by_side([thin_products(part) for part in parts], widths)
    product = PackedLinear(torch.cat([part.weight for part in parts]), bias, thin)
    counts = [width // module.head_dim for width in widths]

    def heads(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        found = product(x).unflatten(-1, (-1, module.head_dim))
        if rotary is None:
            return found.split(counts, dim=-2)
        asking, value = found.split((counts[0] + counts[1], counts[2]), dim=-2)
        return *rotate(asking, *rotary).split(counts[:2], dim=-2), value

    twin.project = lambda x: product(x).split(widths, dim=-1)
    if not module.qk_norm:
        twin.heads = heads


class PackedLinear(nn.Module):
    """y = x W^T + b in bfloat16 from a packed matrix, (..., in) -> (..., out): the bits of `Linear`, and
    what adapters add to them.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, thin: ThinProducts | None = None) -> None:
        super().__init__()
        self.thin = thin
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        self.bias = None if bias is None else bias.detach()
        self.out_features, self.in_features = weight.shape
        self.long = self.in_features > LONG

    def forward(self, x: Tensor) -> Tensor:
        alone = self.long and x.shape[:-1].numel() == 1
        read = torch.cat((x, x)) if alone else x
        found = torch.ops.mkldnn._linear_pointwise(read, self.matrix, self.bias, "none", [], "")
        found = found[:1] if alone else found
        return found if self.thin is None else self.thin.add(x, found)

    __call__ = forward  # nobody hooks into it, and a step of decoding makes 150 calls


class PackedVocabulary:
    """`model.scores` from a packed matrix: (..., D) -> float32 (..., V).

    Few rows go by FBGEMM, which reads float16, that holds bfloat16 weights to 3e-8, and sums and writes
    float32. 49,152 x 576 on one core of a Zen 5, milliseconds of 1, 4, 8, 16 and 32 rows: 1.6, 2.9, 5.7, 11
    and 21, where two products in bfloat16 take 7.3, 5.7, 8, 12 and 20 and the one that they make exact 3.7,
    2.9, 3.8, 5.7 and 10. With matrix units (AMX) the two are ahead sooner.
    """

    FEW = 8

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach()
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = None if bias is None else bias.detach().float()
        self.half: Any = None
        if torch.backends.quantized.engine in ("x86", "fbgemm") and weight.abs().max() < HALF_MAX:
            self.half = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def __call__(self, hidden: Tensor) -> Tensor:
        few = self.half is not None and hidden.numel() <= self.FEW * hidden.shape[-1]
        if few:
            found = torch.ops.quantized.linear_dynamic_fp16(hidden.float(), self.half)
        else:
            found = in_two_parts(hidden, self.matrix)
        return found if self.bias is None else found.add_(self.bias)
