"""A run that begins with the weights of a model folder: which model comes out, with which tokenizer, and what
of it learns: all, or adapters beside its linear layers (LoRA).
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from ..checkpoint.adapter import is_adapter, texts_of
from ..checkpoint.hub import name_of, resolve
from ..checkpoint.huggingface import load_config, load_model
from ..checkpoint.manifest import fingerprint
from ..data.gguf_file import is_gguf
from ..data.tokenizer import Tokenizer
from ..errors import Refused, nearest
from ..model.build import Model
from ..model.config import ModelConfig
from ..model.lora import Lora, add_lora, linear_layers, named_by, only_adapters_learn
from ..settings import EXPERTS, LoraSettings, TrainSettings
from .architecture import without_storage

FIELD_OF: dict[str, str] = {
    "experts": "n_experts",
    "active_experts": "n_active",
    "shared_experts": "n_shared",
    "expert_dim": "ffn_dim",
    "balance": "balance",
}
"""What the settings of experts are called in a config."""
MAY_CHANGE = ("dropout", "pooling")
"""What of a given model may be set anew: its weights do not depend on it."""


def tokenizer_of(settings: TrainSettings, otherwise: str) -> str:
    """Return the tokenizer: as asked for, else that of the pretrained weights, else `otherwise`."""
    asked = settings.data.tokenizer
    if asked != "auto":
        there = Path(asked).is_dir() or is_gguf(Path(asked))
        return str(resolve(asked)) if there else asked
    return str(texts_of(resolve(settings.model.weights))) if settings.model.weights else otherwise


def pretrained_config(settings: TrainSettings, tokenizer: Tokenizer, **head: Any) -> ModelConfig:
    """Return the config of `model.weights` with another head and what else may change. Raises `Refused`."""
    assert settings.model.weights is not None
    config, _ = load_config(resolve(settings.model.weights))
    asked = {name: value for name, value in settings.model.given().items() if value is not None}
    if asked.get("max_len", config.max_len) <= config.max_len:  # of the texts; the model's own stays
        asked.pop("max_len", None)
    experts = config.experts
    if experts is None and not settings.model.experts:  # how they would be is then no question
        asked = {name: value for name, value in asked.items() if name not in EXPERTS}
    for name in asked.keys() - {*MAY_CHANGE, "weights", "kind", "size"}:
        stands = getattr(experts, FIELD_OF[name], 0) if name in FIELD_OF else getattr(config, name)
        if stands != asked[name]:
            raise Refused(
                f"model.{name} is {asked[name]}, and in {settings.model.weights} it is {stands}; "
                "the shape of pretrained weights stays as it is"
            )
    if tokenizer.vocab_size > config.vocab_size:
        raise Refused(
            f"the tokenizer has {tokenizer.vocab_size:,} entries, and {settings.model.weights} knows "
            f"{config.vocab_size:,}; leave out --data.tokenizer, and its own is taken"
        )
    changes = {name: asked[name] for name in MAY_CHANGE if name in asked}
    try:
        return config.with_(**{**head_changes(config, **head), **changes})
    except ValueError as error:
        raise Refused(f"{settings.model.weights}: {error}") from error


def head_changes(config: ModelConfig, **head: Any) -> dict[str, Any]:
    """Return the fields that change with the head; those of the old one go."""
    if head.get("head") == config.head == "tokens":
        return {}
    gone = dict(head_transform=False, head_bias=False, labels=(), normalize=False)
    return {**gone, **head}


def pretrained_model(settings: TrainSettings, config: ModelConfig, seed: int) -> Model:
    """Load the body of `model.weights` under the head of `config`, drawn from `seed` where it is new; what
    does not learn by the method is frozen.
    """
    assert settings.model.weights is not None
    names = ("head", "head_transform", "head_bias", "labels", "pooling", "normalize", "dropout")
    folder = resolve(settings.model.weights)
    model = load_model(folder, head={name: getattr(config, name) for name in names}, seed=seed)
    return with_adapters(model, settings, seed)


def with_adapters(model: Model, settings: TrainSettings, seed: int = 0) -> Model:
    """Wrap the linear layers that `lora` names and freeze all else but a new head, where that is the method;
    the model. Raises `Refused` for a target that names no layer, or a rank above that of every weight.
    """
    if settings.method != "lora":
        return model
    asked, layers = settings.lora, linear_layers(model)
    lora = Lora(asked.rank, asked.alpha, asked.rslora, asked.dora, asked.dropout)
    leaves = sorted({name.rpartition(".")[2] for name in layers})
    chosen: dict[str, Lora] = {}
    for target in asked.targets.split(","):
        found = named_by(target.strip(), layers)
        if not found:
            there = f"it has {', '.join(leaves)}, and `all` of them{nearest(target.strip(), leaves)}"
            there = there if leaves else "it has none, so --method full is what can train it"
            raise Refused(f"lora.targets names '{target.strip()}', and the model has no linear layer of that "
                          f"name; {there}")  # fmt: skip
        chosen |= dict.fromkeys(found, lora)
    full = max(min(layers[name].weight.shape) for name in chosen)
    if asked.rank > full:
        raise Refused(f"lora.rank is {asked.rank:,}, and lora.targets have at most {full:,} inputs or "
                      f"outputs: more says no more; set at most {full:,}, or --method full")  # fmt: skip
    add_lora(model, {name: chosen[name] for name in layers if name in chosen}, seed)
    only_adapters_learn(model, besides="head" if has_new_head(settings, model.config) else "")
    return model


def has_new_head(settings: TrainSettings, config: ModelConfig) -> bool:
    """Whether the head is another than that of the pretrained weights, and so learned from nothing."""
    assert settings.model.weights is not None
    before, _ = load_config(resolve(settings.model.weights))
    return (before.head, before.labels) != (config.head, config.labels)


def refuse_rates(settings: TrainSettings, config: ModelConfig) -> None:
    """Raise `Refused` where a rate is given for what the run does not have."""
    optim = settings.optim
    if optim.layer_decay not in (None, 1.0) and not settings.model.weights:
        raise Refused(
            f"optim.layer_decay is {optim.layer_decay:g}, which lets the lower layers of pretrained weights "
            "move less, and none are given; name some by --model.weights, or leave it out"
        )
    if optim.head_lr is not None and not (settings.model.weights and has_new_head(settings, config)):
        raise Refused(
            f"optim.head_lr is {optim.head_lr:g}, the rate of a new head over pretrained weights, and this "
            "run has none; --optim.lr is the rate of all"
        )


def base_hash(settings: TrainSettings) -> str:
    """Return what tells from others the weights that adapters go on, or that gains are measured from (DPO);
    "" where all weights learn, and nothing is compared with them.
    """
    compared = settings.task == "preference" and settings.preference.loss == "dpo"
    if settings.model.weights is None or not (compared or settings.method == "lora"):
        return ""
    return fingerprint(resolve(settings.model.weights))


def is_on_adapter(settings: TrainSettings) -> bool:
    """Whether the pretrained weights are an adapter."""
    return settings.model.weights is not None and is_adapter(resolve(settings.model.weights))


def merge_command(settings: TrainSettings) -> str:
    """Return what makes a model of its own of the adapter that the weights are."""
    weights = settings.model.weights or ""
    return f"transom export {quote(weights)} --to hf --out {quote(name_of(resolve(weights)) + '-merged')}"


def adapters_suit(settings: TrainSettings) -> bool:
    """Whether the pretrained weights are those of a Transformer that writes, and no adapter themselves."""
    if not settings.model.weights or is_on_adapter(settings):
        return False
    config, _ = load_config(resolve(settings.model.weights))
    return config.kind == "decoder" and config.cell is None and config.head == "tokens"


def refuse_method(settings: TrainSettings) -> None:
    """Raise `Refused` where the method cannot be carried out on the model; said before any data is read."""
    if settings.method != "lora":
        if settings.lora != LoraSettings():
            raise Refused("lora is set, and the method is full; add --method lora")
        return
    if not settings.model.weights:
        raise Refused(
            "method is lora, which goes on from a model that is there; name one by --model.weights, or train "
            "all weights (--method full)"
        )
    if is_on_adapter(settings):
        raise Refused(
            f"model.weights {settings.model.weights} is an adapter itself, and an adapter of an adapter is "
            f"read by no other tool; merge it first ({merge_command(settings)}), or train all weights "
            "(--method full)"
        )
    with_adapters(without_storage(load_config(resolve(settings.model.weights))[0]), settings)
