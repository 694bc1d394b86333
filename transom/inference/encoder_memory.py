"""The sources of an encoder-decoder while their targets are written.

A source is encoded once, and what each layer makes of it is kept with it; the rows that write its target and
their forks share it. Sources that are asked in one pass lie side by side, padded, until too few of them are
asked any more. Read next: runner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from transom.model.build import Model
from transom.model.cache import Memory
from transom.model.recurrent import Recurrent
from transom.native.plan import Source as NativeSource

Project = Callable[[Tensor], tuple[Tensor, Tensor]]


class EncodedSource:
    """One source: its tokens and, once encoded, its memory."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.hidden: Tensor | None = None
        """(M, D)."""
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys and values of each layer, (M, H, K)."""
        self.by_kernels: NativeSource | None = None
        """The same as native kernels keep it."""
        self.first: Tensor | None = None
        """Of a recurrence: the state before the target, (layers, parts, D)."""


class EncoderMemory:
    """The sources that are being asked."""

    def __init__(self) -> None:
        self._beside: _PaddedSources | None = None

    def encode(self, model: Model, sources: Sequence[EncodedSource]) -> None:
        """Read sources, as one padded batch."""
        device = model.embed.weight.device
        rows = [torch.tensor(source.tokens) for source in sources]
        documents = _documents([len(row) for row in rows], device)
        memory = model.encode(pad_sequence(rows, batch_first=True).to(device), documents=documents)
        first = model.first_state(memory) if isinstance(model, Recurrent) else None
        for i, source in enumerate(sources):
            source.hidden = memory.hidden[i, : len(source.tokens)]
            if first is not None:
                source.first = torch.stack([torch.stack([part[i] for part in parts]) for parts in first])

    def prepare(self, asked: Sequence[EncodedSource]) -> None:
        """Lay the sources of a pass side by side, unless they lie so with few others between them."""
        wanted = dict.fromkeys(asked)
        now = self._beside
        if now is None or 2 * len(wanted) < len(now.place) or any(one not in now.place for one in wanted):
            self._beside = _PaddedSources(list(wanted))

    def memory(self, asked: Sequence[EncodedSource]) -> Memory:
        """Return what tokens read besides: the source of each token of a pass, all of them prepared."""
        assert self._beside is not None
        return SourceMemory(self._beside, asked)


class _PaddedSources:
    """Sources side by side: (S, M, ...), padded."""

    def __init__(self, sources: list[EncodedSource]) -> None:
        self.sources, self.place = sources, {source: i for i, source in enumerate(sources)}
        self.hidden = _side_by_side([source.hidden for source in sources if source.hidden is not None])
        self.documents = _documents([len(source.tokens) for source in sources], self.hidden.device)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keys_and_values(self, layer: int, project: Project) -> tuple[Tensor, Tensor]:
        """Say what `project` makes of each source, (S, M, H, K) twice; of those that have it, not again."""
        if layer in self._kept:
            return self._kept[layer]
        new = [source for source in self.sources if layer not in source.kept]
        if len(new) == len(self.sources):
            key, value = project(self.hidden)
        else:
            if new:
                hidden = _side_by_side([source.hidden for source in new if source.hidden is not None])
                _share(layer, new, *project(hidden))
            key, value = (
                _side_by_side([source.kept[layer][part] for source in self.sources]) for part in (0, 1)
            )
        _share(layer, self.sources, key, value)
        self._kept[layer] = key, value
        return key, value


class SourceMemory(Memory):
    """The memory of a pass over tokens (N, 1), or (B, L) with N = B * L, each with a source of its own."""

    def __init__(self, beside: _PaddedSources, asked: Sequence[EncodedSource]) -> None:
        super().__init__(beside.hidden, beside.documents)
        self._beside = beside
        counts = Counter[EncodedSource]()
        places = []
        for source in asked:
            places.append((beside.place[source], counts[source]))
            counts[source] += 1
        self.group = max(counts.values())  # questions to a source: so many, padded
        slots = [source * self.group + place for source, place in places]
        self._slots = None
        if slots != [*range(len(beside.hidden) * self.group)]:
            self._slots = torch.tensor(slots, device=beside.hidden.device)

    def keys_and_values(self, layer: int, project: Project) -> tuple[Tensor, Tensor]:
        """Return what `project` makes of the sources for one layer."""
        return self._beside.keys_and_values(layer, project)

    def by_source(self, x: Tensor) -> Tensor:
        """Return what the tokens ask, (..., D), beside the others that ask the same source: (S, Q, D)."""
        flat, shape = x.reshape(-1, x.shape[-1]), (len(self.hidden), self.group, x.shape[-1])
        if self._slots is None:
            return flat.view(shape)
        padded = flat.new_zeros(shape)
        padded.flatten(0, 1).index_copy_(0, self._slots, flat)
        return padded

    def by_row(self, answers: Tensor, shape: torch.Size) -> Tensor:
        """Return the answers (S, Q, D) back in the order of the tokens."""
        flat = answers.flatten(0, 1)
        flat = flat if self._slots is None else flat.index_select(0, self._slots)
        return flat.view(shape[0], shape[1], -1)


def _share(layer: int, sources: Sequence[EncodedSource], key: Tensor, value: Tensor) -> None:
    """Let each source keep its part of what lies side by side and let go of what it kept before."""
    for i, source in enumerate(sources):
        source.kept[layer] = key[i, : len(source.tokens)], value[i, : len(source.tokens)]


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """(M_i, ...) each -> (S, M, ...), zeros behind the short ones."""
    return parts[0][None] if len(parts) == 1 else pad_sequence(list(parts), batch_first=True)


def _documents(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """(S, M): 0 for text, -1 for padding; None where there is none."""
    if min(lengths) == max(lengths):
        return None
    ends = torch.tensor(lengths, device=device)[:, None]
    return -(torch.arange(max(lengths), device=device) >= ends).long()
