"""`look(model)`: see what one ordinary forward pass did, with the fused kernels left on.

Inside the block the attention calls of this thread are noted (`attention_recorder`) and, where asked for,
what flows between layers (`activations`); outside nothing is installed. `Seen` answers afterwards: maps are
recomputed on demand and checked against the kernel's output (`maps`). What cannot be had raises Refused with
the reason. Read next: attention_recorder, maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from transom.errors import Refused, nearest

from .activations import ActivationRecorder, shares
from .attention_recorder import AttentionRecorder
from .head_statistics import HeadGrid, head_grid, received, thumbnails
from .hooks import edited
from .maps import AttentionMap, Call, attention_map
from .module_finder import alias, has_two_sides, layers_of, names_of, number_of, side_of
from .states import States, has_layer, states_of

KEEP = ("attention", "resid", "ffn", "router", "states")
"""What a block can keep; references only, so each costs what the pass would have freed."""


class Seen:
    """What a `look` block saw. Layers, heads and tokens are counted from 0.

    `batch` is which text of a batch; `kind` which attention or layer, 'self', 'cross' or 'encoder' (of an
    encoder-decoder); `call` which one, where a layer ran several times in the block. Raises Refused for what
    was not kept or is not there.
    """

    def __init__(self, model: nn.Module, layers: frozenset[int] | None, keep: frozenset[str]) -> None:
        self.model, self._two = model, has_two_sides(model)
        wanted = [layer for layer in layers_of(model) if layers is None or layer.number in layers]
        self._activations = ActivationRecorder(wanted, keep - {"attention"})
        self._keep, self._numbers = keep, layers
        self._recorder = AttentionRecorder(names_of(model), self._wanted)

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every attention call, in order; modules without a number in their name are counted."""
        unnumbered: dict[str, int] = {}
        found = []
        for kept in self._recorder.kept:
            number = number_of(kept.name)
            if number is None:
                number = unnumbered.setdefault(kept.name, len(unnumbered))
            found.append(Call(kept, number, side_of(kept.name, self._two)))
        return tuple(found)

    @property
    def tokens(self) -> Tensor:
        """The ids (B, L) that the model read first; raises Refused when it read none."""
        found = next((ids for _, ids in self._recorder.read), None)
        if found is None:
            raise Refused("no ids were read in the block: the model was given embeddings, or did not run")
        return found

    def attention(
        self,
        layer: int,
        head: int | None = None,
        row: int | None = None,
        *,
        kind: str = "self",
        batch: int = 0,
        call: int | None = None,
    ) -> AttentionMap:
        """The weights that one layer used: all heads, one head, or the row of one query.

        (L, M) with `head`, (M,) with `row` too, (H, L, M) or (H, M) of all heads; float32.
        Raises Mismatch when what is recomputed does not give the kernel's output.
        """
        return attention_map(self._call(layer, kind, call), head, row, batch)

    def heads(self, kind: str = "self", *, batch: int = 0, call: int | None = None) -> HeadGrid:
        """Figures of every head of every layer; no map is held."""
        layers = sorted({c.layer for c in self.calls if c.kind == kind})
        if not layers:
            self._call(0, kind, call)
        return head_grid([self._call(layer, kind, call) for layer in layers], batch)

    def received(self, layer: int, *, kind: str = "self", batch: int = 0, call: int | None = None) -> Tensor:
        """How much weight each key gets, a mean over queries: (H, M) float32."""
        return received(self._call(layer, kind, call), batch)

    def thumbnails(
        self, layer: int, size: int = 64, *, kind: str = "self", batch: int = 0, call: int | None = None
    ) -> Tensor:
        """The maps of a layer, small: (H, up to size, up to size) uint8."""
        return thumbnails(self._call(layer, kind, call), size, batch)

    def resid(self, layer: int, at: str = "before", *, kind: str = "self", call: int | None = None) -> Tensor:
        """The residual stream (B, L, D) before a layer, in its middle (after attention) or after it."""
        _one_of(at, ("before", "middle", "after"), "place")
        return self._streamed(f"resid {at}", kind, layer, call)

    def ffn(self, layer: int, at: str = "out", *, kind: str = "self", call: int | None = None) -> Tensor:
        """What the feed-forward of a layer adds (B, L, D), or the activations inside it (B, L, F)."""
        _one_of(at, ("out", "inner"), "place")
        return self._streamed(f"ffn {at}", kind, layer, call)

    def router(self, layer: int, *, kind: str = "self", call: int | None = None) -> Tensor:
        """The weight of every expert for every token, 0 where it was not chosen: (N, E) float32."""
        chosen, weights, n_experts = self._streamed("router", kind, layer, call)
        return shares(chosen, weights, n_experts)

    def states(self, layer: int, *, kind: str = "self", call: int | None = None) -> States:
        """The gates and states of a recurrence after every token, (B, L, D) each, checked."""
        self._asked_for("states")
        found = [
            r for r in self._recorder.recurred if side_of(r.name, self._two) == kind and has_layer(r, layer)
        ]
        if not found:
            raise Refused(
                f"no fused pass of a recurrence was seen in layer {layer}: it is none, or ran token by token"
            )
        return states_of(self._one(found, call, f"layer {layer} ran"), layer)

    def point(self, name: str) -> Any:
        """What a TransformerLens name stands for, e.g. blocks.5.attn.hook_pattern."""
        layer, what, at = alias(name)
        return self.attention(layer) if what == "attention" else getattr(self, what)(layer, at)

    def _call(self, layer: int, kind: str, call: int | None) -> Call:
        self._asked_for("attention")
        if not self.calls:
            raise Refused(
                "no attention was seen in the block: the model did not run in it, ran in another thread or"
                " compiled, or does not call PyTorch's attention (transformers: attn_implementation='sdpa')"
            )
        kinds = {c.kind for c in self.calls}
        _one_of(kind, sorted(kinds), "kind of attention")
        found = [c for c in self.calls if c.layer == layer and c.kind == kind]
        if not found:
            known = sorted({c.layer for c in self.calls if c.kind == kind})
            raise Refused(f"no {kind} attention was seen in layer {layer}; there are {known}")
        return self._one(found, call, f"layer {layer} attended")

    def _streamed(self, what: str, kind: str, layer: int, call: int | None) -> Any:
        self._asked_for(what.split(" ")[0])
        return self._one(self._activations.at(what, kind, layer), call, f"layer {layer} ran")

    def _wanted(self, what: str, name: str) -> bool:
        return what in self._keep and (self._numbers is None or number_of(name) in self._numbers)

    def _asked_for(self, what: str) -> None:
        if what not in self._keep:
            raise Refused(f"'{what}' was not kept; ask for it before the pass: look(model, keep=('{what}',))")

    def _one(self, found: Sequence[Any], call: int | None, what: str) -> Any:
        """The call that is meant, the only one unless it is said."""
        if len(found) > 1 and call is None:
            raise Refused(
                f"{what} {len(found)} times in the block; say which one (call=0, call=-1),"
                " or replay the whole text"
            )
        if call is not None and not -len(found) <= call < len(found):
            raise Refused(f"{what} {len(found)} times in the block; there is no call {call}")
        return found[call or 0]


@contextmanager
def look(
    model: Any, *, layers: Iterable[int] | None = None, keep: str | Sequence[str] = ("attention",)
) -> Iterator[Seen]:
    """See what the passes inside the block do: any model that calls PyTorch's attention, or recurs.

    Gives a `Seen`, which answers inside the block and after it.

    model: an nn.Module, or what holds one as its
    `model`. layers: which to keep, by number from 0; None: all. keep: of 'attention', 'resid', 'ffn',
    'router', 'states'; each keeps tensors that the pass would have freed. Raises Refused for what cannot be
    looked into.
    """
    kept = frozenset([keep] if isinstance(keep, str) else keep)
    for what in sorted(kept):
        _one_of(what, KEEP, "thing to keep")
    seen = Seen(unwrapped(model), None if layers is None else frozenset(layers), kept)
    with edited(seen._activations.edits), seen._recorder:
        yield seen


def unwrapped(model: Any) -> nn.Module:
    """The module to look into: itself, or what it holds as `.model`; a compiled one is refused."""
    module = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(module, nn.Module):
        raise Refused(
            f"look wants an nn.Module, or what holds one as .model; this is a {type(model).__name__}"
        )
    if isinstance(module, torch._dynamo.eval_frame.OptimizedModule):
        raise Refused(
            "a compiled model carries no instrument; look at the module it was made of (._orig_mod)"
        )
    return module


def _one_of(given: str, known: Sequence[str], what: str) -> None:
    if given not in known:
        raise Refused(f"no {what} is called '{given}'{nearest(given, known)} there are {', '.join(known)}")
