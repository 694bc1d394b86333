"""The decode state: what a decoder keeps of the tokens it has read, so that each is read once.

Slot s of row b holds the key and value of that row's token number s. Rows may have different lengths: a
token is written at its own row's length, and the rule of attention hides the slots past it.
Every decode state of the project has these methods: append, advance, reorder, truncate, lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import ModelConfig


class KVCache:
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
    ) -> None:
        shape = (batch, capacity, config.n_kv_heads, config.head_dim)
        # Zeros, not garbage: a hidden slot has weight 0, and 0 * NaN would still be NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.capacity = capacity
        self._lengths = [0] * batch

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

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, L, G, K) behind what each row holds; return all slots in use, (B, M, G, K) each.

        The lengths move only with `advance`, once all layers have appended.
        """
        length = key.shape[1]
        end = max(self._lengths) + length
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens a row; {end} were asked for")
        keys, values = self.keys[layer], self.values[layer]
        if self.ragged:
            rows = torch.arange(len(self._lengths), device=keys.device)[:, None]
            slots = self.positions(length).to(keys.device)
            keys[rows, slots], values[rows, slots] = key.to(keys.dtype), value.to(values.dtype)
        else:
            keys[:, end - length : end], values[:, end - length : end] = key, value
        return keys[:, :end], values[:, :end]

    def advance(self, length: int) -> None:
        """Count the `length` tokens that every layer has just appended to each row."""
        self._lengths = [n + length for n in self._lengths]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what each row holds past its new length."""
        for row, (new, old) in enumerate(zip(lengths, self._lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"row {row} holds {old} tokens; it cannot be cut to {new}")
        self._lengths = list(lengths)

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row i a copy of the old row rows[i]; the batch takes the size of `rows`."""
        index = torch.tensor(list(rows), device=self.keys[0].device)
        self.keys = [x.index_select(0, index) for x in self.keys]
        self.values = [x.index_select(0, index) for x in self.values]
        self._lengths = [self._lengths[r] for r in rows]
