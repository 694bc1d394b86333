"""An adapter folder, in and out: what PEFT, vLLM and Transom read of a LoRA fine-tune.

It holds what was learned and the name of the model that it goes on: adapter_config.json, and
adapter_model.safetensors under PEFT's names, which are those of the base as its family spells them. Where a
family keeps several of our layers in one of theirs (GPT-2's c_attn), their adapters are laid side by side as
one of a larger rank: the same numbers. The tensors say what is adapted; of the config, what would change the
numbers is obeyed or refused by name. Source: PEFT 0.21, `tuners/lora`. Read next: model/lora, huggingface.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transom.data.in_folder import inside
from transom.errors import Refused, nearest
from transom.model.build import Model
from transom.model.config import ModelConfig
from transom.model.lora import Lora, adapted_layers, add_lora

from .config_keys import ConfigKeys
from .families import FAMILIES, family_for
from .family import Family, Stored, stored_tensors
from .hub import HUB_ID, resolve
from .manifest import fingerprint
from .strict_json import parse_json, read_json, write_json
from .tensors import load_tensors, read_header, save_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
OURS = "transom"
"""The entry of the metadata of the weights where Transom writes what PEFT's config has no place for."""
HEAD_FIELDS = ("head", "labels", "pooling", "normalize")
ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "use_bdlora": (None, False),
    "megatron_config": (None,),
}
"""Keys that change what is computed, with the only values that are computed here."""
PREPARED = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""First weights of PEFT that change the base itself: its adapter then goes on another one than it names."""
TASK_OF = {
    ("decoder", "tokens"): "CAUSAL_LM",
    ("encoder-decoder", "tokens"): "SEQ_2_SEQ_LM",
    ("encoder", "embed"): "FEATURE_EXTRACTION",
    ("encoder", "classify"): "SEQ_CLS",
    ("encoder", "tag"): "TOKEN_CLS",
}
"""Kind and head of a model -> what PEFT calls its task."""
PATTERN = re.compile(r"\^?[\w.]+")


@dataclass(frozen=True)
class LayerAdapter:
    """What one linear layer learned: A (rank, in), B (out, rank), with DoRA the length of each row (out,)."""

    lora: Lora
    A: Tensor
    B: Tensor
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder holds, by our names."""

    layers: dict[str, LayerAdapter]
    """Dotted name of a linear layer -> its adapter."""
    whole: dict[str, Tensor]
    """Parameters that were learned as a whole: those of a new head."""


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.json").exists()


# --- in -----------------------------------------------------------------------------------------------------


def base_of(folder: Path) -> Path:
    """The model that an adapter goes on, by the name in its config; raises Refused where it is not here."""
    keys = _keys(folder)
    name, revision = keys.get("base_model_name_or_path"), keys.get("revision")
    if not isinstance(name, str) or not name:
        raise keys.refuse("base_model_name_or_path", "the folder or hub id of the base model belongs there")
    beside = folder / name
    try:
        base = resolve(beside if beside.is_dir() and not Path(name).is_dir() else name, revision)
    except Refused as refused:
        raise Refused(
            f"{keys.where}: the base model of this adapter is not here ({refused}); put it back, or write "
            "where it is now into base_model_name_or_path"
        ) from None
    if is_adapter(base):
        raise Refused(f"{base}: an adapter itself; {folder} needs the model that this one goes on")
    return base


def check_base(folder: Path, base: Path, base_hash: str) -> None:
    """Raise Refused where the weights of `base`, by their `fingerprint`, are not those that the adapter in
    `folder` was trained on.
    """
    trained_on = _said(folder).get("base_sha256")
    if trained_on is not None and trained_on != base_hash:
        raise Refused(
            f"{base}: its weights are not those that the adapter {folder} was trained on; bring the old ones "
            "back, or train the adapter again"
        )


def model_of(folder: Path) -> Path:
    """Where a model says how it is used: in its own folder, or of an adapter in that of its base."""
    return base_of(folder) if is_adapter(folder) else folder


def texts_of(folder: Path) -> Path:
    """Where its tokenizer and its chat template lie: an adapter may have its own."""
    return folder if (folder / "tokenizer.json").exists() else model_of(folder)


def head_of(folder: Path, family: Family | None) -> dict[str, Any] | None:
    """The head that an adapter puts on its base, as fields of a ModelConfig; None: the base's own."""
    said = _said(folder).get("head")
    if said is not None:
        good = (
            isinstance(said, dict) and said.keys() <= set(HEAD_FIELDS) and isinstance(said.get("head"), str)
        )
        labels = said.get("labels", []) if good else None
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise Refused(f"{folder / WEIGHTS}: its metadata describes no head")
        return {**said, "labels": tuple(labels)}
    keys = _keys(folder)
    if keys.get("task_type") != "SEQ_CLS" or family is None:
        return None
    # PEFT keeps no names of classes: as many as the new head has rows.
    shapes = read_header(folder / WEIGHTS).shapes
    last = next((rule.theirs for rule in family.rules if rule.ours == ("head.out",)), None)
    shape = shapes.get(f"{PREFIX}{last}.weight")
    if shape is None or len(shape) != 2:
        raise keys.refuse("task_type", f"{WEIGHTS} holds no head of classes that a {family.model_type} has")
    labels = tuple(f"LABEL_{i}" for i in range(shape[0]))
    return {"head": "classify", "labels": labels, "pooling": "first", **family.head_parts.get("classify", {})}


def read_adapter(
    folder: Path,
    family: Family | None,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    another_head: bool = False,
) -> Adapter:
    """The adapter of a folder for a model of these parameters; raises Refused naming what does not fit.

    family, config: as `huggingface.load_config` gives them for this folder. another_head: what it learned as
    a whole is passed over, since the model has a head of its own.
    """
    keys = _keys(folder)
    common = _common(keys)
    path = inside(folder, WEIGHTS)
    if not path.exists():
        raise Refused(f"{folder}: holds {CONFIG} and no {WEIGHTS}; adapters in pickles are never read")
    family = _spelling(family, config)
    stored = {tensor.name: tensor for tensor in stored_tensors(family, config, shapes)}
    prefix = "" if family is None else family.prefix
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in load_tensors(path).items():
        module, kind = _taken_apart(name, path)
        tensor = tensor.clone()  # aligned memory of its own
        if kind is not None:
            parts.setdefault(module, {})[kind] = tensor
            continue
        if another_head:
            continue
        place = stored.get(module) or stored.get(prefix + module)
        if place is None or place.shape != tensor.shape or place.ours[1:] or place.expert is not None:
            tied = "; the base ties it to its embeddings" if module.startswith("lm_head.") else ""
            raise Refused(f"{path}: {module} of shape {tuple(tensor.shape)} was learned as a whole, and has "
                          f"no place in the base{tied}")  # fmt: skip
        whole[place.ours[0]] = (tensor.t() if place.transposed else tensor).contiguous()
    layers: dict[str, LayerAdapter] = {}
    for module, found in parts.items():
        place = stored.get(f"{module}.weight") or stored.get(f"{prefix}{module}.weight")
        if place is None or place.expert is not None or len(place.shape) != 2:
            known = [name.removesuffix(".weight") for name, one in stored.items() if len(one.shape) == 2]
            raise Refused(f"{path}: {module} is adapted, and the base has no such linear layer"
                          f"{nearest(module, known)}")  # fmt: skip
        layers |= _split(module, found, place, _lora_of(keys, common, module), shapes, path)
    return Adapter(layers, whole)


def put_on(model: Model, adapter: Adapter, folder: Path, dtype: torch.dtype, device: Any) -> None:
    """Wrap the layers of a model whose weights are there, and give it what the adapter learned: parameters
    that were learned as a whole in `dtype`, thin matrices in float32.
    """
    add_lora(model, {name: one.lora for name, one in adapter.layers.items()})
    learned: dict[str, Tensor] = dict(adapter.whole)
    for name, one in adapter.layers.items():
        learned |= {f"{name}.lora_A": one.A, f"{name}.lora_B": one.B}
        learned |= {} if one.magnitude is None else {f"{name}.lora_magnitude": one.magnitude}
    moved = {
        name: tensor.to(device, dtype if name in adapter.whole else torch.float32)
        for name, tensor in learned.items()
    }
    _, unknown = model.load_state_dict(moved, strict=False, assign=True)
    if unknown:
        raise Refused(f"{folder / WEIGHTS}: {unknown[0]} has no place in the base")


def _spelling(family: Family | None, config: ModelConfig) -> Family | None:
    """The family whose names PEFT knows: of a base in a GGUF file, the one that can express it."""
    if family is None or FAMILIES.get(family.model_type) is family:
        return family
    return family_for(config)


def _keys(folder: Path) -> ConfigKeys:
    return ConfigKeys(read_json(inside(folder, CONFIG)), str(folder / CONFIG))


def _said(folder: Path) -> dict[str, Any]:
    """What Transom wrote besides; empty of an adapter that another tool made."""
    path = inside(folder, WEIGHTS)
    text = read_header(path).metadata.get(OURS) if path.exists() else None
    return {} if text is None else parse_json(text.encode(), f"{path}: metadata")


def _common(keys: ConfigKeys) -> Lora:
    """What holds for every layer; raises Refused for what is not computed here."""
    for key, allowed in ONLY.items():
        if not keys.absent(key) and keys.get(key) not in allowed:
            raise keys.refuse(key, f"only {' or '.join(map(repr, allowed))} is supported")
    first = keys.get("init_lora_weights")
    if isinstance(first, str) and first.startswith(PREPARED):
        raise keys.refuse("init_lora_weights", "the base was changed besides; save it merged with PEFT")
    return Lora(
        rank=keys.count("r", 8), alpha=keys.real("lora_alpha", 8.0), rslora=keys.flag("use_rslora", False),
        dora=keys.flag("use_dora", False), dropout=keys.real("lora_dropout", 0.0),
    )  # fmt: skip


def _lora_of(keys: ConfigKeys, common: Lora, module: str) -> Lora:
    """How one of their modules is adapted: rank and alpha by the first pattern that it ends with."""
    values: dict[str, Any] = {}
    for key, field in (("rank_pattern", "rank"), ("alpha_pattern", "alpha")):
        table = keys.table(key)
        for pattern in table.values:
            if not PATTERN.fullmatch(pattern):
                raise keys.refuse(key, f"of {pattern[:80]!r} only the end of a module's name is understood")
            end, exact = pattern.removeprefix("^"), pattern.startswith("^")
            if module == end or (not exact and module.endswith(f".{end}")):
                values[field] = table.count(pattern, None) if field == "rank" else table.real(pattern, None)
                break
    return Lora(**{**common.__dict__, **values})


def _taken_apart(name: str, path: Path) -> tuple[str, str | None]:
    """The module of a tensor and what of its adapter it is: A, B or magnitude; None: a whole parameter."""
    if not name.startswith(PREFIX):
        raise Refused(f"{path}: tensor {name[:120]!r} does not begin with {PREFIX}, as PEFT's do")
    bare = name.removeprefix(PREFIX)
    for ending, kind in (
        ("lora_A.weight", "A"),
        ("lora_B.weight", "B"),
        ("lora_magnitude_vector", "magnitude"),
    ):
        if bare.endswith(f".{ending}"):
            return bare.removesuffix(f".{ending}"), kind
    if ".lora_" in bare:
        raise Refused(
            f"{path}: {bare[:120]}: of adapters, those of linear layers without a bias are computed"
        )
    return bare, None


def _split(
    module: str,
    found: Mapping[str, Tensor],
    place: Stored,
    lora: Lora,
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
) -> dict[str, LayerAdapter]:
    """The adapter of one of their modules as those of our layers that it holds."""
    n_out, n_in = place.shape[::-1] if place.transposed else place.shape
    wanted = {"A": (lora.rank, n_in), "B": (n_out, lora.rank)} | (
        {"magnitude": (n_out,)} if lora.dora else {}
    )
    there = {kind: tuple(tensor.shape) for kind, tensor in found.items()}
    if there != wanted:
        raise Refused(f"{path}: the adapter of {module} is {there}; its config and the base ask for {wanted}")
    widths = [shapes[name][0] for name in place.ours]
    magnitudes = found["magnitude"].split(widths) if lora.dora else [None] * len(widths)
    layers = {}
    for name, B, magnitude in zip(place.ours, found["B"].split(widths), magnitudes, strict=True):
        A, own = found["A"], lora
        used = B.any(dim=0)
        if len(place.ours) > 1 and used.any() and not used.all():  # laid side by side: what is another's goes
            A, B, rank = A[used], B[:, used], int(used.sum())
            own = Lora(**{**lora.__dict__, "rank": rank, "alpha": _alpha(lora.scale, rank, lora.rslora)})
        layers[name.removesuffix(".weight")] = LayerAdapter(own, A.contiguous(), B.contiguous(), magnitude)
    return layers


def _alpha(scale: float, rank: int, rslora: bool) -> float:
    """The alpha that gives a scale at a rank."""
    return scale * (math.sqrt(rank) if rslora else rank)


# --- out ----------------------------------------------------------------------------------------------------


def save_adapter(
    folder: Path,
    model: Model,
    *,
    base: str,
    family: Family | None,
    weights: Mapping[str, Tensor],
    card: str,
    tokenizer: Any = None,
    base_hash: str | None = None,
) -> None:
    """Write what the adapters of a model have learned into an existing folder, the one that `commit` gives.

    base: the folder or hub id that the model began with; family: its own. weights: what was learned, whole
    tensors by name: of the adapters, and of a new head. base_hash: the `fingerprint` of the base, where it is
    known.
    """
    if any(not bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise Refused("a weight of the adapter holds NaN or infinity; such an adapter is not saved")
    adapted, config = adapted_layers(model), model.config
    family = _spelling(family, config)
    shapes = {name: tuple(w.shape) for name, w in model.named_parameters() if ".lora_" not in name}
    stored = stored_tensors(family, config, shapes)
    bare = family.prefix if family is not None and config.head == "embed" else ""
    tensors: dict[str, Tensor] = {}
    loras: dict[str, Lora] = {}
    learned_whole = []
    for place in stored:
        theirs = place.name.removeprefix(bare)
        if place.ours[0] in weights:
            tensor = weights[place.ours[0]]
            tensors[PREFIX + theirs] = tensor.t() if place.transposed else tensor
            learned_whole.append(theirs.rpartition(".")[0])
        names = [name.removesuffix(".weight") for name in place.ours]
        if not any(name in adapted for name in names):
            continue
        module = theirs.removesuffix(".weight")
        loras[module], found = _joined([(adapted.get(n), n) for n in names], shapes, weights)
        tensors |= {f"{PREFIX}{module}.{leaf}": tensor for leaf, tensor in found.items()}
    # How PEFT names them: by the ends of names that are no other module's.
    among = {place.name.removeprefix(bare).rpartition(".")[0] for place in stored}
    for rule in family.rules if family is not None else ():
        among.add(rule.theirs.replace("#", "0").replace("@", "0").removeprefix(bare))
    common = Counter(loras.values()).most_common(1)[0][0]
    ranks = {rank: {m for m, lora in loras.items() if lora.rank == rank} for rank in _others(loras, "rank")}
    alphas = {a: {m for m, lora in loras.items() if lora.alpha == a} for a in _others(loras, "alpha")}
    whole = sorted({_shortest(name, set(learned_whole), among) for name in learned_whole})
    source, revision = _named(base)
    write_json(folder / CONFIG, {
        "peft_type": "LORA",
        "task_type": TASK_OF.get((config.kind, config.head)),
        "base_model_name_or_path": source,
        "revision": revision,
        "r": common.rank,
        "lora_alpha": _plain(common.alpha),
        "lora_dropout": common.dropout,
        "use_rslora": common.rslora,
        "use_dora": common.dora,
        "bias": "none",
        "fan_in_fan_out": any(p.transposed and p.name.removesuffix(".weight") in loras for p in stored),
        "target_modules": sorted({_shortest(name, loras, among) for name in loras}),
        "rank_pattern": {_shortest(m, ms, among): rank for rank, ms in ranks.items() for m in sorted(ms)},
        "alpha_pattern": {_shortest(m, ms, among): _plain(a) for a, ms in alphas.items() for m in sorted(ms)},
        "modules_to_save": whole or None,
        "init_lora_weights": True,
        "inference_mode": True,
    })  # fmt: skip
    head = {name: getattr(config, name) for name in HEAD_FIELDS} if learned_whole else None
    said = {"base_sha256": base_hash or fingerprint(resolve(base)), "head": head}
    save_tensors(folder / WEIGHTS, tensors, {OURS: json.dumps(said)})
    if tokenizer is not None:
        tokenizer.save(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _joined(
    parts: Sequence[tuple[Any, str]], shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]
) -> tuple[Lora, dict[str, Tensor]]:
    """The adapters of our layers that one of their modules holds, as one: A below A, each B in its own rows
    and columns. What is not adapted adds no rank.
    """
    first: Lora = next(layer.lora for layer, _ in parts if layer is not None)
    rank = sum(layer.lora.rank for layer, _ in parts if layer is not None)
    lora = Lora(**{**first.__dict__, "rank": rank, "alpha": _alpha(first.scale, rank, first.rslora)})
    if len(parts) == 1:
        lora = first
    rows, blocks, lengths = [], [], []
    at = 0
    for layer, name in parts:
        n_out = shapes[f"{name}.weight"][0]
        own = 0 if layer is None else layer.lora.rank
        block = torch.zeros(n_out, rank)
        if layer is not None:
            rows.append(weights[f"{name}.lora_A"].float())
            block[:, at : at + own] = weights[f"{name}.lora_B"].float() * (layer.lora.scale / lora.scale)
        at += own
        blocks.append(block)
        if first.dora:
            length = weights[f"{name}.lora_magnitude"] if layer is not None else None
            lengths.append(length)
    found = {"lora_A.weight": torch.cat(rows), "lora_B.weight": torch.cat(blocks)}
    if first.dora:
        if any(length is None for length in lengths):
            raise Refused("DoRA adapts all layers that a family keeps in one tensor, or none: give "
                          "q_proj,k_proj,v_proj together (--lora.targets)")  # fmt: skip
        found["lora_magnitude_vector"] = torch.cat([length.float() for length in lengths])
    return lora, found


def _others(loras: Mapping[str, Lora], field: str) -> list[Any]:
    """The values of a field besides the commonest."""
    counts = Counter(getattr(lora, field) for lora in loras.values())
    common = getattr(Counter(loras.values()).most_common(1)[0][0], field)
    return sorted(value for value in counts if value != common)


def _shortest(name: str, chosen: Collection[str], among: Collection[str]) -> str:
    """The shortest end of a module's name that no module ends with but those that are chosen."""
    pieces = name.split(".")
    for n in range(1, len(pieces)):
        end = ".".join(pieces[-n:])
        if all(one in chosen for one in among if one == end or one.endswith(f".{end}")):
            return end
    return name


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _named(base: str) -> tuple[str, str | None]:
    """How a base is written down: a folder by its whole path, a hub id with its revision."""
    if Path(base).expanduser().exists():
        return str(resolve(base).resolve()), None
    found = HUB_ID.fullmatch(base)
    assert found is not None, base
    return found[1], found[2]
