"""The runner of a CPU's own kernels, for the models that they can say; `runner_for` chooses.

A sequence's logits are bitwise a function of its own tokens, whatever is read beside it and in whatever
pieces, so a deterministic engine asks nothing more of it. Its plain twin is `TorchRunner`. Read next:
native/plan, as_served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from transom.errors import Refused
from transom.hardware import Hardware
from transom.model.build import Model
from transom.model.lora import adapted_layers
from transom.native.library import WORDS, Library, Unavailable, best
from transom.native.plan import PAGE, WEIGHTS, Plan, Read, why_not

from .adapters import BASE
from .batching import together
from .onednn_weights import version_of
from .runner import BlockRunner, TorchRunner
from .sequence import Span, TokenSequence

STEP = 512
"""Tokens of whole texts that are read at once: what a layer makes of them stays in a core's cache."""
PIECE = 128
"""Tokens of a text whose streams are read at once: each has logits over the whole vocabulary beside."""


class NativeRunner(BlockRunner):
    """Logits by the kernels of `native/`: one parallel region for a whole step."""

    def __init__(
        self, model: Model, library: Library, *, n_tokens: int, reuse: bool = True,
        adapters: Mapping[str, Model] | None = None, weights: str = "",
    ) -> None:  # fmt: skip
        """As for `BlockRunner`; a model that writes and that `why_not` has nothing against. adapters: by
        name, those over the model that a sequence may be read by; one that is part of the model itself reads
        all. weights: of `WEIGHTS`, or "": as the model has them. Raises MemoryError.
        """
        super().__init__(model, n_tokens=n_tokens, block=PAGE, reuse=reuse)
        self.library, self._model, self.weights = library, model, weights
        self._adapters = {BASE: model} if adapted_layers(model) else dict(adapters or {})
        self._number = {BASE: 0} | {name: number for number, name in enumerate(self._adapters, 1)}
        self._renew()

    @property
    def stale(self) -> bool:
        """Whether the model's weights have changed since what it holds was made, or somebody looks now."""
        return self._version_now() != self._version or watched(self._model)

    def _version_now(self) -> list[tuple[Any, ...]]:
        return version_of(chain(self._model.parameters(), self._model.buffers(), self._thin))

    def _renew(self) -> None:
        adapters = list(self._adapters.values())
        layers = [layer for adapter in adapters for layer in adapted_layers(adapter).values()]
        self._thin = [weight for layer in layers for weight in layer.parameters(recurse=False)]
        self._version = self._version_now()
        n_pages = self.blocks.n_blocks + 1  # page 0 is nobody's
        self.plan = Plan(self.library, self._model, n_pages, adapters, weights=self.weights)

    def _prepare(self, origin: list[int], to: list[int], taken: list[int], last: list[int]) -> None:
        for one, other in zip(origin, to, strict=True):
            self.plan.copy_page(one, other)

    def _encode(self, spans: Sequence[Span]) -> None:
        """Read the sources that are asked for the first time."""
        new = {
            span.sequence.source: self._number[span.sequence.adapter]
            for span in spans
            if span.sequence.source is not None and span.sequence.source.by_kernels is None
        }
        for adapter in sorted(set(new.values())):
            sources = [source for source, own in new.items() if own == adapter]
            for some in together([len(source.tokens) for source in sources], STEP):
                texts = [source.tokens for source in sources[some]]
                read = self.plan.read_sources(texts, adapter, torch.get_num_threads())
                for source, made in zip(sources[some], read, strict=True):
                    source.by_kernels = made

    def _read(self, spans: Sequence[Span], wanted: Sequence[int]) -> Tensor:
        self._encode(spans)
        reads, ends, end = list[Read](), dict[TokenSequence, int](), 0
        # Rows of one adapter side by side: they are multiplied with its matrices together.
        for span in sorted(spans, key=lambda span: self._number[span.sequence.adapter]):
            if span.n:
                pages, number = span.blocks[: -(-span.stop // PAGE)], self._number[span.sequence.adapter]
                source, start = span.sequence.source, self._begin(span)
                made = None if source is None else source.by_kernels
                tokens = span.sequence.tokens[start : span.stop]
                reads.append(Read(tokens, start, pages, number, source=made))
                end += len(tokens)
            ends[span.sequence] = end
        places = [
            ends[span.sequence] - n + i for span, n in zip(spans, wanted, strict=True) for i in range(n)
        ]
        if not reads:
            return torch.empty(0, self.vocab_size)
        logits = self.plan.run(reads, places, torch.get_num_threads())
        for span in spans:
            span.sequence.state_after = span.stop if span.n else span.sequence.state_after
        return logits

    def _begin(self, span: Span) -> int:
        """Return from which token on a span is read: its first, but of a recurrence the first of its page
        where that does not hold the state before the span, since the sequence was cut.
        """
        known = span.sequence.state_after
        span.sequence.state_after = 0  # whatever happens, the page will hold another
        whole = self._model.config.cell is None or span.start == known
        return span.start if whole else span.start // PAGE * PAGE

    def streams(self, tokens: Sequence[int], adapter: str = BASE) -> Tensor:
        """Return the residual stream of a text (L,), as `adapter` had it: (layers + 1, L, D) float32.

        Nothing of it is kept. Raises OutOfBlocks where sequences hold too many, and MemoryError.
        """
        pages, number = self.blocks.take(-(-len(tokens) // PAGE)), self._number[adapter]
        try:
            parts = [
                self.plan.streams(Read(tokens[at : at + PIECE], at, pages, number), torch.get_num_threads())
                for at in range(0, len(tokens), PIECE)
            ]
        finally:
            self.blocks.release(pages)
        return torch.cat(parts, dim=1)


class WatchedRunner(TorchRunner):
    """PyTorch in the kernels' place while somebody looks."""

    @property
    def stale(self) -> bool:
        """Whether the model's weights have changed since, or nobody looks any more."""
        return super().stale or not watched(self._packing.model)


def watched(model: Model) -> bool:
    """Whether somebody looks at what PyTorch computes in this thread, or changes what goes through a module:
    native kernels would pass by `look`, hooks and edits.
    """
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    return hooked or torch._C._len_torch_function_stack() > 0


def available(model: Model, weights: str = "") -> tuple[Library | None, str]:
    """Return the kernels if they run this model here, and what is to be said of it, either way. weights: as
    for `NativeRunner`.
    """
    if model.embed.weight.device.type != "cpu":
        return None, "by PyTorch"
    try:
        library = best()
    except Unavailable as unavailable:
        return None, f"by PyTorch: native kernels {unavailable}"
    if why := why_not(model):
        return None, f"by PyTorch: native kernels do not run it, {why}"
    size = sum(weight.nbytes for weight in model.parameters())
    free = Hardware.detect("cpu").ram
    if size > free // 2:
        gb = 1e9
        return (
            None,
            f"by PyTorch: native kernels take a second copy of {size / gb:.1f} GB, {free / gb:.1f} free",
        )
    return library, f"by native kernels ({WORDS[library.level]}{weights and f', {weights} weights'})"


def check_weights(weights: str, model: Model) -> None:
    """Raise Refused where these weights are none, or this model cannot have them here."""
    if weights and weights not in WEIGHTS:
        raise Refused(
            f"weights is '{weights}'; it must be {' or '.join(WEIGHTS)}, or left out: as the model has them"
        )
    if weights and (found := available(model))[0] is None:
        raise Refused(f"{weights} weights are read by native kernels alone, and this model is run {found[1]}")


def runner_for(
    model: Model, *, n_tokens: int, reuse: bool = True, deterministic: bool = False,
    adapters: Mapping[str, Model] | None = None, weights: str = "",
) -> NativeRunner | TorchRunner:  # fmt: skip
    """Return the fastest runner for a model; see `TorchRunner` for the settings, and `NativeRunner` for its
    weights, which PyTorch has in its place, while somebody looks, as the model has them.
    """
    library, _ = available(model)
    if library is not None and not watched(model):
        return NativeRunner(
            model, library, n_tokens=n_tokens, reuse=reuse, adapters=adapters, weights=weights
        )
    plain = TorchRunner if library is None else WatchedRunner
    return plain(model, n_tokens=n_tokens, reuse=reuse, deterministic=deterministic, adapters=adapters)
