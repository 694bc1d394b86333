"""Record the gradients of a training step along the residual stream, and a few figures of health.

`record_gradients(model)` keeps, inside its block, where the gradient of the residual stream passes each
layer, and how entropy of attention, units that no token moves and the load of experts stand. Read next: look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from transom.errors import Refused

from .attention_recorder import AttentionRecorder
from .hooks import Edit, edited
from .look import unwrapped
from .maps import Call, Mismatch
from .module_finder import (
    DOWN,
    MIDDLE,
    Layer,
    has_two_sides,
    layers_of,
    names_of,
    number_of,
    part_of,
    router_of,
    side_of,
)

DEAD = 1e-6
"""A unit is dead when no token moves it by more than this share of its layer's largest activation."""
ROWS = 8
"""Queries of a text whose entropy is taken, evenly spread."""
AT = ("before", "middle", "after")


class GradientRecorder:
    """Gradients and figures of the passes of one block; of several passes, the first unless asked."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self._two = model, has_two_sides(model)
        self.layers = layers_of(model)
        self.recorder = AttentionRecorder(names_of(model), lambda what, name: what == "attention")
        self._grads: dict[tuple[str, int, str], list[Tensor]] = {}
        self._largest: dict[tuple[str, int], Tensor] = {}
        self._load: dict[tuple[str, int], Tensor] = {}

    def resid(self, layer: int, at: str = "before", *, kind: str = "self", call: int = 0) -> Tensor:
        """The gradient (B, L, D) of the residual stream before, in the middle of or after a layer."""
        found = self._grads.get((kind, layer, at), [])
        if not found:
            raise Refused(
                f"no gradient passed '{at}' of layer {layer}: run forward and backward inside the block,"
                " outside of torch.no_grad() and uncompiled"
            )
        return found[call]

    def branch(self, layer: int, which: str, *, kind: str = "self", call: int = 0) -> Tensor:
        """The gradient (B, L, D) that comes back through one branch alone: 'attention' or 'ffn'.

        The residual path carries the gradient on unchanged; what is added to it came through the branch.
        Raises Refused where a norm stands on the residual path itself.
        """
        config = getattr(self.model, "config", None)
        if getattr(config, "norm_position", "before") != "before":
            raise Refused(
                "this model norms after the sum: no part of its gradient is the residual path's alone"
            )
        upper, lower = {"ffn": ("after", "middle"), "attention": ("middle", "before")}[which]
        return self.resid(layer, lower, kind=kind, call=call) - self.resid(layer, upper, kind=kind, call=call)

    def norms(self, kind: str = "self") -> Tensor:
        """Norms (n_layers + 1, B, L) of the gradient before each layer and, last, after them all."""
        numbers = [layer.number for layer in self.layers if layer.side == kind]
        grads = [self.resid(number, kind=kind) for number in numbers]
        return torch.stack(
            [g.float().norm(dim=-1) for g in (*grads, self.resid(numbers[-1], "after", kind=kind))]
        )

    def dead(self, layer: int, kind: str = "self") -> float:
        """The share of a layer's feed-forward units that no token moved."""
        largest = self._largest.get((kind, layer))
        if largest is None:
            raise Refused(f"layer {layer} has no feed-forward whose units are known, or it did not run")
        return float((largest <= DEAD * largest.max()).float().mean())

    def load(self, layer: int, kind: str = "self") -> Tensor:
        """The share of choices that went to each expert: (E,) float32."""
        counts = self._load.get((kind, layer))
        if counts is None:
            raise Refused(f"layer {layer} has no router, or it did not run")
        return counts / counts.sum()

    @torch.no_grad()
    def entropy(self, layer: int, kind: str = "self") -> Tensor:
        """Mean entropy (H,) of a few rows of attention of the first text, in nats; checked like every map."""
        calls = [
            Call(kept, number_of(kept.name) or 0, side_of(kept.name, self._two))
            for kept in self.recorder.kept
        ]
        call = next((c for c in calls if (c.layer, c.kind) == (layer, kind)), None)
        if call is None:
            raise Refused(f"no {kind} attention was seen in layer {layer}")
        n = call.shape[2]
        rows = sorted({round(i * (n - 1) / (ROWS - 1)) for i in range(ROWS)})
        entropies = [torch.special.entr(call.rows(slice(r, r + 1))[0]).sum(-1)[:, 0] for r in rows]
        return torch.stack(entropies).float().mean(0)

    def figures(self) -> dict[str, dict[str, float]]:
        """A few figures by layer for a log; what a model does not have is left out.

        grad_norm: of the residual stream before the layer. attention_entropy: nats, mean of heads.
        dead_units: share. router_load: the busiest expert's share of the choices.
        """
        of = {
            "grad_norm": lambda n, side: float(self.resid(n, kind=side).float().norm()),
            "attention_entropy": lambda n, side: float(self.entropy(n, side).mean()),
            "dead_units": self.dead,
            "router_load": lambda n, side: float(self.load(n, side).max()),
        }
        found: dict[str, dict[str, float]] = {}
        for name, figure in of.items():
            for layer in self.layers:
                key = str(layer.number) if layer.side == "self" else f"{layer.side} {layer.number}"
                try:
                    found.setdefault(name, {})[key] = figure(layer.number, layer.side)
                except Mismatch:
                    raise
                except Refused:
                    continue
        return {name: values for name, values in found.items() if values}

    def _watched(self, layer: Layer) -> Iterator[Edit]:
        """The hooks of one layer."""
        yield Edit(layer.module, "in", self._gradient(layer, "before"))
        yield Edit(layer.module, "out", self._gradient(layer, "after"))
        if (middle := part_of(layer.module, MIDDLE)) is not None:
            yield Edit(middle[1], MIDDLE[middle[0]], self._gradient(layer, "middle"))
        if (down := part_of(layer.module, DOWN)) is not None:
            yield Edit(down[1], "in", self._units(layer))
        if (router := router_of(layer.module)) is not None:
            yield Edit(router, "whole", self._routed(layer, router.experts.n_experts))

    def _gradient(self, layer: Layer, at: str) -> Callable[[Any], None]:
        key = (layer.side, layer.number, at)

        def note(x: Any) -> None:
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(lambda grad: self._grads.setdefault(key, []).append(grad.detach()))

        return note

    def _units(self, layer: Layer) -> Callable[[Tensor], None]:
        key = (layer.side, layer.number)

        def note(x: Tensor) -> None:
            largest = x.detach().abs().flatten(0, -2).amax(0).float()
            known = self._largest.get(key)
            self._largest[key] = largest if known is None else torch.maximum(known, largest)

        return note

    def _routed(self, layer: Layer, n_experts: int) -> Callable[[tuple[Tensor, ...]], None]:
        key = (layer.side, layer.number)

        def note(out: tuple[Tensor, ...]) -> None:
            counts = torch.bincount(out[0].detach().flatten(), minlength=n_experts).float()
            self._load[key] = self._load[key] + counts if key in self._load else counts

        return note


@contextmanager
def record_gradients(model: Any) -> Iterator[GradientRecorder]:
    """Keep the gradients of a training step: run forward and backward inside the block, uncompiled."""
    kept = GradientRecorder(unwrapped(model))
    with edited([edit for layer in kept.layers for edit in kept._watched(layer)]), kept.recorder:
        yield kept
