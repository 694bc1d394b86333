"""Find the parts of a model: layers, sides, branches, embeddings, heads, the way out.

Modules are found by where they stand and what they are called, in our models and in plain `transformers`
ones; TransformerLens's point names are understood too. A part that is not found is refused with its name,
never skipped. Read next: hooks, activations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from transom.errors import Refused, nearest
from transom.model.experts import Router
from transom.model.recurrent import Recurrent
from transom.model.transformer import Transformer

CROSS = re.compile(r"cross|encoder_attn|EncDec|multihead_attn", re.IGNORECASE)
"""How attention to another text is called: ours, Marian's and BART's, T5's, torch's own decoder's."""
NO_TEXT = re.compile(r"pos|wpe|type|segment|relat", re.IGNORECASE)
"""How embeddings of other things than tokens are called."""
MIDDLE: dict[str, Literal["in", "out"]] = {
    "ffn_norm": "in", "post_attention_layernorm": "in", "ln_2": "in",  # ours, Llama's, GPT-2's
    "attention": "out", "self_attn_layer_norm": "out",  # BERT's, Marian's: normed after
}  # fmt: skip
"""The part of a layer next to which the residual stream stands between attention and feed-forward."""
BRANCH = ("ffn", "mlp", "feed_forward", "block_sparse_moe", "fc2", "output.dense")
"""The part of a layer that gives what its feed-forward adds."""
DOWN = (
    "ffn.down_proj", "mlp.down_proj", "mlp.c_proj", "fc2", "mlp.fc2", "output.dense", "mlp.dense_4h_to_h",
)  # fmt: skip
"""The last matrix of a feed-forward: what it reads are the activations of its neurons."""
ALIASES = {
    "hook_resid_pre": ("resid", "before"), "hook_resid_mid": ("resid", "middle"),
    "hook_resid_post": ("resid", "after"), "attn.hook_pattern": ("attention", ""),
    "hook_mlp_out": ("ffn", "out"), "mlp.hook_post": ("ffn", "inner"),
}  # fmt: skip
"""TransformerLens's names of points, behind `blocks.5.`."""
HEADS_OUT = (
    "attn.o_proj", "self_attn.o_proj", "self_attn.out_proj", "attn.c_proj", "attention.output.dense",
    "attn.out_proj", "attention.dense", "attention.o_proj",
)  # fmt: skip
"""The projection of all heads together, seen from a block."""
FINAL_NORM = ("final_norm", "norm", "ln_f", "final_layer_norm", "final_layernorm")
N_HEADS = ("n_heads", "num_attention_heads", "n_head")


class Layer(NamedTuple):
    """One layer: its module, the module's name, and its number on its side."""

    name: str
    module: nn.Module
    number: int
    side: str
    """'encoder' where another stack reads what this one writes; otherwise 'self'."""


def names_of(model: nn.Module) -> dict[int, str]:
    """The name of every module, by its table of parameters, which copies made for speed share."""
    return {id(module._parameters): name or "model" for name, module in model.named_modules()}


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers from the bottom up, those of the encoder first."""
    found: list[Layer] = []
    taken: list[str] = []
    two = has_two_sides(model)
    for name, module in model.named_modules():
        inside = any(name.startswith(other + ".") for other in taken)
        if not isinstance(module, nn.ModuleList) or inside or not len(module):
            continue
        taken.append(name)
        side = side_of(name, two)
        found += [Layer(f"{name}.{i}", part, i, side) for i, part in enumerate(module)]
    return sorted(found, key=lambda layer: layer.side != "encoder")


def has_two_sides(model: nn.Module) -> bool:
    """Whether one stack reads what another writes."""
    return any(CROSS.search(name) for name, _ in model.named_modules()) or (
        hasattr(model, "encoder") and hasattr(model, "bridge")
    )


def side_of(name: str, two: bool) -> str:
    """'encoder', 'cross' or 'self': which attention a module of that name is."""
    if CROSS.search(name) or (two and name == "attn"):  # the one attention of a recurrent translator
        return "cross"
    return "encoder" if two and "encoder" in name.split(".") else "self"


def number_of(name: str) -> int | None:
    """The number of the layer in a name, the first one: 3 of layers.3.attn; None without any."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def part_of(layer: nn.Module, names: Iterable[str]) -> tuple[str, nn.Module] | None:
    """The first of `names` that a layer has, with its module."""
    parts = dict(layer.named_modules())
    return next(((name, parts[name]) for name in names if name in parts), None)


def alias(point: str) -> tuple[int, str, str]:
    """A TransformerLens name as (layer, what, at): blocks.5.hook_resid_pre -> (5, 'resid', 'before')."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", point)
    if found is None or found[2] not in ALIASES:
        known = [f"blocks.0.{name}" for name in ALIASES]
        raise Refused(f"no point is called '{point}'{nearest(point, known)} there are {', '.join(known)}")
    return int(found[1]), *ALIASES[found[2]]


def router_of(layer: nn.Module) -> Router | None:
    """The router inside a layer, if it has one."""
    return next((module for module in layer.modules() if isinstance(module, Router)), None)


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
        found = {i: router for i, block in enumerate(self.blocks) if (router := router_of(block)) is not None}
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
