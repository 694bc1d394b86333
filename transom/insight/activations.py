"""Keep what flows between the layers: the residual stream, the feed-forward, the choices of routers.

Inside a `look` block the `ActivationRecorder` keeps its points by reference, detached; `residual_stream` and
`embedded` give one run's stream with its graph, for views that differentiate. Read next: look, lens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transom.errors import Refused
from transom.model.recurrent import Recurrent

from .hooks import Edit, edited
from .module_finder import BRANCH, DOWN, MIDDLE, Layer, ModelParts, part_of, router_of

Key = tuple[str, str, int]
"""(what and where, side, layer): ('resid before', 'self', 3)."""


class ActivationRecorder:
    """What hooks have kept: for each point a list, one entry a forward pass."""

    def __init__(self, layers: Iterable[Layer], keep: frozenset[str]) -> None:
        self.layers = list(layers)
        self.kept: dict[Key, list[Any]] = {}
        self.edits: list[Edit] = []
        for layer in self.layers:
            if "resid" in keep:
                self._residual(layer)
            if "ffn" in keep:
                self._feed_forward(layer)
            router = router_of(layer.module) if "router" in keep else None
            if router is not None:
                n_experts = router.experts.n_experts
                self._keep("router", layer, router, "whole", lambda out, n=n_experts: (*out, n))

    def at(self, what: str, side: str, layer: int) -> list[Any]:
        """What one point kept, pass by pass; raises Refused with the reason when there is nothing."""
        word = what.split(" ")[0]
        known = [kept.number for kept in self.layers if kept.side == side]
        if layer not in known:
            raise Refused(f"there is no layer {layer} here; '{word}' has {_range(known)}")
        passes = self.kept.get((what, side, layer), [])
        if not passes:
            raise Refused(f"nothing came by at '{what}' of layer {layer}: {_why(what)}")
        return passes

    def _residual(self, layer: Layer) -> None:
        self._keep("resid before", layer, layer.module, "in")
        self._keep("resid after", layer, layer.module, "out")
        middle = part_of(layer.module, MIDDLE)
        if middle is not None:
            self._keep("resid middle", layer, middle[1], MIDDLE[middle[0]])

    def _feed_forward(self, layer: Layer) -> None:
        branch, down = part_of(layer.module, BRANCH), part_of(layer.module, DOWN)
        if branch is not None:
            self._keep("ffn out", layer, branch[1], "out")
        if down is not None:
            self._keep("ffn inner", layer, down[1], "in")

    def _keep(
        self,
        what: str,
        layer: Layer,
        module: nn.Module,
        side: Literal["in", "out", "whole"],
        of: Callable[[Any], Any] = lambda x: x,
    ) -> None:
        def keep(x: Any) -> None:
            self.kept.setdefault((what, layer.side, layer.number), []).append(_detached(of(x)))

        self.edits.append(Edit(module, side, keep))


def _detached(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach()
    if isinstance(x, tuple | list):
        return tuple(_detached(part) for part in x)
    return x


def _range(known: list[int]) -> str:
    return f"layers {min(known)} to {max(known)}" if known else "no layers in this model"


def _why(what: str) -> str:
    reasons = {
        "resid middle": "this kind of layer has no place between attention and feed-forward that is known",
        "ffn out": "this kind of layer has no feed-forward that is known",
        "ffn inner": "this kind of layer has no last matrix of a feed-forward that is known",
        "router": "this layer has no router (of models that are not ours none is known)",
    }
    return reasons.get(what, "the model did not run in the block, or this layer is no module that is called")


def shares(chosen: Tensor, weights: Tensor, n_experts: int) -> Tensor:
    """The weight of every expert for every token, 0 where it was not chosen: (N, E) float32."""
    dense = torch.zeros(len(chosen), n_experts, device=chosen.device)
    return dense.scatter_(1, chosen, weights.float())


def residual_stream(
    parts: ModelParts, run: Callable[[], Any], layers: Sequence[int] | None = None
) -> list[Tensor]:
    """The residual stream before each of some blocks and, last, after them all: (B, L, D) each.

    `run` is called once. Of a recurrence: what goes into each layer, and the state of the last.
    """
    if isinstance(parts.model, Recurrent):
        return _recurrent_stream(parts.model, run)
    kept: list[Tensor] = []
    chosen = range(parts.n_layers) if layers is None else layers
    edits = [Edit(parts.blocks[layer], "in", kept.append) for layer in chosen]
    with edited([*edits, Edit(parts.blocks[-1], "out", kept.append)]):
        run()
    return kept


def _recurrent_stream(model: Recurrent, run: Callable[[], Any]) -> list[Tensor]:
    """A recurrence is followed by its own structure: the model runs its layers past their hooks."""
    if model.config.kind != "decoder":
        raise Refused("the layers of a recurrent encoder-decoder cannot be followed; a language model's can")
    kept: list[Tensor] = []
    with edited([Edit(model.embed, "out", kept.append)]):
        run()
    x = kept[0] * model.config.dim**0.5 if model.config.scale_embeddings else kept[0]
    out = [x]
    for layer in model.layers:
        x = layer(x)
        out.append(x)
    return out


def embedded(parts: ModelParts, run: Callable[[], Tensor], which: int = 0) -> tuple[Tensor, Tensor]:
    """Run with one call of the embedding made a leaf: what `run` gives, and the leaf (B, L, D)."""
    leaves: list[Tensor] = []

    def cut(out: Tensor) -> Tensor:
        leaves.append(out.detach().requires_grad_())
        return leaves[-1]

    with edited([Edit(parts.embedding, "out", cut)]), torch.enable_grad():
        result = run()
    return result, leaves[which]
