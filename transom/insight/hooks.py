"""Hooks on a model for one block of code and one thread: read or replace what enters and leaves modules.

Every view that needs more than the attention calls says which tensors it wants as a list of `Edit`s; `edited`
installs them and takes exactly those away again. A server may run the same model in another thread meanwhile,
which sees nothing of them. Read next: activations, ablation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True)
class Edit:
    """Read or replace a tensor where it enters or leaves a module."""

    module: nn.Module
    side: Literal["in", "out", "whole"]
    """The first thing that goes in, the first that comes out, or all that comes out where that is several."""
    change: Callable[[Any], Any]
    """Gets the tensor and gives the one to put in its place; None leaves it as it is."""


@contextmanager
def edited(edits: Sequence[Edit]) -> Iterator[None]:
    """Make some edits in every forward pass of this thread inside the block; nothing is left behind."""
    thread = threading.get_ident()
    handles = []
    try:
        for edit in edits:
            if edit.side == "in":
                handles.append(edit.module.register_forward_pre_hook(_before(edit, thread), with_kwargs=True))
            else:
                handles.append(edit.module.register_forward_hook(_after(edit, thread)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(edit: Edit, thread: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if threading.get_ident() != thread or not (args or kwargs):
            return None
        name = None if args else next(iter(kwargs))
        changed = edit.change(args[0] if name is None else kwargs[name])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    return hook


def _after(edit: Edit, thread: int) -> Any:
    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        if edit.side == "whole" or not isinstance(out, tuple):
            return edit.change(out)
        changed = edit.change(out[0])
        return None if changed is None else (changed, *out[1:])

    return hook
