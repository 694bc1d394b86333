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
        """Or all at once: which adapters, the rows of each, padded (adapters, most), and where in that each
        row stands (N,).
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
        table, place, filled = [[0] * most for _ in range(first, last + 1)], [], Counter[int]()
        for row, number in enumerate(numbers):
            table[number - first][filled[number]] = row
            place.append((number - first) * most + filled[number])
            filled[number] += 1
        both = (torch.tensor(table, device=device), torch.tensor(place, device=device))
        self.together = slice(first, last + 1), *both


class ThinProducts:
    """What the adapters of one linear layer add to its outputs."""

    def __init__(self, layers: Sequence[LoraLinear | None], like: Linear, rows: PassRows) -> None:
        """layers: that layer in each adapter, in the order of their numbers; None: it is not adapted."""
        device, rank = like.weight.device, max(layer.lora.rank for layer in layers if layer is not None)
        self.rows, n = rows, 1 + len(layers)
        self.A = torch.zeros(n, like.in_features, rank, device=device)
        self.B = torch.zeros(n, rank, like.out_features, device=device)
        dora = any(layer is not None and layer.lora.dora for layer in layers)
        self.gain = torch.ones(n, like.out_features, device=device) if dora else None
        self.bias = None if like.bias is None else like.bias.detach().float()
        for number, layer in enumerate(layers, 1):
            if layer is None:
                continue
            own = layer.lora.rank
            self.A[number, :, :own] = layer.lora_A.detach().float().t()
            self.B[number, :own] = layer.lora.scale * layer.lora_B.detach().float().t()
            if layer.lora_magnitude is not None and self.gain is not None:
                self.gain[number] = layer.gain().float()
                self.B[number] *= self.gain[number]

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """Add them to the outputs (..., out) of inputs x (..., in), in place; `out` as it then is."""
        rows = self.rows
        if rows.one == 0:
            return out
        read, given = x.reshape(-1, x.shape[-1]).float(), out.view(-1, out.shape[-1])
        if rows.one is not None:
            return self._put(out, given, read @ self.A[rows.one] @ self.B[rows.one], rows.one)
        if rows.together is not None:
            which, table, place = rows.together
            thin = torch.bmm(read[table], self.A[which])
            return self._put(out, given, torch.bmm(thin, self.B[which]).flatten(0, 1)[place], rows.numbers)
        change = torch.zeros(given.shape, device=read.device)
        for number, mine in rows.groups:
            change[mine] = read[mine] @ self.A[number] @ self.B[number]
        return self._put(out, given, change, rows.numbers)

    def _put(self, out: Tensor, given: Tensor, change: Tensor, whose: int | Tensor) -> Tensor:
        """Add a change (N, out) to what the base gave; DoRA stretches that, but for its bias, besides."""
        if self.gain is not None:
            more = self.gain[whose] - 1
            change += more * (given.float() if self.bias is None else given.float() - self.bias)
        given += change
        return out


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
    return ThinProducts([layer], layer, rows)


def with_adapters(model: Model, adapters: Mapping[str, Model]) -> AdaptedTransformer:
    """A model that shares all weights with `model` and works with all these adapters of it at once."""
    rows, twin = PassRows(list(adapters)), shared(model)
    twin.__class__, twin.adapter_rows = AdaptedTransformer, rows
    found = [adapted_layers(one) for one in adapters.values()]
    for name in dict.fromkeys(name for layers in found for name in layers):
        above, _, own = name.rpartition(".")
        base = model.get_submodule(name)
        assert isinstance(base, Linear)
        thin = ThinProducts([layers.get(name) for layers in found], base, rows)
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
