"""What flows between the layers: hooks that keep it inside a `look` block, and are gone after it.

The residual stream before, in the middle of and after a layer; what the feed-forward adds and its neurons;
which experts the router chose. A point is kept by reference, detached. Hooks answer
only the thread that looks: a server may run the same model beside. Read next: look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from transom.errors import Refused
from transom.model.experts import Router

from .points import BRANCH, DOWN, MIDDLE, Layer, part_of

Key = tuple[str, str, int]
"""(what and where, side, layer): ('resid before', 'self', 3)."""


class ActivationRecorder:
    """What hooks have kept: for each point a list, one entry a forward pass."""

    def __init__(self, layers: Iterable[Layer], keep: frozenset[str]) -> None:
        self.layers, self.keep = list(layers), keep
        self.kept: dict[Key, list[Any]] = {}
        self._thread = threading.get_ident()
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Hook the points that were asked for."""
        for layer in self.layers:
            if "resid" in self.keep:
                self._residual(layer)
            if "ffn" in self.keep:
                self._branch(layer)
            if "router" in self.keep:
                router = router_of(layer.module)
                if router is not None:
                    n_experts = router.experts.n_experts
                    self._after(router, self._key("router", layer), lambda out, n=n_experts: (*out, n))

    def remove(self) -> None:
        """Take exactly those hooks away again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

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
        before, after = (self._key(f"resid {at}", layer) for at in ("before", "after"))
        self._handles.append(layer.module.register_forward_pre_hook(self._reading(before), with_kwargs=True))
        self._after(layer.module, after, _first)
        middle = part_of(layer.module, MIDDLE)
        if middle is not None:
            name, module = middle
            key = self._key("resid middle", layer)
            if MIDDLE[name] == "in":
                self._handles.append(module.register_forward_pre_hook(self._reading(key), with_kwargs=True))
            else:
                self._after(module, key, _first)

    def _branch(self, layer: Layer) -> None:
        branch, down = part_of(layer.module, BRANCH), part_of(layer.module, DOWN)
        if branch is not None:
            self._after(branch[1], self._key("ffn out", layer), _first)
        if down is not None:
            inner = self._key("ffn inner", layer)
            self._handles.append(down[1].register_forward_pre_hook(self._reading(inner), with_kwargs=True))

    def _key(self, what: str, layer: Layer) -> Key:
        return what, layer.side, layer.number

    def _after(self, module: nn.Module, key: Key, of: Callable[[Any], Any]) -> None:
        self._handles.append(module.register_forward_hook(self._keeping(key, lambda _, out: of(out))))

    def _keeping(self, key: Key, of: Callable[[Any, Any], Any]) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            if threading.get_ident() == self._thread:
                self.kept.setdefault(key, []).append(_detached(of(given, out)))

        return hook

    def _reading(self, key: Key) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, named: Any) -> None:
            if threading.get_ident() == self._thread:
                read = given[0] if given else next(iter(named.values()))
                self.kept.setdefault(key, []).append(_detached(read))

        return hook


def router_of(layer: nn.Module) -> Router | None:
    """The router inside a layer, if it has one."""
    return next((module for module in layer.modules() if isinstance(module, Router)), None)


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


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
