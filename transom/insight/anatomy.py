"""Where the parts of a model are: embeddings, blocks, the branches of a block, the heads, the way out.

Views that change a run, or need what stands between two layers, find the modules here by where they stand and
what they are called, in our models and in plain `transformers` ones; a part that is not found is refused with
its name, never skipped. `edited` puts hooks on for one block of code and takes exactly those away.
Read next: ablation, patching.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import Refused
from ..model.experts import Router
from ..model.recurrent import Recurrent
from ..model.transformer import Transformer
from .points import BRANCH, layers_of, part_of

HEADS_OUT = (
    "attn.o_proj", "self_attn.o_proj", "self_attn.out_proj", "attn.c_proj", "attention.output.dense",
    "attn.out_proj", "attention.dense", "attention.o_proj",
)  # fmt: skip
"""The projection of all heads together, seen from a block."""
FINAL_NORM = ("final_norm", "norm", "ln_f", "final_layer_norm", "final_layernorm")
N_HEADS = ("n_heads", "num_attention_heads", "n_head")


@dataclass(frozen=True)
class Edit:
    """What happens to a tensor where it enters or leaves a module; None: it is only looked at."""

    module: nn.Module
    side: Literal["in", "out", "whole"]
    """What goes in first, what comes out first, or all that comes out where that is several things."""
    change: Callable[[Any], Any]


@dataclass(frozen=True)
class ModelParts:
    """The parts of one model."""

    model: nn.Module
    embedding: nn.Module
    blocks: tuple[nn.Module, ...]
    n_heads: int

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def heads_out(self, layer: int) -> nn.Module:
        """The projection whose input is the outputs of all heads, (B, L, H * K)."""
        return self._part(layer, HEADS_OUT, "the projection after the heads")

    def feed_forward(self, layer: int) -> nn.Module:
        """The module whose output is the feed-forward branch."""
        return self._part(layer, BRANCH, "the feed-forward")

    def routers(self) -> dict[int, Router]:
        """The routers of a mixture of experts, by layer. Raises `Refused` where nothing is routed."""
        found = {
            layer: part
            for layer, block in enumerate(self.blocks)
            for part in block.modules()
            if isinstance(part, Router)
        }
        if not found:
            raise Refused("this model routes nothing to experts: each token goes through the whole of it")
        return found

    def branches(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """The norms before the two branches of a pre-norm block of ours: where its stream can be cut."""
        if not isinstance(self.model, Transformer) or self.model.config.norm_position != "before":
            raise Refused("the branches can be told from the residual path only in a pre-norm Transformer of "
                          "Transom: elsewhere a norm, or a gate, stands on that path itself")  # fmt: skip
        block: Any = self.blocks[layer]
        return block.attn_norm, block.ffn_norm

    def unembed(self, resid: Tensor) -> Tensor:
        """The residual stream (..., D) between two blocks as the model would read it at its end: (..., V)."""
        model: Any = self.model
        if isinstance(model, Recurrent):
            return model.logits(resid)
        if isinstance(model, Transformer):
            if model.config.head != "tokens":
                raise Refused(f"a head that can {model.config.head} has no vocabulary to read layers with")
            return model.logits(model.final_norm(resid) if model.config.norm_position == "before" else resid)
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None:
            raise Refused(f"{type(model).__name__} has no output embeddings to read layers with")
        norm = next((part for name, part in model.named_modules() if name.count(".") == 1
                     and name.rpartition(".")[2] in FINAL_NORM), None)  # fmt: skip
        return head(resid if norm is None else norm(resid)).float()

    def _part(self, layer: int, names: Sequence[str], what: str) -> nn.Module:
        block = self.blocks[layer]
        found = part_of(block, tuple(names))
        if found is not None:
            return found[1]
        raise Refused(f"{what} was not found in layer {layer}, a {type(block).__name__}; known names are "
                      f"{', '.join(names)}")  # fmt: skip


def model_parts(model: nn.Module) -> ModelParts:
    """Find the parts of a model; of an encoder-decoder those of its decoder. Raises `Refused`."""
    if isinstance(model, (Transformer, Recurrent)):
        return ModelParts(model, model.embed, tuple(model.layers), model.config.n_heads)
    blocks = tuple(layer.module for layer in layers_of(model) if layer.side == "self")
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    heads = next((value for name in N_HEADS if (value := getattr(model.config, name, None))), None) if (
        hasattr(model, "config")) else None  # fmt: skip
    if not blocks or embedding is None or heads is None:
        lacks = "a list of layers" if not blocks else "input embeddings" if embedding is None else "n_heads"
        raise Refused(f"{type(model).__name__}: {lacks} cannot be found; models of Transom and of "
                      "transformers can be looked into layer by layer")  # fmt: skip
    return ModelParts(model, embedding, blocks, heads)


@contextmanager
def edited(edits: Sequence[Edit]) -> Iterator[None]:
    """Make some edits in every forward pass of this thread inside the block; nothing is left behind.

    Of this thread only: a server may answer others with the same model meanwhile.
    """
    handles = []
    try:
        for edit in edits:
            if edit.side == "in":
                hook = _before(edit.change)
                handles.append(edit.module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                hook = _after(edit.change, whole=edit.side == "whole")
                handles.append(edit.module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(change: Callable[[Tensor], Tensor | None]) -> Any:
    thread = threading.get_ident()

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if threading.get_ident() != thread:
            return None
        if args:
            changed = change(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        changed = change(kwargs["hidden_states"])
        return None if changed is None else (args, {**kwargs, "hidden_states": changed})

    return hook


def _after(change: Callable[[Any], Any], whole: bool) -> Any:
    thread = threading.get_ident()

    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        if whole or not isinstance(out, tuple):
            return change(out)
        changed = change(out[0])
        return None if changed is None else (changed, *out[1:])

    return hook


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
