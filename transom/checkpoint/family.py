"""What the table of a family is made of, and how it is applied: config.json in and out, names of weights.

Nothing here knows one family from another; the tables are in the files that families names.
Read next: families, weight_mapping.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from transom.errors import Refused
from transom.model.config import ModelConfig

from .config_keys import ConfigKeys
from .config_labels import read_labels, write_labels
from .experts import ExpertKeys

# What any folder may say that would change the arithmetic; only these values are what we compute, unless the
# family says otherwise.
ONLY: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "per_layer_config": (None,),
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "num_local_experts": (None,),
    "num_experts": (None,),
    "n_routed_experts": (None,),
}


@dataclass(frozen=True)
class Rule:
    """One module of theirs and the one or more of ours (joined along their outputs) that it holds.

    Either names are of modules, whose weight and bias go by the same name, or of single parameters. `#`
    stands for the number of a layer, `@` for that of an expert: one tensor of theirs for each in ours.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    """Their matrices are (in, out), as GPT-2's Conv1D."""
    as_row: bool = False
    """Their vector is a matrix of one row."""
    interleaved: str | None = None
    """Field of ModelConfig that counts heads, in each of which the channels that are turned together lie side
    by side; ours lie half a head apart."""
    when: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ModelConfig that it holds for."""

    def holds(self, config: ModelConfig) -> bool:
        """Whether a model of `config` has its weights there."""
        return all(getattr(config, name) == value for name, value in self.when.items())


def named(table: Mapping[str, str], **when: Any) -> tuple[Rule, ...]:
    """A rule for each line of a table of their names and ours, all under the same conditions."""
    return tuple(Rule(theirs, (ours,), when=when) for theirs, ours in table.items())


@dataclass(frozen=True)
class Window:
    """How a family spells a sliding window."""

    default: int | None
    """`sliding_window` where the key is left out."""
    switched: bool = False
    """It slides only when `use_sliding_window` is true."""
    first: int | None = None
    """`max_window_layers` where that is left out, the first layer that slides; None: every layer does."""


@dataclass(frozen=True)
class Family:
    """One family's table."""

    model_type: str
    architectures: Mapping[str, str]
    """Name of an architecture -> the head that it puts on; the first one of each head is written."""
    prefix: str
    """What names begin with; folders of the architecture without a head leave it out."""
    rules: tuple[Rule, ...]
    numbers: Mapping[str, tuple[str, int | None]]
    """Field of ModelConfig -> (key, the family's default; None: it follows from others)."""
    parts: Mapping[str, Any]
    """Fields of ModelConfig that are the same in every model of this family."""
    read: Callable[[Family, ConfigKeys], dict[str, Any]]
    write: Callable[[Family, ModelConfig], dict[str, Any]]
    head_parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same for one head."""
    ids: Mapping[str, int | None] = field(default_factory=dict)
    """Defaults of the ids of special tokens."""
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of a switch -> the fields it sets."""
    window: Window | None = None
    experts: ExpertKeys | None = None
    even_width: bool = False
    """Whether transformers asks for a width that the heads share evenly, even when head_dim is given."""
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    activation: str = "silu"
    dropout: float = 0.0
    """Defaults of what a folder may leave out (families that descend from Llama)."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys with the only values that are supported; leaving the key out is always one."""
    tied_copies: Mapping[str, str] = field(default_factory=dict)
    """Tensors that some folders store besides -> the parameter of ours that they must equal."""
    derived_tensors: Mapping[str, Callable[[ModelConfig], Tensor]] = field(default_factory=dict)
    """Tensors that some folders store though they follow from the config -> what they must be."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Patterns of names that other versions of the library use -> what they are called here."""
    fused: tuple[Rule, ...] = ()
    """Rules that replace those of the same parameters where a folder holds all experts in one tensor."""
    empty_tensors: Callable[[ModelConfig], Iterable[tuple[str, tuple[int, ...]]]] = lambda config: ()
    """Tensors without a number in them that readers of the family ask for: names and shapes."""
    ignored: str = r"(?!)"
    """Names of stored tensors that take no part in what is computed here (a pattern)."""

    @property
    def architecture(self) -> str:
        """The architecture that a folder without that key has."""
        return next(iter(self.architectures))

    def architecture_of(self, config: ModelConfig) -> str:
        """The architecture that a model of `config` is written as."""
        return next(name for name, head in self.architectures.items() if head == config.head)


def read_config(family: Family, keys: ConfigKeys, head: str = "tokens") -> ModelConfig:
    """The ModelConfig that a family's `config.json` describes; raises Refused naming a key not supported."""
    spelled = {key for key, _ in family.numbers.values()}
    spelled |= set(family.experts.n_experts) if family.experts else set()
    for key, allowed in (ONLY | dict(family.only)).items():
        if key not in spelled and not keys.absent(key) and keys.get(key) not in allowed:
            raise keys.refuse(key, f"only {' or '.join(map(repr, allowed))} is supported")
    values: dict[str, Any] = dict(family.parts) | family.read(family, keys) | {"head": head}
    values |= family.head_parts.get(head, {})
    if head in ("classify", "tag"):
        values["labels"] = read_labels(keys)
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
        "architectures": [family.architecture_of(config)],
        "model_type": family.model_type,
        **family.write(family, config),
        **write_labels(config),
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
        "use_cache": True,
    }


DEFAULTS = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
WITHOUT_EFFECT: tuple[tuple[Callable[[ModelConfig], bool], tuple[str, ...]], ...] = (
    (lambda c: c.position != "rotary", ("rope_theta", "rope_scaling")),
    (lambda c: c.position != "learned", ("position_offset",)),
    (lambda c: c.position != "relative", ("relative_buckets", "relative_max_distance")),
    (lambda c: not c.qk_norm, ("qk_norm_over",)),
    (lambda c: c.window is None or not any(c.window_layers or (True,)), ("window", "window_layers")),
    (lambda c: all(c.window_layers or ()), ("window_layers",)),
    (lambda c: c.head != "tokens", ("tie_embeddings", "head_transform", "head_bias", "logit_scale")),
    (lambda c: c.head not in ("classify", "tag"), ("labels",)),
    (lambda c: c.head not in ("classify", "embed"), ("pooling",)),
    (lambda c: c.head != "embed", ("normalize",)),
    (lambda c: c.kind != "encoder-decoder", ("start_id",)),
)
"""When a field has no effect -> the fields."""


def canonical(config: ModelConfig) -> ModelConfig:
    """The same model with fields that have no effect at their defaults: equal models compare equal."""
    changes: dict[str, Any] = {}
    for without, names in WITHOUT_EFFECT:
        if without(config):
            changes |= {name: DEFAULTS[name] for name in names}
    scaling, experts = config.rope_scaling, config.experts
    if "rope_scaling" not in changes and scaling is not None and scaling.kind == "linear":
        changes["rope_scaling"] = type(scaling)("linear", scaling.factor)
    if experts is not None and not experts.first_dense:
        changes["ffn_dim"] = experts.ffn_dim  # no layer has a plain feed-forward
    if experts is not None and experts.balance == "none":
        changes["experts"] = dataclasses.replace(experts, balance_rate=type(experts).balance_rate)
    return config.with_(**changes)


@dataclass(frozen=True)
class Stored:
    """One tensor of a folder: its name and shape there, and the parameters of ours that it holds."""

    name: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    transposed: bool = False
    expert: int | None = None
    """It holds this one of the experts in ours."""
    interleaved: int | None = None
    """Rows of so many heads lie in the order that `Rule.interleaved` tells of."""

    @property
    def axis(self) -> int:
        """Where several of ours are joined: along their outputs."""
        return 1 if len(self.shape) == 3 else 0


LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def stored_tensors(
    family: Family | None, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], fused: bool = False
) -> list[Stored]:
    """What a folder of `family` holds for parameters of these names and shapes, in the model's order."""
    if family is None:
        return [Stored(name, tuple(shape), (name,)) for name, shape in shapes.items()]
    chosen = [rule for rule in family.rules if rule.holds(config)] + list(family.fused if fused else ())
    rules = {rule.ours[0]: rule for rule in chosen}
    joined = {other for rule in rules.values() for other in rule.ours[1:]}
    stored: list[Stored] = []
    for name in shapes:
        layer = LAYER.search(name)
        generic = LAYER.sub("#", name, count=1)
        whole, _, leaf = generic.rpartition(".")
        rule, tail = (rules.get(generic), "") if generic in rules else (rules.get(whole), f".{leaf}")
        if generic in joined or whole in joined:
            continue  # held by the tensor of another (k_proj and v_proj by c_attn)
        if rule is None:
            raise ValueError(f"{family.model_type} has no place for {name}")
        heads = getattr(config, rule.interleaved) if rule.interleaved else None
        for one in _of_rule(rule, tail, layer[0] if layer else "#", shapes):
            stored.append(dataclasses.replace(one, interleaved=heads))
    return stored


def _of_rule(rule: Rule, tail: str, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Stored]:
    """The tensors of theirs that one rule gives in one layer."""
    theirs = rule.theirs.replace("#", layer) + tail
    ours = tuple(part.replace("#", layer) + tail for part in rule.ours)
    shape = shapes[ours[0]]
    if "@" in theirs:
        each = range(shape[0])
        return [Stored(theirs.replace("@", str(i)), shape[1:], ours, expert=i) for i in each]
    if len(ours) > 1:
        axis = 1 if len(shape) == 3 else 0
        total = sum(shapes[part][axis] for part in ours)
        shape = (*shape[:axis], total, *shape[axis + 1 :])
    turned = rule.transposed and len(shape) == 2
    shape = (1, *shape) if rule.as_row else shape
    return [Stored(theirs, shape[::-1] if turned else shape, ours, turned)]
