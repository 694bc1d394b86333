"""The decode state: what a decoder keeps of the tokens it has read, so that each is read once.

Slot s of row b holds what was made of that row's token number s: its keys and values, or, of a recurrence,
the state after it. Rows may have different lengths: a token is written at its own row's length, and nobody
looks past it. Every decode state of the project has these methods: append, advance, reorder, truncate,
lengths; the memory of a source moves with it. Read next: attend, recurrent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from .attend import Rule, attend
from .config import ModelConfig


class DecodeState(Protocol):
    """What a stack of attention asks of the tokens read before, once for each pass or each layer."""

    memory: Memory | None
    """What it reads besides."""

    @property
    def ragged(self) -> bool: ...
    @property
    def lengths(self) -> list[int]: ...
    def positions(self, length: int) -> Tensor: ...
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor: ...
    def advance(self, length: int) -> None: ...


class Memory:
    """What a decoder reads besides its own tokens: the encoded source, (B, M, D).

    Rows of a batch that share a source (beams of one sentence) share its memory: each row of the memory
    serves `group` rows of the batch, one after the other.
    """

    def __init__(self, hidden: Tensor, documents: Tensor | None = None) -> None:
        self.hidden, self.documents = hidden, documents
        """documents (B, M): equal numbers are one text, -1 is padding; None: no padding, one text each."""
        self.group = 1
        self._kept: dict[int, tuple[Tensor, Tensor]] | None = None

    def keep(self) -> Memory:
        """From now on keep what each layer makes of the source: for decoding, where it is asked for often."""
        self._kept = {}
        return self

    def keys_and_values(
        self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """What `project` makes of the source for one layer."""
        if self._kept is None:
            return project(self.hidden)
        if layer not in self._kept:
            self._kept[layer] = project(self.hidden)
        return self._kept[layer]

    def by_source(self, x: Tensor) -> Tensor:
        """What the rows of the batch ask, (B, L, D), side by side for each row of the memory: (S, Q, D)."""
        return x.reshape(len(self.hidden), -1, x.shape[-1])

    def by_row(self, answers: Tensor, shape: torch.Size) -> Tensor:
        """The answers (S, Q, D) back in the rows of the batch, (B, L, D) of `shape`."""
        return answers.reshape(shape[0], shape[1], -1)

    def reorder(self, rows: Sequence[int]) -> None:
        """Follow the rows of the batch: row i becomes the old row rows[i]."""
        wanted = [row // self.group for row in rows]
        # Beams stay beside each other: the longest stretch that every run of equal rows is a multiple of.
        self.group = math.gcd(*(len(list(run)) for _, run in groupby(wanted)))
        wanted = wanted[:: self.group]
        if wanted == list(range(len(self.hidden))):
            return
        index = torch.tensor(wanted, device=self.hidden.device)
        self.hidden = self.hidden.index_select(0, index)
        if self.documents is not None:
            self.documents = self.documents.index_select(0, index)
        if self._kept is not None:
            self._kept = {
                layer: (key.index_select(0, index), value.index_select(0, index))
                for layer, (key, value) in self._kept.items()
            }


class Slots:
    """One slot for each token of each row, in as many tensors (B, capacity, ...) as a model needs.

    A model writes the next tokens with `append`, once for each layer, and counts them with `advance`.
    """

    def __init__(self, tensors: list[list[Tensor]], capacity: int, memory: Memory | None = None) -> None:
        """tensors[i]: the tensors of layer i, all zero: a hidden slot has weight 0, and 0 * NaN is NaN."""
        self.tensors, self.capacity, self.memory = tensors, capacity, memory
        self._lengths = [0] * len(tensors[0][0])

    @property
    def lengths(self) -> list[int]:
        """How many tokens each row holds."""
        return list(self._lengths)

    @property
    def ragged(self) -> bool:
        """Whether rows differ in length."""
        return min(self._lengths) != max(self._lengths)

    def positions(self, length: int) -> Tensor:
        """The slots of the next `length` tokens of each row: (B, L), or (1, L) when rows agree."""
        starts = torch.tensor(self._lengths if self.ragged else self._lengths[:1])
        return starts[:, None] + torch.arange(length)

    def write(self, layer: int, parts: Sequence[Tensor]) -> list[Tensor]:
        """Store (B, L, ...) behind what each row holds; return all slots in use, (B, M, ...) each.

        The lengths move only with `advance`, once all layers have written.
        """
        length = parts[0].shape[1]
        end = max(self._lengths) + length
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens a row; {end} were asked for")
        kept = self.tensors[layer]
        if self.ragged:
            rows = torch.arange(len(self._lengths), device=kept[0].device)[:, None]
            slots = self.positions(length).to(kept[0].device)
            for tensor, part in zip(kept, parts, strict=True):
                tensor[rows, slots] = part.to(tensor.dtype)
        else:
            for tensor, part in zip(kept, parts, strict=True):
                tensor[:, end - length : end] = part
        return [tensor[:, :end] for tensor in kept]

    def advance(self, length: int) -> None:
        """Count the `length` tokens that every layer has just written to each row."""
        self._lengths = [n + length for n in self._lengths]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what each row holds past its new length."""
        for row, (new, old) in enumerate(zip(lengths, self._lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"row {row} holds {old} tokens; it cannot be cut to {new}")
        self._lengths = list(lengths)

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row i a copy of the old row rows[i]; the batch takes the size of `rows`."""
        rows = list(rows)
        if rows == list(range(len(self._lengths))):
            return
        used, grows = max(self._lengths), len(rows) > len(self._lengths)
        # Only slots in use are copied, and only rows that move, unless most do: a plain copy runs faster.
        moved = [row for row, old in enumerate(rows) if row != old]
        whole = grows or 2 * len(moved) > len(rows)
        device = self.tensors[0][0].device
        to = torch.tensor(moved, dtype=torch.int64, device=device)
        origin = torch.tensor(rows if whole else [rows[row] for row in moved], device=device)
        for kept in self.tensors:
            for place, tensor in enumerate(kept):
                new = tensor.new_zeros(len(rows), *tensor.shape[1:]) if grows else tensor[: len(rows)]
                if whole:
                    new[:, :used] = tensor[:, :used].index_select(0, origin)
                elif moved:
                    new[:, :used].index_copy_(0, to, tensor[:, :used].index_select(0, origin))
                kept[place] = new
        self._lengths = [self._lengths[r] for r in rows]
        if self.memory is not None:
            self.memory.reorder(rows)


class KVCache(Slots):
    """Keys and values of all layers, contiguous: per layer (B, capacity, G, K) each.

    Bytes: 2 * n_layers * B * capacity * G * K * bytes of `dtype`.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        memory: Memory | None = None,
    ) -> None:
        shape = (batch, capacity, config.n_kv_heads, config.head_dim)
        tensors = [
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)] for _ in range(config.n_layers)
        ]
        super().__init__(tensors, capacity, memory)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, L, G, K) behind what each row holds; return all slots in use, (B, M, G, K) each."""
        keys, values = self.write(layer, (key, value))
        return keys, values

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Append key and value (B, L, G, K), then let query (B, L, H, K) look at all that rows hold."""
        return attend(query, *self.append(layer, key, value), rule)


class StateHistory(Slots):
    """The states of a recurrence after every token: per layer and part (h, c of an LSTM) (B, capacity, D).

    Only the newest is read; the others make `truncate` what it is for a cache of keys: forgetting.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        memory: Memory | None = None,
        first: list[list[Tensor]] | None = None,
    ) -> None:
        """`first`: the state of each layer before the first token, parts of (B, D); None is zero."""
        parts = 2 if config.cell == "lstm" else 1
        shape = (batch, capacity + 1, config.dim)  # one slot more: the state before the first token
        tensors = [
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(parts)]
            for _ in range(config.n_layers)
        ]
        for kept, starts in zip(tensors, first or [], strict=False):
            for tensor, start in zip(kept, starts, strict=True):
                tensor[:, 0] = start
        super().__init__(tensors, capacity, memory)

    def newest(self, layer: int, step: int) -> list[Tensor]:
        """The state before token `step` of those being written: (B, D) of each part."""
        kept = self.tensors[layer]
        if not self.ragged:
            return [tensor[:, self._lengths[0] + step] for tensor in kept]
        rows = torch.arange(len(self._lengths), device=kept[0].device)
        slots = torch.tensor(self._lengths, device=kept[0].device) + step
        return [tensor[rows, slots] for tensor in kept]

    def append(self, layer: int, step: int, parts: Sequence[Tensor]) -> None:
        """Store the state (B, D) of each part after token `step` of those being written."""
        if max(self._lengths) + step >= self.capacity:
            asked = max(self._lengths) + step + 1
            raise ValueError(f"the state holds {self.capacity} tokens a row; {asked} were asked for")
        rows = torch.arange(len(self._lengths), device=parts[0].device)
        slots = torch.tensor(self._lengths, device=parts[0].device) + step + 1
        for tensor, part in zip(self.tensors[layer], parts, strict=True):
            tensor[rows, slots] = part.to(tensor.dtype)

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row i a copy of the old row rows[i]; the batch takes the size of `rows`."""
        # The slot of the state before the first token belongs to what is in use.
        self._lengths = [length + 1 for length in self._lengths]
        super().reorder(rows)
        self._lengths = [length - 1 for length in self._lengths]
