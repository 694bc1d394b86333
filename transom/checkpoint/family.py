"""What the table of a family is made of, and how it is applied: config.json in and out, names of weights.

Nothing here knows one family from another; the tables are in families. Read next: families.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from transom.errors import Refused
from transom.model.config import ModelConfig

from .config_keys import ConfigKeys

# What any folder may say that would change the arithmetic; only these values are what we compute.
ONLY: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "per_layer_config": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "num_local_experts": (None,),
    "num_experts": (None,),
}


@dataclass(frozen=True)
class Rule:
    """One module of theirs and the one or more of ours (joined along their outputs) that it holds.

    `#` stands for the number of a layer. `transposed`: their matrices are (in, out), as GPT-2's Conv1D.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """One family's table."""

    model_type: str
    architecture: str
    bare: str
    """The architecture without a head; it is read as well when the head is tied."""
    prefix: str
    """What names begin with; folders of the bare architecture leave it out."""
    rules: tuple[Rule, ...]
    numbers: Mapping[str, tuple[str, int | None]]
    """Field of ModelConfig -> (key, the family's default; None: it follows from others)."""
    parts: Mapping[str, Any]
    """Fields of ModelConfig that are the same in every model of this family."""
    read: Callable[[Family, ConfigKeys], dict[str, Any]]
    write: Callable[[Family, ModelConfig], dict[str, Any]]
    ids: Mapping[str, int | None] = field(default_factory=dict)
    """Defaults of bos_token_id and eos_token_id."""
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of a switch -> the fields it sets."""
    window: Literal["none", "all", "layers"] = "none"
    """Whether a sliding window is unknown, holds for every layer, or is chosen layer by layer."""
    even_width: bool = False
    """Whether transformers asks for a width that the heads share evenly, even when head_dim is given."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys with the only values that are supported; leaving the key out is always one."""
    ignored: str = r"(?!)"
    """Names of stored buffers that hold no weights (a pattern)."""


def read_config(family: Family, keys: ConfigKeys) -> ModelConfig:
    """The ModelConfig that a family's `config.json` describes; raises Refused naming a key not supported."""
    for key, values in (*ONLY.items(), *family.only.items()):
        if not keys.absent(key) and keys.get(key) not in values:
            raise keys.refuse(key, f"only {' or '.join(map(repr, values))} is supported")
    values = dict(family.parts) | family.read(family, keys)
    for name in ("bos", "eos", "pad"):
        key = f"{name}_token_id"
        values[f"{name}_id"] = keys.token_id(key, family.ids.get(key), values["vocab_size"])
    try:
        return canonical(ModelConfig(**values))
    except ValueError as error:
        raise Refused(f"{keys.where}: {error}") from None


def write_config(family: Family, config: ModelConfig) -> dict[str, Any]:
    """A family's `config.json` for a config that its table expresses, readable by transformers 4.5x and 5."""
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.write(family, config),
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
        "use_cache": True,
    }


def canonical(config: ModelConfig) -> ModelConfig:
    """The same model with fields that have no effect at their defaults: equal models compare equal."""
    changes: dict[str, Any] = {}
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
    if config.position != "rotary":
        changes |= {name: defaults[name] for name in ("rope_theta", "rope_scaling")}
    elif config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        changes["rope_scaling"] = type(config.rope_scaling)("linear", config.rope_scaling.factor)
    slides = config.window_layers or ()
    if config.window is None or (slides and not any(slides)):
        changes |= {"window": None, "window_layers": None}
    elif slides and all(slides):
        changes["window_layers"] = None
    return config.with_(**changes)


@dataclass(frozen=True)
class Stored:
    """One tensor of a folder: its name and shape there, and the parameters of ours that it holds."""

    name: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    transposed: bool = False


def stored_tensors(family: Family | None, shapes: Mapping[str, tuple[int, ...]]) -> list[Stored]:
    """What a folder of `family` holds for parameters of these names and shapes, in the model's order."""
    if family is None:
        return [Stored(name, tuple(shape), (name,)) for name, shape in shapes.items()]
    by_module = {rule.ours[0]: rule for rule in family.rules}
    stored = []
    for name, shape in shapes.items():
        module, leaf = name.rsplit(".", 1)
        layer = re.search(r"(?<=\.)\d+(?=\.)", module)
        rule = by_module.get(re.sub(r"(?<=\.)\d+(?=\.)", "#", module, count=1))
        if rule is None:
            continue  # held by the tensor of another (k_proj and v_proj by c_attn)
        number = layer[0] if layer else "#"
        ours = tuple(f"{module.replace('#', number)}.{leaf}" for module in rule.ours)
        shape = (sum(shapes[part][0] for part in ours), *shape[1:])
        turned = rule.transposed and len(shape) == 2
        theirs = f"{rule.theirs.replace('#', number)}.{leaf}"
        stored.append(Stored(theirs, shape[::-1] if turned else shape, ours, turned))
    return stored
