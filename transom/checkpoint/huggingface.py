"""A model folder, in and out: what `transformers`, vLLM and llama.cpp read is what is read and written here.

config.json names a family; its table (families) says what the model is and where its weights stand. Nothing
in a folder is ever run: no pickle, no `auto_map`. Shapes are compared with the headers of the files before
any memory is taken, so a lying config costs nothing. Read next: families, shards.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from transom.errors import Refused, nearest
from transom.model.config import ModelConfig
from transom.model.positions import rotary_frequencies
from transom.model.transformer import Transformer

from .config_keys import ConfigKeys
from .families import FAMILIES, family_for
from .family import Family, Stored, canonical, read_config, stored_tensors, write_config
from .folder import recover
from .manifest import verify_read
from .shards import SHARD_BYTES, inside, save_weights, weight_files
from .strict_json import read_json, write_json
from .tensors import Header, open_tensors

CONFIG, GENERATION = "config.json", "generation_config.json"
OWN = "transom"
"""model_type of a folder in Transom's own format: the fields of ModelConfig, and weights under our names."""

SIZES = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_len")

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
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Transformer:
    """The model of a folder, its weights cast to `dtype` one by one, so that they are held about once.

    Raises Refused for anything that is not exactly a model of a family in `families` or of our own format:
    a setting that is not computed here, a tensor missing, left over or of another shape, a damaged file.
    """
    folder = Path(folder)
    recover(folder)
    verify_read(folder, (".json", ".safetensors"))
    config, family = load_config(folder)
    files = weight_files(folder)
    with torch.device("meta"):  # shapes without memory
        model = Transformer(config)
    stored = stored_tensors(family, {name: tuple(w.shape) for name, w in model.state_dict().items()})
    places = _match(stored, files, family, config, folder)
    weights: dict[str, Tensor] = {}
    for path in files:
        with open_tensors(path) as file:
            for tensor, (_, name) in ((t, p) for t, p in places.items() if p[0] == path):
                weights |= _split(file.get_tensor(name), tensor, model, dtype, device)
    model.load_state_dict(weights, assign=True)
    if model.frequencies is not None:  # the one buffer that no file holds
        model.frequencies = rotary_frequencies(config).to(device)
    return model


def load_config(folder: str | Path) -> tuple[ModelConfig, Family | None]:
    """What config.json describes, and the family it names; None is Transom's own format. Raises Refused."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Refused(f"{folder}: no such folder")
    keys = ConfigKeys(read_json(inside(folder, CONFIG)), str(folder / CONFIG))
    model_type = keys.get("model_type")
    if model_type == OWN:
        return _read_own(keys), None
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        close = nearest(str(model_type), FAMILIES)
        raise keys.refuse("model_type", f"read are {', '.join(FAMILIES)} and {OWN}{close}")
    architectures = keys.get("architectures") or [family.architecture]
    if not isinstance(architectures, list) or not {family.architecture, family.bare} >= set(
        map(str, architectures)
    ):
        raise keys.refuse("architectures", f"of {model_type}, only {family.architecture} is read")
    config = read_config(family, keys)
    if "auto_map" in keys.values:
        keys.note("auto_map names code to run; it is ignored, Transom runs its own")
    if unread := sorted(keys.values.keys() - keys.used - {"auto_map"}):
        keys.note(f"not used: {', '.join(unread)}"[:400])
    for note in keys.notes:
        log.info("%s: %s", folder / CONFIG, note)
    return config, family


def load_generation(folder: str | Path) -> dict[str, Any]:
    """A folder's generation settings, with every id that ends a text as the list `eos_token_id`."""
    folder = Path(folder)
    config = read_json(inside(folder, CONFIG))
    path = folder / GENERATION
    settings = read_json(inside(folder, GENERATION)) if path.exists() else {}
    ends = settings.get("eos_token_id", config.get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [ends]
    settings["eos_token_id"] = [one for one in ends if type(one) is int and one >= 0]
    return settings


def _read_own(keys: ConfigKeys) -> ModelConfig:
    """The fields of ModelConfig as they stand, every one checked against its declared type."""
    from pydantic import TypeAdapter, ValidationError  # slow to import, and only this format needs it

    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    named = {"model_type", "architectures", "dtype"}
    values = {key: value for key, value in keys.values.items() if key not in named}
    for name in values:
        if name not in fields:
            raise Refused(f"{keys.where}: unknown key {name[:80]!r}{nearest(name, fields)}")
    for name in SIZES:
        keys.count(name, None)
    try:
        return TypeAdapter(ModelConfig).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(f"{keys.where}: {place and f'{place}: '}{first['msg']}") from None


def _match(
    stored: list[Stored],
    files: Mapping[Path, Header],
    family: Family | None,
    config: ModelConfig,
    folder: Path,
) -> dict[Stored, tuple[Path, str]]:
    """Which file holds each tensor, and under what name: all are there, in their shapes, and nothing else."""
    there = {name: (path, shape) for path, header in files.items() for name, shape in header.shapes.items()}
    if family is not None:
        there = {name: place for name, place in there.items() if not re.fullmatch(family.ignored, name)}
    prefix = family.prefix if family is not None else ""
    if not any(name.startswith(prefix) for name in there):  # saved without a head
        prefix_there = {tensor: tensor.name.removeprefix(prefix) for tensor in stored}
    else:
        prefix_there = {tensor: tensor.name for tensor in stored}
    places = {}
    for tensor, name in prefix_there.items():
        if name not in there:
            tied = (
                "; tie_word_embeddings would take the embeddings instead"
                if tensor.ours == ("head.weight",)
                else ""
            )
            raise Refused(f"{folder}: tensor {name!r} of shape {tensor.shape} is missing{tied}")
        path, shape = there.pop(name)
        if shape != tensor.shape:
            raise Refused(f"{path}: tensor {name!r} has shape {shape}; {CONFIG} asks for {tensor.shape}")
        places[tensor] = (path, name)
    if config.tie_embeddings and "lm_head.weight" in there and family is not None:
        _check_same(
            there.pop("lm_head.weight")[0], next(p for t, p in places.items() if t.ours == ("embed.weight",))
        )
    for name, (path, shape) in there.items():
        raise Refused(f"{path}: tensor {name[:120]!r} of shape {shape} has no place in the model of {CONFIG}")
    return places


def _check_same(head: Path, embeddings: tuple[Path, str]) -> None:
    """A head stored beside the embeddings it is tied to must be the same numbers."""
    with open_tensors(head, mapped=True) as one, open_tensors(embeddings[0], mapped=True) as other:
        if not torch.equal(one.get_tensor("lm_head.weight"), other.get_tensor(embeddings[1])):
            raise Refused(
                f"{head}: lm_head.weight differs from {embeddings[1]}, though {CONFIG} ties them; "
                "set tie_word_embeddings to false"
            )


def _split(
    tensor: Tensor, stored: Stored, model: Transformer, dtype: torch.dtype, device: str | torch.device
) -> dict[str, Tensor]:
    """Our parameters out of one stored tensor: turned back, cut apart, cast; each in memory of its own."""
    if not tensor.is_floating_point():
        raise Refused(f"tensor {stored.name!r} holds {tensor.dtype}; weights are floating-point numbers")
    tensor = tensor.t() if stored.transposed else tensor
    parts = tensor.split([model.get_parameter(name).shape[0] for name in stored.ours])
    if len(parts) == 1 and not stored.transposed:
        return {stored.ours[0]: tensor.to(device, dtype)}
    copies = (part.to(device, dtype, copy=True, memory_format=torch.contiguous_format) for part in parts)
    return dict(zip(stored.ours, copies, strict=True))


# --- out ----------------------------------------------------------------------------------------------------


def save_model(
    folder: str | Path,
    model: Transformer,
    tokenizer: SavableTokenizer | None = None,
    generation: Mapping[str, Any] | None = None,
    card: str = "",
    max_shard_bytes: int = SHARD_BYTES,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model into an existing folder, the one that `commit` gives, as the family that can express it.

    `weights` stands in for the model's own where those are spread over ranks: whole tensors by name.
    `generation` is merged into generation_config.json. Raises Refused when a weight is NaN or infinite, or
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
    stored = stored_tensors(family, {name: tuple(weight.shape) for name, weight in weights.items()})
    dtype = str(weights["embed.weight"].dtype).removeprefix("torch.")
    if family is None:
        described = {"model_type": OWN, **dataclasses.asdict(config), "dtype": dtype}
    else:
        described = {**write_config(family, config), "dtype": dtype, "torch_dtype": dtype}
    write_json(folder / CONFIG, described)
    ids = {"bos_token_id": config.bos_id, "eos_token_id": config.eos_id, "pad_token_id": config.pad_id}
    known = {name: value for name, value in ids.items() if value is not None}
    write_json(folder / GENERATION, {**known, **(generation or {})})
    save_weights(folder, [(tensor.name, _join(tensor, weights)) for tensor in stored], max_shard_bytes)
    if tokenizer is not None:
        tokenizer.save(folder)
    (folder / "README.md").write_text(card or plain_card(config, family), encoding="utf-8")


def plain_card(config: ModelConfig, family: Family | None) -> str:
    """A model card for when the caller knows nothing but the shape of the model."""
    written = "Transom's own format; load it with Transom" if family is None else f"`{family.architecture}`"
    return f"""---
library_name: {OWN if family is None else "transformers"}
pipeline_tag: text-generation
tags: [transom]
---
# A language model

Made with Transom, stored as {written}: {config.n_layers} layers of width {config.dim},
{config.n_heads} heads, {config.vocab_size:,} tokens in the vocabulary, at most {config.max_len:,} in a text.

What it learned from and how good it is was not recorded here.
"""


def _join(stored: Stored, weights: Mapping[str, Tensor]) -> Tensor:
    """One tensor of theirs out of ours: a view where possible, so nothing is copied before it is written."""
    parts = [weights[name] for name in stored.ours]
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    return tensor.t() if stored.transposed else tensor


def _check_finite(weights: Mapping[str, Tensor]) -> None:
    """A weight that is not a number is never saved: the newest model must be one worth having."""
    for name, weight in weights.items():
        low, high = torch.aminmax(weight.detach())  # carries NaN through, and needs no copy
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise Refused(f"weight {name} holds NaN or infinity; such a model is not saved")
