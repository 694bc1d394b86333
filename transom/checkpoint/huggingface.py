"""A model folder, in and out: what `transformers`, vLLM and llama.cpp read is what is read and written here.

config.json names a family; its table (families) says what the model is and where its weights stand. Nothing
in a folder is ever run: no pickle, no `auto_map`. Shapes are compared with the headers of the files before
any memory is taken, so a lying config costs nothing. Read next: families, weight_mapping, sentence.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from transom.data.gguf_file import is_gguf
from transom.data.in_folder import inside
from transom.errors import Refused, nearest
from transom.model.build import Model, build
from transom.model.config import Experts, ModelConfig
from transom.model.experts import routers
from transom.model.heads import HEADS
from transom.model.initialize import initialize
from transom.model.lora import merge_lora
from transom.model.positions import rotary_frequencies
from transom.model.stack import Stack

from .adapter import base_of, check_base, head_of, is_adapter, put_on, read_adapter
from .card import plain_card
from .config_keys import ConfigKeys
from .families import FAMILIES, family_for
from .family import DEFAULTS, Family, canonical, read_config, stored_tensors, write_config
from .folder import recover
from .generation import CONFIG, GENERATION
from .gguf_families import load_gguf_config
from .manifest import fingerprint, verify_read
from .sentence import MODULES, read_sentence, write_sentence
from .shards import SHARD_BYTES, save_weights, weight_files
from .strict_json import read_json, write_json
from .weight_mapping import map_weights, read_weights, to_stored

OWN = "transom"
"""model_type of a folder in Transom's own format: the fields of ModelConfig, and weights under our names."""

OWN_COUNTS = {
    **dict.fromkeys(("vocab_size", "dim", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_len"), 1),
    **dict.fromkeys(("n_layers", "n_encoder_layers", "relative_max_distance"), 1),
    **dict.fromkeys(("segments", "position_offset"), 0),
    "relative_buckets": 4,
}
"""Fields of that format with the least number that each may be."""
OWN_EXPERT_COUNTS = {"n_experts": 1, "n_active": 1, "ffn_dim": 1, "n_shared": 0, "first_dense": 0}
EXPERT_FIELDS = {field.name for field in dataclasses.fields(Experts)}
HEAD_WEIGHTS = ("head", "labels", "tie_embeddings", "head_transform", "head_bias")
"""Fields that say which weights a head has."""
HEAD_FIELDS = (
    "labels",
    "pooling",
    "normalize",
    "tie_embeddings",
    "head_transform",
    "head_bias",
    "logit_scale",
)

log = logging.getLogger(__name__)


class SavableTokenizer(Protocol):
    """What `save_model` asks of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    def save(self, folder: Path, /) -> Any: ...


# --- in -----------------------------------------------------------------------------------------------------


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    head: Mapping[str, Any] | None = None,
    seed: int = 0,
    merge: bool = True,
) -> Model:
    """The model of a folder, its weights cast to `dtype` one by one, so that they are held about once.

    Of an adapter folder: the base with the adapter in its weights, or beside them where `merge` is False.

    head: fields of ModelConfig for another head on the body that the folder holds, for example
    {"head": "classify", "labels": ("ham", "spam")}. Its weights are drawn from `seed`, but for BERT's pooler,
    which is taken where the first position stands for the text; a head that the folder has already, with the
    same classes, is taken as it is. Raises Refused for anything that is not exactly a model of a family in
    `families` or of our own format: a setting that is not computed here, a tensor missing, left over (but for
    those of a head that is replaced) or of another shape, a damaged file.
    """
    folder = Path(folder)
    recover(folder)
    config, family = load_config(folder)
    stored, config = config, config if head is None else _with_head(config, head, folder)
    another_head = any(getattr(stored, name) != getattr(config, name) for name in HEAD_WEIGHTS)
    model = empty_model(config, folder)
    head_seed = seed if another_head else None
    fill_model(model, folder, family, dtype=dtype, device=device, head_seed=head_seed, merge=merge)
    return model


def fill_model(
    model: Model,
    folder: Path,
    family: Family | None,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    head_seed: int | None = None,
    merge: bool = True,
) -> None:
    """Read the weights of a folder into an empty model of its config; raises Refused as `load_model` does.

    family: as `load_config` gives it. head_seed: the head is another than the folder's, and drawn from this.
    merge: of an adapter folder, put what was learned into the weights, in float32, before they are cast.
    """
    if is_adapter(folder):
        _fill_adapted(model, folder, family, dtype, device, head_seed, merge)
        return
    verify_read(folder, (".json", ".safetensors"))
    files = weight_files(folder)
    like = model.state_dict(keep_vars=True)
    shapes = {name: tuple(weight.shape) for name, weight in like.items()}
    another_head = head_seed is not None
    locations = map_weights(family, model.config, shapes, files, folder, another_head=another_head)
    weights = read_weights(locations, like, dtype, device)
    if head_seed is not None:
        drawn = _drawn_head(model.config, head_seed)
        weights = {name: weight.to(device, dtype) for name, weight in drawn.items()} | weights
    model.load_state_dict(weights, assign=True)
    _fill_buffers(model, device)


def _fill_adapted(
    model: Model,
    folder: Path,
    family: Family | None,
    dtype: torch.dtype,
    device: str | torch.device,
    head_seed: int | None,
    merge: bool,
) -> None:
    """Read the base of an adapter folder into an empty model, and put the adapter on it."""
    base = base_of(folder)
    check_base(folder, base, fingerprint(base))
    verify_read(folder, (".json", ".safetensors"))
    new_head = head_of(folder, family) is not None or head_seed is not None
    first = torch.float32 if merge else dtype
    fill_model(
        model, base, family, dtype=first, device=device, head_seed=head_seed or 0 if new_head else None
    )
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    adapter = read_adapter(folder, family, model.config, shapes, another_head=head_seed is not None)
    put_on(model, adapter, folder, first, device)
    if merge:
        merge_lora(model)
        for weight in model.parameters():
            weight.data = weight.data.to(dtype)


def _with_head(config: ModelConfig, head: Mapping[str, Any], folder: Path) -> ModelConfig:
    """The same body under a head of these fields; of a head of another kind nothing stays."""
    same = head.get("head", config.head) == config.head
    first = {} if same else {name: DEFAULTS[name] for name in HEAD_FIELDS}
    try:
        return canonical(config.with_(**first | dict(head)))
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from None


def empty_model(config: ModelConfig, folder: Path) -> Model:
    """Make the modules of a model of this config, of `folder`, without memory for their weights."""
    try:
        with torch.device("meta"):
            return build(config)
    except RuntimeError:  # more numbers than can be counted
        raise Refused(f"{folder / CONFIG}: no machine holds a model of these sizes") from None


def _drawn_head(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """The weights of a new head, by the names that they have in the model."""
    holder = nn.Module()
    holder.head = HEADS[config.head](config)
    initialize(holder, config.n_layers, seed)
    return holder.state_dict()


def _fill_buffers(model: Model, device: str | torch.device) -> None:
    """What no file holds."""
    for part in model.modules():
        if isinstance(part, Stack) and part.frequencies is not None:
            part.frequencies = rotary_frequencies(part.config).to(device)
    for router in routers(model):
        router.load = torch.zeros(router.experts.n_experts, device=device)


def load_config(folder: str | Path) -> tuple[ModelConfig, Family | None]:
    """What config.json describes, and the family it names; None is Transom's own format. Raises Refused.

    A GGUF file says the same in its metadata, and names an architecture.
    """
    folder = Path(folder)
    if is_gguf(folder):
        return load_gguf_config(folder)
    if not folder.is_dir():
        raise Refused(f"{folder}: no such folder")
    if is_adapter(folder):
        config, family = load_config(base_of(folder))
        head = head_of(folder, family)
        return config if head is None else _with_head(config, head, folder), family
    keys = ConfigKeys(read_json(inside(folder, CONFIG)), str(folder / CONFIG))
    model_type = keys.get("model_type")
    if model_type == OWN:
        return _read_own(keys), None
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        close = nearest(str(model_type), FAMILIES)
        raise keys.refuse("model_type", f"read are {', '.join(FAMILIES)} and {OWN}{close}")
    head = _head_of(family, keys)
    sentence = None
    if head in ("tokens", "embed") and "embed" in family.architectures.values():
        sentence = read_sentence(folder) if (folder / MODULES).exists() else None
    config = read_config(family, keys, head if sentence is None else "embed")
    if sentence is not None:
        config = sentence.applied_to(config, folder)
    if "auto_map" in keys.values:
        keys.note("auto_map names code to run; it is ignored, Transom runs its own")
    if unread := sorted(keys.values.keys() - keys.used - {"auto_map"}):
        keys.note(f"not used: {', '.join(unread)}"[:400])
    for note in keys.notes:
        log.info("%s: %s", folder / CONFIG, note)
    return config, family


def _head_of(family: Family, keys: ConfigKeys) -> str:
    """Which head a folder's architectures put on; raises Refused for one that is not read."""
    named = keys.get("architectures") or [family.architecture]
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise keys.refuse("architectures", "a list of names belongs there")
    heads = {family.architectures.get(one) for one in named}
    if None in heads or len(heads) > 1:
        written = [one for i, (one, head) in enumerate(family.architectures.items())
                   if head not in list(family.architectures.values())[:i]]  # fmt: skip
        raise keys.refuse("architectures", f"of {family.model_type}, only {', '.join(written)} is read")
    return heads.pop() or ""


def _read_own(keys: ConfigKeys) -> ModelConfig:
    """The fields of ModelConfig as they stand, every one checked against its declared type."""
    from pydantic import TypeAdapter, ValidationError  # slow to import, and only this format needs it

    named = {"model_type", "architectures", "dtype"}
    values = {key: value for key, value in keys.values.items() if key not in named}
    tables = ((values, DEFAULTS, keys.where), (keys.table("experts").values, EXPERT_FIELDS, "experts"))
    for table, fields, where in tables:
        for name in table:
            if name not in fields:
                place = keys.where if table is values else f"{keys.where}: {where}"
                raise Refused(f"{place}: unknown key {name[:80]!r}{nearest(name, fields)}")
    for name, least in OWN_COUNTS.items():
        keys.count(name, None, least)
    for name, least in OWN_EXPERT_COUNTS.items():
        keys.table("experts").count(name, None, least)
    try:
        return TypeAdapter(ModelConfig).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(f"{keys.where}: {place and f'{place}: '}{first['msg']}") from None


# --- out ----------------------------------------------------------------------------------------------------


def save_model(
    folder: str | Path,
    model: Model,
    tokenizer: SavableTokenizer | None = None,
    generation: Mapping[str, Any] | None = None,
    card: str = "",
    max_shard_bytes: int = SHARD_BYTES,
    *,
    weights: Mapping[str, Tensor] | None = None,
    max_tokens: int | None = None,
) -> None:
    """Write a model into an existing folder, the one that `commit` gives, as the family that can express it.

    `weights` stands in for the model's own where those are spread over ranks: whole tensors by name.
    `generation` is merged into generation_config.json. `max_tokens`: the longest text that an embedder is
    meant for, where that is less than it could read. Raises Refused when a weight is NaN or infinite, or
    when the tokenizer knows more tokens than the model.
    """
    folder, config = Path(folder), canonical(model.config)
    if any(folder.glob("*.safetensors")) or (folder / CONFIG).exists():
        raise Refused(f"{folder}: holds a model already; save through commit(), which replaces it as a whole")
    if tokenizer is not None:
        if tokenizer.vocab_size > config.vocab_size:
            raise Refused(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}; "
                "they were not made for each other"
            )
        config = config.with_(
            eos_id=tokenizer.eos_id if config.eos_id is None else config.eos_id,
            pad_id=tokenizer.pad_id if config.pad_id is None else config.pad_id,
        )
    weights = model.state_dict() if weights is None else weights
    _check_finite(weights)
    family = family_for(config)
    stored = stored_tensors(family, config, {name: tuple(weight.shape) for name, weight in weights.items()})
    embeddings = weights["embed.weight"]
    dtype = str(embeddings.dtype).removeprefix("torch.")
    if family is None:
        described = {"model_type": OWN, **dataclasses.asdict(config), "dtype": dtype}
    else:
        described = {**write_config(family, config), "dtype": dtype, "torch_dtype": dtype}
    write_json(folder / CONFIG, described)
    if config.head == "tokens" and config.kind != "encoder":
        write_json(folder / GENERATION, {**_generation(config), **(generation or {})})
    bare = family.prefix if family is not None and config.head == "embed" else ""
    tensors = [(tensor.name.removeprefix(bare), to_stored(tensor, weights)) for tensor in stored]
    if family is not None:
        tensors += [(name, embeddings.new_empty(shape)) for name, shape in family.empty_tensors(config)]
    save_weights(folder, tensors, max_shard_bytes)
    if family is not None and config.head == "embed":
        write_sentence(folder, config, max_tokens)
    if tokenizer is not None:
        tokenizer.save(folder)
    (folder / "README.md").write_text(card or plain_card(config, family), encoding="utf-8")


def _generation(config: ModelConfig) -> dict[str, Any]:
    """What generation_config.json says of any model that writes text."""
    ids = {"bos_token_id": config.bos_id, "eos_token_id": config.eos_id, "pad_token_id": config.pad_id}
    if config.kind == "encoder-decoder":
        # Without a length of its own, transformers cuts every translation at 20 tokens.
        ids |= {"decoder_start_token_id": config.start_id, "max_length": config.max_len}
    return {name: value for name, value in ids.items() if value is not None}


def _check_finite(weights: Mapping[str, Tensor]) -> None:
    """A weight that is not a number is never saved: the newest model must be one worth having."""
    for name, weight in weights.items():
        low, high = torch.aminmax(weight.detach())  # carries NaN through, and needs no copy
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise Refused(f"weight {name} holds NaN or infinity; such a model is not saved")
