"""Where things are in a model, told from the names of its modules: layers, sides, branches.

A layer is an entry of an outermost list of modules. Names are those of `named_modules`, ours and those of
`transformers` alike; TransformerLens's point names are understood too. Read next: look.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn

from transom.errors import Refused, nearest

CROSS = re.compile(r"cross|encoder_attn|EncDec|multihead_attn", re.IGNORECASE)
"""How attention to another text is called: ours, Marian's and BART's, T5's, torch's own decoder's."""
NO_TEXT = re.compile(r"pos|wpe|type|segment|relat", re.IGNORECASE)
"""How embeddings of other things than tokens are called."""
MIDDLE = {
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


def part_of(layer: nn.Module, names: tuple[str, ...] | dict[str, str]) -> tuple[str, nn.Module] | None:
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
