"""Many adapters over one base at once: the product with the base is one for all rows of a pass, and beside it
each row has the two thin products of its own adapter.

The matrices of all adapters of a layer lie in one tensor. A pass whose rows have one adapter multiplies with
its own; one whose rows have several multiplies with theirs together (batched), or with one after the other
where they have very different numbers of rows. Thin products are in float32 and their sum is rounded once,
as `model.lora` does it outside of training. A base whose modules are shared stands behind all: what is copied
is the tree of modules, and no weight. Sources: Hu et al. 2021; Chen et al. 2023 (Punica, arXiv:2310.18547).
Read next: onednn_weights, runner.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transom.checkpoint.adapter import check_base, is_adapter, put_on, read_adapter
from transom.checkpoint.huggingface import load_config
from transom.errors import Refused
from transom.model.build import Model
from transom.model.layers import Linear
from transom.model.lora import LoraLinear, adapted_layers
from transom.model.transformer import Transformer

BASE = ""
"""The adapter of rows that have none."""
SPREAD = 2
"""Rows are multiplied together where padding makes them at most so many times as many."""


class PassRows:
    """Whose each row of a pass is: said at its beginning, and asked by every adapted layer."""

    def __init__(self, names: Sequence[str]) -> None:
        """names: of the adapters; their numbers are 1, 2, ..., and 0 is the base."""
        self.number_of = {BASE: 0, **{name: number for number, name in enumerate(names, 1)}}
        self.one: int | None = 0
        """The adapter of all rows, if they have the same."""
        self.numbers = torch.empty(0, dtype=torch.int64)
        self.groups: list[tuple[int, Tensor]] = []
        """Else, one after the other: an adapter and its rows."""
        self.together: tuple[slice, Tensor, Tensor] | None = None
        """Or all at once: which adapters, the rows of each, padded to equally many (adapters * most), and
        where among those each row stands (N,).
        """

    def take(self, names: Sequence[str], device: torch.device) -> None:
        """Take the adapters of the rows of the pass that begins, in their order; of none: all are the
        base's.
        """
        numbers = [self.number_of[name] for name in names] or [0]
        counts = Counter(numbers)
        self.one = numbers[0] if len(counts) == 1 else None
        self.groups, self.together = [], None
        if self.one is not None:
            return
        self.numbers = torch.tensor(numbers, device=device)
        first, last, most = min(counts), max(counts), max(counts.values())
        if (last - first + 1) * most > SPREAD * len(numbers):
            for number in sorted(counts.keys() - {0}):
                rows = [row for row, one in enumerate(numbers) if one == number]
                self.groups.append((number, torch.tensor(rows, device=device)))
            return
        padded, place, filled = [0] * (last - first + 1) * most, [], Counter[int]()
        for row, number in enumerate(numbers):
            place.append((number - first) * most + filled[number])
            padded[place[-1]] = row
            filled[number] += 1
        both = (torch.tensor(padded, device=device), torch.tensor(place, device=device))
        self.together = slice(first, last + 1), *both


class ThinProducts:
    """What the adapters of one linear layer add to its outputs."""

    def __init__(
        self, A: Tensor, B: Tensor, gain: Tensor | None, bias: Tensor | None, rows: PassRows
    ) -> None:
        """A (n, in, rank) and B (n, rank, out), scaled; gain (n, out) of DoRA; bias (out,) of the base, which
        that leaves alone. All in float32; number 0 is the base, and zero.
        """
        self.A, self.B, self.gain, self.bias, self.rows = A, B, gain, bias, rows
        self._each = list(zip(A, B, strict=True))

    @classmethod
    def of(cls, layers: Sequence[LoraLinear | None], like: Linear, rows: PassRows) -> ThinProducts:
        """layers: `like` in each adapter, in the order of their numbers; None: it is not adapted there."""
        device, rank = like.weight.device, max(layer.lora.rank for layer in layers if layer is not None)
        n = 1 + len(layers)
        A = torch.zeros(n, like.in_features, rank, device=device)
        B = torch.zeros(n, rank, like.out_features, device=device)
        dora = any(layer is not None and layer.lora.dora for layer in layers)
        gain = torch.ones(n, like.out_features, device=device) if dora else None
        for number, layer in enumerate(layers, 1):
            if layer is None:
                continue
            own = layer.lora.rank
            A[number, :, :own] = layer.lora_A.detach().float().t()
            B[number, :own] = layer.lora.scale * layer.lora_B.detach().float().t()
            if layer.lora_magnitude is not None and gain is not None:
                gain[number] = layer.gain().detach().float()
                B[number] *= gain[number]
        return cls(A, B, gain, None if like.bias is None else like.bias.detach().float(), rows)

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """Add them to the outputs (..., out) of inputs x (..., in), in place; `out` as it then is."""
        rows = self.rows
        if rows.one == 0:
            return out
        read, given = x.reshape(-1, x.shape[-1]).float(), out.view(-1, out.shape[-1])
        whose: int | Tensor = rows.numbers
        if rows.one is not None:
            A, B = self._each[rows.one]
            change, whose = torch.mm(torch.mm(read, A), B), rows.one
        elif rows.together is not None:
            which, padded, place = rows.together
            A, B = self.A[which], self.B[which]
            thin = torch.bmm(read.index_select(0, padded).view(len(A), -1, read.shape[1]), A)
            change = torch.bmm(thin, B).view(-1, B.shape[2]).index_select(0, place)
        else:
            change = torch.zeros(given.shape, device=read.device)
            for number, mine in rows.groups:
                A, B = self._each[number]
                change[mine] = read[mine] @ A @ B
        if self.gain is not None:  # DoRA stretches what the base gave, but for its bias
            more = self.gain[whose] - 1
            change += more * (given.float() if self.bias is None else given.float() - self.bias)
        given.add_(change)
        return out


def side_by_side(parts: Sequence[ThinProducts | None], widths: Sequence[int]) -> ThinProducts | None:
    """The thin products of layers that read the same and whose outputs, of these widths, stand side by side:
    one for all, each B in its own rows and columns, since a call costs more than the zeros.
    """
    there = [part for part in parts if part is not None]
    if not there:
        return None
    n, device = len(there[0].A), there[0].A.device
    A = torch.cat([part.A for part in there], dim=2)
    B = torch.zeros(n, A.shape[2], sum(widths), device=device)
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            rank = part.A.shape[2]
            B[:, row : row + rank, column : column + width] = part.B
            row += rank
        column += width
    gain = bias = None
    if any(part.gain is not None for part in there):
        same = torch.ones(n, max(widths), device=device)
        gains = [None if part is None else part.gain for part in parts]
        gain = torch.cat([same[:, :w] if g is None else g for g, w in zip(gains, widths, strict=True)], dim=1)
        none = torch.zeros(max(widths), device=device)
        biases = [None if part is None else part.bias for part in parts]
        bias = torch.cat([none[:w] if b is None else b for b, w in zip(biases, widths, strict=True)])
    return ThinProducts(A, B, gain, bias, there[0].rows)


class AdaptedLinear(Linear):
    """A linear layer of the base, and what adapters add to it."""

    def __init__(self, base: Linear, thin: ThinProducts) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias, self.thin = base.weight, base.bias, thin

    def forward(self, input: Tensor) -> Tensor:
        return self.thin.add(input, super().forward(input))


class AdaptedTransformer(Transformer):
    """A decoder over which several adapters work at once; its state says which rows are whose."""

    adapter_rows: PassRows

    def forward(self, tokens: Tensor, *, state: Any = None, **more: Any) -> Tensor:
        self.adapter_rows.take(state.adapters, tokens.device)
        return super().forward(tokens, state=state, **more)


def thin_products(layer: Linear) -> ThinProducts | None:
    """What is to be added to the product of a layer, whose own adapter may be the only one."""
    if isinstance(layer, AdaptedLinear):
        return layer.thin
    if not isinstance(layer, LoraLinear):
        return None
    rows = PassRows(["own"])
    rows.one = 1  # of every pass
    return ThinProducts.of([layer], layer, rows)


def with_adapters(model: Model, adapters: Mapping[str, Model]) -> AdaptedTransformer:
    """A model that shares all weights with `model` and works with all these adapters of it at once."""
    rows, twin = PassRows(list(adapters)), shared(model)
    twin.__class__, twin.adapter_rows = AdaptedTransformer, rows
    found = [adapted_layers(one) for one in adapters.values()]
    for name in dict.fromkeys(name for layers in found for name in layers):
        above, _, own = name.rpartition(".")
        base = model.get_submodule(name)
        assert isinstance(base, Linear)
        thin = ThinProducts.of([layers.get(name) for layers in found], base, rows)
        setattr(twin.get_submodule(above), own, AdaptedLinear(base, thin))
    return twin


def shared(module: nn.Module) -> Any:
    """The same tree of modules over the same weights: another part can be put into it, or a hook on it."""
    twin = copy.copy(module)
    twin.__dict__ = {key: copy.copy(kept) if isinstance(kept, dict) else kept
                     for key, kept in module.__dict__.items()}  # fmt: skip
    twin._modules = {name: child and shared(child) for name, child in module._modules.items()}
    return twin


def on_base(model: Model, base: Path, base_hash: str, folder: Path) -> Model:
    """The adapter of a folder over a model that is loaded from `base`, whose weights it shares.

    base_hash: the `manifest.fingerprint` of the base. Raises Refused where the adapter goes on another, or
    changes more than linear layers.
    """
    config, family = load_config(base)
    if is_adapter(base):
        raise Refused(f"{base}: an adapter itself; name the model that it goes on, and it as an adapter")
    check_base(folder, base, base_hash)
    if config.kind != "decoder" or config.cell is not None:
        raise Refused(f"{base}: adapters work side by side over decoders; load {folder} by itself")
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    adapter = read_adapter(folder, family, config, shapes)
    if adapter.whole:
        name = next(iter(adapter.whole))
        raise Refused(
            f"{folder}: it replaces {name} as a whole, which adapters over one base cannot; load it by itself"
        )
    twin = shared(model)
    put_on(twin, adapter, folder, torch.float32, model.embed.weight.device)
    return twin.eval()
